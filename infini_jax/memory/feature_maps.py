"""Feature maps phi of queries and keys (..., K) -> (..., F): a matrix memory compares them by the kernel phi(q) . phi(k).

The sum over keys phi(q) . z can normalize a read only where the kernel is positive. `SIGNED` names the maps where it is not.
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def elu_plus_one(x: jax.Array) -> jax.Array:
    """elu(x) + 1, positive everywhere, F = K (Katharopoulos et al. 2020, arXiv 2006.16236; Infini-attention's sigma)."""
    return nn.elu(x) + 1.0


def unit(x: jax.Array) -> jax.Array:
    """x / |x|, with the Memorizing Transformer's 1e-6 under the root: F = K, the kernel is the cosine and has a sign.

    NaN where |x|^2 overflows: divided by infinity, the longest vectors would be zero.
    """
    square = jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6
    return x * jax.lax.rsqrt(jnp.where(jnp.isfinite(square), square, jnp.nan))


def dpfp(x: jax.Array, nu: int) -> jax.Array:
    """DPFP-nu: products r_i r_{i-j} of r = relu([x, -x]) for j = 1..nu; F = 2 K nu (Schlag et al. 2021, arXiv 2102.11174).

    Features are never negative and mostly zero: keys that differ in the signs of neighboring entries do not overlap. A vector
    can have no features at all (signs that alternate); it then reads and writes nothing.
    """
    r = jax.nn.relu(jnp.concatenate([x, -x], axis=-1))
    return jnp.concatenate([r * jnp.roll(r, j, axis=-1) for j in range(1, nu + 1)], axis=-1)


def taylor2(x: jax.Array) -> jax.Array:
    """1 + s + s^2 / 2 with s = q . k / sqrt(K), exp(s) to second order and at least 1/2 (Arora et al. 2024, arXiv 2402.18668).

    F = 1 + K + K (K + 1) / 2. Based keeps all K^2 products; x_i x_j and x_j x_i are the same number, so one of them times
    sqrt(2) gives the same kernel in half the bytes, and memories are compared by bytes.
    """
    size = x.shape[-1]
    first, second = np.triu_indices(size)
    weight = np.where(first == second, np.sqrt(0.5), 1.0) / np.sqrt(size)
    products = x[..., first] * x[..., second] * weight.astype(x.dtype)
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x * size**-0.25, products], axis=-1)


FeatureMap = Literal["elu_plus_one", "unit", "dpfp", "taylor2"]
SIGNED: tuple[FeatureMap, ...] = ("unit",)
"""Names of the maps whose kernel has a sign: their reads cannot be normalized."""


def feature_map(name: FeatureMap, nu: int) -> Callable[[jax.Array], jax.Array]:
    """The feature map (..., K) -> (..., F) of this name; `nu` is the order of dpfp."""
    return {"elu_plus_one": elu_plus_one, "unit": unit, "dpfp": functools.partial(dpfp, nu=nu), "taylor2": taylor2}[name]
