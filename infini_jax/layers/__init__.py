"""Parts of layers: the segment and its boundaries, exact attention in several forms, positions, precision."""
