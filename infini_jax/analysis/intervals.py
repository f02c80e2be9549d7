"""Intervals over seeds: each seed gives one number from all sizes it was measured at, and Student's t is taken over seeds.

What noise there is between sizes, equal or not, and what a seed has in common at all of its sizes, is all in the spread of
these numbers, so that nothing is assumed of either (Student 1908; two-stage summaries). Resampling two to five seeds covers
far less than it says: a bootstrap's nominal 95 % are 49 to 74 % at two and three. tests/test_coverage.py simulates every
interval of this folder for 3 and 5 seeds at 4 and 5 sizes.

There is no interval from fewer than `FEWEST` seeds, nor from seeds without any spread where nothing else is known of it: that
all seeds agree exactly is no reason to be certain. A seed that lacks a size has no part in a number over sizes, and is named.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

FEWEST = 3  # seeds of an interval
TAIL = 0.025  # on either side of a 95 % interval
ROUNDING = 1e-12  # a spread of so small a share of the numbers is that of their last digits
Interval = tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its interval over seeds.

    Attributes:
      value: the number, NaN where there is none.
      interval: its 95 % interval, None where there is none.
      seeds: seeds that it is computed from.
      dropped: what was left out, one text for each seed or size, with the reason.
      why: reason why there is no interval, "" with one.
    """

    value: float
    interval: Interval = None
    seeds: tuple[int, ...] = ()
    dropped: tuple[str, ...] = ()
    why: str = ""

    def mapped(self, change: Callable[[float], float]) -> "Estimate":
        """The estimate of a monotone function of the number, such as the exponential of a logarithm."""
        ends = self.interval and sorted(map(change, self.interval))
        return dataclasses.replace(self, value=change(self.value), interval=ends and (ends[0], ends[1]))


NOTHING = Estimate(math.nan, why="nothing measures it")


def half_width(values: ArrayLike, least: float = 0.0) -> float:
    """Half of the 95 % interval of a mean by Student's t; NaN for fewer than `FEWEST` values, or values without a spread.

    Args:
      values: numbers that were drawn independently.
      least: standard deviation that a value has in any case, such as that of a share of few questions.
    """
    x = np.asarray(values, float)
    if len(x) < FEWEST or not np.isfinite(x).all():
        return math.nan
    spread = max(float(x.std(ddof=1)), least)
    if spread <= ROUNDING * float(np.abs(x).max()):
        return math.nan
    return float(special.stdtrit(len(x) - 1, 1.0 - TAIL)) * spread / math.sqrt(len(x))


def mean_of_seeds(by_seed: Mapping[int, float], least: float = 0.0, dropped: Sequence[str] = ()) -> Estimate:
    """The mean of one number per seed with its t interval.

    Args:
      by_seed: the numbers, all finite.
      least: standard deviation of each number in any case, see `half_width`.
      dropped: what was left out before.
    """
    if not by_seed:
        return dataclasses.replace(NOTHING, dropped=tuple(dropped))
    values = list(by_seed.values())
    mean, half, seeds = float(np.mean(values)), half_width(values, least), tuple(by_seed)
    if math.isfinite(half):
        return Estimate(mean, (mean - half, mean + half), seeds, tuple(dropped))
    why = f"no interval from {named(seeds)}" if len(seeds) < FEWEST else f"no spread over {named(seeds)}"
    return Estimate(mean, None, seeds, tuple(dropped), why)


def named(seeds: Sequence[int]) -> str:
    """The number of seeds and which they are, such as 2 seeds (0, 1)."""
    return f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''} ({', '.join(map(str, seeds))})"


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of the seeds that were measured at every size.

    Attributes:
      x_N: the sizes, ascending.
      y_SxN: the figure of each seed at each size.
      seeds: S seeds.
      dropped: seeds that lack a size, and sizes that no seed has.
    """

    x_N: np.ndarray
    y_SxN: np.ndarray
    seeds: tuple[int, ...]
    dropped: tuple[str, ...]

    def of_each(self, number: Callable[[np.ndarray], float]) -> dict[int, float]:
        """A number of each seed's curve."""
        return {seed: float(number(y_N)) for seed, y_N in zip(self.seeds, self.y_SxN, strict=True)}

    def estimate(self, number: Callable[[np.ndarray], float], least: float = 0.0) -> Estimate:
        """The mean over seeds of a number of their curves, with its interval."""
        return mean_of_seeds(self.of_each(number), least, self.dropped)


