"""Positions in attention over carried entries and a segment: rotary, Transformer-XL's relative, or T5's bias.

All three depend on distances only, so that an entry keeps its meaning as it moves back through a cache:
  rotary     (R_i q) . (R_j k) / sqrt(K)                           no parameters; Su et al. 2021, arXiv 2104.09864
  relative   ((q + u) . k + (q + v) . (W_r R_{i-j})) / sqrt(K)     Dai et al. 2019, arXiv 1901.02860, section 3.3
  t5         q . k / sqrt(K) + b_{bucket(i-j)}                     Raffel et al. 2020, arXiv 1910.10683, 32 buckets up to 128
DEVIATION: T5 leaves the 1/sqrt(K) to its initial weights; ours is the same for all three.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.layers import precision
from infini_jax.layers.attention import attend, attend_flops, attention_flops, masked_softmax
from infini_jax.layers.distances import rotary, t5_distance_bias
from infini_jax.layers.grouped_heads import repeat_heads
from infini_jax.layers.precision import PARAMETERS
from infini_jax.memory.base import Cost, Dims
from infini_jax.memory.window import View

Positions = Literal["rotary", "relative", "t5"]
T5_BUCKETS = 32
NO_DECAY = ("bias", "u", "v")  # parameters of `PositionedAttention` that are added to logits or queries


def attend_rotary(q_BxSxHxK: jax.Array, seen: View) -> jax.Array:
    """Softmax attention with rotary positions: BxSxHxV. Only distances matter, so any origin will do."""
    q_BxSxHxK, k_BxJxGxK = rotary(q_BxSxHxK, seen.query_positions), rotary(seen.keys, seen.key_positions)
    return attend(q_BxSxHxK, k_BxJxGxK, seen.values, seen.sight)


def attend_t5(q_BxSxHxK: jax.Array, seen: View, table_NxH: jax.Array, scale_H: jax.Array | None = None) -> jax.Array:
    """Softmax attention with a learned bias for each bucket of distances: BxSxHxV. `scale_H` is 1/sqrt(K) where None."""
    bias_HxJ = t5_distance_bias(table_NxH, seen.keys.shape[1])
    return attend(q_BxSxHxK, seen.keys, seen.values, seen.sight, scale=scale_H, distance_bias_HxJ=bias_HxJ)


def sinusoids(distance_J: jax.Array, width: int) -> jax.Array:
    """Table R, JxD: sines of the distances in the first half, cosines in the second; frequencies 10000^(-2i/D), D even."""
    angles_JxI = distance_J[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    return jnp.concatenate([jnp.sin(angles_JxI), jnp.cos(angles_JxI)], axis=1)


def falling_distances(seen: View) -> jax.Array:
    """Distances from the last query to each of the J keys, largest first: the columns that `shifted` expects."""
    return seen.query_positions[-1] - seen.key_positions[0] - jnp.arange(seen.key_positions.shape[0])


def shifted(scores_BxHxSxJ: jax.Array) -> jax.Array:
    """Scores with columns of keys from scores with columns of falling distances: BxHxSxJ (Dai et al. 2019, appendix B).

    Query i finds the score of key j in column S - 1 - i + j. In a row longer by one that is the same place of the flat
    array for all queries, so the shift is a slice. Later tokens get numbers of other rows, which masks must hide.
    """
    *rows, queries, keys = scores_BxHxSxJ.shape
    longer = jnp.pad(scores_BxHxSxJ, [(0, 0)] * (len(rows) + 1) + [(0, 1)]).reshape(*rows, -1)
    return longer[..., queries - 1 : queries - 1 + queries * keys].reshape(*rows, queries, keys)


def attend_relative(q_BxSxHxK: jax.Array, seen: View, r_JxHxK: jax.Array, u_HxK: jax.Array, v_HxK: jax.Array) -> jax.Array:
    """Softmax attention with Transformer-XL's relative positions: BxSxHxV.

    `r_JxHxK` is W_r R at `falling_distances`; u and v stand for the query in the terms that do not know it.
    """
    wide = precision.wide(q_BxSxHxK.dtype)
    k_BxJxHxK, v_BxJxHxV = (repeat_heads(x, q_BxSxHxK.shape[2]) for x in (seen.keys, seen.values))
    content = jnp.einsum("bshk,bjhk->bhsj", q_BxSxHxK + u_HxK, k_BxJxHxK, preferred_element_type=wide)
    position = jnp.einsum("bshk,jhk->bhsj", q_BxSxHxK + v_HxK, r_JxHxK, preferred_element_type=wide)
    logits_BxHxSxJ = (content + shifted(position)) * q_BxSxHxK.shape[-1] ** -0.5
    weights_BxHxSxJ, _ = masked_softmax(logits_BxHxSxJ, seen.sight.mask_BxSxJ[:, None])
    return jnp.einsum("bhsj,bjhv->bshv", weights_BxHxSxJ.astype(v_BxJxHxV.dtype), v_BxJxHxV)


class PositionedAttention(nn.Module):
    """Attention over a `View` with the chosen positions, and their parameters if they have any.

    Attributes:
      positions: kind of positions.
      dims: sizes of the layer.
    """

    positions: Positions
    dims: Dims

    @nn.compact
    def __call__(self, q_BxSxHxK: jax.Array, seen: View) -> jax.Array:
        """The attention of queries over the view, BxSxHxV."""
        d, small = self.dims, nn.initializers.normal(0.02)
        if self.positions == "rotary":
            return attend_rotary(q_BxSxHxK, seen)
        if self.positions == "t5":
            return attend_t5(q_BxSxHxK, seen, self.param("bias", small, (T5_BUCKETS, d.heads), PARAMETERS))
        w_r = nn.DenseGeneral((d.heads, d.key_dim), use_bias=False, dtype=d.dtype, name="w_r")
        u_HxK, v_HxK = (self.param(name, small, (d.heads, d.key_dim), PARAMETERS).astype(d.dtype) for name in ("u", "v"))
        return attend_relative(q_BxSxHxK, seen, w_r(sinusoids(falling_distances(seen), d.d_model)), u_HxK, v_HxK)


def positioned_cost(positions: Positions, dims: Dims, carried: int, segment_length: int) -> Cost:
    """Cost per token of `PositionedAttention` over `carried` entries and the segment.

    Relative positions add W_r R, made once per segment for all rows, and its products with the queries; they hold all scores,
    as those are shifted, and take no tiles.
    """
    keys, sizes = carried + segment_length, (dims.heads, dims.key_dim, dims.value_dim)
    if positions == "relative":
        sines = dims.d_model + dims.d_model % 2
        extra = 2.0 * keys * dims.heads * dims.key_dim * (1 + sines / segment_length)
        local, read = attention_flops(segment_length, *sizes), attention_flops(carried, *sizes) + extra
        made = 2.0 * keys * dims.heads * dims.key_dim * sines / segment_length
        return Cost(local=local, read=read, read_saved=made, shared=2 * made)  # no gradient reaches R
    total, local = attend_flops(segment_length, *sizes, prefix=carried), attend_flops(segment_length, *sizes)
    return Cost(local=min(local, total), read=total - min(local, total))
