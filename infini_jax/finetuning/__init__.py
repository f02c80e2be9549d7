"""A trained run that learns to classify texts, by parameters of its own that are thrown away once it is scored."""
