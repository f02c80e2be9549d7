"""Passkey retrieval over a grid of length, depth and novelty, scored as the two papers score it.

Token accuracy (Munkhdalai et al. 2024): the share of the number's tokens that are the likeliest with all before them read.
Exact match (Mohtashami & Jaggi 2023, section 4.2, for their format): the model says ten tokens by itself, and the first number
in them is the one that was hidden.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar, Literal

from infini_jax.config import RunConfig
from infini_jax.data.base import tokenizer_of
from infini_jax.data.examples import Example
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.evals.reading import Reading
from infini_jax.evals.scores import first_number, share_measure
from infini_jax.evals.tasks import Cell, ExampleEvaluation, lengths_or
from infini_jax.records.measures import Measure

NEW = 10  # tokens, of the landmark paper
LANDMARK = "landmark"


@dataclasses.dataclass(frozen=True)
class PasskeyEvaluation(ExampleEvaluation):
    """Passkey retrieval by length, depth and novelty.

    Attributes:
      lengths: numbers of tokens per example; none is the length that the run was trained at.
      depths: shares of the filler before the number.
      novelty: numbers of different words of the filler; 0 is the papers' filler; none is the run's own setting.
      formats: prompt formats by paper, infini or landmark; none is the run's own, and both for a run on a corpus.
      examples: number of examples per cell of the grid.
      seed: seed of the examples.
      rows: number of examples that are read side by side.
    """

    name: ClassVar[str] = "passkey"
    Config: ClassVar[type] = PasskeyConfig
    is_text: ClassVar[bool] = True
    grid, grid_metric = ("length",), "exact_match"
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = (0.0, 0.5, 1.0)
    novelty: tuple[int, ...] = ()
    formats: tuple[Literal["infini", "landmark"], ...] = ()
    examples: int = 50
    seed: int = 0
    rows: int = 8

    def cells(self, run: RunConfig) -> list[Cell]:
        """One cell per length, prompt format, depth and novelty."""
        own, found = self.own(run.data), []
        formats = self.formats or (("infini", LANDMARK) if self.reads_text(run.data) else (own.format,))
        for length, *settings in itertools.product(
            lengths_or(self.lengths, run), formats, self.depths, self.novelty or (own.novelty,)
        ):
            labels = dict(zip(("format", "depth", "novelty"), settings, strict=True))
            found.append(Cell(own.with_labels(labels), length, {**labels, "length": length}))
        return found

    def new_tokens(self, example: Example) -> int:
        """Ten tokens in the landmark paper's format, none in the other."""
        return NEW if dict(example.labels)["format"] == LANDMARK else 0

    def figures(self, run: RunConfig, cell: Cell, readings: Sequence[Reading]) -> list[Measure]:
        """token_accuracy of a cell, and exact_match in the landmark paper's format."""
        found = [share_measure(self.name, "token_accuracy", [one.hits_N for one in readings], cell.labels)]
        if cell.config.format == LANDMARK:
            decode = tokenizer_of(run.data).decode
            matches = [first_number(decode(one.spoken_M)) == one.references[0] for one in readings]
            found.append(share_measure(self.name, "exact_match", matches, cell.labels))
        return found
