"""Exact local attention in tiles: pure JAX with its own gradient rule, for any platform.

Nothing of size S x J is ever stored: a tile of queries meets the keys that it may see, and the gradient makes its weights
again from the log-sum-exp (Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4). With P = exp(scale q k^T + bias - lse),
D = sum_v dy * y - dlse, dS = P * (dy v^T - D):
  dv = P^T dy,  dq = scale dS k,  dk = scale dS^T q,  dbias = sums of dS along diagonals,  dscale = sum (dS k) * q

A tile of queries meets few keys all at once. Many keys it meets in blocks, one after the other, with a running softmax, and a
block that none of its queries sees is skipped when the program runs: places that nobody has filled, older documents.

Letters: S queries, L with those that fill the last tile, J keys, K and V their dims, H heads; a tile has P queries and C keys,
N tiles and M blocks.
Scores are kept keys first (C x P): then every product of the gradient is a plain row-by-column one, which a CPU runs at twice
the speed of P^T dy.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.errors import present
from infini_jax.layers import precision
from infini_jax.layers.platforms import platform
from infini_jax.layers.segment import NEVER_SEEN, Sight, within

TILE = 128
BLOCK, GRAIN = 256, 16  # keys of a block at most, and what divides them
MOST_AT_ONCE = 1024  # keys that a tile meets in one piece: of fewer, edges of blocks waste what skipping could gain
BANDS = 8  # at most about so many loop bodies: (BANDS + 1) / (2 BANDS) of the square is computed
MASKED = -1e30  # finite, so that gradients of fully masked rows stay finite
MADE_AGAIN = "made_again"  # scope of what a gradient rule computes once more instead of keeping it, for counting FLOPs
NO_QUERY = -3  # the document of padded queries: no key has it


@dataclasses.dataclass(frozen=True)
class Band:
    """Consecutive tiles of queries that meet equally many keys.

    Attributes:
      tiles: numbers of the tiles.
      lows: first key of each tile.
      width: number of keys that each tile meets, at most.
    """

    tiles: tuple[int, ...]
    lows: tuple[int, ...]
    width: int


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tiling of queries and keys, known before the program runs.

    Attributes:
      tile: number of queries per tile.
      bands: tiles by the number of keys that they meet.
      prefix: number of carried keys, as in `Sight`.
      window: number of places that a query sees, as in `Sight`.
      block: number of keys of a block, of which lows and widths are multiples; None where tiles meet their keys at once.
    """

    tile: int
    bands: tuple[Band, ...]
    prefix: int
    window: int | None
    block: int | None = None

    @property
    def pairs(self) -> int:
        """Number of query-key pairs that are computed where no block is skipped."""
        return self.tile * sum(len(band.tiles) * band.width for band in self.bands)

    @property
    def padded(self) -> int:
        """Number of queries, those that fill the last tile included."""
        return self.tile * sum(len(band.tiles) for band in self.bands)


