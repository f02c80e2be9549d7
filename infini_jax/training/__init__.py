"""From settings to a finished run: program, loop, checkpoints, held-out scores, row."""
