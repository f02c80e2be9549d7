"""Fits with intervals: the half-way point of a recall curve, power laws, decay to a floor.

Every fit is deterministic: the bootstrap draws from a seeded generator. Where the data cannot tell, the answer is NaN and the
interval None: a curve that never crosses one half has no half-way point, one seed has no spread over seeds.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, special

RESAMPLES, SEED = 400, 0
MIDDLE = (0.15, 0.85)  # accuracies where a recall curve is nearly a logistic
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval
Interval = tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class HalfPoint:
    """Accuracy = 1 / (1 + (n / n50)^slope).

    Attributes: n50; slope; deviance, twice the log-likelihood that a curve through every point would gain.
    """

    n50: float
    slope: float
    deviance: float

    def accuracy(self, pairs: np.ndarray) -> np.ndarray:
        return special.expit(-self.slope * (np.log(pairs) - math.log(self.n50)))


def half_point(pairs: Sequence[float], right: Sequence[float], asked: Sequence[float]) -> HalfPoint:
    """Maximum likelihood of a logistic in log n with binomial counts.

    The tails of recall curves are no logistic's and pull the middle by 5 %, so a second fit takes only the points that the first
    one puts inside `MIDDLE`, where there are three.

    Args: pairs n; right answers and questions asked at each. All NaN where fewer than two n were measured or the curve stays on
    one side of one half: the point would be a guess outside the data.
    """
    n, k, m = (np.asarray(x, float) for x in (pairs, right, asked))
    if len(n) < 2 or not np.all(m > 0) or not _crosses(k / m):
        return HalfPoint(math.nan, math.nan, math.nan)
    found = _logistic(n, k, m)
    share = found.accuracy(n)
    middle = (share > MIDDLE[0]) & (share < MIDDLE[1])
    if middle.sum() >= 3 and _crosses(k[middle] / m[middle]):
        return _logistic(n[middle], k[middle], m[middle])
    return found


def _crosses(share: np.ndarray) -> bool:
    return bool(share.min() <= 0.5 <= share.max() and share.min() < share.max())


def _logistic(n: np.ndarray, k: np.ndarray, m: np.ndarray) -> HalfPoint:
    x = np.log(n)
    centre = x.mean()

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log-likelihood a question and its gradient; theta = (intercept at the centre, slope)."""
        score = theta[0] - theta[1] * (x - centre)
        miss = special.expit(score) * m - k
        value = np.sum(m * np.logaddexp(0.0, score) - k * score)
        return value / m.sum(), np.array([miss.sum(), -(miss * (x - centre)).sum()]) / m.sum()

    found = optimize.minimize(loss, np.array([0.0, 2.0]), jac=True, method="L-BFGS-B", bounds=[(-60, 60), (0.05, 60)])
    intercept, slope = found.x
    best = -np.sum(special.xlogy(k, k / m) + special.xlogy(m - k, 1.0 - k / m))
    return HalfPoint(math.exp(centre + intercept / slope), float(slope), float(2.0 * (found.fun * m.sum() - best)))


def interval_of(draws: Sequence[float]) -> Interval:
    """The 95 % percentile interval of bootstrap draws; None where a twentieth or more of them found nothing."""
    draws = np.asarray(draws, float)
    finite = draws[np.isfinite(draws)]
    if len(draws) == 0 or len(finite) < 0.95 * len(draws):
        return None
    low, high = np.percentile(finite, LEVEL)
    return float(low), float(high)


def half_point_interval(pairs: Sequence[float], right_RxN: np.ndarray, asked_RxN: np.ndarray) -> Interval:
    """Bootstrap over rows, because questions to one memory are not independent. Counts of each row at each n; None for one row."""
    rows = len(right_RxN)
    if rows < 2:
        return None
    random = np.random.default_rng(SEED)
    draws = []
    for _ in range(RESAMPLES // 2):
        chosen = random.integers(0, rows, rows)
        draws.append(half_point(pairs, right_RxN[chosen].sum(axis=0), asked_RxN[chosen].sum(axis=0)).n50)
    return interval_of(draws)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """value = prefactor x^exponent, the intervals from a bootstrap over seeds."""

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
    return float(exponent), float(math.exp(intercept))


def power_law(x: Sequence[float], y: Sequence[float], seeds: Sequence[int]) -> PowerLaw:
    """Fits y = c x^a on what is finite and above zero; seed names which trial each point comes from.

    The bootstrap draws seeds anew at every x, so that no x is ever missing. With one seed the intervals are None.
    """
    x, y, seeds = np.asarray(x, float), np.asarray(y, float), np.asarray(seeds)
    kept = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    x, y, seeds = x[kept], y[kept], seeds[kept]
    exponent, prefactor = log_log(x, y)
    intervals = _over_seeds(lambda x, y: log_log(x, y), x, y, seeds, 2)
    return PowerLaw(exponent, prefactor, *intervals, points=len(np.unique(x)), seeds=len(np.unique(seeds)))


def _over_seeds(fit: Callable, x: np.ndarray, y: np.ndarray, seeds: np.ndarray, outputs: int) -> list[Interval]:
    """Intervals of what `fit(x, y)` returns, resampling the trials of every x; None with less than two seeds at each x."""
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
    """value = floor + scale x^-power: how loss falls to a floor as memory grows."""

    floor: float
    scale: float
    power: float
    floor_interval: Interval
    scale_interval: Interval
    power_interval: Interval

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.floor + self.scale * np.asarray(x, float) ** -self.power


def floor_law(x: Sequence[float], y: Sequence[float], seeds: Sequence[int]) -> Floor:
    """Fits y = L + A x^-g with L, A >= 0 and 0.01 <= g <= 4; all NaN with fewer than four different x."""
    x, y, seeds = np.asarray(x, float), np.asarray(y, float), np.asarray(seeds)
    kept = np.isfinite(x) & np.isfinite(y) & (x > 0)
    x, y, seeds = x[kept], y[kept], seeds[kept]
    fitted = _floor(x, y)
    return Floor(*fitted, *_over_seeds(_floor, x, y, seeds, 3))


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
    """95 % interval of a share (Wilson 1927); None where nothing was asked."""
    if asked <= 0:
        return None
    z, share = 1.959964, right / asked
    middle = (share + z**2 / (2 * asked)) / (1 + z**2 / asked)
    half = z / (1 + z**2 / asked) * math.sqrt(share * (1 - share) / asked + z**2 / (4 * asked**2))
    return max(0.0, middle - half), min(1.0, middle + half)
