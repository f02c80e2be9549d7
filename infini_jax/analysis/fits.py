"""Fits of measured figures over sizes: power laws, decay to a floor, decay with age.

A law is fitted to the curve of each seed, or to their mean, and its intervals are over seeds. Where the data cannot tell, a
number is NaN and its interval None: one x has no exponent, two seeds have no spread to speak of.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from infini_jax.analysis.intervals import FEWEST, NOTHING, TAIL, Curves, Estimate, curves_of, named
from infini_jax.units import exponential


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """Power law, value = prefactor x^exponent.

    Attributes:
      exponent, prefactor: parameters of the law, with intervals over seeds; NaN where it cannot be fitted.
      sizes: number of different x.
    """

    exponent: Estimate
    prefactor: Estimate
    sizes: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.prefactor.value * np.asarray(x, float) ** self.exponent.value


def log_log(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(exponent, logarithm of the prefactor) by least squares in the logarithms; NaN where fewer than two x differ."""
    if len(np.unique(x)) < 2:
        return math.nan, math.nan
    exponent, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return float(exponent), float(intercept)


def power_law(x: ArrayLike, y: ArrayLike, seeds: ArrayLike) -> PowerLaw:
    """The fit y = c x^a, by least squares in the logarithms of each seed's curve: means of a and log c, and t over seeds.

    Points that are not finite or not above zero count as not measured, see `curves_of`. Without a seed that has all sizes the
    law is that of all points, and has no intervals.

    Args:
      x: sizes of the points, P.
      y: figures of the points, P.
      seeds: seed of each point, P.
    """
    x_P, y_P, seed_P = np.asarray(x, float), np.asarray(y, float), np.asarray(seeds)
    y_P = np.where((y_P > 0) & (x_P > 0), y_P, math.nan)
    curves = curves_of(np.where(x_P > 0, x_P, math.nan), y_P, seed_P)
    sizes = len(curves.x_N)
    if sizes < 2 or not curves.seeds:
        known_P = np.isfinite(y_P)
        exponent, prefactor = log_log(x_P[known_P], y_P[known_P])
        why = "fewer than two sizes" if sizes < 2 else "no seed has all sizes"
        none = Estimate(exponent, None, curves.seeds, curves.dropped, why)
        return PowerLaw(none, dataclasses.replace(none, value=exponential(prefactor)), sizes)
    exponent, prefactor = (curves.estimate(lambda y_N, part=part: log_log(curves.x_N, y_N)[part]) for part in (0, 1))
    return PowerLaw(exponent, prefactor.mapped(exponential), sizes)


POWERS = np.geomspace(
    0.01, 4.0, 81
)  # of a decay to a floor, among which the best is looked for, and then between its neighbours
PLACES, STEPS, ROUNDS = 101, 33, 3  # of a search for the ends of an interval


@dataclasses.dataclass(frozen=True)
class Floor:
    """Decay to a floor, value = floor + scale (x / unit)^-power: how loss falls as memory grows.

    Attributes:
      floor, scale, power: parameters of the law, with intervals over seeds; NaN where it cannot be fitted.
      unit: geometric mean of the sizes, at which `scale` is what lies above the floor.
    """

    floor: Estimate
    scale: Estimate
    power: Estimate
    unit: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.floor.value + self.scale.value * (np.asarray(x, float) / self.unit) ** -self.power.value


