"""Interface of a task's settings: they give the source of its batches, its documents and its tokenizer."""

import abc
import dataclasses
from typing import ClassVar, Literal

import numpy as np

from infini_jax.data.batch import Batch, Rows, Source, Split
from infini_jax.data.documents import Documents
from infini_jax.data.prepared import Counts
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import check_fields, require, require_not_negative, required

Scored = Literal["accuracy", "loss", "n50"]  # what runs of a task are compared by; n50: pairs of which half are recalled


@dataclasses.dataclass(frozen=True)
class Controls:
    """The runs and figures that tell whether a task decided anything, and which gains are those of a memory.

    A guess's score is `DataConfig.chance`; how far back answers lie is `DataConfig.distance`, or the value of the label `by`.

    Attributes:
      floor: mechanism that cannot reach the answers, where they lie further back than its window.
      positive: mechanism that must be better than the floor, where its slots hold all that is asked about: else the task, or
        the training, lets nobody remember.
      carrying: positions under which the positive control sees beyond the length that it was trained at.
      negative: conditions of the memory, each of which a gain must beat to be one of memory.
      perfect: score of a reader that remembers all; None where it is not known, as of natural text.
      evaluation: evaluation whose figures of the memory carried decide; "" for the score of rows, which also decides where
        there are no such figures.
      metric: name of these figures.
      by: label of these figures, in tokens back, each of whose values above 0 is decided alone; "" for none.
      unit: unit of these figures; that of the rows' score where it is "".
    """

    floor: str = "local"
    positive: str = "full"
    carrying: tuple[str, ...] = ("none", "t5")
    negative: tuple[str, ...] = ("reset", "another")
    perfect: float | None = None
    evaluation: str = "perplexity"
    metric: str = "loss"
    by: str = ""
    unit: str = ""

    def __post_init__(self):
        check_fields("controls", self)
        require_not_negative("controls", perfect=self.perfect or 0.0)


class DataConfig(abc.ABC):
    """Settings of a task, the base of frozen dataclasses. Reports read the attributes and methods that have a default here.

    Attributes:
      title: name of the task in text, where its registry name will not do.
      scored_by: figure by which runs are compared.
      loss_unit: unit of the held-out loss, in words.
      row_metric: name of `Row.accuracy` among the metrics of `chance` and of evaluations.
      has_ceiling: whether full attention should solve examples as it was trained on; where it does not, the task or the
        training is wrong.
      controls: what tells whether the task decided anything.
    """

    title: ClassVar[str] = ""
    scored_by: ClassVar[Scored] = "loss"
    loss_unit: ClassVar[str] = "nats per token"
    row_metric: ClassVar[str] = "accuracy"
    has_ceiling: ClassVar[bool] = False
    controls: ClassVar[Controls] = Controls()

    def __post_init__(self):
        check_fields("data", self)

    @property
    @abc.abstractmethod
    def vocab(self) -> int:
        """Number of distinct tokens, the least that the model's vocabulary must be."""

    @abc.abstractmethod
    def check(self, tokens: int) -> None:
        """Checks the settings for sequences of `tokens`: raises `ConfigError` where none can be made."""

    @abc.abstractmethod
    def open(self, rows: Rows) -> Source:
        """The source of batches of the shape, seed and split in `rows`."""

    def most_scored(self, tokens: int) -> int:
        """Most places with a weight in any row of `tokens`; all of them, where a task does not say fewer.

        Training computes logits of so many places a row, where they are few, and a budget of FLOPs pays for no more. A row
        that scores more is refused by `opened`.
        """
        return tokens

    def chance(self) -> dict[str, float]:
        """Score of a guesser that knows only the form of answers, by metric; empty where it is unknown."""
        return {}

    def distance(self, tokens: int) -> float:
        """Fewest tokens from a question back to its answer in rows of `tokens`; 0 where nothing is known.

        A window that reaches less far must score chance.
        """
        return 0.0

    def whole(self, split: Split) -> tuple[Documents, Counts] | None:
        """The documents of a split and their counts; None for a task that is not made of documents."""
        return None

    def has(self, split: Split) -> bool:
        """Whether the data has this split; data that is drawn afresh has all of them."""
        return True

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, equal where tokens mean the same; "" for a task that has no text."""
        found = self.open_tokenizer()
        return found.name if found else ""

    def open_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the data; None for a task that has no text.

        Raises `ConfigError` where it is not the one that the settings name.
        """
        return None


@dataclasses.dataclass(frozen=True)
class Counted:
    """A source whose rows are held to the number of scored places that their task declares.

    Attributes:
      source: the source itself.
      most: places of a row that may have a weight, see `DataConfig.most_scored`.
      task: name of the task's settings in errors.
    """

    source: Source
    most: int
    task: str

    @property
    def corpus(self) -> str:
        """Description of the data in one line, for the result table."""
        return self.source.corpus

    def batch(self, step: int) -> Batch:
        """Batch number `step`, all rows. Raises `ConfigError` where a row scores more places than declared."""
        return self._counted(self.source.batch(step), step)

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Rows `first` to `first + count` of batch `step`. Raises `ConfigError` as `batch` does."""
        return self._counted(self.source.rows(step, first, count), step)

    def _counted(self, batch: Batch, step: int) -> Batch:
        scored = int(np.count_nonzero(batch.weights, axis=1).max(initial=0))
        require(
            scored <= self.most,
            "data",
            f"a row of step {step} scores {scored} places, and {self.task}.most_scored says at most {self.most}",
            "let most_scored return as many as any row has",
        )
        return batch


def opened(data: DataConfig, rows: Rows) -> Source:
    """The source of a task's batches, whose rows are held to what the task says of their scored places."""
    source, most = data.open(rows), data.most_scored(rows.tokens)
    return source if most >= rows.tokens else Counted(source, most, type(data).__name__)


def documents_of(data: DataConfig, split: Split) -> tuple[Documents, Counts]:
    """The documents of a split and their counts. Raises `ConfigError` for a task that is not made of documents."""
    return required(data.whole(split), "data", f"{type(data).__name__} holds no documents", "choose a corpus")


def tokenizer_of(data: DataConfig) -> Tokenizer:
    """The tokenizer of the data. Raises `ConfigError` for a task that has no text."""
    return required(data.open_tokenizer(), "data", f"{type(data).__name__} has no text", "choose a corpus")
