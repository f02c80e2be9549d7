"""The input of a memory: one segment, its document edges and its inserted landmark tokens.

Letters: B batch, S query tokens, T key tokens of the open segment (T = S when the whole segment is processed at
once), D model, H query heads, G key heads (G divides H), K key dim, V value dim.
Documents are numbered by non-negative integers that change at every document edge of a row; `NO_DOCUMENT` stands before
the first one.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct

Tree = TypeVar("Tree")

NO_DOCUMENT = -1
"""The document before the first one of a stream."""
NEVER_SEEN = -2  # the document of a key that no query may see: no query has it, not even in a new stream


def with_leaves(kind: type[Tree], **leaves: Any) -> Tree:
    """A pytree of class `kind` whose leaves are something other than arrays, such as names of axes or shardings."""
    return kind(**leaves)


def within(distance: jax.Array, window: int | None) -> jax.Array:
    """Whether a key `distance` places before the query is neither later than the query nor outside the window."""
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


@struct.dataclass
class Sight:
    """The keys that a query sees: those of its document, not later than itself and fewer than `window` places before.

    The last T of the J keys are the segment's own, at places 0..T-1; `prefix` carried ones stand before them, at places
    -prefix..-1. Back ends work from this description, so that nobody has to hold S x J booleans.

    Attributes:
      query_documents: BxS document of each query token.
      key_documents: BxJ document of each key, `NEVER_SEEN` for a carried place that holds nothing.
      start: int32 scalar, the place of the first query. With as many queries as segment keys it can only be 0.
      prefix: number of carried keys.
      window: places that a query sees, its own included; None for all.
      mutual: numbers of the segment's first and last tokens that see all of their group, later ones too.
    """

    query_documents: jax.Array
    key_documents: jax.Array
    start: jax.Array
    prefix: int = struct.field(pytree_node=False, default=0)
    window: int | None = struct.field(pytree_node=False, default=None)
    mutual: tuple[int, int] = struct.field(pytree_node=False, default=(0, 0))

    @property
    def distance_SxJ(self) -> jax.Array:
        """Places from a key forward to a query; negative where the key is later."""
        query_S = self.start + jnp.arange(self.query_documents.shape[1])
        return query_S[:, None] - (jnp.arange(self.key_documents.shape[1]) - self.prefix)

    @property
    def mask_BxSxJ(self) -> jax.Array:
        """Whether each query sees each key, BxSxJ booleans."""
        return within(self._seen_SxJ, self.window) & (self.query_documents[:, :, None] == self.key_documents[:, None, :])

    @property
    def _seen_SxJ(self) -> jax.Array:
        """Places from a key forward to a query; from a later key of a mutual group as if it stood where the group begins."""
        distance_SxJ = self.distance_SxJ
        if not any(self.mutual):
            return distance_SxJ
        (before, after), keys = self.mutual, self.key_documents.shape[1]
        place_J = jnp.arange(keys) - self.prefix
        last_J = place_J - (keys - self.prefix - after)
        in_group_J = jnp.where((place_J >= 0) & (place_J < before), place_J, jnp.maximum(last_J, 0))
        return jnp.where(distance_SxJ < 0, distance_SxJ + in_group_J, distance_SxJ)


@struct.dataclass
class Boundaries:
    """Document edges of a segment, from which every mask follows.

    Attributes:
      query_documents: BxS document of each query token.
      key_documents: BxT document of each key token; those after the last query are not looked at.
      open_document: B document that was open when the segment began, `NO_DOCUMENT` in a new stream.
      start: int32 scalar, the place of the first query among the keys (0 for a whole segment).
      phase: B raw tokens between the newest landmark of the stream and the segment, the same in all rows; None where segments
        are whole landmark blocks, or without landmarks. With a phase the last place of the segment may be dead, see
        `insert_landmarks`.
      before: B tokens of the open document before the segment, where places count from its start; None where they count from
        the segment's.
      mutual: numbers of memory tokens (before, after) that see all of their group, see `MemoryConfig.mutual_tokens`.
    """

    query_documents: jax.Array
    key_documents: jax.Array
    open_document: jax.Array
    start: jax.Array
    phase: jax.Array | None = None
    before: jax.Array | None = None
    mutual: tuple[int, int] = struct.field(pytree_node=False, default=(0, 0))

    @property
    def places_BxS(self) -> jax.Array:
        """Place of each query in its document, of which the tokens of the segment count, and those `before` it."""
        place_BxT = self.places_BxT
        if self.before is not None:
            is_open_BxT = self.key_documents == self.open_document[:, None]
            place_BxT = place_BxT + jnp.where(is_open_BxT, self.before[:, None], 0)
        return self.of_queries(place_BxT)

    def of_queries(self, x_BxTx: jax.Array) -> jax.Array:
        """The part of an array of the segment's tokens that is of the query tokens, BxS..."""
        return jax.lax.dynamic_slice_in_dim(x_BxTx, self.start, self.query_documents.shape[1], axis=1)

    @property
    def places_BxT(self) -> jax.Array:
        """Place of each token among those of its document in the segment."""
        documents_BxT = self.key_documents
        place_T = jnp.arange(documents_BxT.shape[1])
        begins_BxT = jnp.pad(documents_BxT[:, 1:] != documents_BxT[:, :-1], ((0, 0), (1, 0)))
        return place_T - jax.lax.cummax(jnp.where(begins_BxT, place_T, 0), axis=1)

    @property
    def local_BxSxT(self) -> jax.Array:
        """Whether each query may see each key of the segment: of the same document and not later, itself included."""
        return self.sight().mask_BxSxJ

    def sight(self, carried_BxN: jax.Array | None = None, window: int | None = None) -> Sight:
        """The keys that the segment's tokens see: those of the segment and N carried ones, where `carried_BxN` is true.

        Carried keys are of the document that was open when the segment began; older ones must not be marked as held.
        """
        if carried_BxN is None:
            return Sight(self.query_documents, self.key_documents, self.start, window=window, mutual=self.mutual)
        documents_BxN = jnp.where(carried_BxN, self.open_document[:, None], NEVER_SEEN)
        documents_BxJ = jnp.concatenate([documents_BxN, self.key_documents], axis=1)
        return Sight(self.query_documents, documents_BxJ, self.start, carried_BxN.shape[1], window, self.mutual)

    @property
    def continues_B(self) -> jax.Array:
        """Whether the segment begins with the document that was open."""
        return self.key_documents[:, 0] == self.open_document

    @property
    def reads_BxS(self) -> jax.Array:
        """Whether each token may read the carried memory: its document was open when the segment began."""
        return self.query_documents == self.open_document[:, None]

    @property
    def writes_BxT(self) -> jax.Array:
        """Whether each token belongs to the document that is still open at the segment's end: a suffix of each row."""
        return self.key_documents == self.key_documents[:, -1:]

    @property
    def keeps_B(self) -> jax.Array:
        """Whether the carried memory survives this segment: no new document began in it."""
        return self.key_documents[:, -1] == self.open_document


