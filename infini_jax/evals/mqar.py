"""Multi-query associative recall: the share of asked keys whose value is the likeliest token, by number of pairs."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

from infini_jax.config import RunConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.evals.reading import Reading
from infini_jax.evals.scores import share_measure
from infini_jax.evals.tasks import Cell, ExampleEvaluation, lengths_or
from infini_jax.records.measures import Label, Measure


@dataclasses.dataclass(frozen=True)
class MqarEvaluation(ExampleEvaluation):
    """Accuracy at the questions of multi-query associative recall.

    Attributes:
      lengths: numbers of tokens per example; none is the length that the run was trained at.
      pairs: numbers of pairs to remember; none is the number that the run was trained with.
      overwrites: numbers of keys that get another value before they are asked; none is the run's own number.
      examples: number of examples per length, pairs and overwrites.
      seed: seed of the examples.
      rows: number of examples that are read side by side.
    """

    name: ClassVar[str] = "mqar"
    Config: ClassVar[type] = MqarConfig
    grid = ("pairs", "length", "overwrites")
    lengths: tuple[int, ...] = ()
    pairs: tuple[int, ...] = ()
    overwrites: tuple[int, ...] = ()
    examples: int = 64
    seed: int = 0
    rows: int = 8

    def cells(self, run: RunConfig) -> list[Cell]:
        """One cell per length, number of pairs and number of overwritten keys."""
        own, found = self.own(run.data), []
        grid = (lengths_or(self.lengths, run), self.pairs or (own.pairs,), self.overwrites or (own.overwrites,))
        for length, pairs, overwrites in itertools.product(*grid):
            labels: dict[str, Label] = {"pairs": pairs, "length": length, "overwrites": overwrites}
            found.append(Cell(own.with_labels(labels), length, labels))
        return found

    def figures(self, run: RunConfig, cell: Cell, readings: Sequence[Reading]) -> list[Measure]:
        """The accuracy of a cell: the share of questions whose value is the likeliest token."""
        return [share_measure(self.name, "accuracy", [reading.hits_N for reading in readings], cell.labels)]
