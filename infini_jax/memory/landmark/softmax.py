"""The two-level ("grouped") softmax of landmark attention (arXiv 2305.16300, section 3.1), in a general and two fast forms.

With b the block of query i, s_ij the scores and l_ic the score of the landmark that closes block c, block c weighs
  W_ic = exp(z_ic) / sum_c exp(z_ic),   z_ic = log sum_{j in c} exp(s_ij) where c = b, else l_ic
and its token j  w_ij = W_ic p_ij,  p_ij = exp(s_ij) / sum_{j in c} exp(s_ij): a plain softmax in the own block, the
landmark's share spread by a second softmax in another.

`grouped_softmax` takes any pattern of landmarks and is the readable reference. The others take whole blocks of P tokens, the
landmark last: `dense` holds all scores, `tiles` none: a tile of queries meets the blocks up to its own, and the gradient
makes the weights again. With dw_ij = dy_i . v_j, A_ic = sum_j p_ij dw_ij and D_i = dy_i . y_i - dlse_i:
  ds_ij = w_ij (dw_ij - D_i) in the own block, w_ij (dw_ij - A_ic) in another;   dl_ic = W_ic (A_ic - D_i)
A block none of whose raw tokens a query may see (all belong to another document) is left out, landmark included.

Letters: S queries, L with those that fill the last tile, T keys in M blocks of P, b = P - 1 of them raw tokens, H heads; a
tile has Q queries and meets C blocks, J keys.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.layers import attention, precision
from infini_jax.layers.attention import MASKED, masked_softmax, tiles_pay
from infini_jax.layers.blockwise import BANDS, MADE_AGAIN, NO_QUERY, TILE
from infini_jax.layers.grouped_heads import repeat_heads
from infini_jax.layers.platforms import platform
from infini_jax.layers.segment import Boundaries


def grouped_softmax(
    scores_BxHxSxT: jax.Array, is_landmark_BxT: jax.Array, allowed_BxSxT: jax.Array, *, renormalise: bool = False
) -> jax.Array:
    """Attention weights BxHxSxT for any pattern of landmarks; the last S keys are the queries' own.

    A landmark belongs to the block that it closes; the tail without one is the last block. With i's own block b:
      own token j          softmax_ij over {allowed tokens of b} and {allowed landmarks of other blocks}
      token of block c     softmax_{i, landmark of c} * softmax of j among the allowed tokens of c
      landmark             0
    The weight of the landmark of a block without allowed tokens is lost, as in the authors' code; with `renormalise`
    such a landmark is left out, so that rows sum to 1 as long as they may see anything. Every key must be allowed or
    masked per row: `allowed_BxSxT` holds causality and documents.
    """
    queries, keys = scores_BxHxSxT.shape[-2:]
    block_BxT = jnp.cumsum(is_landmark_BxT, axis=1) - is_landmark_BxT  # at most T blocks: letter G below
    own_Bx1xSxG = (block_BxT[:, keys - queries :, None] == jnp.arange(keys))[:, None]
    raw_Bx1xSxT = (allowed_BxSxT & ~is_landmark_BxT[:, None])[:, None]
    closing_Bx1xSxT = (allowed_BxSxT & is_landmark_BxT[:, None])[:, None]

    logits_BxHxSxT = jnp.where(raw_Bx1xSxT, scores_BxHxSxT, MASKED)
    top_BxHxSxG = jnp.maximum(_by_block(jax.ops.segment_max, jax.lax.stop_gradient(logits_BxHxSxT), block_BxT), MASKED)
    exp_BxHxSxT = jnp.where(raw_Bx1xSxT, jnp.exp(logits_BxHxSxT - _at_keys(top_BxHxSxG, block_BxT)), 0.0)
    total_BxHxSxG = _by_block(jax.ops.segment_sum, exp_BxHxSxT, block_BxT)
    occupied_BxHxSxG = total_BxHxSxG > 0
    total_BxHxSxG = jnp.where(occupied_BxHxSxG, total_BxHxSxG, 1.0)

    landmark_BxHxSxG = _by_block(jax.ops.segment_sum, jnp.where(closing_Bx1xSxT, scores_BxHxSxT, 0.0), block_BxT)
    closed_Bx1xSxG = _by_block(jax.ops.segment_sum, closing_Bx1xSxT.astype(jnp.int32), block_BxT) > 0
    if renormalise:
        closed_Bx1xSxG = closed_Bx1xSxG & occupied_BxHxSxG
    group_BxHxSxG, _ = masked_softmax(
        jnp.where(own_Bx1xSxG, top_BxHxSxG + jnp.log(total_BxHxSxG), landmark_BxHxSxG),
        jnp.where(own_Bx1xSxG, occupied_BxHxSxG, closed_Bx1xSxG),
    )
    return exp_BxHxSxT * _at_keys(group_BxHxSxG / total_BxHxSxG, block_BxT)


def _by_block(reduce: Callable, x_BxHxSxT: jax.Array, block_BxT: jax.Array) -> jax.Array:
    """`reduce` over the keys of each block: BxHxSxG."""

    def row(x_HxSxT, block_T):
        return jnp.moveaxis(reduce(jnp.moveaxis(x_HxSxT, -1, 0), block_T, num_segments=block_T.size), 0, -1)

    return jax.vmap(row)(x_BxHxSxT, block_BxT)


def _at_keys(x_BxHxSxG: jax.Array, block_BxT: jax.Array) -> jax.Array:
    """The value of each key's block: BxHxSxT."""
    return jax.vmap(lambda x_HxSxG, block_T: x_HxSxG[..., block_T])(x_BxHxSxG, block_BxT)


