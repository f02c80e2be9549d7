"""Retrieval of landmark attention (arXiv 2305.16300, inference section): who reads which cached block, and the reading.

Positions ("stingy"): k+1 slots of P positions lie before the segment. For scoring, the k newest cached blocks stand in slots
1..k and all older ones in slot 0; a retrieved block of rank r by age stands in slot r if it is old, r+1 if it is among the k
newest. The paper starts the segment at min(blocks ever, k+1) * P; here it always starts at (k+1) * P and fewer blocks
fill the last slots: rotary knows distances only, so both are the same, and with fewer than k blocks or exactly k (where
the authors' code fails or overlaps positions) all stand where they stood.

A retrieved block gives a query one vector, its tokens' softmax-weighted values, and one score, its landmark's: the outer
softmax is the caller's. Three forms, chosen in `form_of`: `gather` copies the block of every query and choice; `shared`
copies each once where all tokens share the choice; `tiles` sorts the pairs of query and chosen block by block and lets C
queries share a copy. With X pairs at most (X + (C-1) min(N, X)) / C tiles are needed, whatever the choices.

Letters: N cached blocks, P tokens of a block with its landmark, R retrieved, H query heads of which U share one of G key
heads, X = S U R pairs of a key head in E tiles of C.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from infini_jax.attention import MASKED, masked_softmax
from infini_jax.layers import by_key_head, rotary

Turn = Callable[[jax.Array, jax.Array], jax.Array]  # (...xSxHxK, positions S) -> the same, turned by its position
SELECTIONS = ("token_and_head", "heads", "tokens")
FORMS = ("gather", "shared", "tiles")


@struct.dataclass
class LandmarkMemory:
    """The newest complete blocks, oldest first and filled from the end.

    Attributes:
      keys: BxNxGxPxK turned by their place 0..P-1 in the block; the landmark's is the last.
      values: BxNxGx(P-1)xV of the raw tokens.
      tokens: B tokens of the open document that the cache holds, landmarks included; they are its last ones, so that
        the number says which blocks are filled and which tokens of the first of them belong to an older document.
    """

    keys: jax.Array
    values: jax.Array
    tokens: jax.Array


@struct.dataclass
class Choice:
    """What queries retrieve. Attributes: blocks BxHxSxR, places in the cache, ascending, S = 1 where all tokens share the
    choice; scores BxHxNxS of every cached block's landmark in its scoring slot, MASKED where it holds nothing."""

    blocks: jax.Array
    scores: jax.Array


def held_tokens(memory: LandmarkMemory, blocks: jax.Array) -> jax.Array:
    """Boolean (B, ..., P): which tokens of the cached `blocks` (B, ...) belong to the open document."""
    cached, length = memory.keys.shape[1], memory.keys.shape[3]
    newer_P = length - 1 - jnp.arange(length)
    newer = (cached - 1 - blocks)[..., None] * length + newer_P
    return newer < memory.tokens.reshape((-1,) + (1,) * (newer.ndim - 1))


def first_position(retrieved: int, length: int) -> int:
    """Position of the first token after the cached blocks: behind k+1 slots."""
    return (retrieved + 1) * length


def scoring_slots(blocks: int, retrieved: int) -> np.ndarray:
    """(N,) slot in which each cached block, oldest first, stands while it is scored."""
    return np.maximum(np.arange(blocks) - (blocks - retrieved) + 1, 0)


def retrieved_slots(chosen: jax.Array, blocks: int) -> jax.Array:
    """(..., R) slot of each retrieved block; `chosen` are places in a cache of `blocks`, ascending by age."""
    retrieved = chosen.shape[-1]
    return jnp.arange(retrieved) + (chosen >= blocks - retrieved)


def best_newest(scores_NxS: jax.Array, count: int) -> jax.Array:
    """(..., S, count) ascending places of the highest of `scores` (..., N, S) along N; the last place wins a tie.

    Equal means equal up to rounding: products with equal keys may differ in their last bits, by the shape of the
    product, and a decoded token must choose as the whole segment does. Places stand before the S tokens, so that the
    passes over them run along the vector.
    """
    size = jnp.where(scores_NxS > MASKED / 2, jnp.abs(scores_NxS), 0.0).max(axis=-2, keepdims=True)
    slack = 32 * jnp.finfo(scores_NxS.dtype).eps * size
    places_Nx1 = jnp.arange(scores_NxS.shape[-2])[:, None]

    def take(scores_NxS, _):
        near_NxS = scores_NxS >= scores_NxS.max(axis=-2, keepdims=True) - slack
        place_S = jnp.where(near_NxS, places_Nx1, -1).max(axis=-2)
        return jnp.where(places_Nx1 == place_S[..., None, :], -jnp.inf, scores_NxS), place_S

    _, chosen = jax.lax.scan(take, scores_NxS, length=count, unroll=min(count, 8))
    if count > 8:
        return jnp.sort(jnp.moveaxis(chosen, 0, -1), axis=-1)
    ranks = (chosen[None] < chosen[:, None]).sum(axis=1)  # many tiny sorts are slow
    ascending = [jnp.where(ranks == rank, chosen, 0).sum(axis=0) for rank in range(count)]
    return jnp.stack(ascending, axis=-1)


