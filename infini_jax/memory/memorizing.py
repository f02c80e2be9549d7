"""Memorizing Transformer (Wu, Rabe, Hutchins, Szegedy, ICLR 2022, arXiv 2203.08913): kNN over a ring of keys and values.

Order in a segment: reset rows that start a document, retrieve, attend, append. Per head h, with q and k of unit length:
  V_c = softmax(causal(scale_h q k^T) + T5 bias) V              over the XL cache and the segment, or other `positions`
  V_m = softmax over the top-k of (scale_h q K_mem^T) V_mem     no positions; 0 where the memory is empty
  eq. 1-2  V_a = sigmoid(b_h) V_m + (1 - sigmoid(b_h)) V_c
Neither memory has a gradient; queries and the scale learn through the retrieved scores. Published: segment 512, XL cache 512,
8192 to 262 144 slots, k 32, one layer; trained with 8192 slots and tuned with more (`grown`).
DEVIATION: the paper does not print the initial scale; `scale_init` is 8, so that unit vectors can tell 10^3 keys apart.
DEVIATION: grouped queries (G key heads) share one ring per key head; the paper has as many key heads as query heads.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from infini_jax.errors import LATER, require
from infini_jax.layers.attention import masked_softmax
from infini_jax.layers.grouped_heads import by_key_head
from infini_jax.layers.heads import SLOTS_AXIS, by_slots
from infini_jax.layers.platforms import platform
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import Segment, over_segments, with_leaves
from infini_jax.memory import window
from infini_jax.memory.base import GATE, KEPT, Cost, Dims, Memory, Neighborhood, memory_bytes, segments_of_a_stream
from infini_jax.memory.feature_maps import unit
from infini_jax.memory.infini import combine
from infini_jax.memory.offload import on_host, part_of, to_device, to_host
from infini_jax.memory.positions import (
    NO_DECAY,
    PARAMETER_AXES,
    PositionedAttention,
    PositionedConfig,
    Positions,
    local_cost,
    require_own_cache,
)
from infini_jax.memory.ring import LostSlots, Ring, append, lost_slots, slots_before
from infini_jax.memory.rings import Rings
from infini_jax.memory.topk import approximate, at_once, recall, top_k
from infini_jax.memory.window import Recent

RECALL_QUERIES = 8  # of a segment, for which an approximate search is compared with the exact one

Find = Callable[[jax.Array, int, jax.Array], tuple[jax.Array, jax.Array]]  # like `topk.top_k`


@struct.dataclass
class MemorizingMemory:
    """State of the Memorizing Transformer.

    Attributes:
      ring: the long-term memory.
      recent: the XL cache, with keys of unit length; None where nothing is cached.
    """

    ring: Ring
    recent: Recent | None


@struct.dataclass
class LostPairs:
    """What a segment takes from the memory.

    Attributes:
      slots: what was in the slots of the ring that it writes.
      recent: entries that it pushes out of the XL cache, None where nothing is cached.
    """

    slots: LostSlots
    recent: Recent | None


def search(ring: Ring, q_BxSxHxK: jax.Array, k: int, find: Find = top_k) -> jax.Array:
    """The k slots whose keys have the largest products with each query: BxHxSxk, best first, -1 where none is left.

    A positive scale does not change which they are. Query head h searches key head h // (H / G). The result has no gradient.
    Where devices share the slots, each searches its own, and the best of all are the best of their finds.
    """
    return search_keys(ring.keys, ring.held_B, q_BxSxHxK, k, find)


def search_keys(keys_BxGxNxK: jax.Array, held_B: jax.Array, q_BxSxHxK: jax.Array, k: int, find: Find = top_k) -> jax.Array:
    """`search` among the first `held_B` of a ring's keys."""
    keys_BxGxNxK, q_BxSxHxK = jax.lax.stop_gradient((keys_BxGxNxK, q_BxSxHxK))
    (batch, queries, heads, size), (kv_heads, slots) = q_BxSxHxK.shape, keys_BxGxNxK.shape[1:3]
    q_BxGxQxK = by_key_head(q_BxSxHxK, kv_heads).transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, size)

    def of_part(keys_BxGxnxK: jax.Array, held_B: jax.Array, q_BxGxQxK: jax.Array) -> tuple[jax.Array, jax.Array]:
        part = keys_BxGxnxK.shape[2]
        first = jax.lax.axis_index(SLOTS_AXIS) * part
        few = min(k, part)
        found = nearest(keys_BxGxnxK, jnp.clip(held_B - first, 0, part), q_BxGxQxK, few, find)
        best, slot = (jax.lax.all_gather(x, SLOTS_AXIS, axis=3, tiled=True) for x in (found[0], found[1] + first))
        best, place = jax.lax.top_k(best, k)  # of equal ones the first, and the devices' parts stand in the slots' order
        return best, jnp.take_along_axis(slot, place, axis=3)

    over_slots = by_slots(of_part, slots)
    nearest_of_all = functools.partial(nearest, k=k, find=find) if over_slots is None else over_slots
    best_BxGxQxk, slot_BxGxQxk = nearest_of_all(keys_BxGxNxK, held_B, q_BxGxQxK)
    is_missing_BxGxQxk = best_BxGxQxk == -jnp.inf  # products that overflow or are no number are read, and seen
    return jnp.where(is_missing_BxGxQxk, -1, slot_BxGxQxk).reshape(batch, heads, queries, k)


