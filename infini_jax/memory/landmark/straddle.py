"""Landmark blocks that do not end where a segment ends: the unfinished block is carried and read with the next segment.

A landmark follows every b raw tokens of the stream, whatever the segments are. A segment of S raw tokens that begins p (the
phase) raw tokens behind the newest landmark gets floor((p + S) / b) landmarks. It has T = S + ceil(S / b) places; where one
landmark fewer falls into it the last place is dead: its key is later than every live query, nothing is written of it, and
its output is dropped. In place of the segment queries see its span: the p tokens of the unfinished block, then the segment,
so that blocks of P = b + 1 begin at multiples of P and the forms for whole blocks serve. The phase does not start again where
a document does, so that it is one number for all rows.

Letters as in softmax.py: S raw tokens and T places of the segment, P places of a block, b = P - 1 of them raw tokens, H heads;
and J places of the span in M blocks. `_b` in a suffix are the places of a block without its landmark.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.errors import present
from infini_jax.layers.attention import tiles_pay
from infini_jax.layers.distances import ROTARY, Turn
from infini_jax.layers.segment import NEVER_SEEN, Boundaries, Segment, whole
from infini_jax.memory.landmark import softmax as landmark_softmax
from infini_jax.memory.landmark.retrieval import LandmarkMemory


@struct.dataclass
class OpenBlock:
    """The unfinished block, its tokens at places 0..p-1 of b.

    Attributes:
      keys: BxbxGxK, turned by their place.
      values: BxbxGxV.
      tokens: B tokens of the open document among the p; they are its last ones.
    """

    keys: jax.Array
    values: jax.Array
    tokens: jax.Array


@struct.dataclass
class StraddlingMemory:
    """State of landmark attention where segments are not whole blocks.

    Attributes:
      cache: complete blocks, () where none are kept.
      block: the unfinished block.
    """

    cache: LandmarkMemory | tuple[()]
    block: OpenBlock


def raw_tokens(places: int, length: int) -> int:
    """Number S of raw tokens in a segment of T places."""
    return places - math.ceil(places / length)


def span_blocks(places: int, length: int) -> int:
    """Number M of blocks that hold any unfinished block, of at most P - 2 tokens, and the segment's T places behind it."""
    return math.ceil((length - 2 + places) / length)


def dense_products(places: int, length: int, key_dim: int, value_dim: int) -> float:
    """Multiplications of `softmax.dense` per query and head over the span of a whole segment."""
    return landmark_softmax.dense_products(span_blocks(places, length) * length, length, key_dim, value_dim)


def products(places: int, length: int, key_dim: int, value_dim: int) -> float:
    """Multiplications of `attend_span` per token and head of a whole segment, by the form that `auto` takes."""
    keys = span_blocks(places, length) * length
    queries = keys if tiles_pay(keys, keys) else places
    return queries / places * landmark_softmax.products(keys, length, key_dim, value_dim)


def phase_of(bounds: Boundaries) -> jax.Array:
    """The phase p, which all rows share: int32 scalar."""
    return present(bounds.phase, "segments are no whole blocks, so that the carry holds a phase")[0]


def completed(bounds: Boundaries, length: int) -> tuple[jax.Array, jax.Array]:
    """(number of blocks that the whole segment completes, raw tokens that it leaves in the unfinished one)."""
    raw = phase_of(bounds) + raw_tokens(bounds.key_documents.shape[1], length)
    return raw // (length - 1), raw % (length - 1)


def completed_by(phase: jax.Array, segments: int, places: int, length: int) -> jax.Array:
    """Number of blocks that segments of T places complete, which begin at `phase`."""
    return (phase + segments * raw_tokens(places, length)) // (length - 1)


def live_T(bounds: Boundaries, length: int) -> jax.Array:
    """Whether each place of the segment holds a token, landmarks included: all but the last one at most."""
    places = bounds.key_documents.shape[1]
    return jnp.arange(places) < raw_tokens(places, length) + completed(bounds, length)[0]


def live_S(bounds: Boundaries, length: int) -> jax.Array:
    """Whether each query is a token, not the dead place."""
    return jax.lax.dynamic_slice_in_dim(live_T(bounds, length), bounds.start, bounds.query_documents.shape[1])


def to_span(before_Bxbx: jax.Array, segment_BxTx: jax.Array, phase: jax.Array, length: int) -> jax.Array:
    """The span of the segment, BxJx...: p of the places before it (Bxbx...), it (BxTx...), and zeros, later than any query."""
    keys = span_blocks(segment_BxTx.shape[1], length) * length
    pad = [(0, 0), (0, keys - before_Bxbx.shape[1])] + [(0, 0)] * (before_Bxbx.ndim - 2)
    return jax.lax.dynamic_update_slice_in_dim(
        jnp.pad(before_Bxbx.astype(segment_BxTx.dtype), pad), segment_BxTx, phase, axis=1
    )


