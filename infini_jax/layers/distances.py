"""Positions by distance: rotary turns (Su et al. 2021) and T5 buckets (Raffel et al. 2020)."""

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.layers import precision


def rotary(x_xSxHxK: jax.Array, positions_S: jax.Array, base: float = 10_000.0) -> jax.Array:
    """`x` with pairs (i, i + K/2) turned by position * base^(-2i/K): BxSxHxK (Su et al. 2021, arXiv 2104.09864, eq. 34)."""
    half = x_xSxHxK.shape[-1] // 2
    wide = precision.wide(x_xSxHxK.dtype)
    angles_SxI = positions_S[:, None].astype(wide) * base ** (-np.arange(half) / half)
    cos, sin = jnp.cos(angles_SxI)[:, None], jnp.sin(angles_SxI)[:, None]
    first, second = jnp.split(x_xSxHxK.astype(wide), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_xSxHxK.dtype)


def unturned(x_xSxHxK: jax.Array, positions_S: jax.Array) -> jax.Array:
    """`x` as it is, wherever it stands: `rotary` without positions."""
    return x_xSxHxK


def t5_buckets(distance: jax.Array, buckets: int = 32, max_distance: int = 128) -> jax.Array:
    """T5's causal bucket of query-minus-key distances, half exact, half logarithmic (Raffel et al. 2020, arXiv 1910.10683)."""
    exact = buckets // 2
    distance = jnp.maximum(distance, 0)
    ratio = jnp.log(jnp.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


def t5_distance_bias(table_RxH: jax.Array, distances: int) -> jax.Array:
    """Bias of the distances 0 .. distances - 1 from a table with one row per bucket: Hx`distances`."""
    return table_RxH[t5_buckets(jnp.arange(distances), table_RxH.shape[0])].T
