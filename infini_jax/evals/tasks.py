"""The base of evaluations on tasks made of examples: their cells, examples, readings and costs.

A run that was trained on the task is asked in the run's own settings, of which the evaluation changes what its grid names; a
run on a corpus is asked in text, encoded by the run's own tokenizer. The examples of a cell of the grid are drawn from the
random streams (seed, test split, length, number): no training and no validation has seen them, and cells of one length differ
in nothing but what sets them apart.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from infini_jax.config import RunConfig
from infini_jax.data.asked import Suite
from infini_jax.data.base import DataConfig, tokenizer_of
from infini_jax.data.batch import Rows, generator
from infini_jax.data.examples import Example, ExampleConfig, behind
from infini_jax.data.given import given_documents
from infini_jax.data.text_task import LONGEST_ROW
from infini_jax.devices.chosen_form import RowsAtOnce
from infini_jax.devices.side_by_side import Learned
from infini_jax.errors import require, require_positive
from infini_jax.evals.base import ReadingEvaluation, Watch, unwatched
from infini_jax.evals.reading import ExampleReader, Reading, spoken_behind
from infini_jax.model.cost import model_cost
from infini_jax.records.measures import Label, Measure

STRETCH = 4  # times the tokens of an example that a stretch of a corpus has: sentences with a word of the answer are left out


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of an evaluation's grid: examples that make one figure.

    Attributes:
      config: settings of the examples, of the evaluation's `Config`.
      tokens: number of tokens per example.
      labels: labels of the figure.
    """

    config: Any
    tokens: int
    labels: dict[str, Label]


