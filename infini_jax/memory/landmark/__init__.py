"""Landmark attention, trained and retrieving."""

from infini_jax.memory.landmark.mechanism import Landmark, LandmarkConfig

__all__ = ["Landmark", "LandmarkConfig"]
