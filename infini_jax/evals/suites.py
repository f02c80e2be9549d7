"""Suites of tasks asked in text, by kind and length: what a model says by itself, scored as the suite is.

score: the share of an example's answers that were said, as the task counts them; the interval is that of all evaluations of
examples (Wilson's, over effective trials). A model says the tokens that the suite allows; what stands behind the tokenizer's
end of a document does not count.
"""

import abc
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from infini_jax.config import RunConfig
from infini_jax.data.asked import NEW, Asked, Suite, answers_of
from infini_jax.data.base import tokenizer_of
from infini_jax.data.examples import Example
from infini_jax.data.given import given_name, has_documents
from infini_jax.data.stdlib import reference_text
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import require_one_line
from infini_jax.evals.reading import Reading
from infini_jax.evals.scores import share_measure
from infini_jax.evals.tasks import Cell, ExampleEvaluation, lengths_or, stretch_of
from infini_jax.records.measures import OTHER_DATA, Label, Measure


@dataclasses.dataclass(frozen=True)
class SuiteEvaluation(ExampleEvaluation):
    """Tasks of a suite asked in the tokens of a run on text, the base of frozen dataclasses.

    Attributes:
      Config: class of the suite.
      lengths: numbers of tokens of prompt and answer together; none is the length that the run was trained at.
      examples: number of examples per cell of the grid.
      seed: seed of the examples.
      rows: number of examples that are read side by side.
      data: prepared corpus, or file or folder of texts, that hides the facts, in place of the run's own documents.
    """

    Config: ClassVar[type[Suite]]
    is_text: ClassVar[bool] = True
    lengths: tuple[int, ...] = ()
    examples: int = 50
    seed: int = 0
    rows: int = 8
    data: str = ""

    def __post_init__(self):
        super().__post_init__()
        require_one_line(f"{self.name}.data", self.data)

    @abc.abstractmethod
    def asked(self) -> Sequence[tuple[Suite, dict[str, Label]]]:
        """The tasks that are asked, and the labels of each."""

    def cells(self, run: RunConfig) -> list[Cell]:
        """One cell per length and task."""
        data = {OTHER_DATA: given_name(self.data)} if self.data else {}
        grid = itertools.product(lengths_or(self.lengths, run), self.asked())
        return [Cell(suite, length, {**labels, "length": length, **data}) for length, (suite, labels) in grid]

    def hay(self, run: RunConfig, cell: Cell, random: np.random.Generator) -> str:
        """Text of the given documents, the run's held-out ones or the language reference; "" for a task that needs none."""
        if not cell.config.task.needs_hay:
            return ""
        if self.data or has_documents(run.data):
            return stretch_of(run.data, self.data, cell.tokens, random)
        return reference_text()

    def new_tokens(self, example: Example) -> int:
        """Tokens that the suite allows for an answer."""
        return int(dict(example.labels)[NEW])

    def figures(self, run: RunConfig, cell: Cell, readings: Sequence[Reading]) -> list[Measure]:
        """The score of a cell, and what else its task measures."""
        found: dict[str, list[Any]] = {}
        task: Asked = cell.config.task
        for one in readings:
            said, prompt = words_said(tokenizer_of(run.data), one.spoken_M), answers_of(one.references)
            for metric, hits in {"score": task.hits(said, prompt), **task.more(said, prompt)}.items():
                found.setdefault(metric, []).append(hits)
        return [share_measure(self.name, metric, hits, cell.labels) for metric, hits in found.items()]


def words_said(tokenizer: Tokenizer, said_M: np.ndarray) -> str:
    """The text that a model said, up to the tokenizer's end of a document."""
    ends = np.flatnonzero(said_M == (-1 if tokenizer.end is None else tokenizer.end))
    return tokenizer.decode(said_M[: ends[0]] if len(ends) else said_M)