@functools.cache
def tiling_of(
    queries: int, keys: int, prefix: int = 0, window: int | None = None, most_at_once: int | None = MOST_AT_ONCE
) -> Tiling:
    """The tiling of a sight.

    Fewer queries than the segment has keys begin at a place that only the program knows, so they meet all keys; otherwise keys
    above the diagonal and before the window are left out. Where a tile meets more than `most_at_once` keys all tiles meet
    theirs in blocks, the last of which may be filled up; None is any number.
    """
    count = -(-queries // TILE)
    tile = -(-queries // count)
    at_zero = queries == keys - prefix
    spans = []
    for first in range(0, queries, tile):
        low = max(0, prefix + first - window + 1) if at_zero and window is not None else 0
        spans.append((low, min(prefix + first + tile, keys) if at_zero else keys))
    widest, block, unit = max(high - low for low, high in spans), None, tile
    if most_at_once is not None and widest > most_at_once:
        block = unit = GRAIN * math.ceil(keys / math.ceil(keys / BLOCK) / GRAIN)  # so that the last one is nearly full
        spans = [(low // block * block, high) for low, high in spans]
        widest, keys = max(high - low for low, high in spans), block * math.ceil(keys / block)
    step = unit * math.ceil(widest / (BANDS * unit))
    bands: list[Band] = []
    for number, (low, high) in enumerate(spans):
        width = min(keys, step * math.ceil((high - low) / step))
        low = min(low, keys - width)
        if bands and bands[-1].width == width:
            last = bands.pop()
            bands.append(Band((*last.tiles, number), (*last.lows, low), width))
        else:
            bands.append(Band((number,), (low,), width))
    return Tiling(tile, tuple(bands), prefix, window, block)


def blockwise(
    q_BxSxHxK: jax.Array,
    k_BxJxHxK: jax.Array,
    v_BxJxHxV: jax.Array,
    sight: Sight,
    *,
    scale: jax.Array,
    distance_bias_HxJ: jax.Array | None = None,
    one_row_at_a_time: bool | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(softmax(scale q k^T + bias) v BxSxHxV, log-sum-exp BxHxS) over the keys that `sight` shows, both with gradients.

    `scale` H is one number per head, `distance_bias_HxJ` the bias of a key that many places back. One row (a head of one
    sequence) at a time keeps a tile in a CPU's cache and is the default there; elsewhere all rows run side by side, and meet
    their keys at once, as nothing can be skipped that one of them sees. That loop over rows cannot be split by the automatic
    partitioner: on several CPU devices it takes `sharding.summed_over_rows`.
    """
    if one_row_at_a_time is None:
        one_row_at_a_time = platform() == "cpu"
    queries, keys = q_BxSxHxK.shape[1], k_BxJxHxK.shape[1]
    plan = tiling_of(queries, keys, sight.prefix, sight.window, MOST_AT_ONCE if one_row_at_a_time else None)
    spare, spare_keys = plan.padded - queries, 0 if plan.block is None else -keys % plan.block
    q_BxHxLxK = jnp.pad(q_BxSxHxK.swapaxes(1, 2), ((0, 0), (0, 0), (0, spare), (0, 0)))
    documents_BxL = jnp.pad(sight.query_documents, ((0, 0), (0, spare)), constant_values=NO_QUERY)
    key_documents_BxJ = jnp.pad(sight.key_documents, ((0, 0), (0, spare_keys)), constant_values=NEVER_SEEN)
    seen_BxNxM = None if plan.block is None else seen_blocks(plan, documents_BxL, key_documents_BxJ, sight.start)
    places = (documents_BxL, key_documents_BxJ, sight.start, seen_BxNxM)
    k_BxHxJxK, v_BxHxJxV = (
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, spare_keys), (0, 0))) for x in (k_BxJxHxK, v_BxJxHxV)
    )
    found: Any = _rows(plan, one_row_at_a_time, q_BxHxLxK, k_BxHxJxK, v_BxHxJxV, scale, distance_bias_HxJ, places)
    y_BxHxLxV, lse_BxHxL = found
    return y_BxHxLxV[:, :, :queries].swapaxes(1, 2), lse_BxHxL[:, :, :queries]


def seen_blocks(plan: Tiling, documents_BxL: jax.Array, key_documents_BxJ: jax.Array, start: jax.Array) -> jax.Array:
    """Whether a query of each tile may see a key of each block, BxNxM: never False where one does.

    Documents are compared by the least and the greatest number in a tile and in a block, which tells all of them apart where
    numbers rise.
    """

    def ends(documents_Bx: jax.Array, size: int, nobody: int) -> tuple[jax.Array, jax.Array]:
        x_BxNxP = documents_Bx.reshape(len(documents_Bx), -1, size)
        return jnp.where(x_BxNxP == nobody, jnp.iinfo(x_BxNxP.dtype).max, x_BxNxP).min(axis=2), x_BxNxP.max(axis=2)

    block = present(plan.block, "blocks are of some size")
    (low_BxN, high_BxN), (key_low_BxM, key_high_BxM) = (
        ends(documents_BxL, plan.tile, NO_QUERY),
        ends(key_documents_BxJ, block, NEVER_SEEN),
    )
    shared_BxNxM = (low_BxN[:, :, None] <= key_high_BxM[:, None]) & (key_low_BxM[:, None] <= high_BxN[:, :, None])
    first_Nx1 = start + plan.prefix + plan.tile * jnp.arange(low_BxN.shape[1])[:, None]
    furthest_NxM = first_Nx1 + plan.tile - 1 - block * jnp.arange(key_low_BxM.shape[1])
    nearest_NxM = furthest_NxM - (plan.tile - 1) - (block - 1)
    return shared_BxNxM & (furthest_NxM >= 0) & ((plan.window is None) | (nearest_NxM < (plan.window or 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rows(plan: Tiling, loop: bool, q, k, v, scale_H, bias_HxJ, places) -> tuple[jax.Array, jax.Array]:
    vT = v.swapaxes(2, 3)  # a transpose inside the loop would be folded into the product and make it slow
    return _over_rows(functools.partial(_forward_row, plan), loop, places, (scale_H, bias_HxJ), (q, k, vT))


def _rows_forward(plan: Tiling, loop: bool, q, k, v, scale_H, bias_HxJ, places):
    found: Any = _rows(plan, loop, q, k, v, scale_H, bias_HxJ, places)
    y, lse = found
    return (y, lse), (q, k, v, scale_H, bias_HxJ, places, y, lse)


def _rows_backward(plan: Tiling, loop: bool, saved, gradients):
    q, k, v, scale_H, bias_HxJ, places, y, lse = saved
    dy, dlse = gradients
    wide = lse.dtype
    D = jnp.einsum("bhsv,bhsv->bhs", dy.astype(wide), y.astype(wide)) - dlse
    kT = k.swapaxes(2, 3)  # outside the loop, as vT above
    row = functools.partial(_backward_row, plan)
    dq, dk, dv, dscale, dbias = _over_rows(row, loop, places, (scale_H, bias_HxJ), (q, k, v, kT, dy, lse, D))
    return dq, dk, dv, dscale.sum(axis=0), None if dbias is None else dbias.sum(axis=0), None


_rows.defvjp(_rows_forward, _rows_backward)


def _over_rows(row: Callable, loop: bool, places, per_head, arrays):
    """`row(places, scale, bias_J, *arrays)` of each sequence and head; arrays are BxHx..."""
    spread = (lambda f: lambda xs: jax.lax.map(f, xs)) if loop else jax.vmap
    documents_BxL, key_documents_BxJ, start, seen_BxNxM = places

    def sequence(xs):
        documents_L, key_documents_J, seen_NxM, arrays = xs
        own = (documents_L, key_documents_J, start, seen_NxM)
        return spread(lambda ys: row(own, *ys[0], *ys[1]))((per_head, arrays))

    return spread(sequence)((documents_BxL, key_documents_BxJ, seen_BxNxM, arrays))


def _cut(x: jax.Array, start, size: int, axis: int = 0) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _scores(plan: Tiling, width: int, tile, low, places, scale, q_PxK: jax.Array, k_CxK: jax.Array, bias_J) -> jax.Array:
    """Scaled, biased and masked scores of a tile, CxP."""
    documents_L, key_documents_J, *_ = places
    wide = precision.wide(q_PxK.dtype)
    scores_CxP = jnp.einsum("ck,pk->cp", k_CxK, q_PxK, preferred_element_type=wide) * scale
    distance = _distance(plan, places, tile, low)
    if bias_J is not None:
        scores_CxP += _toeplitz(bias_J, distance, width, plan.tile)
    distance_CxP = distance + jnp.arange(plan.tile) - jnp.arange(width)[:, None]
    same_CxP = _cut(key_documents_J, low, width)[:, None] == _cut(documents_L, tile * plan.tile, plan.tile)
    return jnp.where(within(distance_CxP, plan.window) & same_CxP, scores_CxP, MASKED)


def _distance(plan: Tiling, places, tile, low):
    """Number of places from the first key of a tile forward to its first query."""
    return places[2] + tile * plan.tile + plan.prefix - low


def _toeplitz(bias_J: jax.Array, distance, width: int, tile: int) -> jax.Array:
    """bias[distance + p - c] at (c, p) of CxP, any number where that is no distance; its transpose sums along diagonals.

    It is made by copies alone, as a CPU gathers and scatters slowly: in squares of P x P, each a row of 2 P written P times,
    one place further on each time.
    """
    squares = -(-width // tile)
    padded = jnp.pad(bias_J, ((squares + 1) * tile, 2 * tile))  # a block may begin inside the tile, at -tile < distance < 0
    rows = _cut(padded, distance + 1 + tile, (squares + 1) * tile).reshape(squares + 1, tile)
    spans_GxU = jnp.roll(jnp.concatenate([rows[:-1], rows[1:]], axis=1)[::-1], 1 - tile, axis=1)
    written = jnp.tile(spans_GxU, tile)[:, : tile * (2 * tile - 1)].reshape(squares, tile, -1)
    return written[:, :, :tile].reshape(-1, tile)[:width]


def _forward_row(plan: Tiling, places, scale, bias_J, q_LxK, k_JxK, vT_VxJ) -> tuple[jax.Array, jax.Array]:
    """y SxV and log-sum-exp S of one head of one sequence."""
    wide = precision.wide(q_LxK.dtype)

    def met(before: tuple, width: int, tile, low) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(y VxP not yet divided, top P, total P) of the running softmax after a tile has met keys from `low` on."""
        y_VxP, before_P, total_P = before
        q_PxK, k_CxK = _cut(q_LxK, tile * plan.tile, plan.tile), _cut(k_JxK, low, width)
        vT_VxC = _cut(vT_VxJ, low, width, axis=1)
        scores_CxP = _scores(plan, width, tile, low, places, scale, q_PxK, k_CxK, bias_J)
        top_P = jnp.maximum(before_P, scores_CxP.max(axis=0))
        weights_CxP = jnp.exp(scores_CxP - top_P)  # 1 all over as long as nothing was seen, and wiped out by the first that is
        left_P = jnp.exp(before_P - top_P)
        met_VxP = jnp.einsum("vc,cp->vp", vT_VxC, weights_CxP.astype(vT_VxC.dtype), preferred_element_type=wide)
        return y_VxP * left_P + met_VxP, top_P, total_P * left_P + weights_CxP.sum(axis=0)

    def step(before: tuple, seen, *span) -> tuple:
        return _where_seen(seen, lambda: met(before, *span), before)

    def tile_of(width: int, tile, low) -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros((vT_VxJ.shape[0], plan.tile), wide), jnp.full(plan.tile, MASKED, wide), jnp.zeros(plan.tile, wide)
        y_VxP, top_P, total_P = _over_blocks(plan, width, places[3], tile, low, step, nothing)
        seen_P = top_P > MASKED
        total_P = jnp.where(seen_P, total_P, 1.0)
        share_P = jnp.where(seen_P, 1.0 / total_P, 0.0)
        return (y_VxP * share_P).T.astype(vT_VxJ.dtype), top_P + jnp.log(total_P)

    parts = [_over_tiles(band, functools.partial(tile_of, band.width)) for band in plan.bands]
    y_LxV, lse_L = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return y_LxV, lse_L


def _over_blocks(plan: Tiling, width: int, seen_NxM, tile, low, step: Callable, state):
    """`state` after `step(state, whether seen, number of keys, tile, low)` of a tile's keys: at once, or block by block."""
    if plan.block is None:
        return step(state, None, width, tile, low)
    block = plan.block

    def of_block(state, number):
        return step(state, seen_NxM[tile, number], block, tile, number * block), None

    return jax.lax.scan(of_block, state, low // block + jnp.arange(width // block))[0]


def _where_seen(seen, found: Callable, otherwise):
    """`found()`, or without computing it `otherwise`, where keys are not seen; `seen` is None where that is not known."""
    return found() if seen is None else jax.lax.cond(seen, found, lambda: otherwise)


def _over_tiles(band: Band, tile_of: Callable):
    """`tile_of(tile, low)` of each tile of a band, joined along the queries."""
    if len(band.tiles) == 1:
        return tile_of(band.tiles[0], band.lows[0])
    stacked = jax.lax.map(lambda numbers: tile_of(*numbers), (np.array(band.tiles), np.array(band.lows)))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked)


def _backward_row(plan: Tiling, places, scale, bias_J, q_LxK, k_JxK, v_JxV, kT_KxJ, dy_LxV, lse_L, D_L):
    """(dq, dk, dv, dscale, dbias) of one head of one sequence."""
    wide = lse_L.dtype

    def met(width: int, tile, low) -> tuple:
        """(dk CxK, dv CxV, dbias J, dq KxP) of a tile and the keys from `low` on."""
        q_PxK, dy_PxV, lse_P, D_P = (_cut(x, tile * plan.tile, plan.tile) for x in (q_LxK, dy_LxV, lse_L, D_L))
        k_CxK, v_CxV = _cut(k_JxK, low, width), _cut(v_JxV, low, width)
        kT_KxC = _cut(kT_KxJ, low, width, axis=1)
        with jax.named_scope(MADE_AGAIN):
            scores_CxP = _scores(plan, width, tile, low, places, scale, q_PxK, k_CxK, bias_J)
        weights_CxP = jnp.exp(scores_CxP - jnp.where(lse_P > MASKED, lse_P, 0.0))
        dweights_CxP = jnp.einsum("cv,pv->cp", v_CxV, dy_PxV, preferred_element_type=wide)
        dscores_CxP = weights_CxP * (dweights_CxP - D_P)
        narrow_CxP = dscores_CxP.astype(q_LxK.dtype)
        dq_KxP = jnp.einsum("kc,cp->kp", kT_KxC, narrow_CxP, preferred_element_type=wide)
        dk_CxK = jnp.einsum("cp,pk->ck", narrow_CxP, q_PxK, preferred_element_type=wide)
        dv_CxV = jnp.einsum("cp,pv->cv", weights_CxP.astype(dy_LxV.dtype), dy_PxV, preferred_element_type=wide)
        if bias_J is None:
            return dk_CxK, dv_CxV, None, dq_KxP
        distance = _distance(plan, places, tile, low)
        along = jax.linear_transpose(lambda bias_J: _toeplitz(bias_J, distance, width, plan.tile), bias_J)
        return dk_CxK, dv_CxV, along(dscores_CxP)[0], dq_KxP

    def step(sums: tuple, seen, width: int, tile, low) -> tuple:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: met(width, 0, 0)))
        dk_CxK, dv_CxV, own_bias_J, own_KxP = _where_seen(seen, lambda: met(width, tile, low), nothing)
        dk_JxK, dv_JxV, dbias_J, dq_KxP = sums  # added outside of the choice, where the sums would be copied
        dk_JxK, dv_JxV = _add(dk_JxK, dk_CxK, low), _add(dv_JxV, dv_CxV, low)
        return dk_JxK, dv_JxV, None if bias_J is None else dbias_J + own_bias_J, dq_KxP + own_KxP

    def tile_of(width: int, sums, numbers):
        tile, low = numbers
        nothing_KxP = jnp.zeros((q_LxK.shape[1], plan.tile), wide)
        *sums, dq_KxP = _over_blocks(plan, width, places[3], tile, low, step, (*sums, nothing_KxP))
        return tuple(sums), dq_KxP

    sums = (jnp.zeros(k_JxK.shape, wide), jnp.zeros(v_JxV.shape, wide), None if bias_J is None else jnp.zeros_like(bias_J))
    parts = []
    for band in plan.bands:
        numbers = (np.array(band.tiles), np.array(band.lows))
        sums, dq_GxKxP = jax.lax.scan(functools.partial(tile_of, band.width), sums, numbers)
        parts.append(dq_GxKxP.swapaxes(1, 2).reshape(-1, q_LxK.shape[1]))
    dk_JxK, dv_JxV, dbias_J = sums
    dq_LxK = jnp.concatenate(parts)  # of scale * q
    dscale = jnp.sum(dq_LxK * q_LxK)
    return (
        (dq_LxK * scale).astype(q_LxK.dtype),
        (dk_JxK * scale).astype(k_JxK.dtype),
        dv_JxV.astype(v_JxV.dtype),
        dscale,
        dbias_J,
    )


def _add(total: jax.Array, part: jax.Array, low) -> jax.Array:
    """`part` added at the rows from `low` on."""
    return jax.lax.dynamic_update_slice_in_dim(total, _cut(total, low, part.shape[0]) + part, low, 0)