def curves_of(x: ArrayLike, y: ArrayLike, seeds: ArrayLike) -> Curves:
    """The curves in points (x, y) of seeds; a y that is not finite counts as not measured.

    Several y of a seed at one size are averaged. A size that no seed has is left out for all of them; a seed that lacks one of
    the others is left out. Both are named in `dropped`.
    """
    x_P, y_P, seed_P = np.asarray(x, float), np.asarray(y, float), np.asarray(seeds)
    known_P = np.isfinite(x_P) & np.isfinite(y_P)
    x_N = np.unique(x_P[known_P])
    dropped = [f"size {size:,.6g} (no seed has it)" for size in np.setdiff1d(x_P[np.isfinite(x_P)], x_N)]
    kept, rows = [], []
    for seed in np.unique(seed_P).tolist():
        mine_P = known_P & (seed_P == seed)
        lacking = [size for size in x_N if not (mine_P & (x_P == size)).any()]
        if lacking or not len(x_N):
            dropped.append(f"seed {seed:g} (not measured at {', '.join(f'{size:,.6g}' for size in lacking) or 'any size'})")
        else:
            kept.append(int(seed))
            rows.append([y_P[mine_P & (x_P == size)].mean() for size in x_N])
    return Curves(x_N, np.array(rows, float).reshape(len(kept), len(x_N)), tuple(kept), tuple(dropped))


def mean_over_seeds(x: ArrayLike, y: ArrayLike, seeds: ArrayLike, least: float = 0.0) -> Estimate:
    """The mean of a figure over sizes and seeds: each seed's mean over all sizes, and t over seeds.

    Args:
      x: sizes of the points, P.
      y: figures of the points, P.
      seeds: seed of each point, P.
      least: standard deviation that a seed's mean has in any case.
    """
    return curves_of(x, y, seeds).estimate(np.mean, least)


def paired_difference(a_by_seed: Mapping[int, float], b_by_seed: Mapping[int, float], least: float = 0.0) -> Estimate:
    """The mean of a - b over the seeds that both have, with its interval: t on the differences.

    Two mechanisms of one seed share data and questions, so that their difference spreads less than either.

    Args:
      a_by_seed, b_by_seed: the figure of each seed; one that is not finite counts as missing.
      least: standard deviation that a difference has in any case.
    """
    a, b = ({seed: one for seed, one in of.items() if math.isfinite(one)} for of in (a_by_seed, b_by_seed))
    common = [seed for seed in a_by_seed if seed in a and seed in b]
    alone = [seed for seed in dict.fromkeys((*a_by_seed, *b_by_seed)) if seed not in common]
    return mean_of_seeds({seed: a[seed] - b[seed] for seed in common}, least, [f"seed {seed} (not in both)" for seed in alone])


def share_deviation(right: ArrayLike, asked: ArrayLike) -> np.ndarray:
    """The standard deviation of shares of independent questions: of right / asked, with two right and two wrong added.

    Without them it would be zero where all are right, or none (Agresti and Coull 1998).
    """
    k, m = np.asarray(right, float), np.asarray(asked, float)
    share = (k + 2.0) / (m + 4.0)
    return np.sqrt(share * (1.0 - share) / m)


def share_over_seeds(right: Mapping[int, float], asked: Mapping[int, float]) -> Estimate:
    """The mean share of right answers over seeds, with its interval.

    The interval is the wider of t over the seeds' shares, whose spread is at least that of the questions, and Wilson's of all
    questions together: five seeds that are all right have an interval as wide as their questions make it.

    Args:
      right: number of right answers of each seed.
      asked: number of questions of each seed.
    """
    shares = {seed: right[seed] / asked[seed] for seed in right if asked[seed] > 0}
    k, m = (sum(of[seed] for seed in shares) for of in (right, asked))
    least = float(share_deviation(k, m)) * math.sqrt(max(len(shares), 1))
    found, together = mean_of_seeds(shares, least, [f"seed {s} (not asked)" for s in right if s not in shares]), wilson(k, m)
    if found.interval is None or together is None:
        return found
    ends = max(0.0, min(found.interval[0], together[0])), min(1.0, max(found.interval[1], together[1]))
    return dataclasses.replace(found, interval=ends)


def wilson(right: float, asked: float) -> Interval:
    """The 95 % interval of a share (Wilson 1927), for trials that need not be whole numbers; None where nothing was asked."""
    if asked <= 0:
        return None
    z, share = float(special.ndtri(1.0 - TAIL)), float(np.clip(right / asked, 0.0, 1.0))  # sums of shares miss 1 by a rounding
    middle = (share + z**2 / (2 * asked)) / (1 + z**2 / asked)
    half = z / (1 + z**2 / asked) * math.sqrt(share * (1 - share) / asked + z**2 / (4 * asked**2))
    return max(0.0, middle - half), min(1.0, middle + half)
