"""Infini-attention (Munkhdalai, Faruqui, Gopal 2024, arXiv 2404.07143v2): a matrix memory written by linear attention.

Per head, segment s; sigma(x) = elu(x) + 1. Equation numbers are the paper's:
  eq. 6    A_dot = softmax(Q K^T / sqrt(d_key)) V                                 local, causal, rotary
  eq. 7    A_mem = sigma(Q) M_{s-1} / (sigma(Q) z_{s-1})                          retrieve, no positions
  eq. 8    M_s = M_{s-1} + sigma(K)^T V,  z_s = z_{s-1} + sum_t sigma(K_t)        linear update
  eq. 9    M_s = M_{s-1} + sigma(K)^T (V - sigma(K) M_{s-1} / (sigma(K) z_{s-1})) delta update
  eq. 10   A = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_dot                    one beta a head, also in the first segment
  eq. 11   O = concat(heads) W_O
DEVIATION: eq. 6 prints sqrt(d_model) as the temperature; the head dimension is what every published run used.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.attention import attend_flops, attend_segment
from infini_jax.errors import require
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig, memory_bytes
from infini_jax.segment import Segment, reset_where_new


def sigma(x: jax.Array) -> jax.Array:
    """elu(x) + 1, positive everywhere."""
    return nn.elu(x) + 1.0


@struct.dataclass
class InfiniMemory:
    """Attributes: M BxHxKxV associative matrix; z BxHxK sum of the feature-mapped keys."""

    M: jax.Array
    z: jax.Array


def retrieve(memory: InfiniMemory, features_BxSxHxK: jax.Array) -> jax.Array:
    """eq. 7 for feature-mapped queries or keys: BxSxHxV, zero where nothing was written."""
    numerator_BxSxHxV = jnp.einsum("bshk,bhkv->bshv", features_BxSxHxK, memory.M)
    denominator_BxSxH = jnp.einsum("bshk,bhk->bsh", features_BxSxHxK, memory.z)
    written = denominator_BxSxH > 0
    return jnp.where(written[..., None], numerator_BxSxHxV / jnp.where(written, denominator_BxSxH, 1.0)[..., None], 0.0)


def update(memory: InfiniMemory, features_BxTxHxK: jax.Array, v_BxTxHxV: jax.Array, rule: str) -> InfiniMemory:
    """eq. 8 (`linear`) or eq. 9 (`delta`): every key of the segment reads the same M_{s-1}."""
    if rule == "delta":
        v_BxTxHxV = v_BxTxHxV - retrieve(memory, features_BxTxHxK)
    return InfiniMemory(
        M=memory.M + jnp.einsum("bthk,bthv->bhkv", features_BxTxHxK, v_BxTxHxV),
        z=memory.z + features_BxTxHxK.sum(axis=1),
    )


def combine(beta_H: jax.Array, a_mem: jax.Array, a_dot: jax.Array) -> jax.Array:
    """eq. 10 on (..., H, V): sigmoid(beta) weighs the memory."""
    gate_Hx1 = nn.sigmoid(beta_H)[:, None]
    return gate_Hx1 * a_mem + (1.0 - gate_Hx1) * a_dot


@dataclasses.dataclass(frozen=True)
class InfiniConfig(MemoryConfig):
    """Settings of Infini-attention.

    Attributes:
      update: how a segment is written: linear is eq. 8, delta eq. 9.
      gate_init: beta before training; 0 lets memory and local attention weigh the same.
    """

    update: Literal["linear", "delta"] = "linear"
    gate_init: float = 0.0

    def check(self, dims: Dims) -> None:
        require(
            self.update in ("linear", "delta"), "memory.update", f"'{self.update}' is no update rule", "choose linear or delta"
        )


class Infini(Memory):
    """A d_key x d_value matrix a head, read by linear attention and mixed with local attention by a gate."""

    Config = InfiniConfig
    summary = "matrix memory, linear or delta update, one gate a head"
    paper = "arXiv 2404.07143v2"
    smallest = 2

    def setup(self):
        super().setup()
        self.gate = self.param("gate", nn.initializers.constant(self.config.gate_init), (self.dims.heads,))

    def init_memory(self, batch: int) -> InfiniMemory:
        d = self.dims
        return InfiniMemory(
            M=jnp.zeros((batch, d.heads, d.key_dim, d.value_dim), d.memory_dtype),
            z=jnp.zeros((batch, d.heads, d.key_dim), d.memory_dtype),
        )

    def attend(self, memory: InfiniMemory, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        a_dot_BxSxHxV = attend_segment(segment)
        a_mem_BxSxHxV = retrieve(memory, sigma(segment.queries.astype(self.dims.memory_dtype)))
        a_mem_BxSxHxV = jnp.where(segment.bounds.reads_BxS[..., None, None], a_mem_BxSxHxV, 0.0)
        a_BxSxHxV = combine(self.gate, a_mem_BxSxHxV, a_dot_BxSxHxV)
        return self.out(a_BxSxHxV.astype(self.dims.dtype)), {"gate": nn.sigmoid(self.gate)}

    def write(self, memory: InfiniMemory, segment: Segment) -> InfiniMemory:
        memory = reset_where_new(segment.bounds.keeps_B, memory)
        features_BxTxHxK = sigma(segment.keys.astype(self.dims.memory_dtype))
        features_BxTxHxK = features_BxTxHxK * segment.bounds.writes_BxT[..., None, None]
        return update(memory, features_BxTxHxK, segment.values.astype(self.dims.memory_dtype), self.config.update)

    def logical_axes(self) -> InfiniMemory:
        return InfiniMemory(M=("batch", "heads", "key_dim", "value_dim"), z=("batch", "heads", "key_dim"))

    def cost(self, segment_length: int) -> Cost:
        d = self.dims
        matrix = 2.0 * d.heads * d.key_dim * d.value_dim
        normaliser = 2.0 * d.heads * d.key_dim
        read = matrix + normaliser
        return Cost(
            local=attend_flops(segment_length, d.heads, d.key_dim, d.value_dim),
            read=read,
            write=matrix + (read if self.config.update == "delta" else 0.0),
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by attend, read and written by write
        )

    @classmethod
    def resized(cls, config: InfiniConfig, dims: Dims, size: int) -> tuple[InfiniConfig, Dims]:
        """The key dimension grows, for local attention too: parameters and FLOPs grow with it and the budget sees it."""
        return config, dataclasses.replace(dims, key_dim=size - size % 2)
