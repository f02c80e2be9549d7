"""Exact local attention in tiles: pure JAX with its own gradient rule, for any platform.

Nothing of size S x J is ever stored: a tile of queries meets the keys that it may see, and the gradient makes its weights
again from the log-sum-exp (Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4, with whole rows of keys instead of tiles of
them). With P = exp(scale q k^T + bias - lse), D = sum_v dy * y - dlse, dS = P * (dy v^T - D):
  dv = P^T dy,  dq = scale dS k,  dk = scale dS^T q,  dbias = sums of dS along diagonals,  dscale = sum (dS k) * q

Letters: S queries, L with those that fill the last tile, J keys, K and V their dims, H heads; a tile has P queries and C keys.
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

from infini_jax.layers import precision
from infini_jax.layers.platforms import platform
from infini_jax.layers.segment import Sight, within

TILE = 128
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
      width: number of keys that each tile meets.
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
    """

    tile: int
    bands: tuple[Band, ...]
    prefix: int
    window: int | None

    @property
    def pairs(self) -> int:
        """Number of query-key pairs that are computed."""
        return self.tile * sum(len(band.tiles) * band.width for band in self.bands)

    @property
    def padded(self) -> int:
        """Number of queries, those that fill the last tile included."""
        return self.tile * sum(len(band.tiles) for band in self.bands)


