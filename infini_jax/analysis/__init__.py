"""Theory of recall, and fits of measured figures with intervals."""
