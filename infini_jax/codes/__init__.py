"""A memory layer alone, asked for codes that it learns, and update rules asked for random codes."""
