"""Retrieval of landmark attention (arXiv 2305.16300, inference section): which query reads which block, and the reading.

Positions ("stingy"): k+1 slots of P positions lie before the segment. For scoring, the k newest cached blocks stand in slots
1..k and all older ones in slot 0; a retrieved block of rank r by age stands in slot r if it is old, r+1 if it is among the k
newest. The paper starts the segment at min(blocks ever, k+1) * P; here it always starts at (k+1) * P and fewer blocks
fill the last slots: rotary knows distances only, so both are the same, and with fewer than k blocks or exactly k (where
the authors' code fails or overlaps positions) all stand where they stood.

A retrieved block gives a query one vector, its tokens' softmax-weighted values, and one score, its landmark's: the outer
softmax is the caller's. Blocks are read in tiles, one copy of a block with queries that chose it; a `PairLayout` says which
pair of query and chosen block lies in which tile. It has three forms, one of which `form_of` takes by size: `shared` has a
tile for each choice where all tokens share them, `gather` a tile for each pair, `tiles` sorts the pairs by block, up to C in
a tile.

Letters: N cached blocks, P tokens of a block with its landmark and b = P - 1 without, R retrieved, H query heads of which U
share one of G key heads, A tokens that choose (S, or 1 where all share a choice), Y = U R choices and X = Y S pairs of a key
head, in E tiles of C.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from infini_jax.layers.attention import MASKED
from infini_jax.layers.blockwise import MADE_AGAIN
from infini_jax.layers.distances import ROTARY, Turn
from infini_jax.layers.grouped_heads import by_key_head
from infini_jax.layers.platforms import platform
from infini_jax.layers.segment import Segment
from infini_jax.memory import window
from infini_jax.memory.base import KEPT
from infini_jax.memory.landmark.layouts import PairLayout, block_copies, by_pair, form_of, pair_layout

Selection = Literal["token_and_head", "heads", "tokens"]


@struct.dataclass
class LandmarkMemory:
    """Cache of the newest complete blocks, oldest first and filled from the end.

    Attributes:
      keys: BxGxNxPxK, rotated by their place 0..P-1 in the block; the landmark's is the last.
      values: BxGxNx(P-1)xV, of the raw tokens.
      tokens: B tokens of the open document that the cache holds, landmarks included; they are its last ones, so that
        the number says which blocks are filled and which tokens of the first of them belong to an older document.
    """

    keys: jax.Array
    values: jax.Array
    tokens: jax.Array


def leaving(segment: Segment) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(keys BxTxGxK, values BxTxGxV, whether each is written BxT) of the tokens that a segment brings into the cache.

    They are its own, or those of its neighborhood, which the next segment no longer sees.
    """
    near, bounds = segment.near, segment.bounds
    if near is None:
        return segment.keys, segment.values, bounds.writes_BxT
    return near.keys, near.values, window.valid_BxN(near) & bounds.keeps_B[:, None]


def append_blocks(
    memory: LandmarkMemory, keys: jax.Array, values: jax.Array, tokens: jax.Array, count: jax.Array | None = None
) -> LandmarkMemory:
    """The cache with M new blocks, first in, first out.

    It is a shift by M blocks for every row, whatever its documents: no scatter, and age is the place in the array.

    Args:
      memory: the cache.
      keys: BxGxMxPxK.
      values: BxGxMx(P-1)xV.
      tokens: B tokens of the open document in old and new blocks.
      count: number of the M blocks that are appended, the first ones; None for all.
    """
    blocks, length = memory.keys.shape[2:4]

    def shift(old: jax.Array, new: jax.Array) -> jax.Array:
        both = jnp.concatenate([old, new], axis=2)
        return both[:, :, -blocks:] if count is None else jax.lax.dynamic_slice_in_dim(both, count, blocks, axis=2)

    return LandmarkMemory(
        keys=shift(memory.keys, keys),
        values=shift(memory.values, values),
        tokens=jnp.minimum(tokens, blocks * length).astype(memory.tokens.dtype),
    )


def oldest_blocks(before: LandmarkMemory, most: int) -> LandmarkMemory:
    """What of a cache may be gone after blocks were appended, `most` at most: so many of its oldest, and its `tokens`."""
    return dataclasses.replace(before, keys=before.keys[:, :, :most], values=before.values[:, :, :most])


