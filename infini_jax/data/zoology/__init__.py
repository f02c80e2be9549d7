"""Zoology's forms of multi-query associative recall (Arora et al. 2023, arXiv 2312.04927, and its released generators)."""
