"""Ladders of budgets and grids of learning rates that grow: what a study declares of them; climb.py decides by them.

One budget cannot tell a mechanism that is worse from one that learns later, and a rate at the edge of its grid cannot tell a
mechanism from its rates. A ladder runs a full schedule at each of several budgets and climbs where the last step up still
changed something; a grid grows at an edge until validation's choice lies inside.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from infini_jax.errors import LARGEST, check_fields, require, require_not_negative, require_positive
from infini_jax.study.trials import rate_text

SETTLED = 0  # the value of `Ladder.until` for points that climb as long as something changes
LEAST_RUNGS, LEAST_FACTOR = 2, 2.0  # rungs that every point runs; between two rungs
SAME_BYTES = 1.25  # ratio of two memories' bytes up to which their mechanisms are compared: sizes are whole slots and heads


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Budgets that the points of a study climb, one full schedule a rung.

    Every point runs the first two rungs. It climbs one more while its score, or its order among mechanisms of the same bytes,
    changed between its last two.

    Attributes:
      rungs: amounts of the runs' budgets, in their unit, each at least twice the one below.
      tolerance: difference up to which two scores count as equal, in the task's score: a share, nats or pairs.
      ceiling: training FLOPs of all jobs of the study above which nothing climbs and no grid grows; 0 for none.
      until: number of the rung, from 1, up to which every point runs, settled or not; 0 for until it is settled.

    Raises:
      ConfigError: fewer than two rungs, rungs too close to each other, or a number out of range.
    """

    rungs: tuple[float, ...]
    tolerance: float
    ceiling: float = 0.0
    until: int = SETTLED

    def __post_init__(self):
        check_fields("ladder", self)
        require_positive("ladder", **{f"rungs[{number}]": amount for number, amount in enumerate(self.rungs)})
        require_not_negative("ladder", tolerance=self.tolerance, ceiling=self.ceiling, until=self.until)
        few = f"{len(self.rungs)} show no change"
        require(len(self.rungs) >= LEAST_RUNGS, "ladder.rungs", few, f"give at least {LEAST_RUNGS} budgets")
        for below, above in zip(self.rungs, self.rungs[1:], strict=False):
            close = f"{above:g} is less than {LEAST_FACTOR:g} times {below:g}"
            require(above >= LEAST_FACTOR * below, "ladder.rungs", close, "let each be at least twice the one below")
        above = f"there are {len(self.rungs)} rungs"
        require(self.until <= len(self.rungs), "ladder.until", above, f"give 1 to {len(self.rungs)}, or settled")

    @property
    def first(self) -> int:
        """The number of rungs that every point runs whatever is found."""
        return self.until or LEAST_RUNGS

    @property
    def most(self) -> int:
        """The number of rungs that a point runs at most."""
        return self.until or len(self.rungs)


def until_of(text: str) -> int:
    """The value of `Ladder.until` for a text. Raises `ConfigError` for what is neither settled nor a number above zero."""
    is_number = text.isascii() and text.isdecimal() and 1 <= int(text[:12]) <= LARGEST
    require(text == "settled" or is_number, "until", f"'{text:.20}' is not a rung", "give settled, or a number such as 3")
    return SETTLED if text == "settled" else int(text)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Learning rates that each point tries, on each of its rungs; their grid grows at an edge that validation chose.

    Attributes:
      start: rates with which a grid begins.
      factor: ratio of a rate that is added and the edge beside it.
      growths: rates that are added at each side of a grid at most.
      pilots: number of seeds that try every rate, those of the lowest numbers; the others run at the rate that these chose
        alone. 0 has all seeds try all rates.

    Raises:
      ConfigError: no rate, rates whose names are the same, or a number out of range.
    """

    start: tuple[float, ...]
    factor: float = 3.0
    growths: int = 3
    pilots: int = 2

    def __post_init__(self):
        check_fields("rates", self)
        require(bool(self.start), "rates.start", "there is none", "give at least 3")
        require_positive("rates", **{f"start[{number}]": rate for number, rate in enumerate(self.start)})
        require_not_negative("rates", growths=self.growths, pilots=self.pilots)
        require(self.factor >= 1.1, "rates.factor", f"{self.factor:g} adds no other rate", "give 1.1 or more, such as 3")
        names = [rate_text(rate) for rate in self.start]
        twice = max(names, key=names.count)
        require(len(set(names)) == len(names), "rates.start", f"two are called {twice}", "give three digits at most")

    def grown(self, grid: Sequence[float], chosen: float) -> tuple[float, ...]:
        """The rates that are added to a grid of which validation chose one: none, one at the edge, or one at each edge of a
        grid of one rate."""
        low, high = min(grid), max(grid)
        added = (sum(rate < min(self.start) for rate in grid), sum(rate > max(self.start) for rate in grid))
        down, up = chosen == low and added[0] < self.growths, chosen == high and added[1] < self.growths
        return ((rounded(low / self.factor),) if down else ()) + ((rounded(high * self.factor),) if up else ())


def rounded(rate: float) -> float:
    """The rate as its name in a job's name says it: three digits."""
    return float(rate_text(rate))


def order_of(one: float, other: float, tolerance: float) -> int:
    """The order of two scores of which more is better: 1 where `one` is ahead, -1 behind, 0 where they count as equal."""
    return 0 if is_equal(one, other, tolerance) else 1 if one > other else -1


def is_equal(one: float, other: float, tolerance: float) -> bool:
    """Whether two scores count as equal; two without a score, which are infinite, do."""
    return one == other or abs(one - other) <= tolerance


def is_same_size(one: int, other: int) -> bool:
    """Whether two memories, in bytes, are so alike that their mechanisms are compared."""
    return max(one, other) <= SAME_BYTES * min(one, other)


def carried(scores: Mapping[int, float], rung: int) -> float:
    """The score on a rung, or on the last one below: a point that is settled climbs no further."""
    return scores[max(number for number in scores if number <= rung)]
