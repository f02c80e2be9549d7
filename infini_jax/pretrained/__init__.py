"""Models that were trained elsewhere: their files, what these say of a model, and their tensors as our parameters."""