def select_blocks(
    scores_BxHxNxS: jax.Array, readable_BxN: jax.Array, reads_BxS: jax.Array, retrieved: int, selection: str
) -> jax.Array:
    """Places of the blocks to retrieve, ascending: BxHxSxR, with one entry for all tokens (BxHx1xR) for `tokens`.

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
    return jnp.broadcast_to(chosen, (batch, heads, tokens, retrieved))


def turned_queries(q_BxSxHxK: jax.Array, places_S: jax.Array, retrieved: int, length: int, turn: Turn = rotary) -> jax.Array:
    """BxSxHx(R+1)xK: the queries as they see the slots 0..R; `places_S` counts from the first token after the cached blocks.

    A key at place p of slot s, seen from position i, is a key turned by p seen from i - s P: so cached keys are turned once,
    when they are written.
    """
    positions_S = first_position(retrieved, length) + places_S
    slots_C = jnp.arange(retrieved + 1)
    return jax.vmap(lambda slot: turn(q_BxSxHxK, positions_S - slot * length), out_axes=3)(slots_C)


def choose(
    memory: LandmarkMemory,
    q_BxSxHxCxK: jax.Array,
    reads_BxS: jax.Array,
    retrieved: int,
    selection: str,
    turn: Turn = rotary,
) -> Choice:
    """Scores all cached landmarks and chooses. `q_BxSxHxCxK` are `turned_queries`."""
    blocks, heads, length = memory.keys.shape[1:4]
    wide, dtype, size = memory.keys.dtype, q_BxSxHxCxK.dtype, q_BxSxHxCxK.shape[-1]
    q_BxSxGxUxK = by_key_head(q_BxSxHxCxK[..., 0, :], heads)
    landmarks_BxNxGxK = turn(memory.keys[..., -1, :], jnp.asarray(scoring_slots(blocks, retrieved) * length)).astype(dtype)
    scores = jnp.einsum("bngk,bsguk->bguns", landmarks_BxNxGxK, q_BxSxGxUxK, preferred_element_type=wide) * size**-0.5
    scores_BxHxNxS = scores.reshape(scores.shape[0], -1, *scores.shape[3:])
    every_BxN = jnp.broadcast_to(jnp.arange(blocks), memory.keys.shape[:2])
    readable_BxN = held_tokens(memory, every_BxN)[..., -2]  # its last raw token: one token at least beside the landmark
    scores_BxHxNxS = jnp.where(readable_BxN[:, None, :, None], jax.lax.stop_gradient(scores_BxHxNxS), MASKED)
    return Choice(select_blocks(scores_BxHxNxS, readable_BxN, reads_BxS, retrieved, selection), scores_BxHxNxS)


def form_of(pairs: int, blocks: int, length: int, shared: bool) -> tuple[str, int]:
    """The form that reads `pairs` queries and choices of one key head from a cache of `blocks`, and the queries of a tile.

    A tile costs a copy of P tokens and C queries, so C is about sqrt(pairs P / blocks). Measured on CPU: TODO.
    """
    if shared:
        return "shared", 1
    size = 2 ** round(np.log2(pairs * length / blocks) / 2) if pairs >= blocks else 1
    return ("tiles", min(size, 128)) if size >= 8 else ("gather", 1)


def tiles_of(pairs: int, blocks: int, size: int) -> int:
    """Tiles that suffice for any choice: each block's last one may be filled with one pair only."""
    return (pairs + (size - 1) * min(blocks, pairs)) // size


def products(queries: int, repeats: int, retrieved: int, blocks: int, length: int, shared: bool) -> int:
    """Query-block pairs that `read` computes for one key head and a segment of `queries` tokens, each of `repeats` heads."""
    pairs = queries * repeats * retrieved
    form, size = form_of(pairs, blocks, length, shared)
    return tiles_of(pairs, blocks, size) * size if form == "tiles" else pairs


def copies(queries: int, repeats: int, retrieved: int, blocks: int, length: int, shared: bool) -> int:
    """Blocks that `read` copies for it."""
    pairs = queries * repeats * retrieved
    form, size = form_of(pairs, blocks, length, shared)
    return {"shared": repeats * retrieved, "gather": pairs, "tiles": tiles_of(pairs, blocks, size)}[form]