def attend_blocks(
    q_BxSxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxV: jax.Array, bounds: Boundaries, length: int
) -> tuple[jax.Array, jax.Array]:
    """(BxSxHxV, log-sum-exp of the z_ic BxHxS) of grouped attention inside a segment of whole blocks of `length`.

    Positions are already on queries and keys. The form is chosen here as in `attention.attend`: by size, or the one that
    `attention.form` asks for (a vendor's kernel knows no landmarks).
    """
    if in_tiles(q_BxSxHxK.shape[1], k_BxTxGxK.shape[1]):
        k_BxTxHxK, v_BxTxHxV = (repeat_heads(x, q_BxSxHxK.shape[2]) for x in (k_BxTxGxK, v_BxTxGxV))
        return tiles(q_BxSxHxK, k_BxTxHxK, v_BxTxHxV, bounds.query_documents, length)
    return dense(q_BxSxHxK, k_BxTxGxK, v_BxTxGxV, bounds, length)


def in_tiles(queries: int, keys: int) -> bool:
    """Whether `attend_blocks` works in tiles; queries that begin somewhere in the segment (decoding) never do."""
    asked = attention.form.value
    return queries == keys and asked != "dense" and (asked == "blockwise" or tiles_pay(queries, keys))


def products(tokens: int, length: int, key_dim: int, value_dim: int) -> float:
    """Multiplications of `attend_blocks` per token and head of a whole segment, by the form that `auto` takes."""
    if tiles_pay(tokens, tokens):
        return block_tiling(tokens // length, length).pairs / tokens * (key_dim + value_dim)
    return dense_products(tokens, length, key_dim, value_dim)


def dense_products(keys: int, length: int, key_dim: int, value_dim: int) -> float:
    """Multiplications of `dense` per query and head."""
    return keys * (key_dim + (length - 1) / length * value_dim)


def dense(
    q_BxSxHxK: jax.Array,
    k_BxTxGxK: jax.Array,
    v_BxTxGxV: jax.Array,
    bounds: Boundaries,
    length: int,
    added_xSxT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(BxSxHxV, log-sum-exp BxHxS) of grouped attention with all scores in memory, for whole blocks of `length`.

    The queries are any tokens of the segment, from `bounds.start` on. `added_xSxT` is added to all scores, landmarks' too.
    """
    wide = precision.wide(q_BxSxHxK.dtype)
    k_BxTxHxK, v_BxTxHxV = (repeat_heads(x, q_BxSxHxK.shape[2]) for x in (k_BxTxGxK, v_BxTxGxV))
    scores_BxHxSxT = jnp.einsum("bshk,bthk->bhst", q_BxSxHxK, k_BxTxHxK, preferred_element_type=wide)
    scores_BxHxSxT = scores_BxHxSxT * q_BxSxHxK.shape[-1] ** -0.5
    if added_xSxT is not None:
        scores_BxHxSxT = scores_BxHxSxT + added_xSxT
    in_blocks = (-1, length)
    scores_BxHxSxMxP = scores_BxHxSxT.reshape(*scores_BxHxSxT.shape[:3], *in_blocks)
    visible_BxSxMxP = bounds.local_BxSxT.reshape(*bounds.query_documents.shape, *in_blocks)
    places_S = bounds.start + jnp.arange(q_BxSxHxK.shape[1])
    own_SxM = places_S[:, None] // length == jnp.arange(scores_BxHxSxMxP.shape[3])
    weights_BxHxSxMxb, lse_BxHxS = blocks_softmax(scores_BxHxSxMxP, visible_BxSxMxP, own_SxM)
    raw_BxMxbxHxV = v_BxTxHxV.reshape(len(v_BxTxHxV), *in_blocks, *v_BxTxHxV.shape[2:])[:, :, :-1]
    # one axis of raw tokens: XLA's CPU backend does not take bfloat16 where two axes are summed over
    raw_BxRxHxV = raw_BxMxbxHxV.reshape(len(raw_BxMxbxHxV), -1, *raw_BxMxbxHxV.shape[3:])
    weights_BxHxSxR = weights_BxHxSxMxb.reshape(*weights_BxHxSxMxb.shape[:3], -1).astype(v_BxTxHxV.dtype)
    y_BxSxHxV = jnp.einsum("bhsr,brhv->bshv", weights_BxHxSxR, raw_BxRxHxV, preferred_element_type=wide)
    return y_BxSxHxV, lse_BxHxS


def blocks_softmax(scores_BxHxSxMxP: jax.Array, visible_BxSxMxP: jax.Array, own_SxM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(raw tokens' weights BxHxSxMx(P-1), log-sum-exp BxHxS): `grouped_softmax(..., renormalise=True)` of complete blocks."""
    inner_BxHxSxMxb, own_lse_BxHxSxM = masked_softmax(scores_BxHxSxMxP[..., :-1], visible_BxSxMxP[:, None, ..., :-1])
    seen_BxSxM = visible_BxSxMxP[..., :-1].any(axis=-1) & (own_SxM | visible_BxSxMxP[..., -1])
    z_BxHxSxM = jnp.where(own_SxM, own_lse_BxHxSxM, scores_BxHxSxMxP[..., -1])
    outer_BxHxSxM, lse_BxHxS = masked_softmax(z_BxHxSxM, seen_BxSxM[:, None])
    return inner_BxHxSxMxb * outer_BxHxSxM[..., None], lse_BxHxS


@dataclasses.dataclass(frozen=True)
class BlockTiling:
    """Tiling of queries and blocks.

    Attributes:
      length: number of tokens per block.
      tile: number of blocks per tile of queries.
      bands: (number of tiles, blocks met) of runs of consecutive tiles that meet equally many blocks, from the first on.
    """

    length: int
    tile: int
    bands: tuple[tuple[int, int], ...]

    @property
    def queries(self) -> int:
        """Number of queries of a tile."""
        return self.tile * self.length

    @property
    def padded(self) -> int:
        """Number of queries, those that fill the last tile included."""
        return self.queries * sum(tiles for tiles, _ in self.bands)

    @property
    def pairs(self) -> int:
        """Number of query-key pairs that are computed."""
        return self.queries * self.length * sum(tiles * blocks for tiles, blocks in self.bands)


@functools.cache
def block_tiling(blocks: int, length: int) -> BlockTiling:
    """The tiling in tiles of whole blocks, about `TILE` queries each, in at most `BANDS` bands."""
    tile = math.ceil(blocks / max(1, round(blocks * length / TILE)))
    count = math.ceil(blocks / tile)
    step = math.ceil(count / BANDS)
    edges = range(0, count, step)
    return BlockTiling(length, tile, tuple((min(step, count - edge), min((edge + step) * tile, blocks)) for edge in edges))


def tiles(
    q_BxSxHxK: jax.Array, k_BxSxHxK: jax.Array, v_BxSxHxV: jax.Array, documents_BxS: jax.Array, length: int
) -> tuple[jax.Array, jax.Array]:
    """(BxSxHxV, log-sum-exp BxHxS) of `dense` for a whole segment, in tiles: nothing of size S x S is stored.

    The gradient rule is its own. On a CPU one head of one sequence is taken at a time, so that a tile stays in the cache (as
    in blockwise.py).
    """
    tokens = q_BxSxHxK.shape[1]
    plan = block_tiling(tokens // length, length)
    pad = ((0, 0), (0, 0), (0, plan.padded - tokens), (0, 0))
    q_BxHxLxK = jnp.pad(q_BxSxHxK.swapaxes(1, 2), pad)
    query_documents_BxL = jnp.pad(documents_BxS, pad[1:3], constant_values=NO_QUERY)
    k_BxHxSxK, v_BxHxSxV = k_BxSxHxK.swapaxes(1, 2), v_BxSxHxV.swapaxes(1, 2)
    found: Any = _rows(plan, q_BxHxLxK, k_BxHxSxK, v_BxHxSxV, (query_documents_BxL, documents_BxS))
    y_BxHxLxV, lse_BxHxL = found
    return y_BxHxLxV[:, :, :tokens].swapaxes(1, 2), lse_BxHxL[:, :, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(plan: BlockTiling, q, k, v, documents) -> tuple[jax.Array, jax.Array]:
    vT = v.swapaxes(2, 3)  # a transpose inside the loop would be folded into the product and make it slow
    return _over_rows(functools.partial(_forward_row, plan), documents, (q, k, vT))


def _rows_forward(plan: BlockTiling, q, k, v, documents):
    found: Any = _rows(plan, q, k, v, documents)
    y, lse = found
    return (y, lse), (q, k, v, documents, y, lse)


def _rows_backward(plan: BlockTiling, saved, gradients):
    q, k, v, documents, y, lse = saved
    dy, dlse = gradients
    D = jnp.einsum("bhsv,bhsv->bhs", dy, y, preferred_element_type=lse.dtype) - dlse
    kT = k.swapaxes(2, 3)
    return *_over_rows(functools.partial(_backward_row, plan), documents, (q, k, v, kT, dy, lse, D)), None


_rows.defvjp(_rows_forward, _rows_backward)


def _over_rows(row: Callable, documents, arrays):
    """`row(documents, *arrays)` for each sequence and head; arrays are BxHx..."""
    spread = (lambda f: lambda xs: jax.lax.map(f, xs)) if platform() == "cpu" else jax.vmap
    return spread(lambda xs: spread(lambda ys: row(xs[0], *ys))(xs[1]))((documents, arrays))


def _cut(x: jax.Array, plan: BlockTiling, tile) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, tile * plan.queries, plan.queries)


@dataclasses.dataclass(frozen=True)
class _Tile:
    """The two softmaxes of a tile, keys first so that queries run along the vector.

    Attributes:
      exp: CxPxQ, 0 at landmarks and unseen tokens of blocks that are seen.
      sums: CxQ, sums of `exp`.
      z: CxQ, MASKED where a block is unseen.
      own: CxQ, whether the block is the query's own.
    """

    exp: jax.Array
    sums: jax.Array
    z: jax.Array
    own: jax.Array


def _scores(plan: BlockTiling, blocks: int, tile, documents, q_QxK: jax.Array, k_TxK: jax.Array) -> _Tile:
    query_documents_L, key_documents_T = documents
    wide = precision.wide(q_QxK.dtype)
    keys = blocks * plan.length
    scores = jnp.einsum("tk,qk->tq", k_TxK[:keys], q_QxK, preferred_element_type=wide) * q_QxK.shape[-1] ** -0.5
    places_Q, places_Jx1 = tile * plan.queries + jnp.arange(plan.queries), jnp.arange(keys)[:, None]
    visible = (places_Jx1 <= places_Q) & (key_documents_T[:keys, None] == _cut(query_documents_L, plan, tile))
    in_blocks = (blocks, plan.length, plan.queries)
    scores_CxPxQ, visible_CxPxQ = scores.reshape(in_blocks), visible.reshape(in_blocks)
    raw_CxPxQ = visible_CxPxQ & (jnp.arange(plan.length) < plan.length - 1)[:, None]
    own_CxQ = jnp.arange(blocks)[:, None] == places_Q // plan.length

    logits_CxPxQ = jnp.where(raw_CxPxQ, scores_CxPxQ, MASKED)
    top_CxQ = logits_CxPxQ.max(axis=1)
    exp_CxPxQ = jnp.exp(logits_CxPxQ - top_CxQ[:, None])  # 1 all over where the block is unseen, and then W_ic is 0
    sums_CxQ = exp_CxPxQ.sum(axis=1)
    seen_CxQ = (top_CxQ > MASKED) & (own_CxQ | visible_CxPxQ[:, -1])
    z_CxQ = jnp.where(own_CxQ, top_CxQ + jnp.log(sums_CxQ), scores_CxPxQ[:, -1])
    return _Tile(exp_CxPxQ, sums_CxQ, jnp.where(seen_CxQ, z_CxQ, MASKED), own_CxQ)


def _forward_row(plan: BlockTiling, documents, q_LxK, k_TxK, vT_VxT) -> tuple[jax.Array, jax.Array]:
    """y SxV and log-sum-exp S of one head of one sequence."""

    def tile_of(blocks: int, tile) -> tuple[jax.Array, jax.Array]:
        part = _scores(plan, blocks, tile, documents, _cut(q_LxK, plan, tile), k_TxK)
        top_Q = part.z.max(axis=0)
        outer_CxQ = jnp.exp(part.z - top_Q)
        seen_Q = top_Q > MASKED
        total_Q = jnp.where(seen_Q, outer_CxQ.sum(axis=0), 1.0)
        share_CxQ = jnp.where(seen_Q, outer_CxQ / (part.sums * total_Q), 0.0)
        weights_JxQ = (part.exp * share_CxQ[:, None]).reshape(-1, plan.queries).astype(vT_VxT.dtype)
        vT_VxJ = vT_VxT[:, : blocks * plan.length]
        y_VxQ = jnp.einsum("vt,tq->vq", vT_VxJ, weights_JxQ, preferred_element_type=part.z.dtype)
        return y_VxQ.T.astype(vT_VxT.dtype), top_Q + jnp.log(total_Q)

    parts = [_over_tiles(first, count, functools.partial(tile_of, blocks)) for first, count, blocks in _bands(plan)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _bands(plan: BlockTiling):
    """(first tile, tiles, blocks met) of each band."""
    firsts = np.cumsum([0, *(count for count, _ in plan.bands)])[:-1]
    return [(int(first), *band) for first, band in zip(firsts, plan.bands, strict=True)]


def _over_tiles(first: int, count: int, tile_of: Callable):
    if count == 1:
        return tile_of(first)
    stacked = jax.lax.map(tile_of, first + jnp.arange(count))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked)


def _backward_row(plan: BlockTiling, documents, q_LxK, k_TxK, v_TxV, kT_KxT, dy_LxV, lse_L, D_L):
    """(dq, dk, dv) of one head of one sequence."""
    wide = lse_L.dtype

    def tile_of(blocks: int, sums, tile):
        keys = blocks * plan.length
        q_QxK, dy_QxV, lse_Q, D_Q = (_cut(x, plan, tile) for x in (q_LxK, dy_LxV, lse_L, D_L))
        with jax.named_scope(MADE_AGAIN):
            part = _scores(plan, blocks, tile, documents, q_QxK, k_TxK)
        outer_CxQ = jnp.exp(part.z - jnp.where(lse_Q > MASKED, lse_Q, 0.0))
        weights_CxPxQ = part.exp * (outer_CxQ / part.sums)[:, None]
        dweights_JxQ = jnp.einsum("tv,qv->tq", v_TxV[:keys], dy_QxV, preferred_element_type=wide)
        dweights_CxPxQ = dweights_JxQ.reshape(part.exp.shape)
        A_CxQ = (part.exp * dweights_CxPxQ).sum(axis=1) / part.sums
        dscores_CxPxQ = weights_CxPxQ * (dweights_CxPxQ - jnp.where(part.own, D_Q, A_CxQ)[:, None])
        dlandmark_CxQ = jnp.where(part.own, 0.0, outer_CxQ * (A_CxQ - D_Q))
        closing_Px1 = jnp.arange(plan.length)[:, None] == plan.length - 1
        dscores_CxPxQ = jnp.where(closing_Px1, dlandmark_CxQ[:, None], dscores_CxPxQ)
        dscores_JxQ = dscores_CxPxQ.reshape(keys, -1).astype(q_LxK.dtype)
        weights_JxQ = weights_CxPxQ.reshape(keys, -1).astype(dy_LxV.dtype)
        dq_KxQ = jnp.einsum("kt,tq->kq", kT_KxT[:, :keys], dscores_JxQ, preferred_element_type=wide)
        dk_JxK = jnp.einsum("tq,qk->tk", dscores_JxQ, q_QxK, preferred_element_type=wide)
        dv_JxV = jnp.einsum("tq,qv->tv", weights_JxQ, dy_QxV, preferred_element_type=wide)
        return (sums[0].at[:keys].add(dk_JxK), sums[1].at[:keys].add(dv_JxV)), dq_KxQ

    sums, parts = (jnp.zeros(k_TxK.shape, wide), jnp.zeros(v_TxV.shape, wide)), []
    for first, count, blocks in _bands(plan):
        sums, dq_GxKxQ = jax.lax.scan(functools.partial(tile_of, blocks), sums, first + jnp.arange(count))
        parts.append(dq_GxKxQ.swapaxes(1, 2).reshape(-1, q_LxK.shape[1]))
    scale = q_LxK.shape[1] ** -0.5
    return (
        (jnp.concatenate(parts) * scale).astype(q_LxK.dtype),
        (sums[0] * scale).astype(k_TxK.dtype),
        sums[1].astype(v_TxV.dtype),
    )
