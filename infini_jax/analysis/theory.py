"""Theory of recall from a memory of fixed size, without a free parameter.

A memory holds n pairs of random unit keys (d_k) and unit values (d_v); a value has V candidates. Two laws are easily mixed up:
  rank   exact recall: the best linear memory leaves NMSE = max(0, 1 - d/n) in d features
  top-1  argmax recall: the sum of n outer products answers v + r, with r the other pairs' interference.
         r . v ~ N(0, s^2), s^2 = (n-1)/(d_k d_v), and |r|^2 = (n-1)/d_k on average, so the right value is scored 1 + s z and
         stands at the cosine (1 + s z)/|v + r|; it wins against V - 1 random values with
         P = E_z[F((1 + s z)/|v + r|)^(V-1)],  F the cdf of the cosine of two random unit vectors, a Beta.
For large d and V the half-way point is n50 = d_k d_v / (2 ln V): 1 / (2 ln 2) = 0.72 bits per scalar, whatever the shape
(arXiv 2605.05189 conjectures the same constant).

How P takes |v + r| matters below d = 100. `mean` puts |v + r|^2 = 1 + (n-1)/d_k, the law as it is usually written; its n50 is
2 % below simulation for 64 x 64 and V = 8192, 6 % for 32 x 32, 10 % for 16 x 16 and V = 512. `spread` lets |r| vary: its part
across v is (n-1)/d_k (1 - 1/d_v) times a log-normal of mean one and variance 2/(n-1) + 2/d_v, the moments of a sum of n - 1
squared cosines times random directions; it is within 2 % of simulation there.
"""

import math
from typing import Any, Literal

import numpy as np
from scipy import optimize, special

from infini_jax.units import ratio

NODES, SPREAD_NODES = 64, 16  # of the Gauss-Hermite rules over z and |r|; twice as many give the same n50 to 0.3 %
Interference = Literal["mean", "spread"]


def rank_nmse(features: float, pairs: np.ndarray | float) -> np.ndarray:
    """Squared error of the best linear memory in `features` dimensions, relative to the variance of the values."""
    return np.maximum(0.0, 1.0 - features / np.asarray(pairs, float))


def cosine_cdf(cosine: np.ndarray, dim: int) -> np.ndarray:
    """P(cosine of two random unit vectors in `dim` dimensions <= cosine): (1 + cosine)/2 ~ Beta((dim-1)/2, (dim-1)/2)."""
    half = (dim - 1) / 2
    return special.betainc(half, half, np.clip((1.0 + cosine) / 2.0, 0.0, 1.0))


def top1_accuracy(
    pairs: np.ndarray | float, key_dim: int, value_dim: int, symbols: int, interference: Interference = "spread"
) -> np.ndarray:
    """Top-1 accuracy of the sum rule for n = `pairs` pairs of random unit keys and values: P of the top-1 law.

    P = E_z[F((1 + s z)/|v + r|)^(V-1)] with s^2 = (n-1)/(d_k d_v), F the cdf of the cosine of two random unit vectors and V =
    `symbols`; `interference` is how |v + r| is taken, see the module `infini_jax.analysis.theory`.
    """
    z_Z, z_weight = np.polynomial.hermite_e.hermegauss(NODES)
    e_E, e_weight = np.polynomial.hermite_e.hermegauss(SPREAD_NODES)
    others = np.asarray(pairs, float)[..., None, None] - 1.0
    right = 1.0 + np.sqrt(others / (key_dim * value_dim)) * z_Z[:, None]
    if interference == "mean":
        length_sq = 1.0 + others / key_dim + 0.0 * e_E
    else:
        log_variance = np.log1p(2.0 / np.maximum(others, 1.0) + 2.0 / value_dim)
        stretch = np.exp(np.sqrt(log_variance) * e_E - log_variance / 2.0)
        length_sq = right**2 + others / key_dim * (1.0 - 1.0 / value_dim) * stretch
    wins = cosine_cdf(right / np.sqrt(length_sq), value_dim) ** (symbols - 1)
    return wins @ e_weight @ z_weight / (e_weight.sum() * z_weight.sum())


def top1_n50(key_dim: int, value_dim: int, symbols: int, interference: Interference = "spread") -> float:
    """The number of pairs at which `top1_accuracy` is one half."""

    def excess(log_pairs: float) -> float:
        return float(top1_accuracy(math.exp(log_pairs), key_dim, value_dim, symbols, interference)) - 0.5

    root: Any = optimize.brentq(excess, 0.0, math.log(100.0 * key_dim * value_dim))
    return math.exp(root)


def top1_n50_large(key_dim: float, value_dim: float, symbols: int) -> float:
    """n50 of the top-1 law in the limit of large dimensions: d_k d_v / (2 ln V) pairs; NaN for a single symbol."""
    return ratio(key_dim * value_dim, 2.0 * math.log(symbols))


def bits_per_scalar(n50: float, scalars: float, symbols: int) -> float:
    """Bits per scalar of the memory at half recall: n50 log2 V / scalars, with V = `symbols`; NaN where nothing is carried."""
    return ratio(n50 * math.log2(symbols), scalars)


def delta_survival(age: np.ndarray | float, key_dim: float) -> np.ndarray:
    """Share of a pair that is left after `age` later writes, e^(-a/d_k): token-sequential delta rule, random unit keys.

    Every write erases the memory along its key, a share 1/d_k of a random direction.
    """
    return np.exp(-np.asarray(age, float) / key_dim)


def rank_fit(pairs: np.ndarray, nmse: np.ndarray, features: float) -> float:
    """R^2 of the rank law on measured errors, without a free parameter; NaN where the errors do not vary."""
    nmse = np.asarray(nmse, float)
    spread = np.sum((nmse - nmse.mean()) ** 2)
    residual = np.sum((nmse - rank_nmse(features, pairs)) ** 2)
    return float(1.0 - residual / spread) if spread > 0 else math.nan
