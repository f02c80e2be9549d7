"""Needles in a haystack: what a model says by itself, and whether every token of the answer is the likeliest.

hit: the share of the references that stand in what was said, upper and lower case alike (RULER, Hsieh et al. 2024, whose code
calls it string match). exact_match: the first words said are the answer, token for token. token_accuracy: teacher-forced.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar, get_args

import numpy as np

from infini_jax.config import RunConfig
from infini_jax.data import facts
from infini_jax.data.base import tokenizer_of
from infini_jax.data.examples import Example
from infini_jax.data.given import given_name, has_documents
from infini_jax.data.haystack import HaystackConfig, NeedleKind
from infini_jax.errors import LATER, require_one_line
from infini_jax.evals.reading import Reading
from infini_jax.evals.scores import share_measure
from infini_jax.evals.tasks import Cell, ExampleEvaluation, lengths_or, room, stretch_of
from infini_jax.records.measures import OTHER_DATA, Measure


@dataclasses.dataclass(frozen=True)
class HaystackEvaluation(ExampleEvaluation):
    """Needles in a haystack by kind and length. A run on a corpus finds facts among sentences of its validation split.

    Attributes:
      lengths: numbers of tokens per example; none is the length that the run was trained at.
      kinds: kinds of needles; none is the run's own, and all for a run on a corpus.
      examples: number of examples per kind and length.
      seed: seed of the examples.
      rows: number of examples that are read side by side.
      data: prepared corpus, or file or folder of texts, whose sentences hide the facts, in place of the run's own documents.
    """

    name: ClassVar[str] = "haystack"
    Config: ClassVar[type] = HaystackConfig
    is_text: ClassVar[bool] = True
    lengths: tuple[int, ...] = ()
    kinds: tuple[NeedleKind, ...] = ()
    examples: int = 50
    seed: int = 0
    rows: int = 8
    data: str = dataclasses.field(default="", metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        require_one_line("haystack.data", self.data)

    def cells(self, run: RunConfig) -> list[Cell]:
        """One cell per length and kind of needle."""
        own, found = self.own(run.data), []
        kinds = self.kinds or (self._of_text(run) if self.reads_text(run.data) else (own.task,))
        for length, kind in itertools.product(lengths_or(self.lengths, run), kinds):
            labels = {"kind": kind, "length": length} | ({OTHER_DATA: given_name(self.data)} if self.data else {})
            found.append(Cell(own.with_labels(labels), length, labels))
        return found

    def _of_text(self, run: RunConfig) -> tuple[NeedleKind, ...]:
        """The kinds that a run on a corpus can be asked: facts need documents to hide in."""
        hides = bool(self.data) or has_documents(run.data)
        return tuple(kind for kind in get_args(NeedleKind) if hides or kind not in facts.QUESTIONS)

    def hay(self, run: RunConfig, cell: Cell, random: np.random.Generator) -> str:
        """A stretch of the corpus's validation split for kinds that ask for facts, "" for the other kinds."""
        if cell.config.task not in facts.QUESTIONS:
            return ""
        return stretch_of(run.data, self.data, cell.tokens, random)

    def new_tokens(self, example: Example) -> int:
        """Tokens that the longest answer of the task needs."""
        return room(example)

    def figures(self, run: RunConfig, cell: Cell, readings: Sequence[Reading]) -> list[Measure]:
        """hit, exact_match and token_accuracy of a cell, as shares with their intervals."""
        decode = tokenizer_of(run.data).decode
        hits = [found_in(decode(one.spoken_M), one.references) for one in readings]
        matches = [np.array_equal(one.spoken_M[: len(one.answer_N)], one.answer_N) for one in readings]
        metrics = {"hit": hits, "exact_match": matches, "token_accuracy": [one.hits_N for one in readings]}
        return [share_measure(self.name, metric, found, cell.labels) for metric, found in metrics.items()]


def found_in(said: str, references: Sequence[str]) -> np.ndarray:
    """Whether each reference stands in the words said, ignoring case: one bool per reference."""
    return np.array([reference.lower() in said.lower() for reference in references])
