"""Sorting symbols by how often they occurred (∞-former), with the right beginning given and by itself, beside the ceilings.

teacher_forced: the likeliest symbol is the right one, all before it given. free_running: the model goes on from its own
symbols and is compared place by place. kendall_tau: between the order said and the right one; symbols that were never said
share the last rank, and what is said twice counts once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from infini_jax.config import RunConfig
from infini_jax.data.batch import Rows, generator
from infini_jax.data.examples import Example
from infini_jax.data.sorting import SortingConfig, ceiling_mean, ceiling_window
from infini_jax.errors import require
from infini_jax.evals.reading import Reading
from infini_jax.evals.scores import mean_measure, share_measure
from infini_jax.evals.tasks import Cell, ExampleEvaluation, lengths_or, room
from infini_jax.records.measures import Measure

SEQUENCES = 400  # behind a ceiling


@dataclasses.dataclass(frozen=True)
class SortingEvaluation(ExampleEvaluation):
    """Sorting of symbols by how often they occurred, by length, beside the ceilings of what can be known without memory.

    Attributes:
      lengths: numbers of tokens per example; none is the length that the run was trained at.
      windows: numbers of last symbols that a ceiling counts; those that hold a whole example are left out.
      examples: number of examples per length.
      seed: seed of the examples, and of the sequences of the ceilings.
      rows: number of examples that are read side by side.
    """

    name: ClassVar[str] = "sorting"
    Config: ClassVar[type] = SortingConfig
    lengths: tuple[int, ...] = ()
    windows: tuple[int, ...] = (512, 1024, 2048)
    examples: int = 50
    seed: int = 0
    rows: int = 8

    def cells(self, run: RunConfig) -> list[Cell]:
        """One cell per length."""
        return [Cell(self.own(run.data), length, {"length": length}) for length in lengths_or(self.lengths, run)]

    def check(self, run: RunConfig) -> None:
        """Checks a run: raises `ConfigError` where it was not trained on sorting, or a window has no symbol."""
        super().check(run)
        for window in self.windows:
            require(window >= 1, "sorting.windows", f"{window} symbols tell nothing", "give at least 1")

    def new_tokens(self, example: Example) -> int:
        """Tokens of a whole answer."""
        return room(example)

    def figures(self, run: RunConfig, cell: Cell, readings: Sequence[Reading]) -> list[Measure]:
        """teacher_forced, free_running and kendall_tau of a cell, and its ceilings."""
        free = [one.spoken_M == one.answer_N for one in readings]
        taus = [order_agreement(one.spoken_M, one.answer_N) for one in readings]
        return [
            share_measure(self.name, "teacher_forced", [one.hits_N for one in readings], cell.labels),
            share_measure(self.name, "free_running", free, cell.labels),
            mean_measure(self.name, "kendall_tau", taus, cell.labels),
            *self.ceilings(cell),
        ]

    def ceilings(self, cell: Cell) -> list[Measure]:
        """Scores of a cell without a model: the order of the true means, counting in a window, and a guess."""
        config, tokens = cell.config, cell.tokens

        def stream() -> np.random.Generator:
            return generator(Rows(1, tokens, self.seed, "test"), tokens, self.examples)  # behind those of the examples

        mean = ceiling_mean(config, stream(), tokens, SEQUENCES)
        found = [Measure(self.name, "ceiling_mean", mean, SEQUENCES, labels=cell.labels)]
        for window in self.windows:
            if window < config.count(tokens):
                value = ceiling_window(config, stream(), tokens, window, SEQUENCES)
                found.append(Measure(self.name, "ceiling_window", value, SEQUENCES, labels={**cell.labels, "window": window}))
        chance = config.chance()["free_running"]
        return [*found, Measure(self.name, "chance", chance, 0, labels=cell.labels)]


def order_agreement(said: np.ndarray, answer: np.ndarray) -> float:
    """Kendall's tau-b between the ranks of the answer's symbols in both orders; 0 where none of them was said."""
    from scipy import stats  # takes a second to load

    ranks = [int(np.flatnonzero(said == symbol)[0]) if symbol in said else len(said) for symbol in answer]
    if len(set(ranks)) < 2:
        return 0.0
    found: Any = stats.kendalltau(np.arange(len(answer)), ranks)
    return float(found.statistic)
