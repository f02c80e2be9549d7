"""What layers are made of: the segment and its boundaries, exact attention in several forms, positions, precision."""
