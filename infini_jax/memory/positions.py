"""Positions in local attention, over a segment and what a mechanism carries of the tokens before it; one setting for all.

All depend on distances only, so that an entry keeps its meaning as it moves back through a cache:
  none       q . k / sqrt(K)                                       what stands where is told by causality alone
  rotary     (R_i q) . (R_j k) / sqrt(K)                           no parameters; Su et al. 2021, arXiv 2104.09864
  relative   ((q + u) . k + (q + v) . (W_r R_{i-j})) / sqrt(K)     Dai et al. 2019, arXiv 1901.02860, section 3.3
  t5         q . k / sqrt(K) + b_{bucket(i-j)}                     Raffel et al. 2020, arXiv 1910.10683, 32 buckets up to 128
DEVIATION: T5 leaves the 1/sqrt(K) to its initial weights; ours is the same for all four.

They are those of local attention. What else a mechanism remembers in keeps its own rule, which its settings say: matrices,
rings and signals know no places, and blocks of landmark attention have slots.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from infini_jax.errors import LATER, require
from infini_jax.layers import precision
from infini_jax.layers.attention import attend, attend_flops, attention_flops, masked_softmax, soft_cap
from infini_jax.layers.distances import t5_distance_bias
from infini_jax.layers.grouped_heads import repeat_heads
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import Sight
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig

Positions = Literal["rotary", "relative", "t5", "none"]
T5_BUCKETS = 32
NO_DECAY = (("bias",), ("u",), ("v",))  # parameters of `PositionedAttention` that are added to logits or queries
PARAMETER_AXES = {("w_r", "kernel"): ("embed", "heads", "head_dim")}


@struct.dataclass
class View:
    """Keys and values that the queries of a segment see: carried entries in front of the segment's own, J in all.

    Attributes:
      keys: BxJxGxK.
      values: BxJxGxV.
      sight: the keys that each query sees, causal and of the same document.
      query_positions: S, positions of the queries; the segment begins at 0.
      key_positions: J, positions of the keys; carried entries stand before the segment, at negative places.
    """

    keys: jax.Array
    values: jax.Array
    sight: Sight
    query_positions: jax.Array
    key_positions: jax.Array


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


def attend_relative(
    q_BxSxHxK: jax.Array,
    seen: View,
    r_JxHxK: jax.Array,
    u_HxK: jax.Array,
    v_HxK: jax.Array,
    scale_H: jax.Array | None = None,
    cap: float = 0.0,
) -> jax.Array:
    """Softmax attention with Transformer-XL's relative positions: BxSxHxV.

    `r_JxHxK` is W_r R at `falling_distances`; u and v stand for the query in the terms that do not know it. `scale_H` is
    1/sqrt(K) where None, `cap` bounds the scores as `soft_cap` does.
    """
    wide = precision.wide(q_BxSxHxK.dtype)
    k_BxJxHxK, v_BxJxHxV = (repeat_heads(x, q_BxSxHxK.shape[2]) for x in (seen.keys, seen.values))
    content = jnp.einsum("bshk,bjhk->bhsj", q_BxSxHxK + u_HxK, k_BxJxHxK, preferred_element_type=wide)
    position = jnp.einsum("bshk,jhk->bhsj", q_BxSxHxK + v_HxK, r_JxHxK, preferred_element_type=wide)
    factor = q_BxSxHxK.shape[-1] ** -0.5 if scale_H is None else scale_H[:, None, None]
    logits_BxHxSxJ = soft_cap((content + shifted(position)) * factor, cap)
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

    def setup(self):
        """Makes the parameters of the chosen positions."""
        d, small = self.dims, nn.initializers.normal(0.02)
        if self.positions == "t5":
            self.bias = self.param("bias", small, (T5_BUCKETS, d.heads), PARAMETERS)
        if self.positions == "relative":
            self.w_r = nn.DenseGeneral((d.heads, d.key_dim), use_bias=False, dtype=d.dtype)
            self.u = self.param("u", small, (d.heads, d.key_dim), PARAMETERS)
            self.v = self.param("v", small, (d.heads, d.key_dim), PARAMETERS)

    def __call__(self, q_BxSxHxK: jax.Array, seen: View, scale_H: jax.Array | None = None) -> jax.Array:
        """The attention of queries over the view, BxSxHxV; `scale_H` multiplies the products, 1/sqrt(K) where None.

        Turns and the bound of scores are those of `dims`. Only distances matter, so any origin of places will do.
        """
        cap, k_BxJxGxK, bias_HxJ = self.dims.score_cap, seen.keys, None
        if self.positions == "relative":
            problem = "relative positions know no later token, and memory tokens see them"
            require(not any(seen.sight.mutual), "memory.positions", problem, "choose others")
            return attend_relative(q_BxSxHxK, seen, *self.relative(seen), scale_H, cap)
        if self.positions == "rotary":
            turn = self.dims.rotary
            q_BxSxHxK, k_BxJxGxK = turn(q_BxSxHxK, seen.query_positions), turn(k_BxJxGxK, seen.key_positions)
        if self.positions == "t5":
            bias_HxJ = t5_distance_bias(self.bias, k_BxJxGxK.shape[1])
        return attend(q_BxSxHxK, k_BxJxGxK, seen.values, seen.sight, scale=scale_H, distance_bias_HxJ=bias_HxJ, cap=cap)

    def added(self, q_BxSxHxK: jax.Array, seen: View) -> tuple[jax.Array, jax.Array]:
        """(queries BxSxHxK, what is added to their products over sqrt(K), ...xSxJ) of relative or T5's positions.

        For a softmax that is not this module's; queries and keys are not turned.
        """
        if self.positions == "t5":
            keys = seen.keys.shape[1]
            return q_BxSxHxK, t5_distance_bias(self.bias, keys)[:, jnp.clip(seen.sight.distance_SxJ, 0, keys - 1)]
        r_JxHxK, u_HxK, v_HxK = self.relative(seen)
        wide = precision.wide(q_BxSxHxK.dtype)
        position = jnp.einsum("bshk,jhk->bhsj", q_BxSxHxK + v_HxK, r_JxHxK, preferred_element_type=wide)
        return q_BxSxHxK + u_HxK, shifted(position) * q_BxSxHxK.shape[-1] ** -0.5

    def relative(self, seen: View) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(W_r R at `falling_distances` JxHxK, u HxK, v HxK) of relative positions."""
        u_HxK, v_HxK = (x.astype(self.dims.dtype) for x in (self.u, self.v))
        return self.w_r(sinusoids(falling_distances(seen), self.dims.d_model)), u_HxK, v_HxK


