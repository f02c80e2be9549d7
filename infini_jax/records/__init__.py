"""What lies in a folder of results: names of files, rows, figures of evaluations, logs of training."""
