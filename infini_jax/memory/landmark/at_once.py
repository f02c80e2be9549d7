"""Retrieval of landmark attention for all segments of a step at once: the cache before each of them is never made.

The blocks of the cache and those of all segments lie in one array in their order; before segment w the cache is the window of
N blocks that begins at block w M. What a block holds is the same for every segment that may read it, as no later document
begins in it: so blocks are read from the one array, whoever asks, and who may read which is a mask on the landmarks' scores.

Letters as in retrieval.py: N cached blocks, P places of a block, b = P - 1, R retrieved; and W segments of M blocks each,
J = N + W M blocks; X = W + 1. Z are the rows of all segments, those of a stream together; C those of some of them.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from infini_jax.layers.attention import MASKED
from infini_jax.layers.distances import Turn
from infini_jax.layers.segment import Boundaries, over_segments, tokens_before_each
from infini_jax.memory.base import KEPT
from infini_jax.memory.landmark import retrieval
from infini_jax.memory.landmark.retrieval import LandmarkMemory, Selection
from infini_jax.memory.topk import at_once


@struct.dataclass
class Blocks:
    """All blocks that are in the cache before one of W segments, or after the last.

    Attributes:
      keys: BxGxJxPxK, as in `LandmarkMemory`, the oldest first.
      values: BxGxJxbxV.
      held: BxJxP, whether each token is of the document to which the last raw token of its block belongs, and that document
        is open at the end of the token's segment.
      tokens: BxX, `LandmarkMemory.tokens` before each segment and after the last.
    """

    keys: jax.Array
    values: jax.Array
    held: jax.Array
    tokens: jax.Array

    @classmethod
    def of(cls, cache: LandmarkMemory, keys_ZxGxMxPxK: jax.Array, values_ZxGxMxbxV: jax.Array, bounds: Boundaries) -> "Blocks":
        """The blocks of a cache and of the segments behind it."""
        batch, _, cached, length, _ = cache.keys.shape

        def joined(old_BxGxNx: jax.Array, new_ZxGxMx: jax.Array) -> jax.Array:
            new_BxGxWxMx = jnp.moveaxis(new_ZxGxMx.reshape(batch, -1, *new_ZxGxMx.shape[1:]), 1, 2)
            new_BxGxLx = new_BxGxWxMx.reshape(*old_BxGxNx.shape[:2], -1, *old_BxGxNx.shape[3:])
            return jnp.concatenate([old_BxGxNx, new_BxGxLx], axis=2)

        every_BxN = jnp.broadcast_to(jnp.arange(cached), (batch, cached))
        written_BxLxP = bounds.writes_BxT.reshape(batch, -1, length)
        return cls(
            keys=joined(cache.keys, keys_ZxGxMxPxK),
            values=joined(cache.values, values_ZxGxMxbxV),
            held=jnp.concatenate([retrieval.held_tokens(cache, every_BxN), written_BxLxP], axis=1),
            tokens=jnp.minimum(tokens_before_each(cache.tokens, bounds), cached * length),
        )

    def held_by(self, blocks: jax.Array) -> jax.Array:
        """Which tokens each of `blocks` (B, ...) holds, (B, ..., P)."""
        return jax.vmap(lambda held_JxP, block: held_JxP.at[block].get(mode="promise_in_bounds"))(self.held, blocks)

    def cache_after(self, cached: int) -> LandmarkMemory:
        """The cache of the newest blocks, so many, after the last segment."""
        first = self.keys.shape[2] - cached
        return LandmarkMemory(self.keys[:, :, first:], self.values[:, :, first:], self.tokens[:, -1])


def read(
    blocks: Blocks,
    cached: int,
    queries: list[jax.Array],
    reads_ZxS: jax.Array,
    retrieved: int,
    selection: Selection,
    turn: Turn,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(places in the cache of the chosen blocks ZxHxRxA, values ZxHxRxSxV, scores ZxHxRxS), as `choose` and `read` find them.

    `queries` are `turned_queries` of all segments.
    """
    batch, length = len(blocks.keys), blocks.keys.shape[3]
    (rows, _, heads, _), count = queries[0].shape, blocks.tokens.shape[1] - 1
    step = (blocks.keys.shape[2] - cached) // count
    tokens_Z = blocks.tokens[:, :-1].reshape(-1)

    def readable(place: jax.Array, tokens: jax.Array) -> jax.Array:
        """Whether the last raw token of the block at a place of the cache is held, of so many held tokens."""
        return (cached - 1 - place) * length + 1 < tokens

    def chosen_of(numbers_c: jax.Array, q_CxSxHxK: jax.Array, reads_CxS: jax.Array, tokens_C: jax.Array) -> jax.Array:
        window_cxN = numbers_c[:, None] * step + jnp.arange(cached)
        landmarks_BxGxcxNxK = blocks.keys[..., -1, :][:, :, window_cxN]
        landmarks_BxcxGxNxK = jnp.swapaxes(landmarks_BxGxcxNxK, 1, 2)
        landmarks_CxGxNxK = landmarks_BxcxGxNxK.reshape(-1, *landmarks_BxcxGxNxK.shape[2:])
        readable_CxN = readable(jnp.arange(cached), tokens_C[:, None])
        return retrieval.choose_among(
            landmarks_CxGxNxK, readable_CxN, length, [q_CxSxHxK], reads_CxS, retrieved, selection, turn
        )

    tile = at_once(count, batch * heads * queries[0].shape[1] * cached)
    given = jax.lax.stop_gradient((queries[0], reads_ZxS, tokens_Z))
    chosen_ZxHxRxA = checkpoint_name(over_segments(chosen_of, count, tile, *given), KEPT)

    def by_stream(x_ZxHxRx: jax.Array) -> jax.Array:
        """What rows of segments choose as what rows of streams choose, BxHxWRx..."""
        x_BxHxWxRx = jnp.swapaxes(x_ZxHxRx.reshape(batch, count, *x_ZxHxRx.shape[1:]), 1, 2)
        return x_BxHxWxRx.reshape(batch, heads, -1, *x_ZxHxRx.shape[3:])

    def by_segment(x_BxHxYx: jax.Array) -> jax.Array:
        x_BxHxWxRx = x_BxHxYx.reshape(batch, heads, count, -1, *x_BxHxYx.shape[3:])
        return jnp.swapaxes(x_BxHxWxRx, 1, 2).reshape(rows, heads, -1, *x_BxHxYx.shape[3:])

    q_ZxHxRxSxK = retrieval.queries_in_slots(queries, chosen_ZxHxRxA, cached)
    first_Z = jnp.tile(jnp.arange(count) * step, batch)
    place_BxHxYxA = by_stream(chosen_ZxHxRxA + first_Z[:, None, None, None])
    found = retrieval.read_pairs(blocks.keys, blocks.values, by_stream(q_ZxHxRxSxK), place_BxHxYxA, blocks.held_by)
    y_ZxHxRxSxV, scores_ZxHxRxS = map(by_segment, found)
    may_read_ZxHxRxS = readable(chosen_ZxHxRxA, tokens_Z[:, None, None, None]) & reads_ZxS[:, None, None]
    return chosen_ZxHxRxA, y_ZxHxRxSxV, jnp.where(may_read_ZxHxRxS, scores_ZxHxRxS, MASKED)
