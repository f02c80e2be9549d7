"""The tasks of MAD, the mechanistic architecture design (Poli et al. 2024, arXiv 2403.17844), by their released generators.

DEVIATION: all train on the places alone that are asked, where the original trains recall on every token; rows are drawn
afresh, where the original repeats 800 to 12 800 of them.
"""