def span_bounds(bounds: Boundaries, block: OpenBlock, length: int) -> Boundaries:
    """The segment's boundaries with the span for keys."""
    phase, places_b = phase_of(bounds), jnp.arange(length - 1)
    held_Bxb = (places_b < phase) & (places_b >= phase - block.tokens[:, None])
    documents_Bxb = jnp.where(held_Bxb, bounds.open_document[:, None], NEVER_SEEN)
    documents_BxJ = to_span(documents_Bxb, bounds.key_documents, phase, length)
    return dataclasses.replace(bounds, key_documents=documents_BxJ, start=phase + bounds.start)


def span_of(segment: Segment, block: OpenBlock, length: int, turn: Turn) -> tuple[jax.Array, jax.Array, jax.Array, Boundaries]:
    """(queries BxSxHxK, keys BxJxGxK, values BxJxGxV, boundaries) of the span, by `turn` at their places of it.

    The keys of the unfinished block are as they are carried.
    """
    bounds, phase = span_bounds(segment.bounds, block, length), phase_of(segment.bounds)
    queries, places = segment.queries.shape[1], segment.keys.shape[1]
    q_BxSxHxK = turn(segment.queries, bounds.start + jnp.arange(queries))
    k_BxJxGxK = to_span(block.keys, turn(segment.keys, phase + jnp.arange(places)), phase, length)
    return q_BxSxHxK, k_BxJxGxK, to_span(block.values, segment.values, phase, length), bounds


def turned_back(block: OpenBlock, turn: Turn = ROTARY) -> OpenBlock:
    """The unfinished block with its keys as they were projected."""
    return dataclasses.replace(block, keys=turn(block.keys, -jnp.arange(block.keys.shape[1])))


def attend_span(segment: Segment, block: OpenBlock, length: int, turn: Turn = ROTARY) -> tuple[jax.Array, jax.Array]:
    """(BxSxHxV, log-sum-exp BxHxS) of grouped attention to the unfinished block and the segment.

    Whole segments that are large go through tiles, for which their queries are padded to the span.
    """
    q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, bounds = span_of(segment, block, length, turn)
    queries, places, keys = segment.queries.shape[1], segment.keys.shape[1], k_BxJxGxK.shape[1]
    if queries < places or not landmark_softmax.in_tiles(keys, keys):
        return landmark_softmax.dense(q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, bounds, length)
    phase = phase_of(segment.bounds)
    q_BxJxHxK = to_span(jnp.zeros_like(q_BxSxHxK[:, :1]), q_BxSxHxK, phase, length)
    as_whole = whole(bounds.key_documents, bounds.open_document)
    y_BxJxHxV, lse_BxHxJ = landmark_softmax.attend_blocks(q_BxJxHxK, k_BxJxGxK, v_BxJxGxV, as_whole, length)
    cut = jax.lax.dynamic_slice_in_dim
    return cut(y_BxJxHxV, phase, queries, 1), cut(lse_BxHxJ, phase, queries, 2)


def blocks_of(
    block: OpenBlock, segment: Segment, written_BxT: jax.Array, length: int, turn: Turn = ROTARY
) -> tuple[jax.Array, jax.Array, OpenBlock]:
    """(keys BxMxPxGxK turned by their place, values BxMx(P-1)xGxV, the new unfinished block): the span cut into blocks.

    Only the first `completed` blocks are complete. Tokens of the segment that are not `written` become zero; the `tokens` of
    the new unfinished block are yet those of the old one.
    """
    phase, (count, left) = phase_of(segment.bounds), completed(segment.bounds, length)

    def blocks(before_BxbxGxK, x_BxTxGxK):
        x_BxJxGxK = to_span(before_BxbxGxK, jnp.where(written_BxT[..., None, None], x_BxTxGxK, 0), phase, length)
        return x_BxJxGxK.reshape(len(x_BxJxGxK), -1, length, *x_BxJxGxK.shape[2:])

    def unfinished(x_BxMxbxGxK):  # past the last block where nothing is left, and then it is read from nowhere
        x_BxbxGxK = jax.lax.dynamic_index_in_dim(x_BxMxbxGxK, count, axis=1, keepdims=False)
        return jnp.where((jnp.arange(length - 1) < left)[:, None, None], x_BxbxGxK, 0)

    places_T = (phase + jnp.arange(segment.keys.shape[1])) % length
    keys = blocks(block.keys, turn(segment.keys.astype(block.keys.dtype), places_T))
    values = blocks(block.values, segment.values.astype(block.values.dtype))[:, :, :-1]
    return keys, values, dataclasses.replace(block, keys=unfinished(keys[:, :, :-1]), values=unfinished(values))
