"""Transformer-XL (Dai et al. 2019, arXiv 1901.02860): the previous `slots` keys and values, without gradient.

  h~_{s+1} = [SG(h_s) ; h_{s+1}]: every token of the segment attends to the whole cache and causally to its segment.
DEVIATION: keys and values are cached, not layer inputs: the same numbers, because the projections see the same inputs, and
no second projection. DEVIATION: positions are rotary by relative distance where the paper learns (q + v) W_r R_{i-j}.
"""

import dataclasses

import jax
import jax.numpy as jnp

from infini_jax.attention import attend
from infini_jax.errors import require
from infini_jax.layers import rotary
from infini_jax.memory import window
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig
from infini_jax.memory.local import joined_with_recent, window_cost
from infini_jax.segment import Segment


@dataclasses.dataclass(frozen=True)
class TransformerXLConfig(MemoryConfig):
    """Settings of Transformer-XL.

    Attributes:
      slots: tokens of the past that each layer caches.
    """

    slots: int = 64

    def check(self, dims: Dims) -> None:
        require(self.slots >= 1, "memory.slots", f"{self.slots} slots remember nothing", "give at least 1 or use local")


class TransformerXL(Memory):
    """A cache of recent keys and values that every token of the segment sees."""

    Config = TransformerXLConfig
    summary = "cache of the last keys and values, no gradient"
    paper = "arXiv 1901.02860"

    def init_memory(self, batch: int) -> window.Recent:
        return window.empty(batch, self.config.slots, self.dims)

    def attend(self, memory: window.Recent, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        memory = jax.lax.stop_gradient(memory)  # SG(h_s)
        k_BxJxHxK, v_BxJxHxV, sight = joined_with_recent(memory, segment)
        query_S, key_J = segment.query_positions_S, jnp.arange(k_BxJxHxK.shape[1]) - self.config.slots
        y_BxSxHxV = attend(rotary(segment.queries, query_S), rotary(k_BxJxHxK, key_J), v_BxJxHxV, sight)
        return self.out(y_BxSxHxV), {}

    def write(self, memory: window.Recent, segment: Segment) -> window.Recent:
        return window.append(memory, segment)

    def logical_axes(self) -> window.Recent:
        return window.LOGICAL_AXES

    def cost(self, segment_length: int) -> Cost:
        return window_cost(self, segment_length, self.config.slots)

    @classmethod
    def resized(cls, config: TransformerXLConfig, dims: Dims, size: int) -> tuple[TransformerXLConfig, Dims]:
        return dataclasses.replace(config, slots=size), dims
