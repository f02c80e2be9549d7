"""Sliding window: every token sees the last `window` tokens, itself included, and nothing older. The floor.

The window crosses segment edges, so `window` - 1 keys and values are carried. Gradients flow through them: a sliding
window has no reason to stop them, and streaming in segments must equal one long banded attention.
"""

import dataclasses

from infini_jax.errors import require
from infini_jax.memory.base import Dims
from infini_jax.memory.positions import PositionedConfig
from infini_jax.memory.window import Cache


@dataclasses.dataclass(frozen=True)
class LocalConfig(PositionedConfig):
    """Settings of the sliding window.

    Attributes:
      window: attention window in tokens, the current token included.
    """

    window: int = 64

    def places(self, segment: int) -> int:
        return self.window

    def check(self, dims: Dims) -> None:
        require(self.window >= 1, "memory.window", f"{self.window} hides the token itself", "give at least 1")


class Local(Cache):
    """Memory of a sliding window: it recalls nothing from further away than `window` tokens per layer."""

    Config = LocalConfig
    summary = "sliding window, the floor"
    paper = "Beltagy et al. 2020, arXiv 2004.05150"
    axes = ("window",)

    @property
    def slots(self) -> int:
        return self.config.window - 1

    @property
    def limit(self) -> int:
        return self.config.window
