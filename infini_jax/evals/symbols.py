"""Tasks of symbols by length and along an axis of difficulty: the share of asked places whose token is the likeliest."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

from infini_jax.config import RunConfig
from infini_jax.data.symbols import SymbolTask
from infini_jax.errors import quoted, require
from infini_jax.evals.reading import Reading
from infini_jax.evals.scores import share_measure
from infini_jax.evals.tasks import Cell, ExampleEvaluation, lengths_or
from infini_jax.records.measures import Label, Measure


@dataclasses.dataclass(frozen=True)
class SymbolEvaluation(ExampleEvaluation):
    """Accuracy of a run on a task of symbols, such as MAD's, at other lengths and along an axis.

    Attributes:
      lengths: numbers of tokens per example; none is the length that the run was trained at.
      axis: setting of the task along which examples become harder; "" for the run's own settings.
      values: values of that setting.
      examples: number of examples per cell of the grid.
      seed: seed of the examples.
      rows: number of examples that are read side by side.
    """

    name: ClassVar[str] = "symbols"
    Config: ClassVar[type[SymbolTask]] = SymbolTask
    grid = ("length",)
    lengths: tuple[int, ...] = ()
    axis: str = ""
    values: tuple[float, ...] = ()
    examples: int = 64
    seed: int = 0
    rows: int = 8

    def check(self, run: RunConfig) -> None:
        self._check_axis(run)
        super().check(run)

    def _check_axis(self, run: RunConfig) -> None:
        if not (self.axis or self.values) or not self.applies(run):
            return
        known = self.own(run.data).axes
        mend = f"choose {' or '.join(known)}" if known else "leave axis and values out"
        require(self.axis in known, "axis", f"{run.task} does not become harder along {quoted(self.axis)}", mend)
        require(bool(self.values), "values", f"none is given of {self.axis}", "give some, such as 1,2,4")
        whole = isinstance(getattr(run.data, self.axis), int)
        for value in self.values if whole else ():
            require(value == int(value), "values", f"{value} is no number of {self.axis}", "give whole numbers")

    def cells(self, run: RunConfig) -> list[Cell]:
        """One cell per length and value of the axis."""
        own, found = self.own(run.data), []
        values = [{self.axis: type(getattr(own, self.axis))(value)} for value in self.values] if self.axis else [{}]
        for length, harder in itertools.product(lengths_or(self.lengths, run), values):
            config = dataclasses.replace(own, **harder)
            labels: dict[str, Label] = {**dict(config.labels(length)), "length": length}
            found.append(Cell(config, length, labels))
        return found

    def figures(self, run: RunConfig, cell: Cell, readings: Sequence[Reading]) -> list[Measure]:
        """The accuracy of a cell: the share of asked places whose token is the likeliest."""
        return [share_measure(self.name, "accuracy", [reading.hits_N for reading in readings], cell.labels)]
