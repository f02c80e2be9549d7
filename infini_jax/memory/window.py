"""The most recent keys and values, oldest first, as shared by the mechanisms that keep them verbatim."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.errors import require
from infini_jax.layers.segment import Boundaries, Segment, tokens_before_each, with_leaves
from infini_jax.memory.base import Cost, Dims, memory_bytes, segments_of_a_stream
from infini_jax.memory.positions import Positioned, PositionedConfig, View, positioned_cost


@struct.dataclass
class Recent:
    """Cache of the last keys and values of each row.

    Attributes:
      keys: BxNxGxK, without positions.
      values: BxNxGxV.
      length: B, number of the newest entries that are valid.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array


LOGICAL_AXES = with_leaves(
    Recent,
    keys=("batch", "slots", "kv_heads", "key_dim"),
    values=("batch", "slots", "kv_heads", "value_dim"),
    length=("batch",),
)


def empty(batch: int, slots: int, dims: Dims) -> Recent:
    """A cache of `slots` places without a valid entry."""
    return Recent(
        keys=jnp.zeros((batch, slots, dims.kv_heads, dims.key_dim), dims.memory_dtype),
        values=jnp.zeros((batch, slots, dims.kv_heads, dims.value_dim), dims.memory_dtype),
        length=jnp.zeros(batch, jnp.int32),
    )


def newest_BxN(size: int, count_B: jax.Array) -> jax.Array:
    """Whether each of `size` entries is among the last `count_B`."""
    return jnp.arange(size) >= size - count_B[:, None]


def valid_BxN(recent: Recent) -> jax.Array:
    """Whether each entry is of the document that is still open; older ones are masked, never zeroed."""
    return newest_BxN(recent.keys.shape[1], recent.length)


def shift(old: jax.Array, new: jax.Array) -> jax.Array:
    """The newest entries of `old` and `new`, as many as `old` has, along the second axis."""
    joined = jnp.concatenate([old, new.astype(old.dtype)], axis=1)
    return joined[:, joined.shape[1] - old.shape[1] :]


def shift_in(recent: Recent, k_BxTxGxK: jax.Array, v_BxTxGxV: jax.Array, keeps_B: jax.Array, count_B: jax.Array) -> Recent:
    """The cache with T entries shifted in at its new end.

    The last `count_B` of them are valid; entries that were there before stay valid only where `keeps_B`.
    """
    return Recent(
        keys=shift(recent.keys, k_BxTxGxK),
        values=shift(recent.values, v_BxTxGxV),
        length=jnp.minimum(jnp.where(keeps_B, recent.length, 0) + count_B, recent.keys.shape[1]),
    )


def leaving(old: jax.Array, new: jax.Array) -> jax.Array:
    """The oldest entries of `old` and `new`, as many as `new` has: those for which `shift` has no room."""
    return jnp.concatenate([old, new.astype(old.dtype)], axis=1)[:, : new.shape[1]]


def leaving_B(recent: Recent, bounds: Boundaries) -> jax.Array:
    """Number of the last leaving entries that are of the document open at the segment's end; others are forgotten."""
    held_B = jnp.where(bounds.keeps_B, recent.length, 0) + bounds.writes_BxT.sum(axis=1, dtype=jnp.int32)
    return jnp.maximum(held_B - recent.keys.shape[1], 0)


def append(recent: Recent, segment: Segment) -> Recent:
    """The cache after the segment. Written tokens are a suffix of the segment, so valid entries stay a suffix."""
    written_B = segment.bounds.writes_BxT.sum(axis=1, dtype=jnp.int32)
    return shift_in(recent, segment.keys, segment.values, segment.bounds.keeps_B, written_B)


def pushed_out(before: Recent, entries: int) -> Recent:
    """What of a cache is gone after so many entries were shifted in, and its length."""
    return dataclasses.replace(before, keys=before.keys[:, :entries], values=before.values[:, :entries])


def shifted_back(after: Recent, gone: Recent) -> Recent:
    """The cache before entries were shifted in, of which `pushed_out` gave `gone`."""

    def back(after: jax.Array, gone: jax.Array) -> jax.Array:
        return jnp.concatenate([gone, after[:, : after.shape[1] - gone.shape[1]]], axis=1)

    return Recent(back(after.keys, gone.keys), back(after.values, gone.values), gone.length)