@functools.cache
def tiling_of(queries: int, keys: int, prefix: int = 0, window: int | None = None) -> Tiling:
    """The tiling of a sight.

    Fewer queries than the segment has keys begin at a place that only the program knows, so they meet all keys; otherwise keys
    above the diagonal and before the window are left out.
    """
    count = -(-queries // TILE)
    tile = -(-queries // count)
    at_zero = queries == keys - prefix
    spans = []
    for first in range(0, queries, tile):
        low = max(0, prefix + first - window + 1) if at_zero and window is not None else 0
        spans.append((low, min(prefix + first + tile, keys) if at_zero else keys))
    widest = max(high - low for low, high in spans)
    step = tile * math.ceil(widest / (BANDS * tile))
    bands: list[Band] = []
    for number, (low, high) in enumerate(spans):
        width = min(keys, step * math.ceil((high - low) / step))
        low = min(low, keys - width)
        if bands and bands[-1].width == width:
            last = bands.pop()
            bands.append(Band((*last.tiles, number), (*last.lows, low), width))
        else:
            bands.append(Band((number,), (low,), width))
    return Tiling(tile, tuple(bands), prefix, window)


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
    sequence) at a time keeps a tile in a CPU's cache and is the default there; elsewhere all rows run side by side. That loop
    over rows cannot be split by the automatic partitioner: on several CPU devices it takes `sharding.summed_over_rows`.
    """
    plan = tiling_of(q_BxSxHxK.shape[1], k_BxJxHxK.shape[1], sight.prefix, sight.window)
    if one_row_at_a_time is None:
        one_row_at_a_time = platform() == "cpu"
    spare = plan.padded - q_BxSxHxK.shape[1]
    q_BxHxLxK = jnp.pad(q_BxSxHxK.swapaxes(1, 2), ((0, 0), (0, 0), (0, spare), (0, 0)))
    documents_BxL = jnp.pad(sight.query_documents, ((0, 0), (0, spare)), constant_values=NO_QUERY)
    places = (documents_BxL, sight.key_documents, sight.start)
    k_BxHxJxK, v_BxHxJxV = k_BxJxHxK.swapaxes(1, 2), v_BxJxHxV.swapaxes(1, 2)
    found: Any = _rows(plan, one_row_at_a_time, q_BxHxLxK, k_BxHxJxK, v_BxHxJxV, scale, distance_bias_HxJ, places)
    y_BxHxLxV, lse_BxHxL = found
    length = q_BxSxHxK.shape[1]
    return y_BxHxLxV[:, :, :length].swapaxes(1, 2), lse_BxHxL[:, :, :length]


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
    documents_BxL, key_documents_BxJ, start = places

    def sequence(xs):
        documents_L, key_documents_J, arrays = xs
        return spread(lambda ys: row((documents_L, key_documents_J, start), *ys[0], *ys[1]))((per_head, arrays))

    return spread(sequence)((documents_BxL, key_documents_BxJ, arrays))


def _cut(x: jax.Array, start, size: int, axis: int = 0) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _scores(plan: Tiling, width: int, tile, low, places, scale, q_PxK: jax.Array, k_CxK: jax.Array, bias_J) -> jax.Array:
    """Scaled, biased and masked scores of a tile, CxP."""
    documents_L, key_documents_J, _ = places
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
    padded = jnp.pad(bias_J, (squares * tile, 2 * tile))
    rows = _cut(padded, distance + 1, (squares + 1) * tile).reshape(squares + 1, tile)
    spans_GxU = jnp.roll(jnp.concatenate([rows[:-1], rows[1:]], axis=1)[::-1], 1 - tile, axis=1)
    written = jnp.tile(spans_GxU, tile)[:, : tile * (2 * tile - 1)].reshape(squares, tile, -1)
    return written[:, :, :tile].reshape(-1, tile)[:width]


def _forward_row(plan: Tiling, places, scale, bias_J, q_LxK, k_JxK, vT_VxJ) -> tuple[jax.Array, jax.Array]:
    """y SxV and log-sum-exp S of one head of one sequence."""

    def tile_of(width: int, tile, low) -> tuple[jax.Array, jax.Array]:
        q_PxK, k_CxK = _cut(q_LxK, tile * plan.tile, plan.tile), _cut(k_JxK, low, width)
        vT_VxC = _cut(vT_VxJ, low, width, axis=1)
        scores_CxP = _scores(plan, width, tile, low, places, scale, q_PxK, k_CxK, bias_J)
        top_P = scores_CxP.max(axis=0)
        weights_CxP = jnp.exp(scores_CxP - top_P)
        # a row that sees nothing has its top at MASKED, and the weights 1
        seen_P = top_P > MASKED
        total_P = jnp.where(seen_P, weights_CxP.sum(axis=0), 1.0)
        share_P = jnp.where(seen_P, 1.0 / total_P, 0.0)
        y_VxP = jnp.einsum("vc,cp->vp", vT_VxC, weights_CxP.astype(vT_VxC.dtype), preferred_element_type=scores_CxP.dtype)
        return (y_VxP * share_P).T.astype(vT_VxC.dtype), top_P + jnp.log(total_P)

    parts = [_over_tiles(band, functools.partial(tile_of, band.width)) for band in plan.bands]
    y_LxV, lse_L = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return y_LxV, lse_L


def _over_tiles(band: Band, tile_of: Callable):
    """`tile_of(tile, low)` of each tile of a band, joined along the queries."""
    if len(band.tiles) == 1:
        return tile_of(band.tiles[0], band.lows[0])
    stacked = jax.lax.map(lambda numbers: tile_of(*numbers), (np.array(band.tiles), np.array(band.lows)))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked)


def _backward_row(plan: Tiling, places, scale, bias_J, q_LxK, k_JxK, v_JxV, kT_KxJ, dy_LxV, lse_L, D_L):
    """(dq, dk, dv, dscale, dbias) of one head of one sequence."""
    wide = lse_L.dtype

    def tile_of(width: int, sums, numbers):
        tile, low = numbers
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
        dk_JxK, dv_JxV, dbias_J = sums
        dk_JxK, dv_JxV = (_add(total, part, low) for total, part in ((dk_JxK, dk_CxK), (dv_JxV, dv_CxV)))
        if bias_J is not None:
            distance = _distance(plan, places, tile, low)
            along = jax.linear_transpose(lambda bias_J: _toeplitz(bias_J, distance, width, plan.tile), bias_J)
            dbias_J = dbias_J + along(dscores_CxP)[0]
        return (dk_JxK, dv_JxV, dbias_J), dq_KxP

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