def blocks_before(after: LandmarkMemory, oldest: LandmarkMemory, count: jax.Array | None = None) -> LandmarkMemory:
    """The cache before blocks were appended: as many as `oldest_blocks` gave, or the first `count` of them."""

    def back(after: jax.Array, old: jax.Array) -> jax.Array:
        blocks, most = after.shape[2], old.shape[2]
        if count is None:
            return jnp.concatenate([old, after[:, :, : blocks - most]], axis=2)
        gone = jnp.minimum(count, most)
        shifted = jax.lax.dynamic_slice_in_dim(jnp.concatenate([old, after], axis=2), most - gone, blocks, axis=2)
        is_gone = jnp.arange(most)[:, None, None] < gone
        return shifted.at[:, :, :most].set(jnp.where(is_gone, old, shifted[:, :, :most]))

    return LandmarkMemory(back(after.keys, oldest.keys), back(after.values, oldest.values), oldest.tokens)


def held_tokens(memory: LandmarkMemory, blocks: jax.Array) -> jax.Array:
    """Whether each token of the cached `blocks` (B, ...) belongs to the open document: boolean (B, ..., P)."""
    cached, length = memory.keys.shape[2:4]
    newer_P = length - 1 - jnp.arange(length)
    newer = (cached - 1 - blocks)[..., None] * length + newer_P
    return newer < memory.tokens.reshape((-1,) + (1,) * (newer.ndim - 1))


def first_position(retrieved: int, length: int) -> int:
    """Position of the first token after the cached blocks: behind k+1 slots."""
    return (retrieved + 1) * length


def scoring_slots(blocks: int, retrieved: int) -> np.ndarray:
    """The slot in which each cached block, oldest first, stands while it is scored: (N,)."""
    return np.maximum(np.arange(blocks) - (blocks - retrieved) + 1, 0)


def retrieved_slots(chosen: jax.Array, blocks: int) -> jax.Array:
    """The slot of each retrieved block (..., R, S); `chosen` are places in a cache of `blocks`, oldest first along R."""
    retrieved = chosen.shape[-2]
    return jnp.arange(retrieved)[:, None] + (chosen >= blocks - retrieved)


def best_newest(scores_xNxS: jax.Array, count: int) -> jax.Array:
    """Ascending places (..., count, S) of the highest of `scores` (..., N, S) along N; the last place wins a tie.

    Scores that are no number are the highest: their blocks are read, so that they are seen.

    Equal means equal up to rounding: products with equal keys may differ in their last bits, by the shape of the
    product, and a decoded token must choose as the whole segment does. Places stand before the S tokens, so that the
    passes over them run along the vector.
    """
    counts_xNxS = (scores_xNxS > MASKED / 2) & (scores_xNxS < jnp.inf)
    size = jnp.where(counts_xNxS, jnp.abs(scores_xNxS), 0.0).max(axis=-2, keepdims=True)
    slack = 32 * jnp.finfo(scores_xNxS.dtype).eps * size
    places_Nx1 = jnp.arange(scores_xNxS.shape[-2])[:, None]

    def take(scores_xNxS, _):
        near_xNxS = (scores_xNxS >= scores_xNxS.max(axis=-2, keepdims=True) - slack) | jnp.isnan(scores_xNxS)
        place_xS = jnp.where(near_xNxS, places_Nx1, -1).max(axis=-2)
        return jnp.where(places_Nx1 == place_xS[..., None, :], -jnp.inf, scores_xNxS), place_xS

    _, chosen = jax.lax.scan(take, scores_xNxS, length=count, unroll=min(count, 8))
    if count > 8:
        return jnp.sort(jnp.moveaxis(chosen, 0, -2), axis=-2)
    ranks = (chosen[None] < chosen[:, None]).sum(axis=1)  # many tiny sorts are slow
    return jnp.stack([jnp.where(ranks == rank, chosen, 0).sum(axis=0) for rank in range(count)], axis=-2)


def select_blocks(
    scores_BxHxNxS: jax.Array, readable_BxN: jax.Array, reads_BxS: jax.Array, retrieved: int, selection: str
) -> jax.Array:
    """Places of the blocks to retrieve, ascending: BxHxRxS, with one entry for all tokens (BxHxRx1) for `tokens`.

    `token_and_head`: each query of each head chooses by q . k_landmark. `heads`: the heads of a token share the choice
    by their highest softmax share. `tokens`: the queries that may read share it. Where fewer than R blocks are
    readable the first places are unreadable ones: the caller masks them.
    """
    readable_Bx1xNx1 = readable_BxN[:, None, :, None]
    scores = jnp.where(readable_Bx1xNx1, jax.lax.stop_gradient(scores_BxHxNxS), MASKED)
    batch, heads, _, tokens = scores.shape
    if selection != "token_and_head":
        scores = jax.nn.log_softmax(scores, axis=-2)  # the logarithm: shares themselves underflow, and then tie
    if selection == "heads":
        scores = scores.max(axis=1, keepdims=True)
    if selection == "tokens":
        scores = jnp.where(reads_BxS[:, None, None], scores, MASKED).max(axis=-1, keepdims=True)
        tokens = 1
    chosen = best_newest(jnp.where(readable_Bx1xNx1, scores, MASKED), retrieved)
    return jnp.broadcast_to(chosen, (batch, heads, retrieved, tokens))


