"""Folders of results and their files: names, rows, figures of evaluations, logs of training."""
