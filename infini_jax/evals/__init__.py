"""Evaluations of a trained model, one file per task."""
