"""Norm, positions and MLP: what every mechanism and every layer shares."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.layers import precision
from infini_jax.layers.segment import NO_DOCUMENT, Boundaries


def rotary(x_BxSxHxK: jax.Array, positions_S: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotates the pairs (i, i + K/2) by position * base^(-2i/K) (Su et al. 2021, arXiv 2104.09864, eq. 34)."""
    half = x_BxSxHxK.shape[-1] // 2
    wide = precision.wide(x_BxSxHxK.dtype)
    angles_SxI = positions_S[:, None].astype(wide) * base ** (-np.arange(half) / half)
    cos, sin = jnp.cos(angles_SxI)[:, None], jnp.sin(angles_SxI)[:, None]
    first, second = jnp.split(x_BxSxHxK.astype(wide), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxSxHxK.dtype)


def by_key_head(q_BxSxHxK: jax.Array, kv_heads: int) -> jax.Array:
    """BxSxGxRxK: query heads by the key head that they share. Query head h reads key head h // R, as in `repeat_heads`."""
    *rows, heads, size = q_BxSxHxK.shape
    return q_BxSxHxK.reshape(*rows, kv_heads, heads // kv_heads, size)


def repeat_heads(k_BxTxGxK: jax.Array, heads: int) -> jax.Array:
    """BxTxHxK: each of G key heads for the H / G query heads that share it (Ainslie et al. 2023, arXiv 2305.13245)."""
    repeats = heads // k_BxTxGxK.shape[-2]
    return k_BxTxGxK if repeats == 1 else jnp.repeat(k_BxTxGxK, repeats, axis=-2)


def t5_buckets(distance: jax.Array, buckets: int = 32, max_distance: int = 128) -> jax.Array:
    """Causal T5 bucket of query-minus-key distances (Raffel et al. 2020): half exact, half logarithmic."""
    exact = buckets // 2
    distance = jnp.maximum(distance, 0)
    ratio = jnp.log(jnp.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


def t5_distance_bias(table_RxH: jax.Array, distances: int) -> jax.Array:
    """The bias of the distances 0 .. distances - 1 from a table of one row a bucket: Hx`distances`."""
    return table_RxH[t5_buckets(jnp.arange(distances), table_RxH.shape[0])].T


class KeyTaps(nn.Module):
    """A short causal depthwise convolution: each token's mean-initialised mix of itself and the taps - 1 tokens before it.

    Only tokens of the same document and segment are mixed. With two taps a key knows the token it follows, so that one layer
    can recall `value after key`; recall studies commonly put such a convolution before every mixer (Arora et al. 2023).
    """

    taps: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs_BxTxD: jax.Array, bounds: Boundaries) -> jax.Array:
        """The mixes of the S query tokens, which begin at `bounds.start`: BxSxD."""
        width, back = inputs_BxTxD.shape[-1], self.taps - 1
        kernel_IxD = self.param("kernel", nn.initializers.constant(1 / self.taps), (self.taps, width)).astype(self.dtype)
        queries = bounds.query_documents.shape[1]

        def recent(sequence: jax.Array, fill: int) -> jax.Array:
            pads = [(0, 0), (back, 0)] + [(0, 0)] * (sequence.ndim - 2)
            padded = jnp.pad(sequence, pads, constant_values=fill)
            return jax.lax.dynamic_slice_in_dim(padded, bounds.start, queries + back, axis=1)

        inputs_BxRxD, documents_BxR = recent(inputs_BxTxD, 0), recent(bounds.key_documents, NO_DOCUMENT)
        mixed_BxSxD = jnp.zeros((), self.dtype)
        for tap in range(self.taps):
            window = slice(back - tap, back - tap + queries)
            same_BxS = documents_BxR[:, window] == bounds.query_documents
            mixed_BxSxD += jnp.where(same_BxS[..., None], inputs_BxRxD[:, window] * kernel_IxD[tap], 0)
        return mixed_BxSxD


@jax.custom_vjp
def gelu_mlp(x_BxSxD: jax.Array, up_DxF: jax.Array, down_FxD: jax.Array) -> jax.Array:
    """gelu(x up) down: BxSxD.

    Its gradient is written out: the same products, but XLA's own order of them writes the gradient of the hidden layer a
    second time, transposed, which on a CPU took a fifth of a training step.
    """
    return nn.gelu(x_BxSxD @ up_DxF) @ down_FxD


def _gelu_mlp_forward(x_BxSxD, up_DxF, down_FxD):
    h_BxSxF = x_BxSxD @ up_DxF
    return nn.gelu(h_BxSxF) @ down_FxD, (x_BxSxD, h_BxSxF, up_DxF, down_FxD)


def _gelu_mlp_backward(saved, dy_BxSxD):
    x_BxSxD, h_BxSxF, up_DxF, down_FxD = saved
    x_RxD, h_RxF, dy_RxD = (x.reshape(-1, x.shape[-1]) for x in (x_BxSxD, h_BxSxF, dy_BxSxD))
    hidden_RxF, through_gelu = jax.vjp(nn.gelu, h_RxF)
    (dh_RxF,) = through_gelu(dy_RxD @ down_FxD.T)
    dh_RxF = jax.lax.optimization_barrier(dh_RxF)
    return (dh_RxF @ up_DxF.T).reshape(x_BxSxD.shape), x_RxD.T @ dh_RxF, hidden_RxF.T @ dy_RxD


gelu_mlp.defvjp(_gelu_mlp_forward, _gelu_mlp_backward)


class Kernel(nn.Module):
    """A matrix of parameters under the name that `nn.Dense` gives it."""

    rows: int
    columns: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", nn.initializers.lecun_normal(), (self.rows, self.columns)).astype(self.dtype)


class MLP(nn.Module):
    """D -> F -> D with GELU."""

    d_model: int
    mlp_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        up_DxF = Kernel(self.d_model, self.mlp_dim, self.dtype, name="up")()
        return gelu_mlp(x_BxSxD, up_DxF, Kernel(self.mlp_dim, self.d_model, self.dtype, name="down")())
