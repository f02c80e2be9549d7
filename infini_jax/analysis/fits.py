"""Fits with intervals: the half-way point of a recall curve, power laws, decay to a floor.

Every fit is deterministic: the bootstrap draws from a seeded generator. Where the data cannot tell, the answer is NaN and the
interval None: a curve that never crosses one half has no half-way point, one seed has no spread over seeds.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from infini_jax.units import exponential

RESAMPLES, SEED = 400, 0
MIDDLE = (0.2, 0.8)  # accuracies where a recall curve is nearly a logistic
SLOPES, NEWTON_STEPS, CLOSE = (0.05, 60.0), 60, 1e-13
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval
Interval = tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class HalfPoint:
    """Recall curve of n pairs, accuracy = 1 / (1 + (n / n50)^slope).

    Attributes:
      n50: number of pairs at which half are recalled.
      slope: steepness in log n.
      deviance: twice the log-likelihood that a curve through every point would gain.
    """

    n50: float
    slope: float
    deviance: float

    def accuracy(self, pairs: np.ndarray) -> np.ndarray:
        """Accuracy of the curve at each number of pairs, a share."""
        return special.expit(-self.slope * (np.log(pairs) - math.log(self.n50)))


def half_point(pairs: Sequence[float], right: Sequence[float], asked: Sequence[float]) -> HalfPoint:
    """The recall curve of measured counts, by maximum likelihood of a logistic in log n with binomial counts.

    The tails of recall curves are no logistic's and pull the middle by 5 %, so a second fit takes only the points that the
    first one puts inside `MIDDLE`, where there are three. All is NaN where fewer than two n were measured or the curve stays
    on one side of one half: the point would be a guess outside the data.

    Args:
      pairs: n, numbers of pairs.
      right: number of right answers at each n.
      asked: number of questions at each n.
    """
    n, k, m = (np.asarray(x, float) for x in (pairs, right, asked))
    if not _crosses(k[None], m[None], np.ones((1, len(n)), bool))[0]:
        return HalfPoint(math.nan, math.nan, math.nan)
    n50, slope, used = (x[0] for x in _half_points(n, k[None], m[None]))
    found, k, m = HalfPoint(float(n50), float(slope), math.nan), k[used], m[used]
    at_best = special.xlogy(k, k / m) + special.xlogy(m - k, 1.0 - k / m)
    share = found.accuracy(n[used])
    here = special.xlogy(k, share) + special.xlogy(m - k, 1.0 - share)
    return dataclasses.replace(found, deviance=float(2.0 * np.sum(at_best - here)))


def _half_points(n_N: np.ndarray, k_RxN: np.ndarray, m_RxN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n50 R, slope R, whether each point was used RxN): `half_point` of R curves at once."""
    x_N = np.log(n_N)
    centre = x_N.mean()
    theta_Rx2 = _logistic(x_N - centre, k_RxN, m_RxN)
    share_RxN = special.expit(theta_Rx2[:, :1] - theta_Rx2[:, 1:] * (x_N - centre))
    middle_RxN = (share_RxN > MIDDLE[0]) & (share_RxN < MIDDLE[1])
    again_R = (middle_RxN.sum(axis=1) >= 3) & _crosses(k_RxN, m_RxN, middle_RxN)
    used_RxN = np.where(again_R[:, None], middle_RxN, True)
    theta_Rx2 = _logistic(x_N - centre, k_RxN * used_RxN, m_RxN * used_RxN)
    found_R = _crosses(k_RxN, m_RxN, used_RxN)
    n50_R = np.exp(centre + theta_Rx2[:, 0] / theta_Rx2[:, 1])
    return np.where(found_R, n50_R, np.nan), np.where(found_R, theta_Rx2[:, 1], np.nan), used_RxN


def _crosses(k_RxN: np.ndarray, m_RxN: np.ndarray, used_RxN: np.ndarray) -> np.ndarray:
    """Whether each curve has used points above one half, or at it, and others below: R."""
    share_RxN = np.divide(k_RxN, m_RxN, out=np.full(k_RxN.shape, np.nan), where=used_RxN & (m_RxN > 0))
    high_R, low_R = np.nanmax(share_RxN, axis=1, initial=0.0), np.nanmin(share_RxN, axis=1, initial=1.0)
    return (low_R <= 0.5) & (high_R >= 0.5) & (low_R < high_R)