def nearest(
    keys_BxGxNxK: jax.Array, held_B: jax.Array, q_BxGxQxK: jax.Array, k: int, find: Find
) -> tuple[jax.Array, jax.Array]:
    """(products, slots) of the k largest products among the first `held_B` slots, BxGxQxk; a missing one has product -inf.

    The scores of all queries are never held at once where they are many: a loop over key heads and groups of queries.
    """
    batch, kv_heads, slots, _ = keys_BxGxNxK.shape

    def of_keys(q_BxGxQxK: jax.Array, keys_BxGxNxK: jax.Array) -> tuple[jax.Array, jax.Array]:
        return find(jnp.einsum("bgqk,bgnk->bgqn", q_BxGxQxK, keys_BxGxNxK), k, held_B[:, None, None])

    def of_head(g: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys_Bx1xNxK = part_of(keys_BxGxNxK, g, axis=1)
        q_Bx1xQxK = jax.lax.dynamic_index_in_dim(q_BxGxQxK, g, axis=1)
        return in_groups(lambda q: of_keys(q, keys_Bx1xNxK), q_Bx1xQxK, batch * slots)

    if not on_host(keys_BxGxNxK) and at_once(q_BxGxQxK.shape[2], batch * kv_heads * slots) == q_BxGxQxK.shape[2]:
        return of_keys(q_BxGxQxK, keys_BxGxNxK)
    return jax.tree.map(lambda x: x[:, :, 0].swapaxes(0, 1), jax.lax.map(of_head, jnp.arange(kv_heads)))


def in_groups(function: Callable, q_Bx1xQxK: jax.Array, scores_a_query: int) -> tuple[jax.Array, jax.Array]:
    """`function` of all queries, computed for as many at once as their scores allow."""
    batch, _, queries, size = q_Bx1xQxK.shape
    tile = at_once(queries, scores_a_query)
    if tile == queries:
        return function(q_Bx1xQxK)
    tiles_WxBx1xtxK = jnp.moveaxis(q_Bx1xQxK.reshape(batch, 1, -1, tile, size), 2, 0)
    found = jax.lax.map(function, tiles_WxBx1xtxK)
    return jax.tree.map(lambda x_WxBx1xtxk: jnp.moveaxis(x_WxBx1xtxk, 0, 2).reshape(batch, 1, queries, -1), found)


def gathered(array_BxGxNxV: jax.Array, slot_BxHxSxk: jax.Array) -> jax.Array:
    """The entries in these slots of each query head's key head: BxHxSxkxV; slot -1 gives any."""
    batch, kv_heads, _, size = array_BxGxNxV.shape
    flat_BxGxQ = jnp.maximum(slot_BxHxSxk, 0).reshape(batch, kv_heads, -1)
    take = jax.vmap(jax.vmap(lambda array_NxV, slot_Q: array_NxV.at[slot_Q].get(mode="promise_in_bounds")))
    if on_host(array_BxGxNxV):
        slots_GxBxQ = jnp.moveaxis(flat_BxGxQ, 1, 0)
        found_GxBxQxV = jax.lax.map(
            lambda item: take(part_of(array_BxGxNxV, item[0], axis=1), item[1][:, None])[:, 0],
            (jnp.arange(kv_heads), slots_GxBxQ),
        )
        return jnp.moveaxis(found_GxBxQxV, 0, 1).reshape(*slot_BxHxSxk.shape, size)
    return take(array_BxGxNxV, flat_BxGxQ).reshape(*slot_BxHxSxk.shape, size)


def retrieve(ring: Ring, q_BxSxHxK: jax.Array, scale_H: jax.Array, slot_BxHxSxk: jax.Array) -> jax.Array:
    """V_m BxSxHxV, the softmax over the slots that were found."""
    return retrieve_with_lse(ring, q_BxSxHxK, scale_H, slot_BxHxSxk)[0]


def retrieve_with_lse(
    ring: Ring, q_BxSxHxK: jax.Array, scale_H: jax.Array, slot_BxHxSxk: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(V_m BxSxHxV, log-sum-exp BxHxS of its scores): with `attention.merged`, one softmax over ring and local keys.

    Scores are made again from their keys, so that the queries learn. Which slots were found is kept for the backward pass, so
    that the search does not run twice. Their keys and values, k times as large as the segment's own, are taken again from the
    ring that `restored` finds; a ring on the host is not found again, so that they are kept.
    """
    slot_BxHxSxk = checkpoint_name(slot_BxHxSxk, KEPT)
    chosen = (gathered(jax.lax.stop_gradient(array), slot_BxHxSxk) for array in (ring.keys, ring.values))
    k_BxHxSxkxK, v_BxHxSxkxV = (checkpoint_name(array, KEPT) if on_host(ring.keys) else array for array in chosen)
    logits_BxHxSxk = scale_H[:, None, None] * jnp.einsum("bshk,bhsik->bhsi", q_BxSxHxK, k_BxHxSxkxK)
    weights_BxHxSxk, lse_BxHxS = masked_softmax(logits_BxHxSxk, slot_BxHxSxk >= 0)
    return jnp.einsum("bhsi,bhsiv->bshv", weights_BxHxSxk, v_BxHxSxkxV), lse_BxHxS


def measured_recall(ring: Ring, q_BxSxHxK: jax.Array, found_BxHxSxk: jax.Array, reads_BxS: jax.Array) -> jax.Array:
    """Share of the true neighbors that were found, over `RECALL_QUERIES` queries spread over the segment that may read."""
    some = slice(None, None, -(-q_BxSxHxK.shape[1] // RECALL_QUERIES))
    true_BxHxQxk = search(ring, q_BxSxHxK[:, some], found_BxHxSxk.shape[-1])
    return recall(found_BxHxSxk[:, :, some], jnp.where(reads_BxS[:, None, some, None], true_BxHxQxk, -1))


@dataclasses.dataclass(frozen=True)
class MemorizingConfig(PositionedConfig):
    """Settings of the Memorizing Transformer.

    Attributes:
      positions: kind of positions of V_c, by default T5's as in the paper; the ring's keys have none.
      slots: number of (key, value) pairs per head.
      top_k: number of pairs retrieved per query.
      cached: number of tokens before the segment that local attention sees as well, without gradient (the XL cache); part of
        the memory, and 0 with a neighborhood (`local`) other than its own.
      search: exact, or approximate for TPUs (`lax.approx_max_k`), which reports its measured recall as `recall`.
      recall_target: target recall of an approximate search.
      scale_init: initial scale of the logits.
      held: placement of the ring; on the host, one key head of one layer is on the device at a time.
      gate_init: initial b; 0 weighs memory and local attention equally.
    """

    positions: Positions = dataclasses.field(default="t5", metadata=LATER)
    slots: int = 512
    top_k: int = 32
    cached: int = 0
    search: Literal["exact", "approximate"] = "exact"
    recall_target: float = 0.95
    scale_init: float = 8.0
    held: Literal["device", "host"] = "device"
    gate_init: float = dataclasses.field(default=0.0, metadata=LATER)

    def with_local(self, local: Neighborhood) -> "MemorizingConfig":
        return dataclasses.replace(self, local=local, cached=self.cached if local == "own" else 0)

    def places(self, segment: int) -> int:
        return super().places(segment) + self.cached

    @property
    def positions_elsewhere(self) -> Positions:
        """Rotary beside this mechanism's default, as in all results so far; else the same."""
        return "rotary" if self.positions == "t5" else self.positions

    def check(self, dims: Dims) -> None:
        require(self.slots >= 1, "memory.slots", f"{self.slots} slots remember nothing", "give at least 1")
        require(
            1 <= self.top_k <= self.slots,
            "memory.top_k",
            f"{self.top_k} neighbors cannot come from {self.slots} slots",
            f"give 1 to {self.slots}",
        )
        require(self.cached >= 0, "memory.cached", f"{self.cached} is negative", "give 0 or more")
        require_own_cache(self, cached=self.cached)
        require(
            0 < self.recall_target < 1,
            "memory.recall_target",
            f"{self.recall_target:g} is not a recall",
            "give a number between 0 and 1, or search exact",
        )
        require(self.scale_init > 0, "memory.scale_init", f"{self.scale_init:g} is not above zero", "give 8")


class Memorizing(Memory):
    """Memory of a ring of (key, value) pairs per head; every query retrieves its nearest."""

    Config = MemorizingConfig
    summary = "kNN over a ring of keys and values"
    paper = "arXiv 2203.08913"
    axes = ("slots",)
    gates, no_decay, parameter_axes = (("gate",),), NO_DECAY, PARAMETER_AXES
    learns, holds = (), "slots"
    keeps_bfloat16 = True
    neighborhoods = ("segment", "window", "cache")
    honors = ("rotary",)  # queries are of unit length, and scores have a scale of their own

    def setup(self):
        super().setup()
        heads = self.dims.heads
        self.gate = self.param("gate", nn.initializers.constant(self.config.gate_init), (heads,), PARAMETERS)
        self.scale = self.param("scale", nn.initializers.constant(self.config.scale_init), (heads,), PARAMETERS)
        self.attention = PositionedAttention(self.config.positions, self.dims)
        nn.share_scope(self, self.attention)  # its parameters lie beside the gate

    def init_memory(self, batch: int) -> MemorizingMemory:
        d, c = self.dims, self.config
        require(
            c.held == "device" or platform() != "cuda",
            "memory.held",
            "XLA does not compile a ring that lies on the host for NVIDIA GPUs (seen with jax 0.11 on an H100)",
            "choose device, with fewer slots or only one of the layers",
        )
        place = to_host if c.held == "host" else to_device
        ring = Ring(
            keys=place(jnp.zeros((batch, d.kv_heads, c.slots, d.key_dim), d.memory_dtype)),
            values=place(jnp.zeros((batch, d.kv_heads, c.slots, d.value_dim), d.memory_dtype)),
            written=jnp.zeros(batch, jnp.int32),
        )
        return MemorizingMemory(ring, window.empty(batch, c.cached, d) if c.cached else None)

    def attend(self, memory: MemorizingMemory, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        c, metrics = self.config, {GATE: nn.sigmoid(self.gate)}
        memory, reads_BxS = jax.lax.stop_gradient(memory), segment.bounds.reads_BxS
        scale_H, q_BxSxHxK = jnp.abs(self.scale), self.unit(segment.queries)
        if c.search == "exact":
            slot_BxHxSxk = search(memory.ring, q_BxSxHxK, c.top_k)
        else:
            slot_BxHxSxk = search(
                memory.ring, q_BxSxHxK, c.top_k, functools.partial(approximate, recall_target=c.recall_target)
            )
            metrics["recall"] = measured_recall(memory.ring, q_BxSxHxK, slot_BxHxSxk, reads_BxS)
        v_m_BxSxHxV = retrieve(memory.ring, q_BxSxHxK, scale_H, slot_BxHxSxk)
        return self._mixed(v_m_BxSxHxV, memory.recent, segment, q_BxSxHxK, scale_H), metrics

    def _mixed(
        self, v_m_BxSxHxV: jax.Array, recent: Recent | None, segment: Segment, q_BxSxHxK: jax.Array, scale_H: jax.Array
    ) -> jax.Array:
        """The output BxSxD of eq. 1 and 2; V_m counts zero for tokens of a new document."""
        v_m_BxSxHxV = jnp.where(segment.bounds.reads_BxS[..., None, None], v_m_BxSxHxV, 0.0)
        v_c_BxSxHxV = self.local(recent, segment, q_BxSxHxK, scale_H)
        return self.out(combine(self.gate, v_m_BxSxHxV, v_c_BxSxHxV).astype(self.dims.dtype))

    def unit(self, x: jax.Array) -> jax.Array:
        """x / |x| in the memory's type."""
        return unit(x.astype(self.dims.memory_dtype))

    def local(self, recent: Recent | None, segment: Segment, q_BxSxHxK: jax.Array, scale_H: jax.Array) -> jax.Array:
        """V_c BxSxHxV, attention over the XL cache and the neighborhood."""
        dtype = self.dims.dtype
        near = segment.near and dataclasses.replace(segment.near, keys=self.unit(segment.near.keys))
        recent = window.empty(q_BxSxHxK.shape[0], 0, self.dims) if recent is None else recent
        seen = window.view(dataclasses.replace(segment, keys=self.unit(segment.keys).astype(dtype), near=near), recent)
        return self.attention(q_BxSxHxK.astype(dtype), seen, scale_H)

    def write(self, memory: MemorizingMemory, segment: Segment) -> MemorizingMemory:
        memory, segment = jax.lax.stop_gradient((memory, dataclasses.replace(segment, keys=self.unit(segment.keys))))
        ring = append(memory.ring, segment.keys, segment.values, segment.bounds)
        # Without a gradient: one that is zero would have to live on the host as well, and JAX's does not.
        return jax.lax.stop_gradient(MemorizingMemory(ring, memory.recent and window.append(memory.recent, segment)))

    def advance(self, memory: MemorizingMemory, segments: Segment) -> tuple[jax.Array, MemorizingMemory, dict[str, jax.Array]]:
        """(outputs BWxSxD, memory, metrics) of W segments, as `Memory.advance`.

        They are taken at once where the ring lies on the device that searches it and nothing has to be measured.
        """
        count, ring = segments_of_a_stream(memory, segments), memory.ring
        split = by_slots(nearest, ring.keys.shape[2]) is not None
        if count == 1 or split or on_host(ring.keys) or self.config.search != "exact":
            return super().advance(memory, segments)
        memory, scale_H, q_RxSxHxK = jax.lax.stop_gradient(memory), jnp.abs(self.scale), self.unit(segments.queries)
        written = jax.lax.stop_gradient(dataclasses.replace(segments, keys=self.unit(segments.keys)))
        rings = Rings.of(memory.ring, written.keys, written.values, segments.bounds)
        batch, (_, queries, heads, _) = len(ring.written), q_RxSxHxK.shape
        tile = at_once(count, batch * heads * queries * self.config.slots)
        search_tile = functools.partial(search_keys, k=self.config.top_k)
        slot_RxHxSxk = over_segments(lambda n_c, q: search_tile(*rings.keys_before(n_c), q), count, tile, q_RxSxHxK)
        place_BxHxLxk = rings.places_found(slot_RxHxSxk).reshape(batch, heads, -1, self.config.top_k)
        q_BxLxHxK = q_RxSxHxK.reshape(batch, -1, *q_RxSxHxK.shape[2:])
        v_m_RxSxHxV = retrieve(rings.every, q_BxLxHxK, scale_H, place_BxHxLxk).reshape(*q_RxSxHxK.shape[:3], -1)
        recent, recent_after = (None, None) if memory.recent is None else window.before_each(memory.recent, written, count)
        y_RxSxD = self._mixed(v_m_RxSxHxV, recent, segments, q_RxSxHxK, scale_H)
        after = MemorizingMemory(rings.after(segments.bounds), recent_after)
        return y_RxSxD, jax.lax.stop_gradient(after), {GATE: nn.sigmoid(self.gate)}

    def lost(self, before: MemorizingMemory, after: MemorizingMemory, segments: int, phase_B: jax.Array | None) -> LostPairs:
        gone = before.recent and window.pushed_out(before.recent, segments * self.dims.segment)
        return LostPairs(lost_slots(before.ring, after.ring, segments, self.dims.segment), gone)

    def restored(self, after: MemorizingMemory, lost: LostPairs, segments: int, phase_B: jax.Array | None) -> MemorizingMemory:
        recent = after.recent and lost.recent and window.shifted_back(after.recent, lost.recent)
        return MemorizingMemory(slots_before(after.ring, lost.slots), recent)

    def logical_axes(self) -> MemorizingMemory:
        ring = with_leaves(
            Ring,
            keys=("batch", "kv_heads", "slots", "key_dim"),
            values=("batch", "kv_heads", "slots", "value_dim"),
            written=("batch",),
        )
        return MemorizingMemory(ring, window.LOGICAL_AXES if self.config.cached else None)

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        """FLOPs and bytes moved per token.

        Reading is the scores of all slots, the k found ones again with their values, the cache, and measuring recall.
        """
        d, c = self.dims, self.config
        attended = local_cost(c, d, segment_length, c.cached, segments)
        stride = -(-segment_length // RECALL_QUERIES)
        asked = 0.0 if c.search == "exact" else math.ceil(segment_length / stride) / segment_length
        searched = 2.0 * d.heads * (1.0 + asked) * c.slots * d.key_dim
        found = 2.0 * d.heads * c.top_k * (d.key_dim + d.value_dim)
        written = memory_bytes(self) * min(1.0, segment_length / (c.slots + c.cached)) / segment_length
        return dataclasses.replace(
            attended,
            read=searched + found + attended.read,
            read_saved=2 * searched
            + found
            + attended.read_saved,  # which slots are found has no gradient, and what they hold has none
            bytes_moved=memory_bytes(self) / segment_length + written,
        )

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        takes_in_turn = self.config.held == "host" or self.config.search != "exact"
        return self.cost(segment_length, 1 if takes_in_turn else segments)

    @classmethod
    def usual_layers(cls, layers: int) -> tuple[int, ...]:
        """The one layer that searches in the paper, three quarters up."""
        return (3 * layers // 4,)

    @classmethod
    def resized(cls, config: MemorizingConfig, dims: Dims, size: int, axis: str = "slots") -> tuple[MemorizingConfig, Dims]:
        """(settings, dims) of a ring with `size` slots. A ring smaller than k is retrieved whole."""
        config, dims = super().resized(config, dims, size, axis)
        return dataclasses.replace(config, top_k=min(config.top_k, config.slots)), dims
