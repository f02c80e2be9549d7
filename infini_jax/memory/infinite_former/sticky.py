"""Sticky memories of the ∞-former (section 3.3, and the released code): keep more of the past that queries attended to.

When the old signal is sampled for a rewrite, the M times t_m are drawn, with replacement, from a histogram of where the
segment's queries looked; sorted, they take the place of m / M. Parts that were looked at get more room in the contracted
signal.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

BINS = 128  # of the released code


def bin_edges(bins: int = BINS) -> np.ndarray:
    """Edges of equal bins on [0, 1]: bins + 1 float64."""
    return np.linspace(0.0, 1.0, bins + 1)


def attention_histogram(mu_BxHxS: jax.Array, sigma_sq_BxHxS: jax.Array, counted_BxS: jax.Array, bins: int = BINS) -> jax.Array:
    """Share of the mass of all heads' and counted queries' Gaussians in each bin: BxG, rows sum to 1.

    The outermost edges stand 1e-6 outside, as in the released code; mass beyond them is left out. A row without a counted
    query has equal shares, one with attention that is no number none that are.
    """
    edges_G1 = bin_edges(bins)
    edges_G1[0], edges_G1[-1] = -1e-6, 1.0 + 1e-6
    standard = (jnp.asarray(edges_G1, mu_BxHxS.dtype) - mu_BxHxS[..., None]) / jnp.sqrt(sigma_sq_BxHxS)[..., None]
    mass_BxHxSxG = jnp.maximum(jnp.diff(jax.scipy.special.ndtr(standard), axis=-1), 0.0)
    mass_BxG = jnp.where(counted_BxS[:, None, :, None], mass_BxHxSxG, 0.0).sum(axis=(1, 2))
    total_Bx1 = mass_BxG.sum(axis=-1, keepdims=True)
    is_empty_Bx1 = total_Bx1 <= 0  # not so where it is NaN
    return jnp.where(is_empty_Bx1, 1.0 / bins, mass_BxG / jnp.where(is_empty_Bx1, 1.0, total_Bx1))


def draw_times(
    keys_B: jax.Array, histogram_BxG: jax.Array, samples: int, inside: Literal["edge", "uniform"] = "edge"
) -> jax.Array:
    """The times t_m, `samples` per row, drawn with replacement from the bins and sorted: BxM.

    Inside its bin a time stands at the left edge (the released code) or anywhere (`uniform`).
    """
    bins = histogram_BxG.shape[-1]

    def row(key: jax.Array, shares_G: jax.Array) -> jax.Array:
        which, where = jax.random.split(key)
        bin_M = jax.random.categorical(which, jnp.log(shares_G), shape=(samples,))
        offset_M = jax.random.uniform(where, (samples,), shares_G.dtype) if inside == "uniform" else 0.0
        return times_of(bin_M, offset_M, bins)

    return jax.vmap(row)(keys_B, histogram_BxG)


def times_of(bin_xM: jax.Array, offset_xM: jax.Array | float = 0.0, bins: int = BINS) -> jax.Array:
    """The times t_m of drawn bins, sorted: ...xM. `offset_xM` is a time's place inside its bin, of width 1.

    With the bins that other code drew, its sampling can be run through `InfiniteFormer.write`.
    """
    return jnp.sort((bin_xM + offset_xM) / bins)


def row_keys(seed: int, count_B: jax.Array) -> jax.Array:
    """A random key for each row and write, which depends on the seed, the row and `count_B` alone: B."""

    def key(row: jax.Array, count: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), count)

    return jax.vmap(key)(jnp.arange(count_B.shape[0]), count_B)
