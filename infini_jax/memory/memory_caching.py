"""Memory Caching (Behrouz, Li, Deng, Zhong, Razaviyayn, Mirrokni 2026, arXiv 2602.24281): the states that segments ended with.

A memory M^(s) is written token by token (eq. 4), here by the rule of `kimi_delta`, and its last state in each segment is
cached. A token of segment s reads the memory as it is after the token and the cached ones, weighed by their segments' topics:
  eq. 9    y_t = gamma_t^(s) M_t^(s)(q_t) + sum_{i < s} gamma_t^(i) M^(i)(q_t)                    gated residual memory
  eq. 10   gamma_t = softmax_i <u_t, mean of segment i>,  u_t = W_u x_t
  eq. 16   R_t = the `selected` best of i < s by <u_t, mean of segment i>
  eq. 17   y_t = gamma_t^(s) M_t^(s)(q_t) + sum_{i in R_t} gamma_t^(i) M^(i)(q_t)                 sparse selective caching
Memory soup (eqs. 14 and 15) is eq. 9 where memories are linear. A memory begins where the last segment ended, or empty in each
segment (section 3.4).
DEVIATION: the paper caches linear attention, its sliding form, DLA and Titans; ours is a delta rule with a decay per channel.
DEVIATION: the mean is that of a segment's keys of unit length, by key head; the paper leaves open in which space tokens are
pooled. The open segment's is that of its tokens so far, as that of all would look ahead.
DEVIATION: the softmax of eq. 17 is over what is read, the selected states and the one that is written.
DEVIATION: what a token does not select has the weight zero, so that selecting saves no product.
DEVIATION: local attention stands beside the memory, and a gate per head mixes both.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.errors import require
from infini_jax.layers.grouped_heads import by_key_head, repeat_heads
from infini_jax.layers.segment import NEVER_SEEN, Segment, counts_before_each, sum_since_begin, with_leaves
from infini_jax.memory.base import Cost, Dims, memory_bytes, segments_of_a_stream
from infini_jax.memory.infini import with_size
from infini_jax.memory.kimi_delta import KimiDelta
from infini_jax.memory.running_delta import Chunks, RunningDeltaConfig, carried_through, chunked
from infini_jax.memory.window import newest_BxN, windows


@struct.dataclass
class CachedStates:
    """What is carried: the memory that is written, and those that segments of the open document ended with, oldest first.

    Attributes:
      S: BxGxKxV, the memory at the segment's end.
      states: BxNxGxKxV, cached ones.
      topics: BxNxGxK, the mean of the keys of each one's segment.
      held_B: B, number of the newest entries that are of the open document.
    """

    S: jax.Array
    states: jax.Array
    topics: jax.Array
    held_B: jax.Array


def weights_of_states(
    u_BxSxHxK: jax.Array, topics_BxNxGxK: jax.Array, topic_BxSxGxK: jax.Array, seen_BxSxN: jax.Array, selected: int
) -> tuple[jax.Array, jax.Array]:
    """(gamma of the cached memories BxSxHxN, of the one that is written BxSxH): eqs. 10 and 16.

    Args:
      u_BxSxHxK: what tokens ask for.
      topics_BxNxGxK: means of the cached segments' keys.
      topic_BxSxGxK: mean of the open segment's keys, up to each token.
      seen_BxSxN: whether a token may read a cached memory.
      selected: number of cached memories that a token reads, the best; 0 for all.
    """
    heads = u_BxSxHxK.shape[2]
    logits_BxSxGxRxN = jnp.einsum("bsgrk,bngk->bsgrn", by_key_head(u_BxSxHxK, topics_BxNxGxK.shape[2]), topics_BxNxGxK)
    logits_BxSxHxN = logits_BxSxGxRxN.reshape(*u_BxSxHxK.shape[:3], -1)
    logits_BxSxHxN = jnp.where(seen_BxSxN[:, :, None], logits_BxSxHxN, -jnp.inf)
    if 0 < selected < topics_BxNxGxK.shape[1]:
        least_BxSxHx1 = jax.lax.top_k(jax.lax.stop_gradient(logits_BxSxHxN), selected)[0][..., -1:]
        logits_BxSxHxN = jnp.where(logits_BxSxHxN >= least_BxSxHx1, logits_BxSxHxN, -jnp.inf)
    own_BxSxHx1 = jnp.sum(u_BxSxHxK * repeat_heads(topic_BxSxGxK, heads), axis=-1, keepdims=True)
    gamma = nn.softmax(jnp.concatenate([logits_BxSxHxN, own_BxSxHx1], axis=-1))
    return gamma[..., :-1], gamma[..., -1]


def read_states(states_BxNxGxKxV: jax.Array, q_BxSxHxK: jax.Array, gamma_BxSxHxN: jax.Array) -> jax.Array:
    """sum_i gamma_i S_i^T q / sqrt(K) over cached memories: BxSxHxV."""
    key_heads, size = states_BxNxGxKxV.shape[2], q_BxSxHxK.shape[-1]
    asked = by_key_head(gamma_BxSxHxN, key_heads)[..., None] * by_key_head(q_BxSxHxK, key_heads)[..., None, :]
    o_BxSxGxRxV = jnp.einsum("bsgrnk,bngkv->bsgrv", asked, states_BxNxGxKxV)
    return o_BxSxGxRxV.reshape(*q_BxSxHxK.shape[:3], -1) * size**-0.5


@dataclasses.dataclass(frozen=True)
class MemoryCachingConfig(RunningDeltaConfig):
    """Settings of Memory Caching.

    Attributes:
      slots: number of segments whose last states are cached.
      selected: cached states that a token reads, the best for it (eq. 17); 0 for all of them (eq. 9).
      begins: where the memory of a segment begins: where the one before ended, or empty.
    """

    slots: int = 4
    selected: int = 0
    begins: Literal["before", "empty"] = "before"

    def check(self, dims: Dims) -> None:
        super().check(dims)
        require(self.slots >= 1, "memory.slots", f"{self.slots} slots cache nothing", "give at least 1, or use kimi_delta")
        require(self.selected >= 0, "memory.selected", f"{self.selected} states cannot be read", "give 0 for all, or more")


class MemoryCaching(KimiDelta):
    """Memory of a key x value matrix per head and segment: that which is written, and those that were."""

    Config = MemoryCachingConfig
    summary = "the states of a delta rule after each segment, read by gates"
    paper = "arXiv 2602.24281"
    axes = ("key_dim", "slots", "value_dim", "heads")
    parameter_axes: ClassVar = {**KimiDelta.parameter_axes, ("connect", "kernel"): ("embed", "heads", "head_dim")}
    holds = "other"
    exempt: ClassVar = {
        "reads_alike_in_any_segments": "a cached state is that of a segment",
        "reads_without_a_copy": "a token makes the writes of the open segment again, beside a cache from a copy of the state",
    }

    def setup(self):
        super().setup()
        d = self.dims
        self.connect = nn.DenseGeneral((d.heads, d.key_dim), use_bias=False, dtype=d.memory_dtype)

    def init_memory(self, batch: int) -> CachedStates:
        S_BxGxKxV, slots = super().init_memory(batch), self.config.slots
        states = jnp.zeros((batch, slots, *S_BxGxKxV.shape[1:]), S_BxGxKxV.dtype)
        return CachedStates(S_BxGxKxV, states, states[..., 0], jnp.zeros(batch, jnp.int32))

    def attend(self, memory: CachedStates, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        before, chunks, _ = self._written(memory, segment)
        return self._read_all(memory, before, chunks, segment)

    def write(self, memory: CachedStates, segment: Segment) -> CachedStates:
        return self._cached(memory, self._written(memory, segment)[2], segment)[1]

    def advance(self, memory: CachedStates, segments: Segment) -> tuple[jax.Array, CachedStates, dict[str, jax.Array]]:
        before, chunks, ends = self._written(memory, segments)
        cached, after = self._cached(memory, ends, segments)
        attended, metrics = self._read_all(cached, before, chunks, segments)
        return attended, after, metrics

    def _written(self, memory: CachedStates, segments: Segment) -> tuple[jax.Array, Chunks, jax.Array]:
        """(S before each chunk NxBWxGxKxV, the chunks, S after each segment BWxGxKxV)."""
        bounds, count = segments.bounds, segments_of_a_stream(memory, segments)
        if self.config.begins == "empty":
            bounds = dataclasses.replace(bounds, open_document=jnp.full_like(bounds.open_document, NEVER_SEEN))
        chunks = chunked(self._edits(segments), bounds)
        before, after = carried_through(memory.S, chunks.solved, count)
        begins_BxWxGxKxV = before[0].reshape(-1, count, *after.shape[1:])
        ends_BxWxGxKxV = jnp.concatenate([begins_BxWxGxKxV[:, 1:], after[:, None]], axis=1)
        return before, chunks, ends_BxWxGxKxV.reshape(-1, *after.shape[1:])

    def _cached(self, memory: CachedStates, ends: jax.Array, segments: Segment) -> tuple[CachedStates, CachedStates]:
        """(what is cached before each segment, one row per segment; the memory after the last)."""
        count, bounds = segments_of_a_stream(memory, segments), segments.bounds
        writes_RxTx1x1 = bounds.writes_BxT[..., None, None]
        k_RxTxGxK = jnp.where(writes_RxTx1x1, self._keys(segments), 0.0)
        topic_RxGxK = k_RxTxGxK.sum(axis=1) / writes_RxTx1x1.sum(axis=1)
        states, states_after = windows(memory.states, ends[:, None], count)
        topics, topics_after = windows(memory.topics, topic_RxGxK[:, None], count)
        keeps_BxW = bounds.keeps_B.reshape(-1, count)
        held_BxX = counts_before_each(memory.held_B, jnp.ones_like(keeps_BxW, jnp.int32), keeps_BxW)
        held_BxX = jnp.minimum(held_BxX, self.config.slots)
        S_after = ends.reshape(-1, count, *ends.shape[1:])[:, -1]
        before = CachedStates(ends, states, topics, held_BxX[:, :-1].reshape(-1))  # its S is not read
        return before, CachedStates(S_after, states_after, topics_after, held_BxX[:, -1])

    def _read_all(
        self, cached: CachedStates, before: jax.Array, chunks: Chunks, segment: Segment
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        bounds = segment.bounds
        topic_BxTxGxK = sum_since_begin(self._keys(segment), bounds) / (1 + bounds.places_BxT[..., None, None])
        seen_BxSxN = newest_BxN(cached.topics.shape[1], cached.held_B)[:, None] & bounds.reads_BxS[..., None]
        gamma_BxSxHxN, own_BxSxH = weights_of_states(
            self.connect(bounds.of_queries(segment.inputs)),
            cached.topics,
            bounds.of_queries(topic_BxTxGxK),
            seen_BxSxN,
            self.config.selected,
        )
        q_BxSxHxK = segment.queries.astype(self.dims.memory_dtype)
        written_BxSxHxV = self._read_written(before, chunks, segment)
        a_mem_BxSxHxV = own_BxSxH[..., None] * written_BxSxHxV + read_states(cached.states, q_BxSxHxK, gamma_BxSxHxN)
        return self._mixed(a_mem_BxSxHxV, segment)

    def lost(self, before: CachedStates, after: CachedStates, segments: int, phase_B: jax.Array | None) -> CachedStates:
        return dataclasses.replace(before, states=before.states[:, :segments], topics=before.topics[:, :segments])

    def restored(self, after: CachedStates, lost: CachedStates, segments: int, phase_B: jax.Array | None) -> CachedStates:
        def back(after: jax.Array, gone: jax.Array) -> jax.Array:
            return jnp.concatenate([gone, after[:, : after.shape[1] - gone.shape[1]]], axis=1)

        return dataclasses.replace(lost, states=back(after.states, lost.states), topics=back(after.topics, lost.topics))

    def logical_axes(self) -> CachedStates:
        of_state = ("kv_heads", "key_dim", "value_dim")
        return with_leaves(
            CachedStates,
            S=("batch", *of_state),
            states=("batch", "segments", *of_state),
            topics=("batch", "segments", *of_state[:2]),
            held_B=("batch",),
        )

    @classmethod
    def holding(cls, config: MemoryCachingConfig, dims: Dims, tokens: int) -> MemoryCachingConfig:
        return dataclasses.replace(config, slots=-(-tokens // dims.segment))

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        d, slots, alone = self.dims, self.config.slots, super().cost(segment_length, segments)
        cached = d.heads * 2.0 * d.key_dim * (d.d_model + slots * (1 + d.value_dim))  # u, its products, the states'
        moved = 3.0 * memory_bytes(self) / segment_length  # read by attend, read and written by write
        return dataclasses.replace(alone, read=alone.read + cached, bytes_moved=moved)

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        return self.cost(segment_length, segments)

    @classmethod
    def resized(
        cls, config: MemoryCachingConfig, dims: Dims, size: int, axis: str = "key_dim"
    ) -> tuple[MemoryCachingConfig, Dims]:
        if axis == "slots":
            return dataclasses.replace(config, slots=size), dims
        return config, with_size(dims, size, axis)
