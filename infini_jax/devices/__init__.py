"""Devices and processes that share a run: the place of each array, the rows that each process reads, peak FLOPs of devices."""
