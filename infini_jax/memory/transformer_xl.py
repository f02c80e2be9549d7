"""Transformer-XL (Dai et al. 2019, arXiv 1901.02860): the previous `slots` keys and values, without gradient.

  h~_{s+1} = [SG(h_s) ; h_{s+1}]: every token of the segment attends to the whole cache and causally to its segment, with
  the paper's relative positions or others (`infini_jax.memory.positions`).
DEVIATION: keys and values are cached, not layer inputs: the same numbers, because the projections see the same inputs, and
no second projection; but W_k and W_v learn from the segment's own tokens only, as the cached ones have no gradient.
DEVIATION: positions are rotary unless `positions` asks for the paper's: no second product with every query.
"""

import dataclasses

import jax

from infini_jax.layers.segment import Segment
from infini_jax.memory.positions import Positions
from infini_jax.memory.window import Cache, Recent, SlotsConfig, view


@dataclasses.dataclass(frozen=True)
class TransformerXLConfig(SlotsConfig):
    """Settings of Transformer-XL.

    Attributes:
      positions: kind of positions; relative are the paper's.
    """

    positions: Positions = "rotary"


class TransformerXL(Cache):
    """Memory of a cache of recent keys and values that every token of the segment sees."""

    Config = TransformerXLConfig
    summary = "cache of the last keys and values, no gradient"
    paper = "arXiv 1901.02860"
    learns, holds = (), "slots"

    def attend(self, memory: Recent, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        seen = view(segment, jax.lax.stop_gradient(memory))  # SG(h_s)
        return self.out(self.attention(segment.queries, seen)), {}