def turned_queries(
    q_BxSxHxK: jax.Array, places_S: jax.Array, retrieved: int, length: int, turn: Turn = ROTARY
) -> list[jax.Array]:
    """The queries as they see the slots 0..R: R+1 times BxSxHxK; `places_S` counts from the first token after the cache.

    A key at place p of slot s, seen from position i, is a key turned by p seen from i - s P: so cached keys are turned once,
    when they are written.
    """
    positions_S = first_position(retrieved, length) + places_S
    return [turn(q_BxSxHxK, positions_S - slot * length) for slot in range(retrieved + 1)]


def choose(
    memory: LandmarkMemory,
    queries: list[jax.Array],
    reads_BxS: jax.Array,
    retrieved: int,
    selection: str,
    turn: Turn = ROTARY,
) -> jax.Array:
    """Places of the blocks to retrieve, ascending: BxHxRxS, or BxHxRx1 where all tokens share them, see `select_blocks`.

    Blocks are chosen by the scores of all cached landmarks in their scoring slots. `queries` are `turned_queries`.
    """
    batch, _, blocks, length, _ = memory.keys.shape
    every_BxN = jnp.broadcast_to(jnp.arange(blocks), (batch, blocks))
    readable_BxN = held_tokens(memory, every_BxN)[..., -2]  # its last raw token: one token at least beside the landmark
    landmarks = (memory.keys[..., -1, :], readable_BxN, length)
    return choose_among(*landmarks, queries, reads_BxS, retrieved, selection, turn)


def choose_among(
    landmarks_BxGxNxK: jax.Array,
    readable_BxN: jax.Array,
    length: int,
    queries: list[jax.Array],
    reads_BxS: jax.Array,
    retrieved: int,
    selection: str,
    turn: Turn = ROTARY,
) -> jax.Array:
    """`choose` by the keys of the landmarks of blocks of `length` places, of which some are readable."""
    heads, blocks = landmarks_BxGxNxK.shape[1:3]
    wide, dtype, size = landmarks_BxGxNxK.dtype, queries[0].dtype, queries[0].shape[-1]
    q_BxSxGxUxK = by_key_head(queries[0], heads)
    landmarks_BxNxGxK = landmarks_BxGxNxK.swapaxes(1, 2)
    landmarks_BxNxGxK = turn(landmarks_BxNxGxK, jnp.asarray(scoring_slots(blocks, retrieved) * length)).astype(dtype)
    scores = jnp.einsum("bngk,bsguk->bguns", landmarks_BxNxGxK, q_BxSxGxUxK, preferred_element_type=wide) * size**-0.5
    scores_BxHxNxS = scores.reshape(scores.shape[0], -1, *scores.shape[3:])
    return select_blocks(scores_BxHxNxS, readable_BxN, reads_BxS, retrieved, selection)


def queries_in_slots(queries: list[jax.Array], blocks_BxHxRxA: jax.Array, cached: int) -> jax.Array:
    """Each query turned for the slot of each block that it reads: BxHxRxSxK. `queries` are `turned_queries`.

    The block of rank r stands in slot r or in slot r+1 (`retrieved_slots`), so that one of two turned queries is taken.
    """
    retrieved = blocks_BxHxRxA.shape[2]
    is_next_BxHxRxA = retrieved_slots(blocks_BxHxRxA, cached) > jnp.arange(retrieved)[:, None]
    seen = [q_BxSxHxK.swapaxes(1, 2) for q_BxSxHxK in queries]
    by_rank = [jnp.where(is_next_BxHxRxA[:, :, r, :, None], seen[r + 1], seen[r]) for r in range(retrieved)]
    return jnp.stack(by_rank, axis=2)


