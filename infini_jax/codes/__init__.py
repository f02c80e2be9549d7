"""A memory layer alone that recalls codes trained for it, and update rules that recall random codes."""
