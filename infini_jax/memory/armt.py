"""The Associative Recurrent Memory Transformer (Rodkin, Kuratov, Bulatov, Burtsev 2024, arXiv 2407.04841), section 2.

N memory tokens stand after the tokens of a segment. At every layer a matrix A and a normalizer z carry what they held, by the
features phi = DPFP-3 of keys and queries (`feature_maps.dpfp`), F of them. With m_i the memory tokens at the layer's end and
x_j the tokens at its beginning:
  k_i, v_i = W_K m_i, W_V m_i;  beta_i = sigmoid(w m_i + b)
  vbar_i = A^T phi(k_i) / (z . phi(k_i))                      what A holds already under the key
  gamma_i = 1 - z . phi(k_i) / |phi(k_i)|^2                   the share of the key that is new to z
  A' = A + sum_i beta_i phi(k_i) (v_i - vbar_i)^T,  z' = z + sum_i gamma_i phi(k_i)      all i with the A, z of before
  x_j + A^T phi(W_Q x_j) / (z . phi(W_Q x_j))                 what the layer takes, in the segments after
Details on which the paper is silent are those of the authors' code: 1e-5 is added to denominators, gamma is kept within 0 and
1 and has no gradient, W_V begins at zero, and every memory token begins as a learned vector, here a row of the embedding. The
code adds 1e-5 in the numerator of gamma, too, but not where nothing is held; here it is nowhere there.
DEVIATION: A and z are float32 whatever the compute type, and so is what is made of them.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.errors import require_positive
from infini_jax.layers.segment import Boundaries, Segment, reset_where_new, with_leaves
from infini_jax.memory.base import Cost, Dims, memory_bytes
from infini_jax.memory.feature_maps import dpfp
from infini_jax.memory.positions import Positioned, PositionedConfig, local_cost
from infini_jax.memory.window import view

NU = 3  # order of DPFP
EPSILON = 1e-5  # of denominators


@struct.dataclass
class Associations:
    """State of one layer.

    Attributes:
      matrix: A, BxFxD.
      normalizer: z, BxF.
    """

    matrix: jax.Array
    normalizer: jax.Array


def recall(held: Associations, phi_BxSxF: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(A^T phi / (z . phi) BxSxD, z . phi BxS): what is held under each of S keys, and how much of the key z has."""
    share_BxS = jnp.einsum("bsf,bf->bs", phi_BxSxF, held.normalizer)
    return jnp.einsum("bsf,bfd->bsd", phi_BxSxF, held.matrix) / (share_BxS[..., None] + EPSILON), share_BxS


def associate(held: Associations, phi_BxNxF: jax.Array, v_BxNxD: jax.Array, beta_BxN: jax.Array) -> Associations:
    """A' and z' after N keys and values, all of them corrected by what A held before."""
    old_BxNxD, share_BxN = recall(held, phi_BxNxF)
    gamma_BxN = 1.0 - share_BxN / (jnp.sum(phi_BxNxF**2, axis=-1) + EPSILON)
    gamma_BxN = jax.lax.stop_gradient(jnp.clip(gamma_BxN, 0.0, 1.0))
    added_BxNxD = beta_BxN[..., None] * (v_BxNxD - old_BxNxD)
    return Associations(
        matrix=held.matrix + jnp.einsum("bnf,bnd->bfd", phi_BxNxF, added_BxNxD),
        normalizer=held.normalizer + jnp.sum(gamma_BxN[..., None] * phi_BxNxF, axis=1),
    )


@dataclasses.dataclass(frozen=True)
class ARMTConfig(PositionedConfig):
    """Settings of the Associative Recurrent Memory Transformer.

    Attributes:
      tokens: number of memory tokens after a segment.
      key_size: size of keys and queries of the associations, from which DPFP-3 makes six times as many features.
    """

    tokens: int = 10
    key_size: int = 32

    @property
    def memory_tokens(self) -> tuple[int, int]:
        return 0, self.tokens

    def check(self, dims: Dims) -> None:
        require_positive("memory", tokens=self.tokens, key_size=self.key_size)


class ARMT(Positioned):
    """Memory of one matrix per layer, written by memory tokens behind the segment and added to the layer's input."""

    Config = ARMTConfig
    summary = "matrix memory with a delta correction, written by memory tokens"
    paper = "arXiv 2407.04841"
    axes = ("key_size",)
    parameter_axes: ClassVar = {
        **Positioned.parameter_axes,
        ("ask", "kernel"): ("embed", None),
        ("key", "kernel"): ("embed", None),
        ("value", "kernel"): ("embed", None),
    }
    honors = ("attention_scale", "rotary", "score_cap")

    def setup(self):
        super().setup()
        d, wide = self.dims, self.dims.memory_dtype
        self.ask, self.key = (nn.Dense(self.config.key_size, use_bias=False, dtype=wide) for _ in range(2))
        self.value = nn.Dense(d.d_model, use_bias=False, dtype=wide, kernel_init=nn.initializers.zeros)
        self.strength = nn.Dense(1, dtype=wide)

    def init_memory(self, batch: int) -> Associations:
        features, wide = 2 * NU * self.config.key_size, self.dims.memory_dtype
        return Associations(jnp.zeros((batch, features, self.dims.d_model), wide), jnp.zeros((batch, features), wide))

    def enter(self, memory: Associations, x_BxSxD: jax.Array, bounds: Boundaries) -> jax.Array:
        read_BxSxD, _ = recall(memory, dpfp(self.ask(x_BxSxD), NU))
        return x_BxSxD + jnp.where(bounds.reads_BxS[..., None], read_BxSxD, 0.0).astype(x_BxSxD.dtype)

    def attend(self, memory: Associations, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self.out(self.attention(segment.queries, view(segment))), {}

    def write(self, memory: Associations, segment: Segment) -> Associations:
        return memory

    def leave(self, memory: Associations, x_BxTxD: jax.Array, bounds: Boundaries) -> Associations:
        m_BxNxD = x_BxTxD[:, -self.config.tokens :]
        beta_BxN = nn.sigmoid(self.strength(m_BxNxD))[..., 0]
        held = reset_where_new(bounds.keeps_B, memory)
        return associate(held, dpfp(self.key(m_BxNxD), NU), self.value(m_BxNxD), beta_BxN)

    def logical_axes(self) -> Associations:
        return with_leaves(Associations, matrix=("batch", "key_dim", "embed"), normalizer=("batch", "key_dim"))

    def cost(self, segment_length: int) -> Cost:
        d, c = self.dims, self.config
        features = 2 * NU * c.key_size
        recalled = 2.0 * features * (d.d_model + 1)  # A^T phi and z . phi
        asked = 2.0 * d.d_model * c.key_size
        written = asked + 2.0 * d.d_model * (d.d_model + 1) + recalled + 2.0 * features * d.d_model
        local = local_cost(c, d, segment_length)
        return dataclasses.replace(
            local,
            read=local.read + asked + recalled,
            write=written * c.tokens / segment_length,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by enter, read and written by leave
        )