def _logistic(x_N: np.ndarray, k_RxN: np.ndarray, m_RxN: np.ndarray) -> np.ndarray:
    """(a, b) of R fits of share = expit(a - b x) by Newton's method, Rx2, b kept in `SLOPES`.

    Two parameters are solved in closed form: an optimizer's calls cost a thousand times the arithmetic, and a bootstrap makes
    many.
    """
    a_R, b_R = np.zeros(len(k_RxN)), np.full(len(k_RxN), 2.0)
    for _ in range(NEWTON_STEPS):
        before_2xR = np.stack([a_R, b_R])
        share_RxN = special.expit(a_R[:, None] - b_R[:, None] * x_N)
        miss_RxN, weight_RxN = k_RxN - share_RxN * m_RxN, m_RxN * share_RxN * (1.0 - share_RxN)
        w0, w1, w2 = (np.sum(weight_RxN * x_N**power, axis=1) for power in (0, 1, 2))
        g0, g1 = miss_RxN.sum(axis=1), np.sum(miss_RxN * x_N, axis=1)
        determinant = w0 * w2 - w1**2 + 1e-9 * (1.0 + w0) ** 2
        a_R = a_R + np.clip((w2 * g0 - w1 * g1) / determinant, -1.0, 1.0)  # short steps: far out the curvature vanishes
        b_R = np.clip(b_R - np.clip((w0 * g1 - w1 * g0) / determinant, -1.0, 1.0), *SLOPES)
        if np.allclose(before_2xR, (a_R, b_R), rtol=CLOSE, atol=CLOSE, equal_nan=True):
            break
    return np.stack([a_R, b_R], axis=1)


def interval_of(draws: ArrayLike) -> Interval:
    """The 95 % percentile interval of bootstrap draws; None where a twentieth or more of them found nothing."""
    drawn = np.asarray(draws, float)
    finite = drawn[np.isfinite(drawn)]
    if len(drawn) == 0 or len(finite) < 0.95 * len(drawn):
        return None
    low, high = np.percentile(finite, LEVEL)
    return float(low), float(high)


def half_point_interval(pairs: Sequence[float], right_RxN: np.ndarray, asked_RxN: np.ndarray) -> Interval:
    """Interval of n50 by a bootstrap over rows, as questions to one memory are not independent; None for one row.

    Args:
      pairs: n, numbers of pairs.
      right_RxN: number of right answers of each row at each n.
      asked_RxN: number of questions of each row at each n.
    """
    rows = len(right_RxN)
    if rows < 2:
        return None
    random = np.random.default_rng(SEED)
    chosen_DxR = random.integers(0, rows, (RESAMPLES, rows))
    right_DxN, asked_DxN = (np.asarray(x, float)[chosen_DxR].sum(axis=1) for x in (right_RxN, asked_RxN))
    return interval_of(_half_points(np.asarray(pairs, float), right_DxN, asked_DxN)[0])


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """Power law, value = prefactor x^exponent, with intervals from a bootstrap over seeds.

    Attributes:
      exponent, prefactor: parameters of the fit, NaN where it cannot be made.
      exponent_interval, prefactor_interval: 95 % intervals, None with one seed.
      points: number of different x.
      seeds: number of different seeds.
    """

    exponent: float
    prefactor: float
    exponent_interval: Interval
    prefactor_interval: Interval
    points: int
    seeds: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.prefactor * np.asarray(x, float) ** self.exponent