def floor_law(x: ArrayLike, y: ArrayLike, seeds: ArrayLike) -> Floor:
    """The fit y = L + A (x / u)^-g with L, A >= 0 and g within `POWERS`, by least squares of the seeds' mean curve.

    All NaN with fewer than four sizes, or no seed that has them all. An interval holds every value of its parameter that the
    seeds do not refute: with the parameter held and the others fitted, what is left over along the direction in which it would
    move the curve, and the others would not, is one number a seed, whose mean is zero if the value is right; t over seeds
    tests that (Neyman 1959, C(alpha)). Fits of single seeds are no use here: four noisy sizes often put one at the edge of
    what is allowed.

    Args:
      x: sizes of the points, P.
      y: figures of the points, P.
      seeds: seed of each point, P.
    """
    x_P = np.asarray(x, float)
    curves = curves_of(np.where(x_P > 0, x_P, math.nan), y, seeds)
    if len(curves.x_N) < 4 or not curves.seeds:
        none = dataclasses.replace(NOTHING, dropped=curves.dropped, why="fewer than four sizes" if curves.seeds else "no seed")
        return Floor(none, none, none, math.nan)
    unit = math.exp(np.log(curves.x_N).mean())
    log_N = np.log(curves.x_N / unit)
    found = _floor(log_N, curves.y_SxN.mean(axis=0))
    tests = _Tests(log_N, curves.y_SxN)
    most = float(np.abs(curves.y_SxN).max())
    ranges = (tests.floor, (0.0, most)), (tests.scale, (0.0, most)), (tests.power, (float(POWERS[0]), float(POWERS[-1])))
    floor, scale, power = (_estimate(curves, value, *one) for value, one in zip(found, ranges, strict=True))
    return Floor(floor, scale, power, unit)


def _estimate(curves: Curves, value: float, strays: Callable[[np.ndarray], np.ndarray], ends: tuple[float, float]) -> Estimate:
    """A parameter with the interval of what the seeds do not refute, within the ends of its range.

    `strays` has for each of P values one number per seed, PxS, whose mean is zero where the value is right.
    """
    seeds = len(curves.seeds)
    if seeds < FEWEST:
        return Estimate(value, None, curves.seeds, curves.dropped, f"no interval from {named(curves.seeds)}")
    bound = float(special.stdtrit(seeds - 1, 1.0 - TAIL)) / math.sqrt(seeds)

    def stands(places_P: np.ndarray) -> np.ndarray:
        strays_PxS = strays(places_P)
        return np.abs(strays_PxS.mean(axis=1)) <= bound * strays_PxS.std(axis=1, ddof=1)

    grid_P = np.linspace(*ends, PLACES) if ends[0] <= 0 else np.geomspace(*ends, PLACES)
    places_P = np.sort(np.append(grid_P, value))
    standing = np.flatnonzero(stands(places_P))
    if not len(standing):
        return Estimate(value, None, curves.seeds, curves.dropped, "the law does not describe the curves")
    first, last = int(standing[0]), int(standing[-1])
    low = _edge(stands, places_P[first], places_P[max(first - 1, 0)])
    high = _edge(stands, places_P[last], places_P[min(last + 1, len(places_P) - 1)])
    return Estimate(value, (low, high), curves.seeds, curves.dropped)


def _edge(stands: Callable[[np.ndarray], np.ndarray], inside: float, outside: float) -> float:
    """The first place that does not stand, on the way from one that does to one that does not."""
    for _ in range(ROUNDS):
        places_P = np.linspace(inside, outside, STEPS)
        falls = np.flatnonzero(~stands(places_P)[1:-1])
        step = int(falls[0]) + 1 if len(falls) else STEPS - 1
        inside, outside = places_P[step - 1], places_P[step]
    return float(outside)