def read(
    memory: LandmarkMemory,
    queries: list[jax.Array],
    blocks_BxHxRxA: jax.Array,
    reads_BxS: jax.Array,
    form: str | None = None,
    size: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """(values BxHxRxSxV, scores BxHxRxS) of the chosen blocks: softmax-weighted raw values and the landmarks' scores.

    A score is MASKED where the query may not read or the block holds no raw token of the open document. `queries` are
    `turned_queries`; `form` and `size`, queries of a tile, are chosen by size (`form_of`) unless given.
    """
    q_BxHxRxSxK = queries_in_slots(queries, blocks_BxHxRxA, memory.keys.shape[2])
    held = functools.partial(held_tokens, memory)
    y_BxHxRxSxV, scores_BxHxRxS = read_pairs(memory.keys, memory.values, q_BxHxRxSxK, blocks_BxHxRxA, held, form, size)
    return y_BxHxRxSxV, jnp.where(reads_BxS[:, None, None], scores_BxHxRxS, MASKED)


def read_pairs(
    keys_BxGxNxPxK: jax.Array,
    values_BxGxNxbxV: jax.Array,
    q_BxHxRxSxK: jax.Array,
    blocks_BxHxRxA: jax.Array,
    held: Callable[[jax.Array], jax.Array],
    form: str | None = None,
    size: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """`read` of queries in their slots, whoever may read; `held` tells of blocks (B, ...) which tokens (B, ..., P) are."""
    heads, cached = keys_BxGxNxPxK.shape[1:3]
    shape, tokens, choosers = q_BxHxRxSxK.shape[:-1], q_BxHxRxSxK.shape[3], blocks_BxHxRxA.shape[3]
    q_BxGxXxK = q_BxHxRxSxK.reshape(shape[0], heads, -1, q_BxHxRxSxK.shape[4])
    blocks_BxGxYxA = blocks_BxHxRxA.reshape(shape[0], heads, -1, choosers)
    if form is None:
        form, size = form_of(q_BxGxXxK.shape[2], cached, keys_BxGxNxPxK.shape[3], shared=choosers < tokens)
    layout = pair_layout(form, size, blocks_BxGxYxA, tokens, cached)
    layout = checkpoint_name(layout, KEPT)  # sorted once, not again for the gradient
    y_BxGxXxV, scores_BxGxX = _rows(q_BxGxXxK, keys_BxGxNxPxK, values_BxGxNxbxV, layout, held(layout.block))
    return y_BxGxXxV.reshape(*shape, -1), scores_BxGxX.reshape(shape)


def inner(scores_xPxC: jax.Array, held_xPx1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(shares of the raw tokens (..., P-1, C), landmark's score (..., C)): the inner softmax of C queries in their blocks.

    The score is MASKED where no raw token is held.
    """
    raw_xbx1 = held_xPx1[..., :-1, :]
    logits_xbxC = jnp.where(raw_xbx1, scores_xPxC[..., :-1, :], MASKED)
    exp_xbxC = jnp.exp(logits_xbxC - jax.lax.stop_gradient(logits_xbxC.max(axis=-2, keepdims=True)))
    readable_x1 = raw_xbx1.any(axis=-2) & held_xPx1[..., -1, :]
    return exp_xbxC / exp_xbxC.sum(axis=-2, keepdims=True), jnp.where(readable_x1, scores_xPxC[..., -1, :], MASKED)


@jax.custom_vjp
def _rows(q_BxGxXxK, keys_BxGxNxPxK, values_BxGxNxbxV, layout: PairLayout, held_BxGxExP) -> tuple[jax.Array, jax.Array]:
    """(values BxGxXxV, landmark's score BxGxX) of each pair of query and block."""
    return _over_rows(_forward_row, q_BxGxXxK, keys_BxGxNxPxK, values_BxGxNxbxV, layout, held_BxGxExP)


def _rows_forward(q, keys, values, layout, held):
    # what is read is as many vectors for each token as blocks that it reads; to read again is slow
    y, scores = checkpoint_name(_rows(q, keys, values, layout, held), KEPT)
    return (y, scores), (q, keys, values, layout, held, y)


def _rows_backward(saved, gradients):
    q, keys, values, layout, held, y = saved
    dy, dscores = gradients
    D = jnp.einsum("bgxv,bgxv->bgx", dy, y)
    return *_over_rows(_backward_row, q, keys, values, layout, held, dy, dscores, D), None, None


_rows.defvjp(_rows_forward, _rows_backward)


def _over_rows(row: Callable, *arrays):
    """`row` of each key head of each sequence; on a CPU one at a time, so that its tiles stay in the cache."""
    spread = (lambda f: lambda xs: jax.lax.map(f, xs)) if platform() == "cpu" else jax.vmap
    return spread(spread(lambda xs: row(*xs)))(arrays)


def _scores(q_XxK: jax.Array, keys_NxPxK: jax.Array, layout: PairLayout, held_ExP) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(queries in tiles ExCxK, their softmax over a block's raw tokens Ex(P-1)xC, its landmark's score ExC).

    Keys stand before queries: the passes over a block's few tokens run along the vector, and the gradient's products are
    row by column.
    """
    q_ExCxK, keys_ExPxK = layout.to_tiles(q_XxK), block_copies(keys_NxPxK, layout).astype(q_XxK.dtype)
    scores_ExPxC = jnp.einsum("epk,eck->epc", keys_ExPxK, q_ExCxK, preferred_element_type=keys_NxPxK.dtype)
    return q_ExCxK, *inner(scores_ExPxC * q_XxK.shape[-1] ** -0.5, held_ExP[..., None])


def _forward_row(q_XxK, keys_NxPxK, values_NxbxV, layout: PairLayout, held_ExP) -> tuple[jax.Array, jax.Array]:
    """`_rows` of one key head: (values XxV, scores X)."""
    _, weights_ExbxC, scores_ExC = _scores(q_XxK, keys_NxPxK, layout, held_ExP)
    dtype, wide = q_XxK.dtype, keys_NxPxK.dtype
    vT_ExVxb = block_copies(values_NxbxV.swapaxes(1, 2), layout).astype(dtype)
    y_ExVxC = jnp.einsum("evp,epc->evc", vT_ExVxb, weights_ExbxC.astype(dtype), preferred_element_type=wide)
    return by_pair(y_ExVxC, layout), by_pair(scores_ExC[:, None], layout)[:, 0]


def _backward_row(q_XxK, keys_NxPxK, values_NxbxV, layout: PairLayout, held_ExP, dy_XxV, dscores_X, D_X):
    """Gradients of `_forward_row`: dq XxK, dkeys NxPxK, dvalues Nx(P-1)xV.

    With p the softmax and dp_j = dy . v_j the gradient of a raw token's score is ds_j = p_j (dp_j - D), D = dy . y; that of
    the landmark's score is given.
    """
    dtype, wide, scale = q_XxK.dtype, keys_NxPxK.dtype, q_XxK.shape[-1] ** -0.5
    with jax.named_scope(MADE_AGAIN):
        q_ExCxK, p_ExbxC, _ = _scores(q_XxK, keys_NxPxK, layout, held_ExP)
    dy_ExCxV = layout.to_tiles(dy_XxV)
    D_ExC, dscores_ExC = (layout.to_tiles(x_X[:, None])[..., 0] for x_X in (D_X, dscores_X))
    readable_E = held_ExP[:, :-1].any(axis=1) & held_ExP[:, -1]
    dscores_ExC = jnp.where(readable_E[:, None], dscores_ExC, 0)
    values_ExbxV = block_copies(values_NxbxV, layout)
    dp_ExbxC = jnp.einsum("epv,ecv->epc", values_ExbxV, dy_ExCxV, preferred_element_type=wide)
    ds_ExPxC = jnp.concatenate([p_ExbxC * (dp_ExbxC - D_ExC[:, None]), dscores_ExC[:, None]], axis=1)
    ds_ExPxC = (ds_ExPxC * scale).astype(dtype)
    kT_ExKxP = block_copies(keys_NxPxK.swapaxes(1, 2), layout).astype(dtype)
    dq_ExKxC = jnp.einsum("ekp,epc->ekc", kT_ExKxP, ds_ExPxC, preferred_element_type=wide)
    dk_ExPxK = jnp.einsum("epc,eck->epk", ds_ExPxC, q_ExCxK, preferred_element_type=wide)
    dv_ExbxV = jnp.einsum("epc,ecv->epv", p_ExbxC, dy_ExCxV, preferred_element_type=wide)

    def by_block(x_Nx: jax.Array, dx_Ex: jax.Array) -> jax.Array:
        return jnp.zeros_like(x_Nx).at[layout.block].add(dx_Ex, mode="promise_in_bounds")

    dq_XxK = by_pair(dq_ExKxC, layout).astype(dtype)
    return dq_XxK, by_block(keys_NxPxK, dk_ExPxK), by_block(values_NxbxV, dv_ExbxV)