def read(
    memory: LandmarkMemory,
    q_BxSxHxCxK: jax.Array,
    blocks_BxHxSxR: jax.Array,
    reads_BxS: jax.Array,
    form: str | None = None,
    size: int = 16,
) -> tuple[jax.Array, jax.Array]:
    """What the chosen blocks give: their softmax-weighted raw values BxHxSxRxV and their landmarks' scores BxHxSxR.

    A score is MASKED where the query may not read or the block holds no raw token of the open document. `q_BxSxHxCxK` are
    `turned_queries`; `form` (and `size`, queries of a tile) are chosen by size unless given.
    """
    cached, heads, length = memory.keys.shape[1:4]
    retrieved, tokens = blocks_BxHxSxR.shape[-1], q_BxSxHxCxK.shape[1]
    slots_BxSxHxR = jnp.swapaxes(retrieved_slots(blocks_BxHxSxR, cached), 1, 2)
    later_BxSxHxR = slots_BxSxHxR > jnp.arange(retrieved)  # slot r+1 for rank r; else slot r
    q_BxSxHxRxK = jnp.where(later_BxSxHxR[..., None], q_BxSxHxCxK[..., 1:, :], q_BxSxHxCxK[..., :-1, :])
    q_BxGxSxUxRxK = jnp.moveaxis(q_BxSxHxRxK.reshape(*q_BxSxHxRxK.shape[:2], heads, -1, *q_BxSxHxRxK.shape[3:]), 2, 1)
    blocks_BxGxUxSxR = blocks_BxHxSxR.reshape(len(blocks_BxHxSxR), heads, -1, *blocks_BxHxSxR.shape[2:])
    blocks_BxGxSxUxR = jnp.swapaxes(blocks_BxGxUxSxR, 2, 3)
    if form is None:
        pairs = tokens * q_BxGxSxUxRxK.shape[3] * retrieved
        form, size = form_of(pairs, cached, length, shared=blocks_BxGxSxUxR.shape[2] == 1 < tokens)
    if form == "tiles":
        blocks_BxGxSxUxR = jnp.broadcast_to(blocks_BxGxSxUxR, q_BxGxSxUxRxK.shape[:-1])
        values_BxGxSxUxRxV, scores_BxGxSxUxR = _in_tiles(memory, q_BxGxSxUxRxK, blocks_BxGxSxUxR, size)
    else:
        values_BxGxSxUxRxV, scores_BxGxSxUxR = _gathered(memory, q_BxGxSxUxRxK, blocks_BxGxSxUxR)
    scores_BxGxSxUxR = jnp.where(reads_BxS[:, None, :, None, None], scores_BxGxSxUxR, MASKED)

    def by_query_head(x_BxGxSxU: jax.Array) -> jax.Array:
        x_BxGxUxS = jnp.swapaxes(x_BxGxSxU, 2, 3)
        return x_BxGxUxS.reshape(x_BxGxUxS.shape[0], -1, *x_BxGxUxS.shape[3:])

    return by_query_head(values_BxGxSxUxRxV), by_query_head(scores_BxGxSxUxR)


