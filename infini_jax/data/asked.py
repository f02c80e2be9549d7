"""Tasks that a trained language model is asked in text: a prompt of as many units as a length holds, and what should be said.

Suites of such tasks (RULER, BABILong, slots) are no training data. Unlike the examples of `infini_jax.data.text_task`, which
are laid out token by token so that all lengths are exact, a prompt is written as its authors write it and encoded as one
text: it holds the largest number of units (words, lines, documents) with which it and the answer take no more than the length.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from infini_jax.data.examples import Example, Label, unscored
from infini_jax.data.text_task import Encode, require_room
from infini_jax.errors import lookup

NEW = "new"  # label of an example: tokens that a model says
SEPARATOR = "\0"  # between right answers and others in an example's references
PROBE = 8  # units more than the least, from which the tokens of a unit are estimated
SMALLEST = 1e-2  # tokens of a unit


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text to read and the answers to it.

    Attributes:
      text: the whole prompt.
      references: right answers; whether all or one of them must be said is the task's to know.
      others: wrong answers that a score tells apart, such as values that were overwritten.
    """

    text: str
    references: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ground:
    """What a prompt is written for.

    Attributes:
      tokens: length of prompt and answer together, in tokens.
      hay: running text to hide facts in, "" where the task has its own.
    """

    tokens: int
    hay: str = ""


class Asked(abc.ABC):
    """A task asked in text, the base of frozen dataclasses.

    Attributes:
      new: number of tokens that a model says.
    """

    new: ClassVar[int]

    @property
    def needs_hay(self) -> bool:
        """Whether the task hides its facts in text of a corpus."""
        return False

    @property
    def chance(self) -> float | None:
        """Score of a guesser that knows only the form of answers; None where it is unknown."""
        return None

    @abc.abstractmethod
    def least(self, ground: Ground) -> int:
        """Fewest units of a prompt."""

    @abc.abstractmethod
    def write(self, random: np.random.Generator, units: int, ground: Ground) -> Prompt:
        """A prompt of so many units; draws the same from equal generators."""

    @abc.abstractmethod
    def hits(self, said: str, prompt: Prompt) -> Sequence[bool]:
        """Whether each answer that counts was said: the share of them is the example's score."""

    def more(self, said: str, prompt: Prompt) -> Mapping[str, Sequence[bool]]:
        """Other metrics of what was said, by name; none by default."""
        return {}

    def fit(self, random: np.random.Generator, ground: Ground, encode: Encode) -> tuple[Prompt, np.ndarray]:
        """A prompt and its tokens, at most `ground.tokens` - `new`. Raises `ConfigError` where these hold no prompt."""
        seed = int(random.integers(2**63))
        room = ground.tokens - self.new

        def written(units: int) -> tuple[Prompt, np.ndarray]:
            prompt = self.write(np.random.default_rng(seed), units, ground)
            return prompt, encode(prompt.text)

        least = self.least(ground)
        first = written(least)
        require_room(ground.tokens, len(first[1]) + self.new, "the shortest prompt and its answer")
        found = most_units(lambda units: len(written(units)[1]), least, len(first[1]), room)
        return first if found == least else written(found)


def inserted(lines: Sequence[str], needles: Sequence[str], places: Sequence[int]) -> list[str]:
    """The lines with a needle in front of each of the places, which rise."""
    found, begin = [], 0
    for needle, place in zip(needles, places, strict=True):
        found += [*lines[begin:place], needle]
        begin = place
    return [*found, *lines[begin:]]


def most_units(count: Callable[[int], int], least: int, shortest: int, room: int) -> int:
    """The largest number of units of at most `room` tokens, of a count that grows nearly evenly with them.

    Args:
      count: function from units to tokens.
      least: number of units that fit.
      shortest: its tokens.
      room: number of tokens that there are.
    """
    low, low_count, step = least, shortest, PROBE
    while (high_count := count(high := low + step)) <= room:
        slope = max((high_count - low_count) / step, SMALLEST)
        low, low_count, step = high, high_count, max(1, int((room - high_count) / slope))
    by_middle = False  # in turn with where the line through both ends says
    while high - low > 1:
        guess = (low + high) // 2 if by_middle else low + int((room - low_count) / (high_count - low_count) * (high - low))
        guess, by_middle = min(max(guess, low + 1), high - 1), not by_middle
        if (counted := count(guess)) <= room:
            low, low_count = guess, counted
        else:
            high, high_count = guess, counted
    return low


@dataclasses.dataclass(frozen=True)
class Suite(abc.ABC):
    """Tasks by name, one of which is asked.

    Attributes:
      title: name of the suite in text.
      kind: name of the task that is asked.
    """

    title: ClassVar[str] = ""
    kind: str = ""

    @abc.abstractmethod
    def tasks(self) -> Mapping[str, Asked]:
        """The tasks of the suite by name."""

    @property
    def task(self) -> Asked:
        """The task that is asked. Raises `ConfigError` for an unknown name."""
        return lookup("kinds", self.kind, self.tasks())

    def with_labels(self, labels: Mapping[str, Label]) -> Self:
        """The suite with the task and settings that the labels of a figure name."""
        names = {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: value for name, value in labels.items() if name in names})

    def chance(self) -> dict[str, float]:
        """Score of a guesser that knows only the form of answers, by metric; empty where it is unknown."""
        known = self.kind and self.task.chance
        return {"score": known} if known else {}

    def text_example(self, random: np.random.Generator, tokens: int, encode: Encode, text: str = "") -> Example:
        """One prompt in a tokenizer's tokens, which with the answer's room takes `tokens` less a part of a unit.

        Nothing of it is scored: the model answers by itself. Raises `ConfigError` where `tokens` hold no prompt.
        """
        prompt, prompt_T = self.task.fit(random, Ground(tokens, text), encode)
        labels = (("kind", self.kind), ("length", tokens), (NEW, self.task.new))
        others = (SEPARATOR, *prompt.others) if prompt.others else ()
        return unscored(prompt_T, labels, (*prompt.references, *others))


def answers_of(references: Sequence[str]) -> Prompt:
    """The right answers and the others of an example's references, as a prompt without text."""
    end = references.index(SEPARATOR) if SEPARATOR in references else len(references)
    return Prompt("", tuple(references[:end]), tuple(references[end + 1 :]))