class ExampleEvaluation(ReadingEvaluation):
    """An evaluation that reads examples, the base of frozen dataclasses with these fields.

    Attributes:
      Config: class of the task's settings, the data of runs that were trained on it.
      is_text: whether a run on a corpus can be asked, too.
      grid: labels that set the panels of recall against memory apart; none draws no such figure.
      grid_metric: metric of that figure.
      examples: number of examples per cell.
      seed: seed of the examples.
      rows: number of examples that are read side by side.
    """

    Config: ClassVar[type[ExampleConfig] | type[Suite]]  # of the runs that were trained on it, or what is asked of text
    is_text: ClassVar[bool] = False  # whether a run on a corpus can be asked, too
    grid: ClassVar[
        tuple[str, ...]
    ] = ()  # labels that set the panels of recall against memory apart; none draws no such figure
    grid_metric: ClassVar[str] = "accuracy"  # that is drawn there
    examples: int
    seed: int
    rows: int

    @abc.abstractmethod
    def cells(self, run: RunConfig) -> list[Cell]:
        """The cells of the grid, in the order of their lengths."""

    @abc.abstractmethod
    def figures(self, run: RunConfig, cell: Cell, readings: Sequence[Reading]) -> list[Measure]:
        """The figures of one cell from the readings of its examples."""

    def new_tokens(self, example: Example) -> int:
        """Tokens that the model is to say by itself behind an example's prompt, 0 by default."""
        return 0

    def hay(self, run: RunConfig, cell: Cell, random: np.random.Generator) -> str:
        """The text in which a run on a corpus finds the needles; empty for the task's own filler."""
        return ""

    @classmethod
    def own(cls, data: DataConfig) -> Any:
        """The task settings of a run, or the task's defaults for a run on a corpus: an object of the class `Config`."""
        return data if isinstance(data, cls.Config) else cls.Config()

    @classmethod
    def reads_text(cls, data: DataConfig) -> bool:
        """Whether a run is asked in the tokens of its corpus; found without the corpus, which may not be here."""
        return cls.is_text and not isinstance(data, ExampleConfig)

    @classmethod
    def asks(cls, data: DataConfig) -> bool:
        """Whether the evaluation means something for runs on this data."""
        return isinstance(data, cls.Config) or cls.reads_text(data)

    def applies(self, run: RunConfig) -> bool:
        """Whether the evaluation asks runs on the run's data, see `asks`."""
        return self.asks(run.data)

    def check(self, run: RunConfig) -> None:
        """Checks a run: raises `ConfigError` for settings out of range, or a task, text or vocabulary that does not fit."""
        kinds = " or on a corpus" if self.is_text else ""
        problem = f"{self.name} cannot ask a run on {run.task}"
        require(self.applies(run), "task", problem, f"choose a run that was trained on {self.name}{kinds}")
        require_positive(self.name, examples=self.examples, rows=self.rows)
        require(self.seed >= 0, f"{self.name}.seed", f"{self.seed} is negative", "give 0 or more")
        for cell in self.cells(run):
            if self.reads_text(run.data):
                require(run.data.open_tokenizer() is not None, "run", f"its task {run.task} has no text", "choose a corpus")
                next(self.draw(run, cell))
                continue
            check_once(cell.config, cell.tokens)
            vocab, problem = run.model.vocab, f"the examples have {cell.config.vocab} symbols and the model {run.model.vocab}"
            require(cell.config.vocab <= vocab, "model.vocab", problem, "ask for what the run was trained on")

    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of reading every example, part of it twice where the model answers by itself.

        The second reading begins at the segment in which the prompt ends, and goes on through the answer.
        """
        read = 0
        for cell in self.cells(run):
            first = next(self.draw(run, cell))  # the others of its cell are as long
            new = self.new_tokens(first)
            read += cell.tokens + (first.prompt - spoken_behind(first, run.model) + new - 1 if new else 0)
        return model_cost(run.model).flops * self.examples * read

    def draw(self, run: RunConfig, cell: Cell) -> Iterator[Example]:
        """The examples of a cell, the same at every call."""
        tokenizer = tokenizer_of(run.data) if self.reads_text(run.data) else None
        for number in range(self.examples):
            random = generator(Rows(1, cell.tokens, self.seed, "test"), cell.tokens, number)
            if tokenizer:
                of_text = functools.partial(cell.config.text_example, encode=tokenizer.encode)
                hay = self.hay(run, cell, random)
                if tokenizer.begin is None:
                    yield of_text(random, cell.tokens, text=hay)
                else:
                    yield behind(tokenizer.begin, of_text(random, cell.tokens - 1, text=hay))
            else:
                yield cell.config.example(random, cell.tokens)

    def at_once(self, run: RunConfig) -> RowsAtOnce:
        """The examples that are read side by side; what one carries is there twice while the model answers."""
        return RowsAtOnce(self.rows, memories=2)

    def read(self, run: RunConfig, learned: Learned, watch: Watch = unwatched) -> Sequence[Sequence[Sequence[Reading]]]:
        """The readings of all cells' examples with each model. Raises `ConfigError` as `check` does."""
        self.check(run)
        found: list[list[Sequence[Reading]]] = [[] for _ in range(learned.asked)]
        reader = ExampleReader(run.model, self.rows, run.data.vocab)
        cells = self.cells(run)
        done, total = 0, self.examples * sum(cell.tokens for cell in cells)

        def watch_tokens(tokens: int) -> None:
            nonlocal done
            watch(done := min(done + tokens, total), total)

        for _, alike in itertools.groupby(cells, key=lambda cell: cell.tokens):
            alike = list(alike)
            examples = itertools.chain.from_iterable(self.draw(run, cell) for cell in alike)
            readings = reader.read_each(learned, examples, self.new_tokens, watch_tokens)
            for _ in alike:
                of_cell = itertools.islice(readings, self.examples)
                for of_model, read in zip(found, zip(*of_cell, strict=True), strict=True):
                    of_model.append(read)
        watch(total, total)  # prompts of text may be shorter than their cell
        return found

    def figures_of(self, run: RunConfig, found: Sequence[Sequence[Reading]]) -> list[Measure]:
        """The figures of all cells, from the readings of each."""
        cells = zip(self.cells(run), found, strict=True)
        return [one for cell, readings in cells for one in self.figures(run, cell, readings)]


@functools.lru_cache(maxsize=4096)
def check_once(config: ExampleConfig, tokens: int) -> None:
    """Calls `config.check`, once for all runs of a study that have the same settings."""
    config.check(tokens)


def room(example: Example) -> int:
    """Tokens from the end of an example's prompt to the end of its row: enough for the longest answer of its task."""
    return len(example.tokens) + 1 - example.prompt


def stretch_of(data: DataConfig, given: str, tokens: int, random: np.random.Generator) -> str:
    """A random stretch of held-out text, at most `STRETCH` times `tokens` long.

    Args:
      data: data of the run, whose validation split is read.
      given: corpus, or path of texts, in place of the run's own; "" for none.
      tokens: number of tokens of the example that the text is for.
      random: random stream of the example.
    """
    text = given_documents(data, given, "validation")[0].text
    count = min(STRETCH * tokens, len(text))
    begin = int(random.integers(len(text) - count + 1))
    return tokenizer_of(data).decode(text[begin : begin + count])


def lengths_or(lengths: tuple[int, ...], run: RunConfig) -> tuple[int, ...]:
    """The lengths in ascending order, each once; the length of the run's training where none are given.

    Raises `ConfigError` for a length below one.
    """
    for length in lengths:
        require(length >= 1, "lengths", f"{length} tokens are not an example", "give at least 1")
        require(length <= LONGEST_ROW, "lengths", f"{length} tokens are too many", f"give at most {LONGEST_ROW}")
    return tuple(sorted(set(lengths))) or (run.train.sequence,)
