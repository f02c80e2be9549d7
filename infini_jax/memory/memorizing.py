"""Memorizing Transformer (Wu, Rabe, Hutchins, Szegedy, ICLR 2022, arXiv 2203.08913): exact kNN over a ring of keys and values.

Order in a segment: reset rows that start a document, retrieve, attend, append. Per head h, with q and k of unit length:
  V_c = softmax(causal(scale_h q k^T) + T5 bias) V              local, T5 relative bias, none on retrieved keys
  V_m = softmax over the top-k of (scale_h q K_mem^T) V_mem     0 where the memory is empty
  eq. 1-2  V_a = sigmoid(b_h) V_m + (1 - sigmoid(b_h)) V_c
The memory has no gradient; queries and the scale learn through the retrieved scores.
DEVIATION: the paper does not print the initial scale; `scale_init` is 8, so that unit vectors can tell 10^3 keys apart.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.attention import attend, attend_flops, masked_softmax
from infini_jax.errors import require
from infini_jax.layers import t5_distance_bias
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig, memory_bytes
from infini_jax.memory.feature_maps import unit
from infini_jax.memory.infini import combine
from infini_jax.segment import Boundaries, Segment

T5_BUCKETS = 32


@struct.dataclass
class Ring:
    """Attributes: keys BxHxNxK of unit length, values BxHxNxV, written B: tokens since the document began."""

    keys: jax.Array
    values: jax.Array
    written: jax.Array


def search(ring: Ring, q_BxSxHxK: jax.Array, scale_H: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best valid slots of every query and head: (scores BxHxSxk best first, slot ids BxHxSxk, -1 where none)."""
    slots = ring.keys.shape[2]
    scores_BxHxSxN = scale_H[:, None, None] * jnp.einsum("bshk,bhnk->bhsn", q_BxSxHxK, ring.keys)
    valid_BxN = jnp.arange(slots) < ring.written[:, None]
    scores_BxHxSxN = jnp.where(valid_BxN[:, None, None, :], scores_BxHxSxN, -jnp.inf)
    best_BxHxSxk, slot_BxHxSxk = jax.lax.top_k(scores_BxHxSxN, k)
    return best_BxHxSxk, jnp.where(jnp.isfinite(best_BxHxSxk), slot_BxHxSxk, -1)


