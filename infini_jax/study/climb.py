"""The list of a study's jobs as a pure function of the study and of the jobs that ended: `climb`.

Nothing of it is stored. Whoever asks, a worker, a report or another machine on the same folder, finds the same list from the
same results, so that workers need no coordination and a study that was killed goes on.

The list only grows while jobs end, in whatever order they do: a decision is taken on a complete group, all rates and seeds of
a point at a rung, whose results never change again. Under a ceiling decisions depend on each other, because FLOPs are spent
once; they are then taken together, each time that all jobs of the list have ended.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

from infini_jax.study.jobs import Job, at_budget, learning_rate_of, learns, named, planned_flops, task_of, trial_of
from infini_jax.study.ladder import Ladder, Rates, is_equal, is_same_size, order_of
from infini_jax.study.trials import best_of, rate_text, trials

Rate = float | None  # None where the study does not say it


@dataclasses.dataclass(frozen=True)
class Ended:
    """A job that ended, as far as decisions depend on it; the defaults are those of a run that diverged.

    Attributes:
      loss: loss of the validation split, by which rates are chosen.
      score: score on the validation split as a number of which more is better, see `Score.goodness`.
    """

    loss: float = math.nan
    score: float = -math.inf


class Point:
    """The jobs of a study that differ in nothing but seed and learning rate, on all rungs.

    Attributes:
      given: jobs as the study gives them.
      amounts: budgets of the rungs; one None for the budget that the jobs have.
      first: number of rungs that are run whatever is found.
      rates: the grid's rule, None where the study gives all rates.
      followers: seeds that run at the chosen rate alone, see `Rates.pilots`.
    """

    def __init__(self, given: Sequence[Job], ladder: Ladder | None, rates: Rates | None):
        self.given = tuple(given)
        seeds = sorted({job.seed for job in given})
        self.followers = frozenset(seeds[rates.pilots :] if rates and rates.pilots else ())
        self.amounts: tuple[float | None, ...] = (None,) if ladder is None else ladder.rungs[: ladder.most]
        self.first, self.rates = 1 if ladder is None else ladder.first, rates
        self.task = task_of(given[0])
        self.series = (given[0].mechanism, given[0].variant)
        self._jobs: dict[tuple[int, Rate], tuple[Job, ...]] = {}
        self._flops: dict[int, float | None] = {}

    @functools.cached_property
    def memory_bytes(self) -> int:
        """Bytes of memory per sequence."""
        return self.given[0].memory_bytes

    @functools.cached_property
    def start(self) -> tuple[Rate, ...]:
        """The rates with which the grid of a rung begins, in ascending order."""
        known = self.rates.start if self.rates else {learning_rate_of(job) for job in self.given}
        return tuple(sorted(known, key=lambda rate: rate or 0.0))

    def jobs(self, rung: int, rate: Rate) -> tuple[Job, ...]:
        """The jobs of all seeds on a rung, counted from 0, at a rate."""
        if (rung, rate) not in self._jobs:
            self._jobs[rung, rate] = tuple(self._made(rung, rate))
        return self._jobs[rung, rate]

    def _made(self, rung: int, rate: Rate) -> Iterator[Job]:
        amount = self.amounts[rung]
        for job in self.given:
            if self.rates is None and learning_rate_of(job) != rate:
                continue
            at = job if amount is None else named(at_budget(job, amount), f"b{rate_text(amount)}")
            yield trials(at, (rate,))[0] if self.rates and rate is not None else at

    def pilots(self, rung: int, rate: Rate) -> tuple[Job, ...]:
        """The jobs on a rung that are run at a rate to choose one."""
        return tuple(job for job in self.jobs(rung, rate) if job.seed not in self.followers)

    def following(self, rung: int, rate: Rate) -> tuple[Job, ...]:
        """The jobs on a rung that are run at the chosen rate alone."""
        return tuple(job for job in self.jobs(rung, rate) if job.seed in self.followers)

    def flops(self, rung: int, rates: Sequence[Rate], begins: bool = False) -> float:
        """Training FLOPs to try these rates on a rung, and where it `begins` those of the seeds that follow.

        What only a device can tell counts nothing.
        """
        if rung not in self._flops:
            self._flops[rung] = planned_flops(self.jobs(rung, self.start[0])[0])
        tried = sum(len(self.pilots(rung, rate)) for rate in rates)
        return (self._flops[rung] or 0.0) * (tried + (len(self.following(rung, rates[0])) if begins else 0))

    def is_compared_with(self, other: "Point") -> bool:
        """Whether both are of one task and of the same bytes, and of different mechanisms or variants."""
        is_other = self.task == other.task and self.series != other.series
        return is_other and is_same_size(self.memory_bytes, other.memory_bytes)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The parts of a study that decide its list of jobs.

    Attributes:
      runs: jobs as the study gives them.
      ladder: budgets that they climb, None for the one that each has.
      rates: learning rates that each tries, None for the one that each has.
    """

    runs: tuple[Job, ...]
    ladder: Ladder | None = None
    rates: Rates | None = None

    @functools.cached_property
    def points(self) -> tuple[Point, ...]:
        """The points, in the order of their first jobs."""
        found: dict[Hashable, list[Job]] = {}
        for job in self.runs:
            found.setdefault(self._identity(job), []).append(job)
        return tuple(Point(jobs, *((self.ladder, self.rates) if learns(jobs[0]) else (None, None))) for jobs in found.values())

    def _identity(self, job: Job) -> Hashable:
        return trial_of(at_budget(job, self.ladder.rungs[0]) if self.ladder and learns(job) else job)

    @functools.cached_property
    def rivals(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the points that each point is compared with."""
        by_task: dict[Hashable, list[int]] = {}
        for number, point in enumerate(self.points):
            by_task.setdefault(point.task, []).append(number)
        points = self.points
        return tuple(
            tuple(other for other in by_task[point.task] if point.is_compared_with(points[other])) for point in points
        )

    @property
    def least_flops(self) -> float:
        """Training FLOPs of the jobs that are run whatever is found."""
        return sum(point.flops(rung, point.start, begins=True) for point in self.points for rung in range(point.first))

    @property
    def most_flops(self) -> float:
        """Training FLOPs of all jobs that may be run: every rung, all grids grown at both sides, up to the ceiling."""
        added = 2 * self.rates.growths if self.rates else 0
        most = 0.0
        for point in self.points:
            grid = [*point.start, *point.start[:1] * (added if point.rates else 0)]
            most += sum(point.flops(rung, grid, begins=True) for rung in range(len(point.amounts)))
        ceiling = self.ladder.ceiling if self.ladder else 0.0
        return max(self.least_flops, min(most, ceiling)) if ceiling else most


@dataclasses.dataclass(frozen=True)
class Rung:
    """A point on one rung.

    Attributes:
      grid: learning rates, in ascending order.
      is_over: whether all of its jobs have ended and the grid grows no more.
      chosen: rate that validation chose among the jobs that try them, None before all of these have ended.
      grows: whether the grid gets another rate.
      score: median score over seeds at the chosen rate, more is better.
    """

    grid: tuple[Rate, ...]
    is_over: bool = False
    chosen: Rate = None
    grows: bool = False
    score: float = -math.inf

    @property
    def rate_inside(self) -> bool | None:
        """Whether the chosen rate lies inside the grid; None before the rung is over, and where there is no grid."""
        return self.grid[0] != self.chosen != self.grid[-1] if self.is_over and len(self.grid) > 1 else None


@dataclasses.dataclass(frozen=True)
class Climb:
    """The list of a study's jobs, and where its points stand.

    Attributes:
      plan: what the list is made of.
      rungs: rungs of each point of the plan, from the lowest.
      is_capped: whether the ceiling held anything back.
    """

    plan: Plan
    rungs: tuple[tuple[Rung, ...], ...]
    is_capped: bool = False

    @functools.cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All jobs that are to be done, rung by rung; those that share programs stand together."""
        placed = list(zip(self.plan.points, self.rungs, strict=True))
        return tuple(
            job
            for number in range(max(map(len, self.rungs)))
            for point, rungs in placed
            if number < len(rungs)
            for job in listed(point, number, rungs[number])
        )

    def marks(self) -> dict[str, tuple[int | None, bool | None]]:
        """(number of the rung, from 1, `Rung.rate_inside`) by name, of the jobs of rungs that are over; without a ladder no
        number."""
        return {
            job.name: (None if point.amounts[number] is None else number + 1, rung.rate_inside)
            for point, rungs in zip(self.plan.points, self.rungs, strict=True)
            for number, rung in enumerate(rungs)
            if rung.is_over
            for job in listed(point, number, rung)
        }

    def described(self) -> str:
        """A line that says how many points are over on each rung, and how many rates were added."""
        numbers = range(max(map(len, self.rungs)))
        on = [[rungs[number] for rungs in self.rungs if number < len(rungs)] for number in numbers]
        said = [f"rung {n + 1}: {sum(one.is_over for one in of)} of {len(of)} points over" for n, of in enumerate(on)]
        added = [
            len(rung.grid) - len(point.start)
            for point, rungs in zip(self.plan.points, self.rungs, strict=True)
            for rung in rungs
        ]
        grown = f"{sum(added)} rates added to {sum(map(bool, added))} grids"
        capped = "held back by the ceiling of FLOPs" if self.is_capped else ""
        return ", ".join(filter(None, (*(said if self.plan.ladder else ()), grown if self.plan.rates else "", capped)))


def listed(point: Point, number: int, rung: Rung) -> Iterator[Job]:
    """The jobs of a point on a rung: all rates are tried, and the seeds that follow join when the grid is complete."""
    for rate in rung.grid:
        yield from point.pilots(number, rate)
    if rung.chosen is not None and not rung.grows:
        yield from point.following(number, rung.chosen)


def climb(plan: Plan, ended: Mapping[str, Ended]) -> Climb:
    """The jobs that are to be done by what is known of those that ended, by name."""
    under_way = Climbing(plan, ended)
    ceiling = plan.ladder.ceiling if plan.ladder else 0.0
    while (wanted := under_way.wanted()) and not (ceiling and under_way.waits()):
        for step in wanted:
            flops = under_way.flops(step)
            if ceiling and plan.least_flops + under_way.added_flops + flops > ceiling:
                under_way.refused.add((step.point, step.rung))
            else:
                under_way.take(step)
    rungs = tuple(
        tuple(under_way.rung(number, place) for place in range(len(grids))) for number, grids in enumerate(under_way.grids)
    )
    return Climb(plan, rungs, bool(under_way.refused))


class Step(NamedTuple):
    """Rates that a point adds to a rung, or with which it begins one.

    Attributes:
      rung: number of the rung, from 0; lower ones are taken first.
      point: number of the point.
      rates: the rates.
    """

    rung: int
    point: int
    rates: tuple[Rate, ...]


class Climbing:
    """The grids of all rungs of all points while `climb` finds them."""

    def __init__(self, plan: Plan, ended: Mapping[str, Ended]):
        self.plan, self.ended = plan, ended
        self.grids = [[point.start] * point.first for point in plan.points]
        self.added_flops = 0.0
        self.refused: set[tuple[int, int]] = set()  # (point, rung) for which the ceiling left nothing

    def take(self, step: Step) -> None:
        """Adds the rates of a step."""
        self.added_flops += self.flops(step)
        grids = self.grids[step.point]
        if step.rung == len(grids):
            grids.append(step.rates)
        else:
            grids[step.rung] = tuple(sorted({*grids[step.rung], *step.rates}, key=lambda rate: rate or 0.0))

    def flops(self, step: Step) -> float:
        """Training FLOPs of the jobs that a step adds."""
        begins = step.rung == len(self.grids[step.point])
        return self.plan.points[step.point].flops(step.rung, step.rates, begins)

    def waits(self) -> bool:
        """Whether a job of the list has not ended."""
        return any(
            job.name not in self.ended
            for point, grids in enumerate(self.grids)
            for number in range(len(grids))
            for job in listed(self.plan.points[point], number, self.rung(point, number))
        )

    def rung(self, point: int, number: int) -> Rung:
        """A point on a rung, as what ended says."""
        grid, at = self.grids[point][number], self.plan.points[point]
        tried = [(rate, self.ended.get(job.name)) for rate in grid for job in at.pilots(number, rate)]
        if any(found is None for _, found in tried):
            return Rung(grid)
        chosen = best_of([(rate, found.loss) for rate, found in tried if found])
        grows = (point, number) not in self.refused and bool(self.added(point, grid, chosen))
        found = [self.ended.get(job.name) for job in at.jobs(number, chosen)]
        if grows or any(one is None for one in found):
            return Rung(grid, False, chosen, grows)
        scores = [one.score for one in found if one and math.isfinite(one.score)]
        return Rung(grid, True, chosen, score=statistics.median(scores or [-math.inf]))

    def added(self, point: int, grid: tuple[Rate, ...], chosen: Rate) -> tuple[float, ...]:
        """The rates that a grid gets where validation chose one of it."""
        rates = self.plan.points[point].rates
        return rates.grown([rate for rate in grid if rate is not None], chosen) if rates and chosen is not None else ()

    def wanted(self) -> list[Step]:
        """The steps that complete groups ask for and that were not refused, lower rungs first."""
        seen = [[self.rung(point, number) for number in range(len(grids))] for point, grids in enumerate(self.grids)]
        found = []
        for point, rungs in enumerate(seen):
            for number, rung in enumerate(rungs):
                if rung.grows:
                    found.append(Step(number, point, self.added(point, rung.grid, rung.chosen)))
            if len(rungs) < len(self.plan.points[point].amounts) and self.climbs(point, seen):
                found.append(Step(len(rungs), point, self.plan.points[point].start))
        return sorted(one for one in found if (one.point, one.rung) not in self.refused)

    def climbs(self, point: int, seen: list[list[Rung]]) -> bool:
        """Whether a point's last rung leaves something undecided: its score changed, or its order against another's.

        Where another climbed higher and is now on the other side of this one's last score, this one follows.
        """
        ladder, rungs = self.plan.ladder, seen[point]
        if ladder is None or not all(rung.is_over for rung in rungs[-2:]):
            return False
        tolerance, last = ladder.tolerance, len(rungs) - 1
        before, now = (rung.score for rung in rungs[-2:])
        if not is_equal(before, now, tolerance):
            return True
        for other in (seen[number] for number in self.plan.rivals[point]):
            scores = {number: rung.score for number, rung in enumerate(other) if rung.is_over}
            own = {**dict.fromkeys(scores, now), last - 1: before}
            signs = {number: order_of(score, own[number], tolerance) for number, score in scores.items() if number >= last - 1}
            if last in signs and len(set(signs.values())) > 1:
                return True
        return False