def windows(old: jax.Array, new: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """(entries before each of `count` consecutive segments of a stream, one row per segment; those after the last of them).

    `old` are the entries before the first segment, `new` those of all segments, one row per segment, as `shift` takes them.
    """
    slots, tokens = old.shape[1], new.shape[1]
    joined = jnp.concatenate([old, new.reshape(len(old), -1, *new.shape[2:]).astype(old.dtype)], axis=1)
    found = jnp.stack([joined[:, number * tokens :][:, :slots] for number in range(count)], axis=1)
    found = found.reshape(found.shape[0] * count, *found.shape[2:])  # no -1: a window of one token keeps no entry
    return found, joined[:, count * tokens :]


def before_each(recent: Recent, segments: Segment, count: int) -> tuple[Recent, Recent]:
    """(cache before each of `count` consecutive segments of a stream, one row per segment; cache after the last of them)."""
    length_BxX = jnp.minimum(tokens_before_each(recent.length, segments.bounds), recent.keys.shape[1])
    keys, keys_after = windows(recent.keys, segments.keys, count)
    values, values_after = windows(recent.values, segments.values, count)
    return Recent(keys, values, length_BxX[:, :-1].reshape(-1)), Recent(keys_after, values_after, length_BxX[:, -1])


def neighbors(segment: Segment) -> tuple[Recent, ...]:
    """The entries that the segment's queries see beside the memory, at most one cache; a gradient enters a window only."""
    if segment.near is None:
        return ()
    return (jax.lax.stop_gradient(segment.near) if segment.sees is None else segment.near,)


def with_neighbors_as_keys(segment: Segment) -> Segment:
    """The segment with the entries of its neighborhood as keys in front of its own, so that queries begin at a later place."""
    if segment.near is None:
        return segment
    seen, bounds = view(segment), segment.bounds
    start = bounds.start + seen.sight.prefix
    bounds = dataclasses.replace(bounds, key_documents=seen.sight.key_documents, start=start)
    return dataclasses.replace(segment, keys=seen.keys, values=seen.values, bounds=bounds, near=None)


def view(segment: Segment, *carried: Recent, limit: int | None = None) -> View:
    """The carried entries, if any, oldest first, then those of the neighborhood, in front of the segment.

    `limit` is the number of places that a query sees, its own included; where None that of the neighborhood, or all.
    """
    carried, limit = (*carried, *neighbors(segment)), segment.sees if limit is None else limit
    k_BxJxGxK = jnp.concatenate([*(part.keys.astype(segment.keys.dtype) for part in carried), segment.keys], axis=1)
    v_BxJxGxV = jnp.concatenate([*(part.values.astype(segment.values.dtype) for part in carried), segment.values], axis=1)
    valid = [valid_BxN(part) for part in carried]
    sight = segment.bounds.sight(jnp.concatenate(valid, axis=1) if valid else None, limit)
    places_J = jnp.arange(k_BxJxGxK.shape[1]) - (k_BxJxGxK.shape[1] - segment.keys.shape[1])
    return View(k_BxJxGxK, v_BxJxGxV, sight, segment.query_positions_S, places_J)


@dataclasses.dataclass(frozen=True)
class SlotsConfig(PositionedConfig):
    """Settings of a cache.

    Attributes:
      slots: tokens of the past that each layer caches.
    """

    slots: int = 64

    def places(self, segment: int) -> int:
        return segment + self.slots

    def check(self, dims: Dims) -> None:
        require(self.slots >= 1, "memory.slots", f"{self.slots} slots remember nothing", "give at least 1 or use local")


class Cache(Positioned):
    """Base of mechanisms whose whole memory is the last `slots` keys and values; gradients flow through them."""

    axes = ("slots",)
    keeps_bfloat16 = True
    honors = ("attention_scale", "rotary", "score_cap")

    @property
    def slots(self) -> int:
        """Number of tokens carried from one segment to the next."""
        return self.config.slots

    @property
    def limit(self) -> int | None:
        """Number of places that a query sees, its own included; None for all."""
        return None

    def init_memory(self, batch: int) -> Recent:
        return empty(batch, self.slots, self.dims)

    def attend(self, memory: Recent, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self.out(self.attention(segment.queries, view(segment, memory, limit=self.limit))), {}

    def write(self, memory: Recent, segment: Segment) -> Recent:
        return append(memory, segment)

    def advance(self, memory: Recent, segments: Segment) -> tuple[jax.Array, Recent, dict[str, jax.Array]]:
        before, after = before_each(memory, segments, segments_of_a_stream(memory, segments))
        y_BxSxD, metrics = self.attend(before, segments)
        return y_BxSxD, after, metrics

    def lost(self, before: Recent, after: Recent, segments: int, phase_B: jax.Array | None) -> Recent:
        return pushed_out(before, segments * self.dims.segment)

    def restored(self, after: Recent, lost: Recent, segments: int, phase_B: jax.Array | None) -> Recent:
        return shifted_back(after, lost)

    def logical_axes(self) -> Recent:
        return LOGICAL_AXES

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        """FLOPs and bytes moved per token. Local attention is over the segment, reading the rest of it; writing is a copy."""
        attended = positioned_cost(self.config.positions, self.dims, self.slots, segment_length, self.limit, segments=segments)
        return dataclasses.replace(attended, bytes_moved=3.0 * memory_bytes(self) / segment_length)

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        return self.cost(segment_length, segments)
