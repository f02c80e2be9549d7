"""What tests share: made data and results, streams, readers of commands and documents."""