def require_own_cache(config: MemoryConfig, **tokens: int) -> None:
    """Raises `ConfigError` for the first of `tokens` that a mechanism caches itself beside a neighborhood not its own."""
    for name, count in tokens.items():
        cached = f"{count} tokens are cached beside the neighborhood '{config.local}'"
        require(count == 0 or config.local == "own", f"memory.{name}", cached, "give 0, or leave memory.local out")


@dataclasses.dataclass(frozen=True)
class PositionedConfig(MemoryConfig):
    """Settings of local attention.

    Attributes:
      positions: kind of positions of local attention: rotary, Transformer-XL's relative, T5's bias, or none.
    """

    positions: Positions = dataclasses.field(default="rotary", metadata=LATER)

    @property
    def positions_elsewhere(self) -> Positions:
        """Kind of positions of the layers that `layers` leaves out: the same."""
        return self.positions


class Positioned(Memory):
    """Base of mechanisms whose local attention, `attention`, has the positions of their settings, a `PositionedConfig`.

    What they declare of their own parameters stands beside this class's `parameter_axes` and `no_decay`.
    """

    parameter_axes: ClassVar = {("attention", *path): axes for path, axes in PARAMETER_AXES.items()}
    no_decay = tuple(("attention", *path) for path in NO_DECAY)

    def setup(self):
        super().setup()
        self.attention = PositionedAttention(self.config.positions, self.dims)


def local_cost(config: PositionedConfig, dims: Dims, segment_length: int, carried: int = 0, segments: int = 1) -> Cost:
    """Cost per token of attention over the neighborhood that the settings ask for and `carried` entries before it."""
    near, window = config.neighbors(dims.segment)
    return positioned_cost(config.positions, dims, carried, segment_length, window, near, segments)


def positioned_cost(
    positions: Positions,
    dims: Dims,
    carried: int,
    segment_length: int,
    window: int | None = None,
    near: int = 0,
    segments: int = 1,
) -> Cost:
    """Cost per token of `PositionedAttention` over `carried` entries, `near` ones and the segment.

    A query sees `window` places; reading is what it takes beside the near entries and the segment.

    Relative positions add W_r R, made once for all rows and for all `segments` that are taken at once, and its products with
    the queries; they hold all scores, as those are shifted, and take no tiles.
    """
    keys, sizes = carried + near + segment_length, (dims.heads, dims.key_dim, dims.value_dim)
    if positions == "relative":
        local, extra = attention_flops(near + segment_length, *sizes), relative_cost(dims, keys, segment_length, segments)
        return dataclasses.replace(extra, local=local, read=attention_flops(carried, *sizes) + extra.read)
    kind = {"window": window, "cap": dims.score_cap, "mutual": dims.mutual}
    total = attend_flops(segment_length, *sizes, prefix=carried + near, **kind)
    local = min(total, attend_flops(segment_length, *sizes, prefix=near, **kind))
    return Cost(local=local, read=total - local)


def relative_cost(dims: Dims, keys: int, segment_length: int, segments: int = 1) -> Cost:
    """Cost per token that relative positions add to attention over `keys`: W_r R, and its products with the queries.

    W_r R is made once for the `segments` that are taken at once.
    """
    sines = dims.d_model + dims.d_model % 2
    asked = 2.0 * keys * dims.heads * dims.key_dim
    made = asked * sines / (segment_length * segments)
    return Cost(read=asked + made, read_saved=made, shared=2 * made)  # no gradient reaches R
