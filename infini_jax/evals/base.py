"""The interface of an evaluation: what is measured of a trained run, from examples that do not know the model.

Most evaluations read texts first and make figures of what was read (`ReadingEvaluation`): several runs are then read side by
side in the same calls (`infini_jax.devices.side_by_side`), and the figures of each are made by themselves.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from infini_jax.config import RunConfig
from infini_jax.devices.chosen_form import RowsAtOnce
from infini_jax.devices.side_by_side import Learned, OneModel, SideBySide, read_each, tried
from infini_jax.errors import check_fields
from infini_jax.records.measures import Measure


def unwatched(done: int, total: int) -> None:
    """The `Watch` of a call whose progress nobody follows: it does nothing."""


Watch = Callable[[int, int], None]  # gets how much is done, of how much


@dataclasses.dataclass(frozen=True)
class Subject:
    """The trained run that an evaluation measures.

    Attributes:
      run: settings of the run.
      params: its trained parameters.
    """

    run: RunConfig
    params: dict


@dataclasses.dataclass(frozen=True)
class Subjects:
    """Trained runs that an evaluation measures together; they differ in name, version, variant, seed and rates alone.

    Attributes:
      runs: settings of the runs.
      learned: their trained parameters, of as many members in the same order.
    """

    runs: tuple[RunConfig, ...]
    learned: SideBySide

    def alone(self, number: int) -> Subject:
        """One of the runs."""
        return Subject(self.runs[number], self.learned.alone(self.learned.members[number]).params)


class Evaluation(abc.ABC):
    """Interface of an evaluation: a frozen dataclass of its settings, with a row in `infini_jax.evals.registry.EVALUATIONS`.

    Attributes:
      name: name in the registry and in the figures' column `eval`.
    """

    name: ClassVar[str]

    def __post_init__(self):
        check_fields(self.name, self)

    @abc.abstractmethod
    def applies(self, run: RunConfig) -> bool:
        """Whether the evaluation means something for a run, given its task, vocabulary and text."""

    @abc.abstractmethod
    def check(self, run: RunConfig) -> None:
        """Checks the settings against a run: raises `ConfigError` where the two cannot work together.

        Runs that differ in nothing but name, version, variant and seed are alike here and in `cost`; one of them is asked.
        """

    @abc.abstractmethod
    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of the whole evaluation of a run, counted from the settings alone."""

    @abc.abstractmethod
    def measure(self, subject: Subject, watch: Watch = unwatched) -> list[Measure]:
        """The figures of a run, determined by settings and parameters; `watch` gets how much is done, of how much."""

    def measure_each(self, subjects: Subjects, watch: Watch = unwatched) -> list[list[Measure] | Exception]:
        """The figures of each run, or the exception with which its evaluation ended; by default one run after the other."""
        numbers = range(len(subjects.runs))
        return [tried(functools.partial(self._measure_one, subjects, number, watch)) for number in numbers]

    def _measure_one(self, subjects: Subjects, number: int, watch: Watch) -> list[Measure]:
        return self.measure(subjects.alone(number), watch)

    def at_once(self, run: RunConfig) -> RowsAtOnce:
        """The rows that are read at once with a run, by which memory is counted for runs side by side; none by default."""
        return RowsAtOnce()


class ReadingEvaluation(Evaluation):
    """An evaluation that reads texts, and makes figures of what was read."""

    @abc.abstractmethod
    def read(self, run: RunConfig, learned: Learned, watch: Watch = unwatched) -> Sequence[Any]:
        """What is read with each model; `run` is one of the runs that the models are of. Raises `ConfigError` as `check`."""

    @abc.abstractmethod
    def figures_of(self, run: RunConfig, found: Any) -> list[Measure]:
        """The figures of a run from what was read with its model."""

    def measure(self, subject: Subject, watch: Watch = unwatched) -> list[Measure]:
        """The figures of a run, as `figures_of` makes them of what is read with it alone."""
        (found,) = self.read(subject.run, OneModel(subject.params), watch)
        return self.figures_of(subject.run, found)

    def measure_each(self, subjects: Subjects, watch: Watch = unwatched) -> list[list[Measure] | Exception]:
        """The figures of each run, which are read side by side, or the exception with which its evaluation ended."""
        first, *_ = subjects.runs
        found = read_each(subjects.learned, lambda learned: self.read(first, learned, watch))
        return [
            one if isinstance(one, Exception) else tried(functools.partial(self.figures_of, run, one))
            for run, one in zip(subjects.runs, found, strict=True)
        ]


def spread_evenly(count: int, wanted: int) -> list[int]:
    """Numbers of at most `wanted` of `count` items, spread evenly; all of them for 0."""
    kept = min(wanted or count, count)
    return [number * count // kept for number in range(kept)]