class _Tests:
    """Numbers per seed for P values of a parameter of y = L + A e^(-g l), l the logarithms of sizes: zero on average where the
    value is right, the other two fitted.

    For a power, f = e^(-g l) is the direction of A, l f that of g, and 1 that of L.
    """

    def __init__(self, log_N: np.ndarray, y_SxN: np.ndarray):
        self.log_N, self.y_SxN, self.mean_N = log_N, y_SxN, y_SxN.mean(axis=0)
        self.f_GxN = np.exp(-POWERS[:, None] * log_N)

    def power(self, power_P: np.ndarray) -> np.ndarray:
        """Strays of powers, PxS."""
        f_PxN = np.exp(-power_P[:, None] * self.log_N)
        return beyond(self.log_N * f_PxN, np.ones_like(f_PxN), f_PxN) @ self.y_SxN.T

    def floor(self, floor_P: np.ndarray) -> np.ndarray:
        """Strays of floors, PxS."""
        rest_PxN = self.mean_N - floor_P[:, None]
        scale_PxG = np.maximum(rest_PxN @ self.f_GxN.T / np.sum(self.f_GxN**2, axis=1), 0.0)
        f_PxN = self.best(rest_PxN[:, None] - scale_PxG[..., None] * self.f_GxN)
        direction_PxN = beyond(np.ones_like(f_PxN), f_PxN, self.log_N * f_PxN)
        return np.einsum("pn,psn->ps", direction_PxN, self.y_SxN - floor_P[:, None, None])

    def scale(self, scale_P: np.ndarray) -> np.ndarray:
        """Strays of scales, PxS."""
        rest_PxGxN = self.mean_N - scale_P[:, None, None] * self.f_GxN
        floor_PxG = np.maximum(rest_PxGxN.mean(axis=2), 0.0)
        f_PxN = self.best(rest_PxGxN - floor_PxG[..., None])
        direction_PxN = beyond(f_PxN, np.ones_like(f_PxN), self.log_N * f_PxN)
        return np.einsum("pn,psn->ps", direction_PxN, self.y_SxN - (scale_P[:, None] * f_PxN)[:, None])

    def best(self, left_PxGxN: np.ndarray) -> np.ndarray:
        """The directions f of the powers that leave the least squares, PxN."""
        return self.f_GxN[np.argmin(np.sum(left_PxGxN**2, axis=2), axis=1)]


def beyond(direction_PxN: np.ndarray, *others_PxN: np.ndarray) -> np.ndarray:
    """The part of each direction that is at right angles to the others, PxN."""
    basis_PxNxK, _ = np.linalg.qr(np.stack(others_PxN, axis=2))
    return direction_PxN - np.einsum("pnk,pmk,pm->pn", basis_PxNxK, basis_PxNxK, direction_PxN)


def _floor(log_N: np.ndarray, y_N: np.ndarray) -> tuple[float, float, float]:
    """(L, A, g): for every g the best L, A >= 0 are linear least squares, so that only g is searched."""

    def best(power: float) -> tuple[np.ndarray, float]:
        return optimize.nnls(np.stack([np.ones_like(log_N), np.exp(-power * log_N)], axis=1), y_N)

    coarse = int(np.argmin([best(power)[1] for power in POWERS]))
    bounds = POWERS[max(coarse - 1, 0)], POWERS[min(coarse + 1, len(POWERS) - 1)]
    power = optimize.minimize_scalar(lambda p: best(p)[1], bounds=bounds, method="bounded", options={"xatol": 1e-9}).x
    (floor, scale), _ = best(power)
    return float(floor), float(scale), float(power)


@dataclasses.dataclass(frozen=True)
class Decay:
    """Exponential decay, value = start e^(-age / constant).

    Attributes:
      start: value at age 0.
      constant: age after which 1 / e is left.
      r2: share of the variance that the curve explains.
    """

    start: float
    constant: float
    r2: float


def decay(age: Sequence[float], value: Sequence[float], count: Sequence[float]) -> Decay:
    """The fit of an exponential decay by least squares weighted by counts.

    All NaN with fewer than four ages or no decay. What is not finite or was never asked has no part.
    """
    a, y, m = (np.asarray(x, float) for x in (age, value, count))
    kept = np.isfinite(a) & np.isfinite(y) & (m > 0)
    a, y, m = a[kept], y[kept], m[kept]
    if len(np.unique(a)) < 4:
        return Decay(math.nan, math.nan, math.nan)

    def curve(a: np.ndarray, start: float, log_constant: float) -> np.ndarray:
        return start * np.exp(-a * np.exp(-log_constant))

    guess = [max(float(y[np.argmin(a)]), 1e-3), math.log(max(float(a.mean()), 1e-3))]
    try:
        found, _ = optimize.curve_fit(curve, a, y, guess, sigma=1.0 / np.sqrt(m))
    except RuntimeError:  # scipy's word for a fit that does not settle
        return Decay(math.nan, math.nan, math.nan)
    explained = 1.0 - np.sum(m * (curve(a, *found) - y) ** 2) / np.sum(m * (y - np.average(y, weights=m)) ** 2)
    return Decay(float(found[0]), exponential(float(found[1])), float(explained))
