"""Random codes: how many pairs an update rule recalls without any training, as theory describes it.

Keys (d_k) and values (d_v) are random unit vectors; n pairs are written, every key is asked, and the answer is the value of
`symbols` candidates with the highest score. Rules, S the memory, k a key, v its value:
  least_squares   S = K^+ V: what a memory of this shape can do at best for the squared error
  sum             S = sum k v^T
  delta           S += k (v - k^T S), one token after the other: the newest pair is always exact, older ones wear off
  elu_sum         S = sum f(k) v^T, z = sum f(k), read f(q) S / f(q) z, f = elu + 1: Infini-attention's linear update
  elu_delta       S += sum over a segment of f(k) (v - f(k) S / f(k) z), all of it reading the S and z before the segment
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from scipy.linalg import solve_triangular

from infini_jax.analysis.fits import half_point
from infini_jax.errors import require, require_positive
from infini_jax.measures import Measure

Rule = Literal["least_squares", "sum", "delta", "elu_sum", "elu_delta"]
Read = Callable[[int], np.ndarray]  # pairs written -> the answers to their keys, nxV


def unit_rows(random: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Random unit vectors, float32."""
    x = random.standard_normal((rows, dim), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def elu_plus_one(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))


def least_squares(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    return lambda n: keys[:n] @ np.linalg.lstsq(keys[:n], values[:n], rcond=None)[0]


def summed(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    return lambda n: keys[:n] @ (keys[:n].T @ values[:n])


def delta(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    """All n from one solve: what token t really adds, u_t = v_t - sum_{i<t} (k_t . k_i) u_i, does not depend on later ones."""
    added = solve_triangular(np.tril(keys @ keys.T, -1) + np.eye(len(keys)), values, lower=True, unit_diagonal=True)
    return lambda n: keys[:n] @ (keys[:n].T @ added[:n])


def elu_summed(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    features = elu_plus_one(keys)
    return lambda n: _normalised(features[:n], features[:n].sum(axis=0)) @ (features[:n].T @ values[:n])


def elu_delta(keys: np.ndarray, values: np.ndarray, segment: int) -> Read:
    features = elu_plus_one(keys)

    def read(n: int) -> np.ndarray:
        S, z = np.zeros((keys.shape[1], values.shape[1])), np.zeros(keys.shape[1])
        for start in range(0, n, segment):
            f, v = features[start : min(start + segment, n)], values[start : min(start + segment, n)]
            S, z = S + f.T @ (v - _normalised(f, z) @ S), z + f.sum(axis=0)
        return _normalised(features[:n], z) @ S

    return read


def _normalised(features: np.ndarray, z: np.ndarray) -> np.ndarray:
    """f / (f z), zero where nothing was written."""
    mass = features @ z
    return features * np.divide(1.0, mass, out=np.zeros_like(mass), where=mass > 0)[:, None]


RULES: dict[Rule, Callable[[np.ndarray, np.ndarray, int], Read]] = {
    "least_squares": least_squares,
    "sum": summed,
    "delta": delta,
    "elu_sum": elu_summed,
    "elu_delta": elu_delta,
}
