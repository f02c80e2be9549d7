"""Trials of learning rates, among which validation chooses for each point; every trial is a run like any other and is counted.

Memories that are recurrent over the document work at few learning rates, so that one rate for all would compare rates, not
memories.
"""

import dataclasses
import math
import statistics
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

from infini_jax.errors import require, require_positive
from infini_jax.records.rows import Row
from infini_jax.study.jobs import Job

SomeJob = TypeVar("SomeJob", bound=Job)


def trials(job: SomeJob, rates: Sequence[float]) -> tuple[SomeJob, ...]:
    """The job at each learning rate, named after it, such as `infini-32k-lr3e-3`.

    Raises `ConfigError` where there is no rate, or two rates have the same name.
    """
    require(bool(rates), "rates", "there is none", "give at least 3")
    require_positive("rates", **{rate_text(rate): rate for rate in rates})
    names = [rate_text(rate) for rate in rates]
    require(
        len(set(names)) == len(names), "rates", f"two are called {max(names, key=names.count)}", "give three digits at most"
    )
    found: list[Any] = [job.with_learning_rate(rate) for rate in rates]
    return tuple(dataclasses.replace(one, name=f"{job.name}-lr{name}") for one, name in zip(found, names, strict=True))


def seeded(job: SomeJob, seeds: int) -> tuple[SomeJob, ...]:
    """The job with each seed, named after it, such as `infini-32k-s0`."""
    base: Any = job  # a frozen dataclass, which a protocol cannot say
    return tuple(dataclasses.replace(base, name=f"{job.name}-s{seed}", seed=seed) for seed in range(seeds))


def rate_text(rate: float) -> str:
    """A learning rate as text: three digits with an exponent and no more characters than needed, such as 3e-3 or 1.25e-2."""
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def point_of(row: Row) -> Hashable:
    """The identity of a row's point: all that its trials have in common, without learning rate and seed."""
    budget = (row.budget_unit, row.budget_amount, row.gives)
    return (row.study, row.task, row.corpus, row.mechanism, row.variant, row.memory_bytes, budget)


def by_point(rows: Sequence[Row]) -> dict[Hashable, list[Row]]:
    """The rows by point, in their order."""
    points: dict[Hashable, list[Row]] = {}
    for row in rows:
        points.setdefault(point_of(row), []).append(row)
    return points


def chosen(rows: Sequence[Row]) -> list[Row]:
    """The rows of each point's best learning rate, of all seeds, in their order.

    Best is the lowest median validation loss over the seeds that tried several; of two equal ones the lower rate. The test
    split has no part.
    """
    kept = {point: best_rate(found) for point, found in by_point(rows).items()}
    return [row for row in rows if row.learning_rate == kept[point_of(row)]]


def best_rate(rows: Sequence[Row]) -> float | None:
    """The learning rate with the lowest median validation loss over the seeds of one point, None for rows without a rate.

    Seeds that ran at one rate alone have no say where others ran at several. A run whose evaluation failed has no loss and no
    say; a rate without any loss is the last to be taken.
    """
    rates: dict[int, set[float | None]] = {}
    for row in rows:
        rates.setdefault(row.seed, set()).add(row.learning_rate)
    most = max((len(tried) for tried in rates.values()), default=0)
    return best_of([(row.learning_rate, row.loss) for row in rows if len(rates[row.seed]) > 1 or most == 1])


def best_of(trials: Sequence[tuple[float | None, float]]) -> float | None:
    """The learning rate of the lowest median loss among (rate, validation loss) pairs, see `best_rate`."""
    losses: dict[float | None, list[float]] = {}
    for rate, loss in trials:
        losses.setdefault(rate, []).extend([loss] if math.isfinite(loss) else [])
    return min(losses, key=lambda rate: (statistics.median(losses[rate] or [math.inf]), rate or 0.0))


@dataclasses.dataclass(frozen=True)
class Tried:
    """The cost of choosing learning rates.

    Attributes:
      points: number of points.
      trials: runs of all rates and seeds.
      flops: training FLOPs of all trials.
      chosen_flops: training FLOPs of the runs that were chosen.
    """

    points: int
    trials: int
    flops: float
    chosen_flops: float


def tried(rows: Sequence[Row]) -> Tried:
    """Counts all trials, including those that were not chosen."""
    flops, best = sum(row.flops_actual for row in rows), sum(row.flops_actual for row in chosen(rows))
    return Tried(len(by_point(rows)), len(rows), flops, best)
