"""Devices and processes that share a run: what lies where, who reads which rows, what a device can do at most."""
