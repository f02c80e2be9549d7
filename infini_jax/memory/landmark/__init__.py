"""Landmark attention (arXiv 2305.16300): the mechanism, its two-level softmax, retrieval of blocks."""

from infini_jax.memory.landmark.mechanism import Landmark, LandmarkConfig

__all__ = ["Landmark", "LandmarkConfig"]