def inner(scores: jax.Array, held_P: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(softmax over the raw ones of (..., P), the last one's score): MASKED where no raw token is held."""
    weights, _ = masked_softmax(scores[..., :-1], held_P[..., :-1])
    return weights, jnp.where(held_P[..., :-1].any(axis=-1) & held_P[..., -1], scores[..., -1], MASKED)


def _gathered(memory: LandmarkMemory, q_BxGxSxUxRxK, blocks_BxGxSxUxR) -> tuple[jax.Array, jax.Array]:
    """One copy for every query and choice, or (S = 1 in `blocks`) for all tokens together."""
    wide, dtype = memory.keys.dtype, q_BxGxSxUxRxK.dtype
    shared = blocks_BxGxSxUxR.shape[2] == 1
    tokens = "" if shared else "s"
    blocks = blocks_BxGxSxUxR[:, :, 0] if shared else blocks_BxGxSxUxR
    keys, values = (_take(x, blocks).astype(dtype) for x in (memory.keys, memory.values))
    scores = jnp.einsum(f"bgsurk,bg{tokens}urpk->bgsurp", q_BxGxSxUxRxK, keys, preferred_element_type=wide)
    weights, scores = inner(scores * q_BxGxSxUxRxK.shape[-1] ** -0.5, held_tokens(memory, blocks_BxGxSxUxR))
    y = jnp.einsum(f"bgsurp,bg{tokens}urpv->bgsurv", weights.astype(dtype), values, preferred_element_type=wide)
    return y, scores


def _take(x_BxNxG: jax.Array, blocks_BxG: jax.Array) -> jax.Array:
    """BxGx...: each key head's blocks."""

    def head(x_N, blocks):
        return x_N.at[blocks].get(mode="promise_in_bounds")

    return jax.vmap(jax.vmap(head, in_axes=(1, 0)))(x_BxNxG, blocks_BxG)


@struct.dataclass
class Layout:
    """Where the pairs of one key head lie in tiles. Attributes: block E of each tile; pair ExC, that of each place (0 where
    there is none); place X of each pair."""

    block: jax.Array
    pair: jax.Array
    place: jax.Array


def lay_out(blocks_X: jax.Array, cached: int, size: int) -> Layout:
    """Sorts pairs by block; a block begins in a new tile."""
    pairs = blocks_X.size
    count = tiles_of(pairs, cached, size)
    sorted_X, order_X = jax.lax.sort((blocks_X, jnp.arange(pairs, dtype=jnp.int32)), num_keys=1, is_stable=False)
    held_N = jnp.zeros(cached, jnp.int32).at[blocks_X].add(1, mode="promise_in_bounds")
    tiles_N = (held_N + size - 1) // size
    last_N = jnp.cumsum(tiles_N)
    # a block's first place in tiles, less its first place in the sorted pairs
    shift_N = (last_N - tiles_N) * size - (jnp.cumsum(held_N) - held_N)
    places_X = (jnp.arange(pairs) + shift_N[sorted_X]).astype(jnp.int32)
    put = {"mode": "promise_in_bounds", "unique_indices": True}
    return Layout(
        block=jnp.minimum(jnp.searchsorted(last_N, jnp.arange(count), side="right"), cached - 1),
        pair=jnp.zeros(count * size, jnp.int32).at[places_X].set(order_X, **put).reshape(count, size),
        place=jnp.zeros(pairs, jnp.int32).at[order_X].set(places_X, **put),
    )


@jax.custom_vjp
def _to_tiles(x_XxK: jax.Array, layout: Layout) -> jax.Array:
    """ExCxK: the pairs' vectors in their tiles. Its transpose is `_from_tiles`: gathers both, where a scatter is slow."""
    return x_XxK.at[layout.pair].get(mode="promise_in_bounds")


@jax.custom_vjp
def _from_tiles(y_ExCxV: jax.Array, layout: Layout) -> jax.Array:
    """XxV: each pair's vector."""
    return y_ExCxV.reshape(-1, y_ExCxV.shape[-1]).at[layout.place].get(mode="promise_in_bounds")


def _blank(layout: Layout, dy_XxV: jax.Array) -> jax.Array:
    """`_to_tiles` with zeros in places that no pair has."""
    dy_ExCxV = dy_XxV.at[layout.pair].get(mode="promise_in_bounds")
    places_ExC = jnp.arange(layout.pair.size).reshape(layout.pair.shape)
    return jnp.where((layout.place[layout.pair] == places_ExC)[..., None], dy_ExCxV, 0)


_to_tiles.defvjp(lambda x, layout: (_to_tiles(x, layout), layout), lambda layout, dx: (_from_tiles(dx, layout), None))
_from_tiles.defvjp(lambda y, layout: (_from_tiles(y, layout), layout), lambda layout, dy: (_blank(layout, dy), None))


def _in_tiles(memory: LandmarkMemory, q_BxGxSxUxRxK, blocks_BxGxSxUxR, size: int) -> tuple[jax.Array, jax.Array]:
    """As `_gathered`; C queries of one block share a copy of it."""
    wide, dtype, cached = memory.keys.dtype, q_BxGxSxUxRxK.dtype, memory.keys.shape[1]
    rows = q_BxGxSxUxRxK.shape[:2]
    over_rows = lambda f: jax.vmap(jax.vmap(f))  # noqa: E731
    layout = over_rows(lambda blocks_X: lay_out(blocks_X, cached, size))(blocks_BxGxSxUxR.reshape(*rows, -1))
    q_BxGxExCxK = over_rows(_to_tiles)(q_BxGxSxUxRxK.reshape(*rows, -1, q_BxGxSxUxRxK.shape[-1]), layout)
    keys_BxGxExPxK, values_BxGxExPxV = (_take(x, layout.block).astype(dtype) for x in (memory.keys, memory.values))
    scores = jnp.einsum("bgeck,bgepk->bgecp", q_BxGxExCxK, keys_BxGxExPxK, preferred_element_type=wide)
    held_BxGxExP = held_tokens(memory, layout.block)
    weights, scores_BxGxExC = inner(scores * q_BxGxExCxK.shape[-1] ** -0.5, held_BxGxExP[..., None, :])
    y_BxGxExCxV = jnp.einsum("bgecp,bgepv->bgecv", weights.astype(dtype), values_BxGxExPxV, preferred_element_type=wide)
    y_BxGxXxV = over_rows(_from_tiles)(y_BxGxExCxV, layout)
    scores_BxGxXx1 = over_rows(_from_tiles)(scores_BxGxExC[..., None], layout)
    pairs = q_BxGxSxUxRxK.shape[:-1]
    return y_BxGxXxV.reshape(*pairs, -1), scores_BxGxXx1.reshape(pairs)
