"""Measurements; each prints the machine it ran on."""
