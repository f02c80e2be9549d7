"""Log-linear attention (Guo, Yang, Goel, Xing, Dao, Kim 2025, arXiv 2506.04761): one matrix per level of a Fenwick tree.

A token at place p of its document (from 0) sees the tokens s < p in buckets, the last of one token, those before twice as long
or more: s is in the bucket of level |p xor s|, the number of bits of p xor s; the token itself has level 0. Per head, with a
log decay g_t <= 0 as in Mamba-2, L levels beside the token's own (sections 3.1, 3.2 and 3.4):
  o_p = sum_l lambda_p^(l) q_p^T S_p^(l) / sqrt(K),   S_p^(l) = sum_{s in bucket l} e^{G_p - G_s} k_s v_s^T
      = sum_{s <= p} lambda_p^{(|p xor s|)} e^{G_p - G_s} (q_p . k_s) v_s / sqrt(K)
  lambda_p^(l) = softplus(w_l x_p + b_l)
Of n tokens before a segment the matrices S_b are carried, one for each bit b that n can have: a bucket of 2^b tokens. For a
token at p it is of level max(b, h) + 1 with h the highest bit of p xor n; when a segment is written, those up to the highest
bit of n' xor n become one. So any number of tokens may be written at once, and documents may begin anywhere.
DEVIATION: the paper's layer is this memory alone. Here local attention stands beside it, and a gate per head mixes both; no
convolution, no output norm and no output gate, and nothing of the input scales what is written.
DEVIATION: keys have unit length, queries keep theirs; Mamba-2's have none of both rules.
DEVIATION: inside a segment all pairs of tokens are multiplied, as the paper does inside a chunk.
DEVIATION: heads first remember for 1 to 64 segments, as in `gated_delta`. What of a document is beyond `longest` shares the
highest level.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.errors import require
from infini_jax.layers.grouped_heads import by_key_head, repeat_heads
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import Boundaries, Segment, reset_where_new, sum_since_begin, with_leaves
from infini_jax.memory.base import GATE, Cost, Dims, memory_bytes
from infini_jax.memory.feature_maps import unit
from infini_jax.memory.gated_delta import check_horizons, first_biases
from infini_jax.memory.infini import combine, with_size
from infini_jax.memory.positions import Positioned, PositionedConfig, local_cost
from infini_jax.memory.window import view

LONGEST_DOCUMENT = 1 << 30  # tokens, whose places have 32 bits


@struct.dataclass
class Buckets:
    """What is carried of the open document.

    Attributes:
      S: BxLxGxKxV, the matrix of the bucket of 2^l tokens, decayed to the segment's end; zero where there is none.
      count_B: B, tokens of the open document that were read.
    """

    S: jax.Array
    count_B: jax.Array


def highest_bit(x: jax.Array, levels: int) -> jax.Array:
    """Number of the highest bit of whole numbers, at most `levels` - 1; -1 of zero."""
    return jnp.minimum(31 - jax.lax.clz(x.astype(jnp.int32)), levels - 1)


def weighted(weights_BxSxHxX: jax.Array, level_BxSxJ: jax.Array) -> jax.Array:
    """lambda of each query and head at given levels: BxHxSxJ; X levels are there, J are asked for."""
    weights_BxHxSxX = jnp.swapaxes(weights_BxSxHxX, 1, 2)
    return jnp.take_along_axis(weights_BxHxSxX, level_BxSxJ[:, None], axis=-1)


def read_buckets(buckets: Buckets, q_BxSxHxK: jax.Array, weights_BxSxHxX: jax.Array, p_BxS: jax.Array) -> jax.Array:
    """What queries at places `p_BxS` read of the carried matrices, BxSxHxV; `weights_BxSxHxX` has all lambda."""
    levels, key_heads = buckets.S.shape[1:3]
    merged_BxS = highest_bit(p_BxS ^ buckets.count_B[:, None], levels)
    level_BxSxL = jnp.maximum(jnp.arange(levels), merged_BxS[..., None]) + 1
    weight_BxSxHxL = jnp.swapaxes(weighted(weights_BxSxHxX, level_BxSxL), 1, 2)
    asked = by_key_head(weight_BxSxHxL, key_heads)[..., None] * by_key_head(q_BxSxHxK, key_heads)[..., None, :]
    o_BxSxGxRxV = jnp.einsum("bsgrlk,blgkv->bsgrv", asked, buckets.S)
    return o_BxSxGxRxV.reshape(*q_BxSxHxK.shape[:3], -1)


def written_buckets(
    buckets: Buckets, k_BxTxGxK: jax.Array, v_BxTxGxV: jax.Array, G_BxTxG: jax.Array, bounds: Boundaries
) -> Buckets:
    """The buckets after a segment, of which `buckets` are zero where the document is new."""
    levels, writes_BxT = buckets.S.shape[1], bounds.writes_BxT
    count_B = buckets.count_B + writes_BxT.sum(axis=1, dtype=jnp.int32)
    # kept as they are above the highest bit that changed, all others in one
    merged_BxL = jnp.arange(levels) - highest_bit(buckets.count_B ^ count_B, levels)[:, None]
    merged_BxLx1x1x1 = merged_BxL[..., None, None, None]
    total_BxLxGxKxV = jnp.cumsum(buckets.S, axis=1)
    kept_BxLxGxKxV = jnp.where(merged_BxLx1x1x1 > 0, buckets.S, jnp.where(merged_BxLx1x1x1 == 0, total_BxLxGxKxV, 0.0))
    end_BxG = G_BxTxG[:, -1]
    place_BxT = bounds.places_BxT + buckets.count_B[:, None]
    bucket_BxTxL = highest_bit(place_BxT ^ count_B[:, None], levels)[..., None] == jnp.arange(levels)
    is_in_BxTxLx1x1 = (bucket_BxTxL & writes_BxT[..., None])[..., None, None]
    left_BxTxGxK = jnp.exp(end_BxG[:, None] - G_BxTxG)[..., None] * k_BxTxGxK
    added = jnp.einsum("btlgk,btgv->blgkv", jnp.where(is_in_BxTxLx1x1, left_BxTxGxK[:, :, None], 0.0), v_BxTxGxV)
    return Buckets(jnp.exp(end_BxG)[:, None, :, None, None] * kept_BxLxGxKxV + added, count_B)


@dataclasses.dataclass(frozen=True)
class LogLinearConfig(PositionedConfig):
    """Settings of log-linear attention.

    Attributes:
      longest: tokens of a document up to which buckets keep apart; one level for each doubling.
      gate_init: the gate between memory and local attention before training; 0 lets both weigh the same.
      horizons: segments after which the first and the last head have forgotten all but 1/e before training, heads between them
        evenly in the logarithm; one head alone begins with the last.
    """

    longest: int = 65_536
    gate_init: float = 0.0
    horizons: tuple[float, float] = (1.0, 64.0)

    @property
    def levels(self) -> int:
        """Number of matrices L, one for each bit of a place."""
        return max((self.longest - 1).bit_length(), 1)

    def check(self, dims: Dims) -> None:
        field, shown = "memory.longest", f"{self.longest} tokens"
        require(self.longest >= 1, field, f"{shown} are no document", "give at least 1")
        require(self.longest <= LONGEST_DOCUMENT, field, f"{shown} are too many to count", f"give at most {LONGEST_DOCUMENT}")
        check_horizons(self.horizons, dims)


class LogLinear(Positioned):
    """Memory of a key x value matrix per head and level: the further back, the more tokens share one."""

    Config = LogLinearConfig
    summary = "a matrix for each doubling of the document, each weighed by every token"
    paper = "arXiv 2506.04761"
    axes = ("key_dim", "value_dim", "heads")
    gates = (("gate",),)
    no_decay = (*Positioned.no_decay, ("weigh", "bias"))
    parameter_axes: ClassVar = {
        **Positioned.parameter_axes,
        ("weigh", "kernel"): ("embed", "heads", None),
        ("forget", "kernel"): ("embed", "kv_heads"),
    }
    learns = ("inputs", "keys", "values")
    reads_own = True
    neighborhoods = ("segment", "window", "cache")
    honors = ("attention_scale", "rotary", "score_cap")

    def setup(self):
        super().setup()
        d, wide = self.dims, self.dims.memory_dtype
        self.gate = self.param("gate", nn.initializers.constant(self.config.gate_init), (d.heads,), PARAMETERS)
        self.weigh = nn.DenseGeneral((d.heads, self.config.levels + 1), dtype=wide)
        self.forget = nn.Dense(d.kv_heads, dtype=wide, bias_init=self._spread)
        self.forget_rate = self.param("forget_rate", nn.initializers.zeros, (d.kv_heads,), PARAMETERS)

    def _spread(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return first_biases(self.config.horizons, self.dims.segment, shape[0], dtype)

    def init_memory(self, batch: int) -> Buckets:
        d = self.dims
        shape = (batch, self.config.levels, d.kv_heads, d.key_dim, d.value_dim)
        return Buckets(jnp.zeros(shape, d.memory_dtype), jnp.zeros(batch, jnp.int32))

    def attend(self, memory: Buckets, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        bounds, wide, levels = segment.bounds, self.dims.memory_dtype, self.config.levels
        k_BxTxGxK, v_BxTxGxV, G_BxTxG = self._written(segment)
        is_open_BxT = bounds.key_documents == bounds.open_document[:, None]
        p_BxT = bounds.places_BxT + jnp.where(is_open_BxT, memory.count_B[:, None], 0)
        p_BxS, q_BxSxHxK = bounds.of_queries(p_BxT), segment.queries.astype(wide)
        weights_BxSxHxX = nn.softplus(self.weigh(bounds.of_queries(segment.inputs)))

        level_BxSxT = highest_bit(p_BxS[:, :, None] ^ p_BxT[:, None], levels) + 1
        seen_Bx1xSxT = bounds.local_BxSxT[:, None]
        G_BxTxH = repeat_heads(G_BxTxG[..., None], self.dims.heads)[..., 0]
        G_BxHxS, G_BxHxT = (jnp.swapaxes(x, 1, 2) for x in (bounds.of_queries(G_BxTxH), G_BxTxH))
        # masked before the exponential: later tokens would overflow
        decay_BxHxSxT = jnp.exp(jnp.where(seen_Bx1xSxT, G_BxHxS[..., None] - G_BxHxT[..., None, :], -jnp.inf))
        scores_BxHxSxT = jnp.einsum("bshk,bthk->bhst", q_BxSxHxK, repeat_heads(k_BxTxGxK, self.dims.heads))
        scores_BxHxSxT = scores_BxHxSxT * decay_BxHxSxT * weighted(weights_BxSxHxX, level_BxSxT)
        own_BxSxHxV = jnp.einsum("bhst,bthv->bshv", scores_BxHxSxT, repeat_heads(v_BxTxGxV, self.dims.heads))

        far_BxSxHxV = read_buckets(memory, q_BxSxHxK, weights_BxSxHxX, p_BxS)
        left_BxSxHx1 = jnp.exp(bounds.of_queries(G_BxTxH))[..., None]
        far_BxSxHxV = jnp.where(bounds.reads_BxS[..., None, None], left_BxSxHx1 * far_BxSxHxV, 0.0)
        a_mem_BxSxHxV = (own_BxSxHxV + far_BxSxHxV) * self.dims.key_dim**-0.5
        a_BxSxHxV = combine(self.gate, a_mem_BxSxHxV, self.attention(segment.queries, view(segment)))
        return self.out(a_BxSxHxV.astype(self.dims.dtype)), {GATE: nn.sigmoid(self.gate)}

    def write(self, memory: Buckets, segment: Segment) -> Buckets:
        return written_buckets(reset_where_new(segment.bounds.keeps_B, memory), *self._written(segment), segment.bounds)

    def _written(self, segment: Segment) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(keys of unit length BxTxGxK, values BxTxGxV, log decays since each document's begin in the segment BxTxG)."""
        wide = self.dims.memory_dtype
        g_BxTxG = -jnp.exp(self.forget_rate) * nn.softplus(self.forget(segment.inputs))
        G_BxTxG = sum_since_begin(g_BxTxG, segment.bounds)
        return unit(segment.keys.astype(wide)), segment.values.astype(wide), G_BxTxG

    def logical_axes(self) -> Buckets:
        return with_leaves(Buckets, S=("batch", "levels", "kv_heads", "key_dim", "value_dim"), count_B=("batch",))

    @classmethod
    def holding(cls, config: LogLinearConfig, dims: Dims, tokens: int) -> LogLinearConfig:
        return dataclasses.replace(config, longest=tokens)

    def cost(self, segment_length: int) -> Cost:
        d, levels = self.dims, self.config.levels
        matrices, forget = 2.0 * levels * d.key_dim * d.value_dim, 2.0 * d.d_model * d.kv_heads
        pairs = 2.0 * segment_length * (d.key_dim + d.value_dim)
        weigh = 2.0 * d.d_model * (levels + 1)
        local = local_cost(self.config, d, segment_length)
        return dataclasses.replace(
            local,
            read=local.read + forget + d.heads * (weigh + pairs + matrices),  # decays are made by `attend` and by `write`
            write=forget + d.kv_heads * matrices,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by attend, read and written by write
        )

    @classmethod
    def resized(cls, config: LogLinearConfig, dims: Dims, size: int, axis: str = "key_dim") -> tuple[LogLinearConfig, Dims]:
        return config, with_size(dims, size, axis)
