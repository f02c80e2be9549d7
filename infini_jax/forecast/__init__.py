"""Forecasts of what a run holds and spends on devices that are not here: counted, and compiled."""