@struct.dataclass
class Segment:
    """One layer's view of a segment. Queries and keys carry no positions yet: the mechanism owns them.

    Attributes:
      inputs: BxTxD normalized layer input of every token of the segment.
      queries: BxSxHxK, projected from `inputs`; query head h reads key head h // (H / G).
      keys: BxTxGxK, projected from `inputs`.
      values: BxTxGxV, projected from `inputs`.
      bounds: document edges.
      near: keys and values of tokens before the segment that its queries see beside the memory (`memory.window.Recent`), None
        without any.
      sees: number of places that a query sees of `near` and the segment, its own included; None for all.
    """

    inputs: jax.Array
    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    bounds: Boundaries
    near: Any = None
    sees: int | None = struct.field(pytree_node=False, default=None)

    @property
    def query_positions_S(self) -> jax.Array:
        """Place of each query in the segment; keys stand at 0..T-1. Rotary needs distances only."""
        return self.bounds.start + jnp.arange(self.queries.shape[1])


def by_turn(segments: Segment, count: int) -> Segment:
    """Segments in turn, for a scan: rows of `count` consecutive segments per stream become an axis in front of the streams."""

    def split(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0:  # `start`
            return jnp.broadcast_to(leaf, (count,))
        return jnp.moveaxis(leaf.reshape(-1, count, *leaf.shape[1:]), 1, 0)

    return jax.tree.map(split, segments)


def counts_before_each(held_B: jax.Array, added_BxW: jax.Array, keeps_BxW: jax.Array) -> jax.Array:
    """Counts before each of W consecutive segments and after the last, BxX with X = W + 1, of which the first are `held_B`.

    A segment adds `added_BxW` to the count, or to zero where it does not keep it. All are found at once: a count is what was
    added in all, less what was added before the last time that nothing was kept.
    """
    total_BxX = jnp.pad(jnp.cumsum(added_BxW, axis=1), ((0, 0), (1, 0)))
    none_Bx1 = -held_B[:, None]
    begins_BxW = jnp.where(keeps_BxW, none_Bx1, total_BxX[:, :-1])
    return total_BxX - jax.lax.cummax(jnp.concatenate([none_Bx1, begins_BxW], axis=1), axis=1)


def tokens_before_each(held_B: jax.Array, bounds: Boundaries) -> jax.Array:
    """Written tokens of the open document before each of W consecutive segments and after the last: BxX, X = W + 1.

    The rows of `bounds` are all segments, those of one stream next to each other; `held_B` were written before the first.
    """
    keeps_BxW = bounds.keeps_B.reshape(held_B.shape[0], -1)
    written_BxW = bounds.writes_BxT.sum(axis=1, dtype=held_B.dtype).reshape(keeps_BxW.shape)
    return counts_before_each(held_B, written_BxW, keeps_BxW)


def sum_since_begin(x_BxTx: jax.Array, bounds: Boundaries) -> jax.Array:
    """Sum over the tokens of each token's document in the segment, up to itself, BxT... of BxT....

    Sums begin anew with a document, so that nothing of the one before is in them, not even its rounding.
    """
    documents_BxT = bounds.key_documents
    begins_BxT = jnp.pad(documents_BxT[:, 1:] != documents_BxT[:, :-1], ((0, 0), (1, 0)))

    def then(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (begins, before), (begins_too, after) = first, second
        return begins | begins_too, jnp.where(begins_too, after, before + after)

    begins_BxTx = jnp.broadcast_to(begins_BxT.reshape(*begins_BxT.shape, *(1,) * (x_BxTx.ndim - 2)), x_BxTx.shape)
    return jax.lax.associative_scan(then, (begins_BxTx, x_BxTx), axis=1)[1]


def over_segments(function: Callable[..., jax.Array], count: int, tile: int, *rows: jax.Array) -> jax.Array:
    """`function` of `count` consecutive segments of each stream, for `tile` of them at once: its results' rows, all segments'.

    Args:
      function: function (numbers of the segments, their part of each array in `rows`) -> an array of as many rows.
      count: number of segments.
      tile: a divisor of it.
      rows: arrays with one row per segment, those of a stream together.
    """
    if tile == count:
        return function(jnp.arange(count), *rows)
    batch = len(rows[0]) // count

    def split(x_Rx: jax.Array) -> jax.Array:
        x_NxBxcx = jnp.moveaxis(x_Rx.reshape(batch, -1, tile, *x_Rx.shape[1:]), 1, 0)
        return x_NxBxcx.reshape(-1, batch * tile, *x_Rx.shape[1:])

    numbers_Nxc = jnp.arange(count).reshape(-1, tile)
    found_NxCx = jax.lax.map(lambda item: function(*item), (numbers_Nxc, *map(split, rows)))
    found_BxNxcx = jnp.moveaxis(found_NxCx.reshape(-1, batch, tile, *found_NxCx.shape[2:]), 0, 1)
    return found_BxNxcx.reshape(-1, *found_NxCx.shape[2:])


def whole(
    documents_BxS: jax.Array,
    open_document_B: jax.Array,
    phase_B: jax.Array | None = None,
    mutual: tuple[int, int] = (0, 0),
) -> Boundaries:
    """The boundaries of a segment that is processed at once."""
    return Boundaries(documents_BxS, documents_BxS, open_document_B, jnp.int32(0), phase_B, mutual=mutual)


def reset_where_new(keeps_B: jax.Array, memory: Any, initial: Any = None) -> Any:
    """`memory`, reset to `initial` (by default zero) in rows whose document ended; batch is the first axis of every leaf."""

    def reset(leaf: jax.Array, begin: jax.Array) -> jax.Array:
        return jnp.where(keeps_B.reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf, begin)

    return jax.tree.map(reset, memory, jax.tree.map(jnp.zeros_like, memory) if initial is None else initial)


def length_with_landmarks(tokens: int, every: int | None) -> int:
    """Number of places of a segment of `tokens` raw tokens, with a landmark behind every `every` of the stream or none."""
    return tokens if every is None else tokens + math.ceil(tokens / every)


def insert_memory_tokens(tokens_RxS: jax.Array, count: tuple[int, int], token: int | None = None) -> jax.Array:
    """Rows with `count` = (before, after) memory tokens around them: Rx(before + S + after).

    The inserted places hold `token` and the ids behind it, in each group from the first on. Without it the first or last token
    is repeated: among document ids, memory tokens then belong to the first and the last token's document.
    """
    if not any(count):
        return tokens_RxS
    if token is None:
        return jnp.pad(tokens_RxS, ((0, 0), count), mode="edge")
    before, after = (memory_token_ids(len(tokens_RxS), number, token) for number in count)
    return jnp.concatenate([before, tokens_RxS, after], axis=1)


def memory_token_ids(rows: int, count: int, token: int) -> jax.Array:
    """Ids of a group of memory tokens, rows x count: `token` and those behind it."""
    return jnp.broadcast_to(token + jnp.arange(count, dtype=jnp.int32), (rows, count))


def drop_memory_tokens(x_RxSxD: jax.Array, count: tuple[int, int]) -> jax.Array:
    """Features without the memory tokens (before, after) around each row: the inverse of `insert_memory_tokens`."""
    before, after = count
    return x_RxSxD[:, before : x_RxSxD.shape[1] - after]


def insert_landmarks(
    tokens_BxS: jax.Array, every: int, landmark: int | None = None, phase_B: jax.Array | None = None
) -> jax.Array:
    """Rows with a landmark behind every `every` tokens of the stream.

    The inserted places hold `landmark`. Without it the token before is repeated: among document ids, a landmark then belongs
    to the document of the token that it follows.

    Without `phase_B` the segment begins with a block and S is a multiple of `every`. Otherwise `phase_B` is the number of
    tokens between the newest landmark and the row. One landmark more or less may then fall into the row, which has
    S + ceil(S / every) places. A dead last place repeats the last token, so that the row ends with the last token's document.
    """
    batch, tokens = tokens_BxS.shape
    if phase_B is not None:
        places_BxL = phase_B[:, None] + jnp.arange(length_with_landmarks(tokens, every))
        is_landmark_BxL = places_BxL % (every + 1) == every
        source_BxL = places_BxL - places_BxL // (every + 1) - phase_B[:, None] - is_landmark_BxL
        inserted_BxL = jnp.take_along_axis(tokens_BxS, jnp.minimum(source_BxL, tokens - 1), axis=1)
        return inserted_BxL if landmark is None else jnp.where(is_landmark_BxL, landmark, inserted_BxL)
    groups = tokens_BxS.reshape(batch, tokens // every, every)
    closing = groups[:, :, -1:] if landmark is None else jnp.full_like(groups[:, :, -1:], landmark)
    return jnp.concatenate([groups, closing], axis=2).reshape(batch, -1)


def drop_landmarks(x_BxSxD: jax.Array, every: int, phase_B: jax.Array | None = None) -> jax.Array:
    """Features of the raw tokens alone: the inverse of `insert_landmarks`."""
    batch, places, features = x_BxSxD.shape
    if phase_B is not None:
        raw = jnp.arange(places - math.ceil(places / (every + 1)))
        return jnp.take_along_axis(x_BxSxD, (raw + (phase_B[:, None] + raw) // every)[..., None], axis=1)
    return x_BxSxD.reshape(batch, -1, every + 1, features)[:, :, :every].reshape(batch, -1, features)


def at_places(tokens_xNxD: jax.Array, x_BxSxD: jax.Array, bounds: Boundaries, first: int) -> jax.Array:
    """`x_BxSxD` with N tokens put at the segment's places from `first` on, as far as its S places have them: BxSxD.

    `x_BxSxD` begins at place `bounds.start` of the segment.
    """
    place_S = bounds.start + jnp.arange(x_BxSxD.shape[1]) - first
    count = tokens_xNxD.shape[1]
    put_xSxD = tokens_xNxD[:, jnp.clip(place_S, 0, count - 1)].astype(x_BxSxD.dtype)
    return jnp.where(((place_S >= 0) & (place_S < count))[:, None], put_xSxD, x_BxSxD)
