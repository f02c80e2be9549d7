"""The decoder-only transformer, its stream over segments, generation, and what they cost."""
