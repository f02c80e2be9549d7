"""Infini-attention (Munkhdalai, Faruqui, Gopal 2024, arXiv 2404.07143v2): a matrix memory written by linear attention.

Per head, segment s; sigma(x) = elu(x) + 1. Equation numbers are the paper's:
  eq. 6    A_dot = softmax(Q K^T / sqrt(d_key)) V                                 local, causal, rotary or as `positions` says
  eq. 7    A_mem = sigma(Q) M_{s-1} / (sigma(Q) z_{s-1})                          retrieve, no positions
  eq. 8    M_s = M_{s-1} + sigma(K)^T V,  z_s = z_{s-1} + sum_t sigma(K_t)        linear update
  eq. 9    M_s = M_{s-1} + sigma(K)^T (V - sigma(K) M_{s-1} / (sigma(K) z_{s-1})) delta update
  eq. 10   A = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_dot                    one beta per head, also in the first segment
  eq. 11   O = concat(heads) W_O
DEVIATION: eq. 6 prints sqrt(d_model) as the temperature; every published run used the head dimension, as here.
DEVIATION: sigma may be another feature map (`feature_map`). The unit map's kernel has a sign, so sigma(Q) z can be zero or
negative and normalizes nothing: no z is kept and eq. 7 reads sigma(Q) M as it is. Eq. 9 is refused there: without the
normalizer it steps by sum_t sigma(K_t) sigma(K_t)^T, which diverges as soon as three keys of a segment share a direction.
DEVIATION: grouped queries (G key heads) share one memory per key head; the paper has as many key heads as query heads.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.errors import LATER, require
from infini_jax.layers.attention import attend_segment
from infini_jax.layers.grouped_heads import by_key_head, repeat_heads
from infini_jax.layers.heads import SEQUENCE_AXIS, shares_sequence
from infini_jax.layers.platforms import platform, unrolled
from infini_jax.layers.precision import PARAMETERS, wide
from infini_jax.layers.segment import Segment, reset_where_new, with_leaves
from infini_jax.memory.base import GATE, Cost, Dims, memory_bytes, segments_of_a_stream
from infini_jax.memory.feature_maps import SIGNED, FeatureMap, elu_plus_one, feature_map
from infini_jax.memory.positions import Positioned, PositionedConfig, local_cost
from infini_jax.memory.window import view

sigma = elu_plus_one  # the paper's name for its feature map


@struct.dataclass
class InfiniMemory:
    """State of Infini-attention, F being the features of a key.

    Attributes:
      M: BxGxFxV, associative matrix.
      z: BxGxF, sum of the feature-mapped keys, None where reads are not normalized.
    """

    M: jax.Array
    z: jax.Array | None


def normalised(features_BxSxHxF: jax.Array, z_BxGxF: jax.Array | None) -> jax.Array:
    """sigma(Q) / (sigma(Q) z) BxSxHxF, zero where nothing was written; the features as they are without z.

    A z that overflowed gives NaN: a division by infinity would read as an empty memory.
    """
    if z_BxGxF is None:
        return features_BxSxHxF
    z_BxHxF = repeat_heads(z_BxGxF, features_BxSxHxF.shape[2])
    mass_BxSxHx1 = jnp.einsum("bshf,bhf->bsh", features_BxSxHxF, z_BxHxF)[..., None]
    mass_BxSxHx1 = jnp.where(jnp.isfinite(mass_BxSxHx1), mass_BxSxHx1, jnp.nan)
    is_empty_BxSxHx1 = mass_BxSxHx1 <= 0  # not so where it is NaN
    return jnp.where(is_empty_BxSxHx1, 0.0, features_BxSxHxF / jnp.where(is_empty_BxSxHx1, 1.0, mass_BxSxHx1))


def retrieve(memory: InfiniMemory, features_BxSxHxF: jax.Array) -> jax.Array:
    """A_mem of eq. 7 for feature-mapped queries or keys: BxSxHxV, zero where nothing was written.

    Query head h reads the memory of key head h // (H / G), the key head that it attends to locally.
    """
    read_BxSxGxRxF = by_key_head(normalised(features_BxSxHxF, memory.z), memory.M.shape[1])
    a_mem_BxSxGxRxV = jnp.einsum("bsgrf,bgfv->bsgrv", read_BxSxGxRxF, memory.M)
    return a_mem_BxSxGxRxV.reshape(*features_BxSxHxF.shape[:3], -1)


def update(memory: InfiniMemory, features_BxTxGxF: jax.Array, v_BxTxGxV: jax.Array, rule: str) -> InfiniMemory:
    """The memory after a segment by eq. 8 (`linear`) or eq. 9 (`delta`): every key of the segment reads the same M_{s-1}."""
    if rule == "delta":
        v_BxTxGxV = v_BxTxGxV - retrieve(memory, features_BxTxGxF)
    return InfiniMemory(
        M=memory.M + jnp.einsum("bthf,bthv->bhfv", features_BxTxGxF, v_BxTxGxV),
        z=None if memory.z is None else memory.z + features_BxTxGxF.sum(axis=1),
    )


def made_again(function: Callable, given: jax.Array) -> Callable:
    """`function` of `given`, whose gradient on a TPU finds features again where they are wider than what they are made of.

    A TPU waits for its memory: in programs compiled for a v5e it moves a quarter less than where float32 features of bfloat16
    are kept, and with the delta update a third less. Nothing is gained where both are float32.
    """
    is_narrow = given.dtype != wide(given.dtype)
    return jax.checkpoint(function) if is_narrow and platform() == "tpu" else function


def parallel_linear(
    memory: InfiniMemory, q_BxWxSxHxF: jax.Array, k_BxWxTxGxF: jax.Array, v_BxWxTxGxV: jax.Array, keeps_BxW: jax.Array
) -> tuple[jax.Array, InfiniMemory]:
    """(A_mem BxWxSxHxV, memory after the last segment) of W segments at once by eq. 7 and 8.

    An exclusive prefix sum of their updates, equal to `retrieve` and `update` in turn. In A_mem, queries of a new document are
    not yet masked.

    Args:
      memory: memory before the first segment.
      q_BxWxSxHxF, k_BxWxTxGxF: feature-mapped queries and keys; keys that are not written are zero.
      v_BxWxTxGxV: values.
      keeps_BxW: `Boundaries.keeps_B` of each segment; the first write of a new document begins from zero.
    """
    U = InfiniMemory(
        M=jnp.einsum("bwthf,bwthv->bwhfv", k_BxWxTxGxF, v_BxWxTxGxV),
        z=None if memory.z is None else k_BxWxTxGxF.sum(axis=2),
    )
    before, after = _carried_on(memory, U, keeps_BxW)
    return jax.vmap(retrieve, 1, 1)(before, q_BxWxSxHxF), after


def parallel_delta(
    memory: InfiniMemory, q_BxWxSxHxF: jax.Array, k_BxWxTxGxF: jax.Array, v_BxWxTxGxV: jax.Array, keeps_BxW: jax.Array
) -> tuple[jax.Array, InfiniMemory]:
    """(A_mem BxWxSxHxV, memory after the last segment) of W segments at once by eq. 7 and 9.

    M_s = (I - W_s) M_{s-1} + U_s with W_s = sigma(K)^T sigma(K) / (sigma(K) z_{s-1}): z is a prefix sum, so all but one F x F
    product per segment is done for all segments at once. Where a segment has fewer tokens than a key has features, W_s is the
    larger matrix, and the segments' own products in turn cost less.

    Args:
      memory: memory before the first segment, which must have z.
      q_BxWxSxHxF, k_BxWxTxGxF: feature-mapped queries and keys; keys that are not written are zero.
      v_BxWxTxGxV: values.
      keeps_BxW: `Boundaries.keeps_B` of each segment; the first write of a new document begins from zero.
    """
    if k_BxWxTxGxF.shape[2] < k_BxWxTxGxF.shape[-1] and not shares_sequence():
        return _delta_in_turn(memory, q_BxWxSxHxF, k_BxWxTxGxF, v_BxWxTxGxV, keeps_BxW)
    z_before_BxWxGxF, z_after = _carried_on(memory.z, k_BxWxTxGxF.sum(axis=2), keeps_BxW)
    z_kept_BxWxGxF = jnp.where(keeps_BxW[..., None, None], z_before_BxWxGxF, 0.0)
    read_BxWxTxGxF = jax.vmap(normalised, 1, 1)(k_BxWxTxGxF, z_kept_BxWxGxF)
    W_BxWxGxFxF = jnp.einsum("bwthf,bwthg->bwhfg", k_BxWxTxGxF, read_BxWxTxGxF)
    U_BxWxGxFxV = jnp.einsum("bwthf,bwthv->bwhfv", k_BxWxTxGxF, v_BxWxTxGxV)
    M_before_BxWxGxFxV, M_after = _carried_on(memory.M, U_BxWxGxFxV, keeps_BxW, erase=W_BxWxGxFxF)
    a_mem_BxWxSxHxV = jax.vmap(retrieve, 1, 1)(InfiniMemory(M_before_BxWxGxFxV, z_before_BxWxGxF), q_BxWxSxHxF)
    return a_mem_BxWxSxHxV, InfiniMemory(M_after, z_after)


def _delta_in_turn(memory, q_BxWxSxHxF, k_BxWxTxGxF, v_BxWxTxGxV, keeps_BxW) -> tuple[jax.Array, InfiniMemory]:
    """`parallel_delta` by `update` of each segment; the memory before each is read for all segments at once."""

    def step(memory: InfiniMemory, item: tuple) -> tuple[InfiniMemory, InfiniMemory]:
        k_BxTxGxF, v_BxTxGxV, keeps_B = item
        return update(reset_where_new(keeps_B, memory), k_BxTxGxF, v_BxTxGxV, "delta"), memory

    items = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), (k_BxWxTxGxF, v_BxWxTxGxV, keeps_BxW))
    after, before = jax.lax.scan(step, memory, items, unroll=unrolled(keeps_BxW.shape[1]))
    return jax.vmap(retrieve, (0, 1), 1)(before, q_BxWxSxHxF), after


def _carried(memory, updates, keeps_BxW: jax.Array, erase: jax.Array | None = None):
    """(memory before each of W segments, memory after the last): memory <- kept memory - erase memory + update.

    It is a scan, because its body is a few additions: `associative_scan` and a W x W product move more bytes, and on a CPU
    took 1.3 times as long for 16 segments and for 128.
    """

    def step(memory, item):
        update, keeps_B, erase_BxGxFxF = item
        kept = reset_where_new(keeps_B, memory)
        if erase_BxGxFxF is not None:
            kept = kept - erase_BxGxFxF @ kept
        return jax.tree.map(jnp.add, kept, update), memory

    items = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), (updates, keeps_BxW, erase))
    after, before = jax.lax.scan(step, memory, items, unroll=unrolled(keeps_BxW.shape[1]))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), before), after


def _carried_on(memory, updates, keeps_BxW: jax.Array, erase: jax.Array | None = None):
    """`_carried`, also where devices share the sequence and each has W of its segments.

    The effect of a device's segments on a memory is one update, one erasure and whether they keep any of it: these three are
    exchanged, and each device finds the memory before its own segments by the same recurrence over devices.
    """
    if not shares_sequence():
        return _carried(memory, updates, keeps_BxW, erase)
    _, update = _carried(jax.tree.map(jnp.zeros_like, memory), updates, keeps_BxW, erase)
    erased = None
    if erase is not None:
        identity = jnp.broadcast_to(jnp.eye(erase.shape[-1], dtype=erase.dtype), (erase.shape[0], *erase.shape[2:]))
        _, left = _carried(identity, jnp.zeros_like(erase), jnp.ones_like(keeps_BxW), erase)
        erased = identity - left
    of_devices = jax.lax.all_gather((update, keeps_BxW.all(axis=1), erased), SEQUENCE_AXIS, axis=1)
    before, after = _carried(memory, *of_devices)
    own = jax.tree.map(lambda leaf: leaf[:, jax.lax.axis_index(SEQUENCE_AXIS)], before)
    return _carried(own, updates, keeps_BxW, erase)[0], after


def combine(beta_H: jax.Array, a_mem: jax.Array, a_dot: jax.Array) -> jax.Array:
    """Mixture of memory and local attention by eq. 10, (..., H, V): sigmoid(beta) weighs the memory."""
    gate_Hx1 = nn.sigmoid(beta_H)[:, None]
    return gate_Hx1 * a_mem + (1.0 - gate_Hx1) * a_dot


def mixed_with_local(
    beta_H: jax.Array, a_mem_BxSxHxV: jax.Array, segment: Segment, a_dot_BxSxHxV: jax.Array | None = None
) -> jax.Array:
    """Local attention mixed with A_mem, by eq. 6 and eq. 10: BxSxHxV. A_mem counts zero for tokens of a new document.

    `a_dot_BxSxHxV` is the local attention; the rotary one inside the segment where None.
    """
    a_mem_BxSxHxV = jnp.where(segment.bounds.reads_BxS[..., None, None], a_mem_BxSxHxV, 0.0)
    return combine(beta_H, a_mem_BxSxHxV, attend_segment(segment) if a_dot_BxSxHxV is None else a_dot_BxSxHxV)


def with_size(dims: Dims, size: int, axis: str) -> Dims:
    """Sizes with a matrix memory of `size` along `axis`: larger heads or more of them, for local attention too.

    Parameters and FLOPs grow with it and the budget sees them.

    Args:
      dims: sizes of the layer before.
      size: size along the axis.
      axis: key_dim, rounded down to an even number; value_dim; or heads, the memory's heads: as many query heads share each as
        before, and all keep their key and value dims.
    """
    if axis == "heads":
        return dataclasses.replace(dims, heads=size * (dims.heads // dims.kv_heads), kv_heads=size)
    return dataclasses.replace(dims, **{axis: max(size - size % 2, 2) if axis == "key_dim" else size})


@dataclasses.dataclass(frozen=True)
class InfiniConfig(PositionedConfig):
    """Settings of Infini-attention.

    Attributes:
      update: how a segment is written: linear is eq. 8, delta eq. 9.
      feature_map: map of queries and keys before they meet the memory; elu_plus_one is the paper's, unit reads without z.
      reads: normalised divides by sigma(Q) z, which is kept beside M; plain reads sigma(Q) M as it is and keeps no z.
      dpfp_order: nu of the dpfp map, which has 2 nu features per entry of a key.
      gate_init: beta before training; 0 weighs memory and local attention equally.
      feature_scale: factor of queries and keys before the feature map, which decides how sharply it tells keys apart.
    """

    update: Literal["linear", "delta"] = "linear"
    feature_map: FeatureMap = "elu_plus_one"
    reads: Literal["normalised", "plain"] = "normalised"
    dpfp_order: int = 1
    # Study initial_values (docs/findings.md): MQAR is learned in every run from a gate of 2, in part from 0, in none from -2;
    # a short budget of text had its lowest losses at -2. Scale 1 beats 0.5 on MQAR; 3 against 1 is not settled.
    gate_init: float = 0.0
    feature_scale: float = dataclasses.field(default=1.0, metadata=LATER)

    def check(self, dims: Dims) -> None:
        require(
            self.update == "linear" or self.normalises,
            "memory.update",
            "the delta update diverges without a normalizer, which plain reads and the unit map lack",
            "choose linear, or the gated_delta mechanism",
        )
        require(
            1 <= self.dpfp_order < 2 * dims.key_dim,
            "memory.dpfp_order",
            f"order {self.dpfp_order} repeats products of {2 * dims.key_dim} entries or has none",
            f"give 1 to {2 * dims.key_dim - 1}",
        )
        largest = 1e3  # of which the largest map is the square: far from the end of float32
        require(
            0 < self.feature_scale <= largest,
            "memory.feature_scale",
            f"{self.feature_scale:g} is no scale of keys",
            f"give a number above zero and at most {largest:g}",
        )
        require(
            self.feature_scale == 1.0 or self.feature_map != "unit",
            "memory.feature_scale",
            "the unit map takes the length of keys away",
            "leave it out, or choose another feature_map",
        )

    @property
    def features(self) -> Callable[[jax.Array], jax.Array]:
        """The feature map (..., K) -> (..., F), of keys and queries as they are scaled."""
        features = feature_map(self.feature_map, self.dpfp_order)
        return features if self.feature_scale == 1.0 else lambda x: features(self.feature_scale * x)

    @property
    def normalises(self) -> bool:
        """Whether reads are divided by sigma(Q) z."""
        return self.reads == "normalised" and self.feature_map not in SIGNED


class Infini(Positioned):
    """Memory of a d_key x d_value matrix per head, read by linear attention and mixed with local attention by a gate."""

    Config = InfiniConfig
    summary = "matrix memory, linear or delta update, one gate per head"
    paper = "arXiv 2404.07143v2"
    axes = ("key_dim", "value_dim", "heads", "feature_map")
    gates = (("gate",),)
    splits_sequence = True
    holds = "matrix"
    neighborhoods = ("segment", "window", "cache")
    honors = ("attention_scale", "rotary", "score_cap")

    def setup(self):
        super().setup()
        self.gate = self.param("gate", nn.initializers.constant(self.config.gate_init), (self.dims.heads,), PARAMETERS)

    @property
    def feature_size(self) -> int:
        """Features F of a key, measured on the map's real output."""
        key = jax.ShapeDtypeStruct((self.dims.key_dim,), self.dims.memory_dtype)
        return jax.eval_shape(self.config.features, key).shape[0]

    def init_memory(self, batch: int) -> InfiniMemory:
        d, features = self.dims, self.feature_size
        return InfiniMemory(
            M=jnp.zeros((batch, d.kv_heads, features, d.value_dim), d.memory_dtype),
            z=jnp.zeros((batch, d.kv_heads, features), d.memory_dtype) if self.config.normalises else None,
        )

    def attend(self, memory: InfiniMemory, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        def read(memory: InfiniMemory, segment: Segment) -> jax.Array:
            return retrieve(memory, self._asked(segment))

        return self._combined(made_again(read, segment.queries)(memory, segment), segment)

    def write(self, memory: InfiniMemory, segment: Segment) -> InfiniMemory:
        def updated(memory: InfiniMemory, segment: Segment) -> InfiniMemory:
            return update(memory, *self._written(segment), self.config.update)

        return made_again(updated, segment.keys)(reset_where_new(segment.bounds.keeps_B, memory), segment)

    def advance(self, memory: InfiniMemory, segments: Segment) -> tuple[jax.Array, InfiniMemory, dict[str, jax.Array]]:
        count = segments_of_a_stream(memory, segments)
        if count == 1 and not shares_sequence():
            return super().advance(memory, segments)

        def of_streams(x: jax.Array) -> jax.Array:
            return x.reshape(-1, count, *x.shape[1:])

        parallel = {"linear": parallel_linear, "delta": parallel_delta}[self.config.update]
        found = (self._asked(segments), *self._written(segments), segments.bounds.keeps_B)
        a_mem_BxWxSxHxV, memory = parallel(memory, *map(of_streams, found))
        attended, metrics = self._combined(a_mem_BxWxSxHxV.reshape(-1, *a_mem_BxWxSxHxV.shape[2:]), segments)
        return attended, memory, metrics

    def _asked(self, segment: Segment) -> jax.Array:
        """sigma(Q), BxSxHxF."""
        return self.config.features(segment.queries.astype(self.dims.memory_dtype))

    def _written(self, segment: Segment) -> tuple[jax.Array, jax.Array]:
        """(sigma(K) BxTxGxF, zero where nothing is written, V)."""
        features_BxTxGxF = self.config.features(segment.keys.astype(self.dims.memory_dtype))
        features_BxTxGxF = features_BxTxGxF * segment.bounds.writes_BxT[..., None, None]
        return features_BxTxGxF, segment.values.astype(self.dims.memory_dtype)

    def _combined(self, a_mem_BxSxHxV: jax.Array, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        a_dot_BxSxHxV = self.attention(segment.queries, view(segment))
        a_BxSxHxV = mixed_with_local(self.gate, a_mem_BxSxHxV, segment, a_dot_BxSxHxV)
        return self.out(a_BxSxHxV.astype(self.dims.dtype)), {GATE: nn.sigmoid(self.gate)}

    def logical_axes(self) -> InfiniMemory:
        return with_leaves(
            InfiniMemory,
            M=("batch", "kv_heads", "key_dim", "value_dim"),
            z=("batch", "kv_heads", "key_dim") if self.config.normalises else None,
        )

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        d, features = self.dims, self.feature_size
        matrix = 2.0 * features * d.value_dim  # a head
        read = matrix + (2.0 * features if self.config.normalises else 0.0)
        written = matrix
        if self.config.update == "delta":  # each key reads; or W per token, its product with M per segment (`parallel_delta`)
            in_turn = segments == 1 or segment_length < features
            written += read if in_turn else 2.0 * features * (1 + features * (1 + d.value_dim / segment_length))
        local = local_cost(self.config, d, segment_length, segments=segments)
        return dataclasses.replace(
            local,
            read=local.read + d.heads * read,
            write=d.kv_heads * written,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by attend, read and written by write
        )

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        return self.cost(segment_length, segments)

    @classmethod
    def resized(cls, config: InfiniConfig, dims: Dims, size: int, axis: str = "key_dim") -> tuple[InfiniConfig, Dims]:
        """(settings, dims) of a memory of `size` along `axis`.

        Along `feature_map` the map becomes DPFP of order `size`, whatever it was. taylor2 grows with the key dimension.
        """
        if axis == "feature_map":
            return dataclasses.replace(config, feature_map="dpfp", dpfp_order=size), dims
        return config, with_size(dims, size, axis)