def log_log(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(exponent, prefactor) by least squares in the logarithms; NaN where fewer than two x differ."""
    if len(np.unique(x)) < 2:
        return math.nan, math.nan
    exponent, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return float(exponent), exponential(float(intercept))


def power_law(x: ArrayLike, y: ArrayLike, seeds: ArrayLike) -> PowerLaw:
    """The fit y = c x^a of the points that are finite and above zero; `seeds` name the trial that each point comes from.

    The bootstrap draws seeds anew at every x, so that no x is ever missing. With one seed the intervals are None.
    """
    x_N, y_N, seed_N = np.asarray(x, float), np.asarray(y, float), np.asarray(seeds)
    kept_N = np.isfinite(x_N) & np.isfinite(y_N) & (x_N > 0) & (y_N > 0)
    x_N, y_N, seed_N = x_N[kept_N], y_N[kept_N], seed_N[kept_N]
    exponent, prefactor = log_log(x_N, y_N)
    of_exponent, of_prefactor = _over_seeds(log_log, x_N, y_N, seed_N, 2)
    return PowerLaw(exponent, prefactor, of_exponent, of_prefactor, len(np.unique(x_N)), len(np.unique(seed_N)))


def _over_seeds(fit: Callable, x: np.ndarray, y: np.ndarray, seeds: np.ndarray, outputs: int) -> list[Interval]:
    """Intervals of the outputs of `fit(x, y)`, resampling the trials of every x; None with fewer than two seeds at each x."""
    groups = [np.flatnonzero(x == one) for one in np.unique(x)]
    if not groups or min(len(np.unique(seeds[group])) for group in groups) < 2:
        return [None] * outputs
    random = np.random.default_rng(SEED)
    draws = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([random.choice(group, len(group)) for group in groups])
        draws.append(fit(x[chosen], y[chosen]))
    return [interval_of(values) for values in zip(*draws, strict=True)]


@dataclasses.dataclass(frozen=True)
class Floor:
    """Decay to a floor, value = floor + scale x^-power: how loss falls as memory grows.

    Attributes:
      floor, scale, power: parameters of the fit, NaN where it cannot be made.
      floor_interval, scale_interval, power_interval: 95 % intervals, None with one seed.
    """

    floor: float
    scale: float
    power: float
    floor_interval: Interval
    scale_interval: Interval
    power_interval: Interval

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.floor + self.scale * np.asarray(x, float) ** -self.power


def floor_law(x: ArrayLike, y: ArrayLike, seeds: ArrayLike) -> Floor:
    """The fit y = L + A x^-g with L, A >= 0 and 0.01 <= g <= 4; all NaN with fewer than four different x.

    `seeds` name the trial that each point comes from, for the intervals.
    """
    x_N, y_N, seed_N = np.asarray(x, float), np.asarray(y, float), np.asarray(seeds)
    kept_N = np.isfinite(x_N) & np.isfinite(y_N) & (x_N > 0)
    x_N, y_N, seed_N = x_N[kept_N], y_N[kept_N], seed_N[kept_N]
    return Floor(*_floor(x_N, y_N), *_over_seeds(_floor, x_N, y_N, seed_N, 3))


def _floor(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """(L, A, g): for every g the best L, A >= 0 are linear least squares, so that only g is searched."""
    if len(np.unique(x)) < 4:
        return math.nan, math.nan, math.nan
    unit = math.exp(np.log(x).mean())  # x relative to its middle: A is then of the size of y

    def best(power: float) -> tuple[np.ndarray, float]:
        features = np.stack([np.ones_like(x), (x / unit) ** -power], axis=1)
        return optimize.nnls(features, y)

    powers = np.geomspace(0.01, 4.0, 40)
    coarse = int(np.argmin([best(power)[1] for power in powers]))
    bounds = powers[max(coarse - 1, 0)], powers[min(coarse + 1, len(powers) - 1)]
    power = optimize.minimize_scalar(lambda p: best(p)[1], bounds=bounds, method="bounded").x
    (floor, scale), _ = best(power)
    return float(floor), float(scale * unit**power), float(power)


def wilson(right: float, asked: float) -> Interval:
    """The 95 % interval of a share (Wilson 1927), for trials that need not be whole numbers; None where nothing was asked."""
    if asked <= 0:
        return None
    z, share = float(special.ndtri(0.975)), float(np.clip(right / asked, 0.0, 1.0))  # sums of shares miss 1 by a rounding
    middle = (share + z**2 / (2 * asked)) / (1 + z**2 / asked)
    half = z / (1 + z**2 / asked) * math.sqrt(share * (1 - share) / asked + z**2 / (4 * asked**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_over_seeds(x: ArrayLike, y: ArrayLike, seeds: ArrayLike) -> tuple[float, Interval]:
    """(mean of the finite values, its interval), trials drawn anew at every x; None with fewer than two seeds at each."""
    x_N, y_N, seed_N = np.asarray(x, float), np.asarray(y, float), np.asarray(seeds)
    kept_N = np.isfinite(y_N)
    if not kept_N.any():
        return math.nan, None
    (interval,) = _over_seeds(lambda x, y: (float(y.mean()),), x_N[kept_N], y_N[kept_N], seed_N[kept_N], 1)
    return float(y_N[kept_N].mean()), interval


@dataclasses.dataclass(frozen=True)
class Decay:
    """Exponential decay, value = start e^(-age / constant).

    Attributes:
      start: value at age 0.
      constant: age after which 1 / e is left.
      r2: share of the variance that the curve explains.
      interval: 95 % interval of the constant.
    """

    start: float
    constant: float
    r2: float
    interval: Interval


def decay(age: Sequence[float], value: Sequence[float], count: Sequence[float]) -> Decay:
    """The fit of an exponential decay by least squares weighted by counts; the interval is from the curvature.

    All NaN with fewer than four ages or no decay. What is not finite or was never asked has no part.
    """
    a, y, m = (np.asarray(x, float) for x in (age, value, count))
    kept = np.isfinite(a) & np.isfinite(y) & (m > 0)
    a, y, m = a[kept], y[kept], m[kept]
    if len(np.unique(a)) < 4:
        return Decay(math.nan, math.nan, math.nan, None)

    def curve(a: np.ndarray, start: float, log_constant: float) -> np.ndarray:
        return start * np.exp(-a * np.exp(-log_constant))

    guess = [max(float(y[np.argmin(a)]), 1e-3), math.log(max(float(a.mean()), 1e-3))]
    try:
        found, covariance = optimize.curve_fit(curve, a, y, guess, sigma=1.0 / np.sqrt(m))
    except RuntimeError:  # scipy's word for a fit that does not settle
        return Decay(math.nan, math.nan, math.nan, None)
    explained = 1.0 - np.sum(m * (curve(a, *found) - y) ** 2) / np.sum(m * (y - np.average(y, weights=m)) ** 2)
    half = 1.96 * math.sqrt(covariance[1, 1])
    log_constant = float(found[1])
    interval = (exponential(log_constant - half), exponential(log_constant + half)) if half < 5 else None
    return Decay(float(found[0]), exponential(log_constant), float(explained), interval)
