"""Devices and processes that share a run: the place of each array, the rows of each process, the peak FLOPs of devices."""
