"""Sliding window: every token sees the last `window` tokens, itself included, and nothing older. The floor.

The window crosses segment edges, so `window` - 1 keys and values are carried. Gradients flow through them: a sliding
window has no reason to stop them, and streaming in segments must equal one long banded attention.
"""

import dataclasses

import jax
import jax.numpy as jnp

from infini_jax.attention import attend, attend_flops
from infini_jax.errors import require
from infini_jax.layers import rotary
from infini_jax.memory import window
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig, memory_bytes
from infini_jax.segment import Segment, Sight


@dataclasses.dataclass(frozen=True)
class LocalConfig(MemoryConfig):
    """Settings of the sliding window.

    Attributes:
      window: tokens that a token sees, itself included.
    """

    window: int = 64

    def check(self, dims: Dims) -> None:
        require(self.window >= 1, "memory.window", f"{self.window} hides the token itself", "give at least 1")


def joined_with_recent(
    recent: window.Recent, segment: Segment, limit: int | None = None
) -> tuple[jax.Array, jax.Array, Sight]:
    """Carried keys and values in front of the segment's, and what a query sees of them: BxJxHxK, BxJxHxV (J = N + T), sight.

    `limit` is the number of places that a query sees, its own included; None for all.
    """
    k_BxJxHxK = jnp.concatenate([recent.keys.astype(segment.keys.dtype), segment.keys], axis=1)
    v_BxJxHxV = jnp.concatenate([recent.values.astype(segment.values.dtype), segment.values], axis=1)
    return k_BxJxHxK, v_BxJxHxV, segment.bounds.sight(window.valid_BxN(recent), limit)


class Local(Memory):
    """A sliding window: recalls nothing from further away than `window` tokens a layer."""

    Config = LocalConfig
    summary = "sliding window, the floor"
    paper = "Beltagy et al. 2020, arXiv 2004.05150"

    def init_memory(self, batch: int) -> window.Recent:
        return window.empty(batch, self.config.window - 1, self.dims)

    def attend(self, memory: window.Recent, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        slots = memory.keys.shape[1]
        k_BxJxHxK, v_BxJxHxV, sight = joined_with_recent(memory, segment, self.config.window)
        query_S, key_J = segment.query_positions_S, jnp.arange(k_BxJxHxK.shape[1]) - slots
        y_BxSxHxV = attend(rotary(segment.queries, query_S), rotary(k_BxJxHxK, key_J), v_BxJxHxV, sight)
        return self.out(y_BxSxHxV), {}

    def write(self, memory: window.Recent, segment: Segment) -> window.Recent:
        return window.append(memory, segment)

    def logical_axes(self) -> window.Recent:
        return window.LOGICAL_AXES

    def cost(self, segment_length: int) -> Cost:
        return window_cost(self, segment_length, self.config.window - 1, self.config.window)

    @classmethod
    def resized(cls, config: LocalConfig, dims: Dims, size: int) -> tuple[LocalConfig, Dims]:
        return dataclasses.replace(config, window=size), dims


def window_cost(memory: Memory, segment_length: int, slots: int, limit: int | None = None) -> Cost:
    """Local attention over the segment, the rest of one attention over carried slots and segment; writing is a copy."""
    d = memory.dims
    sizes = (segment_length, d.heads, d.key_dim, d.value_dim)
    total = attend_flops(*sizes, prefix=slots, window=limit)
    local = min(total, attend_flops(*sizes, window=limit))
    return Cost(
        local=local,
        read=total - local,
        bytes_moved=3.0 * memory_bytes(memory) / segment_length,
    )