def retrieve(ring: Ring, q_BxSxHxK: jax.Array, scale_H: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """V_m: softmax over the k best valid slots only: (BxSxHxV, slot ids BxHxSxk)."""
    best_BxHxSxk, slot_BxHxSxk = search(ring, q_BxSxHxK, scale_H, k)
    found_BxHxSxk = slot_BxHxSxk >= 0
    weights_BxHxSxk, _ = masked_softmax(jnp.where(found_BxHxSxk, best_BxHxSxk, 0.0), found_BxHxSxk)
    batch, heads, queries, _ = slot_BxHxSxk.shape
    flat_BxHxQ = jnp.maximum(slot_BxHxSxk, 0).reshape(batch, heads, -1)
    chosen_BxHxQxV = jnp.take_along_axis(ring.values, flat_BxHxQ[..., None], axis=2)
    chosen_BxHxSxkxV = chosen_BxHxQxV.reshape(batch, heads, queries, k, -1)
    return jnp.einsum("bhsk,bhskv->bshv", weights_BxHxSxk, chosen_BxHxSxkxV), slot_BxHxSxk


def append(ring: Ring, k_BxTxHxK: jax.Array, v_BxTxHxV: jax.Array, bounds: Boundaries) -> Ring:
    """Writes the open document's tokens at each row's cursor, over the oldest; a new document begins at slot 0."""
    slots = ring.keys.shape[2]
    before_B = jnp.where(bounds.keeps_B, ring.written, 0)
    writes_BxT = bounds.writes_BxT
    after_B = before_B + writes_BxT.sum(axis=1, dtype=jnp.int32)
    order_BxT = before_B[:, None] + jnp.cumsum(writes_BxT, axis=1, dtype=jnp.int32) - 1
    survives_BxT = writes_BxT & (order_BxT >= after_B[:, None] - slots)  # a segment may be longer than the ring
    slot_BxT = jnp.where(survives_BxT, order_BxT % slots, slots)  # `slots` is out of range: dropped

    def put(row_HxNxK: jax.Array, new_TxHxK: jax.Array, slot_T: jax.Array) -> jax.Array:
        return row_HxNxK.at[:, slot_T].set(new_TxHxK.swapaxes(0, 1).astype(row_HxNxK.dtype), mode="drop")

    return Ring(
        keys=jax.vmap(put)(ring.keys, k_BxTxHxK, slot_BxT),
        values=jax.vmap(put)(ring.values, v_BxTxHxV, slot_BxT),
        written=after_B,
    )


@dataclasses.dataclass(frozen=True)
class MemorizingConfig(MemoryConfig):
    """Settings of the Memorizing Transformer.

    Attributes:
      slots: (key, value) pairs that a head remembers.
      top_k: pairs that a query retrieves.
      scale_init: scale of the logits before training.
    """

    slots: int = 512
    top_k: int = 32
    scale_init: float = 8.0

    def check(self, dims: Dims) -> None:
        require(self.slots >= 1, "memory.slots", f"{self.slots} slots remember nothing", "give at least 1")
        require(
            1 <= self.top_k <= self.slots,
            "memory.top_k",
            f"{self.top_k} neighbours cannot come from {self.slots} slots",
            f"give 1 to {self.slots}",
        )


class Memorizing(Memory):
    """A ring of (key, value) pairs a head; every query retrieves its nearest."""

    Config = MemorizingConfig
    summary = "exact kNN over a ring of keys and values"
    paper = "arXiv 2203.08913"

    def setup(self):
        super().setup()
        heads = self.dims.heads
        self.gate = self.param("gate", nn.initializers.zeros, (heads,))
        self.scale = self.param("scale", nn.initializers.constant(self.config.scale_init), (heads,))
        self.bias = self.param("bias", nn.initializers.normal(0.02), (T5_BUCKETS, heads))

    def init_memory(self, batch: int) -> Ring:
        d, slots = self.dims, self.config.slots
        return Ring(
            keys=jnp.zeros((batch, d.heads, slots, d.key_dim), d.memory_dtype),
            values=jnp.zeros((batch, d.heads, slots, d.value_dim), d.memory_dtype),
            written=jnp.zeros(batch, jnp.int32),
        )

    def attend(self, memory: Ring, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        memory = jax.lax.stop_gradient(memory)
        scale_H = jnp.abs(self.scale)
        q_BxSxHxK = unit(segment.queries.astype(self.dims.memory_dtype))
        v_c_BxSxHxV = attend(
            q_BxSxHxK.astype(self.dims.dtype),
            unit(segment.keys.astype(self.dims.memory_dtype)).astype(self.dims.dtype),
            segment.values,
            segment.bounds.sight(),
            scale=scale_H,
            distance_bias_HxJ=t5_distance_bias(self.bias, segment.keys.shape[1]),
        )
        v_m_BxSxHxV, _ = retrieve(memory, q_BxSxHxK, scale_H, self.config.top_k)
        v_m_BxSxHxV = jnp.where(segment.bounds.reads_BxS[..., None, None], v_m_BxSxHxV, 0.0)
        v_a_BxSxHxV = combine(self.gate, v_m_BxSxHxV, v_c_BxSxHxV)
        return self.out(v_a_BxSxHxV.astype(self.dims.dtype)), {"gate": nn.sigmoid(self.gate)}

    def write(self, memory: Ring, segment: Segment) -> Ring:
        k_BxTxHxK = unit(segment.keys.astype(self.dims.memory_dtype))
        return append(memory, *jax.lax.stop_gradient((k_BxTxHxK, segment.values)), segment.bounds)

    def logical_axes(self) -> Ring:
        return Ring(
            keys=("batch", "heads", "slots", "key_dim"), values=("batch", "heads", "slots", "value_dim"), written=("batch",)
        )

    def cost(self, segment_length: int) -> Cost:
        d, c = self.dims, self.config
        written = memory_bytes(self) * min(1.0, segment_length / c.slots) / segment_length
        return Cost(
            local=attend_flops(segment_length, d.heads, d.key_dim, d.value_dim),
            read=2.0 * d.heads * (c.slots * d.key_dim + c.top_k * d.value_dim),
            bytes_moved=memory_bytes(self) / segment_length + written,
        )

    @classmethod
    def resized(cls, config: MemorizingConfig, dims: Dims, size: int) -> tuple[MemorizingConfig, Dims]:
        return dataclasses.replace(config, slots=size, top_k=min(config.top_k, size)), dims
