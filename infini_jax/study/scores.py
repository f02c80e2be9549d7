"""Scores of tasks: by which figure runs are compared, in which unit, and whether more is better.

A task answers by its settings, see `DataConfig`, a kind of job by its row in `JOB_KINDS`. No task is named here.
"""

import dataclasses
import math
import statistics
from typing import Literal

from infini_jax.data import SOURCES
from infini_jax.data.base import DataConfig, Scored
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row
from infini_jax.study.jobs import JOB_KINDS


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of a task.

    Attributes:
      column: column in the table of runs.
      name: name of the score, with its split.
      unit: unit of the score, "" for a share.
      higher_is_better: whether a higher score is better.
      split: data that are scored.
    """

    column: Literal["accuracy", "loss", "test_accuracy", "test_loss"]
    name: str
    unit: str
    higher_is_better: bool
    split: str = "validation"

    def of(self, row: Row) -> float:
        """The score of a run, in `unit`."""
        return getattr(row, self.column)

    def asked(self, row: Row) -> int:
        """Number of answers behind a run's score, 0 where it is not known."""
        return 0

    def goodness(self, value: float) -> float:
        """The score as a number of which more is better; what is not finite is worse than all others."""
        return (value if self.higher_is_better else -value) if math.isfinite(value) else -math.inf

    def number(self, value: float) -> str:
        """The value as in a table whose head names the unit: percent for a share."""
        return f"{value:.4f}" if self.unit else f"{100 * value:.1f}"

    def text(self, value: float) -> str:
        """The value with its unit."""
        return f"{self.number(value)} {self.unit or '%'}"

    @property
    def axis(self) -> str:
        """The name of an axis: the score's name and unit."""
        return f"{self.name}, {self.unit or '%'}"


@dataclasses.dataclass(frozen=True)
class Evaluated(Score):
    """The score of runs by figures of an evaluation, whose examples nothing was chosen by.

    Attributes:
      measures: figures by run name; their mean is the score.
    """

    measures: dict[str, list[Measure]] = dataclasses.field(default_factory=dict)

    def of(self, row: Row) -> float:
        """The mean of a run's figures, NaN where there are none."""
        of = self.measures.get(row.run)
        return statistics.fmean(one.value for one in of) if of else math.nan

    def asked(self, row: Row) -> int:
        """Number of answers behind a run's score."""
        return sum(one.count for one in self.measures.get(row.run, ()))


class HalfPoints(Evaluated):
    """The score of runs by n50, for tasks whose grid of n grows with the memory, so that an accuracy over it says nothing."""

    def number(self, value: float) -> str:
        """n50 as text."""
        return f"{value:.4g}"


FRESH = "evaluation"  # examples or pairs that neither training nor the choice of a learning rate has seen
RECALLED = Score("accuracy", "validation accuracy", "", True)


def scored_by(task: str) -> Scored:
    """The kind of score of a task, as its data or its kind of job says; a task of no registry is taken for a corpus."""
    known = {**SOURCES, **JOB_KINDS}
    return known[task].scored_by if task in known else DataConfig.scored_by


def score_of(task: str, half_points: dict[str, list[Measure]] | None = None) -> Score:
    """The score of a task's rows that every run has: loss or accuracy on the validation split, by which rates are chosen.

    It is n50 where `half_points` has its figures by run name.
    """
    kind = scored_by(task)
    if kind == "n50" and half_points is not None:
        return HalfPoints("accuracy", "half-recall n50", "pairs", True, FRESH, half_points)
    return loss_of(task) if kind == "loss" else RECALLED


def loss_of(task: str) -> Score:
    """The loss on the validation split as a score, in the task's unit."""
    return Score("loss", "validation loss", SOURCES.get(task, DataConfig).loss_unit, False)
