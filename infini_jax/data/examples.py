"""Tasks made of examples: a prompt, the answer that should follow, and labels that tell examples apart.

A generator draws one example from a random stream and knows nothing of any model. Training reads examples as rows, each a
document of its own; evaluation (`infini_jax.evals`) reads the same examples and scores a model on them.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from infini_jax.data.base import Controls, DataConfig, Scored
from infini_jax.data.batch import Batch, Rows, generator

Label = float | str


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
      tokens: T int32, the input.
      targets: T int32, the token that should come next.
      weights: T float32, 1 where the target is scored.
      prompt: tokens before the answer: the scored targets from place `prompt` - 1 on are the answer, which a model may also
        produce by itself. 0 where the answers are spread over the row and never stand in it.
      labels: values that tell the example apart (length, depth, pairs ...), for tables and figures.
      references: parts of a right answer in words, each once, which a substring hit looks for. Empty without text.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    prompt: int = 0
    labels: tuple[tuple[str, Label], ...] = ()
    references: tuple[str, ...] = ()

    @property
    def answer(self) -> np.ndarray:
        """The scored targets, in order."""
        return self.targets[self.weights > 0]


def example_of(prompt: np.ndarray, answer: np.ndarray, labels: tuple[tuple[str, Label], ...] = ()) -> Example:
    """The example of a prompt and its answer, of which the answer alone is scored, each token with all before it read.

    Args:
      prompt: token ids of the prompt.
      answer: token ids of the answer.
      labels: labels of the example.
    """
    text = np.concatenate([prompt, answer]).astype(np.int32)
    weights = np.zeros(len(text) - 1, np.float32)
    weights[len(prompt) - 1 :] = 1.0
    return Example(text[:-1], text[1:], weights, len(prompt), labels)


def unscored(prompt: np.ndarray, labels: tuple[tuple[str, Label], ...] = (), references: tuple[str, ...] = ()) -> Example:
    """The example of a prompt that a model continues by itself, and of which nothing is scored."""
    tokens = np.asarray(prompt, np.int32)
    return Example(tokens, np.zeros_like(tokens), np.zeros(len(tokens), np.float32), len(tokens), labels, references)


def behind(begin: int, example: Example) -> Example:
    """An example behind the token that a model has for the beginning of a text; a label `length` counts it."""
    tokens, weights = (np.insert(part, 0, first) for part, first in ((example.tokens, begin), (example.weights, 0.0)))
    targets = np.insert(example.targets, 0, example.tokens[0])
    labels = tuple((name, len(tokens) if name == "length" else value) for name, value in example.labels)
    return dataclasses.replace(
        example, tokens=tokens, targets=targets, weights=weights, prompt=example.prompt + 1, labels=labels
    )


class ExampleConfig(DataConfig):
    """Settings of a task that is made of examples, the base of frozen dataclasses."""

    scored_by: ClassVar[Scored] = "accuracy"
    has_ceiling: ClassVar[bool] = True
    controls: ClassVar[Controls] = Controls(perfect=1.0, evaluation="")

    @abc.abstractmethod
    def example(self, random: np.random.Generator, tokens: int) -> Example:
        """One example of exactly `tokens` read tokens, drawn from `random`. Raises `ConfigError` where they hold none."""

    def with_labels(self, labels: Mapping[str, Label]) -> Self:
        """These settings with the fields that an evaluation figure's labels name. The label `length` is the length of rows."""
        settings: Any = self
        names = {field.name for field in dataclasses.fields(settings)} - {"length"}
        return dataclasses.replace(settings, **{name: value for name, value in labels.items() if name in names})

    def covers(self, asked: Self) -> bool:
        """Whether training on these settings shows all that examples of `asked` need."""
        return asked == self

    def open(self, rows: Rows) -> "ExampleRows":
        return ExampleRows(self, rows)


@dataclasses.dataclass(frozen=True)
class ExampleRows:
    """Source of fresh examples at every step; each row of each step is a document with a random stream of its own.

    Attributes:
      config: settings of the task.
      shape: rows and tokens of a batch, seed and split.
    """

    config: ExampleConfig
    shape: Rows

    @property
    def corpus(self) -> str:
        """Description of the data in one line, for the result table."""
        return "drawn afresh at every step"

    def batch(self, step: int) -> Batch:
        """Batch number `step`, all rows."""
        return self.rows(step, 0, self.shape.batch)

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Rows `first` to `first + count` of batch `step`."""
        numbers = range(first, first + count)
        found = [self.config.example(generator(self.shape, step, number), self.shape.tokens) for number in numbers]
        document_B = np.int32(step * self.shape.batch + first) + np.arange(count, dtype=np.int32)
        tokens, targets, weights = (
            np.stack([getattr(one, name) for one in found]) for name in ("tokens", "targets", "weights")
        )
        return Batch(tokens, targets, weights, np.broadcast_to(document_B[:, None], tokens.shape))
