"""Transformer-XL (Dai et al. 2019, arXiv 1901.02860): the previous `slots` keys and values, without gradient.

  h~_{s+1} = [SG(h_s) ; h_{s+1}]: every token of the segment attends to the whole cache and causally to its segment.
DEVIATION: keys and values are cached, not layer inputs: the same numbers, because the projections see the same inputs, and
no second projection. DEVIATION: positions are rotary by relative distance where the paper learns (q + v) W_r R_{i-j}.
"""

import dataclasses

import jax

from infini_jax.memory.window import Cache, Recent, SlotsConfig, attend_rotary, view
from infini_jax.segment import Segment


@dataclasses.dataclass(frozen=True)
class TransformerXLConfig(SlotsConfig):
    """Settings of Transformer-XL.

    Attributes:
      slots: tokens of the past that each layer caches.
    """


class TransformerXL(Cache):
    """A cache of recent keys and values that every token of the segment sees."""

    Config = TransformerXLConfig
    summary = "cache of the last keys and values, no gradient"
    paper = "arXiv 1901.02860"

    def attend(self, memory: Recent, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        seen = view(segment, jax.lax.stop_gradient(memory))  # SG(h_s)
        return self.out(attend_rotary(segment.queries, seen)), {}
