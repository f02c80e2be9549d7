"""RULER's eight needle tasks: magic numbers or UUIDs by name, among noise, an essay, or needles that nobody asks for."""

import dataclasses
import uuid
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from infini_jax.data.asked import Asked, Ground, Prompt, inserted
from infini_jax.data.ruler.scores import match_all
from infini_jax.data.text_task import FILLER, split_sentences
from infini_jax.data.words import MADE_UP, made_up

NOISE = " ".join(FILLER)
DIGITS = 7
DEPTHS = np.rint(np.linspace(0, 100, 40)).astype(int)  # per cent of the essay's sentences before a needle
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
ASKED = (
    "{some} special magic {kind} {be} hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What {be_all} the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text {be}"
)
Name = Literal["words", "numbers", "uuids"]
CHANCE = {"numbers": 1 / (9 * 10 ** (DIGITS - 1)), "words": 1 / MADE_UP**2, "uuids": 2.0**-122}


def drawn(random: np.random.Generator, kind: Name) -> str:
    """A number of seven digits, two made-up words joined by a hyphen, or a UUID of version 4."""
    if kind == "numbers":
        return str(random.integers(10 ** (DIGITS - 1), 10**DIGITS))
    if kind == "words":
        return "-".join(made_up(int(number)) for number in random.integers(MADE_UP, size=2))
    return str(uuid.UUID(bytes=random.bytes(16), version=4))


@dataclasses.dataclass(frozen=True)
class Needles(Asked):
    """Needles in a haystack.

    Attributes:
      haystack: noise repeats five sentences, a line each time; essay is running text; needle is lines of other needles.
      names: form of the names that are asked.
      values: form of what is said of a name.
      keys: number of names.
      each: values of each name.
      asked: number of names that are asked.
    """

    new: ClassVar[int] = 128
    haystack: Literal["noise", "essay", "needle"]
    names: Name = "words"
    values: Name = "numbers"
    keys: int = 1
    each: int = 1
    asked: int = 1

    @property
    def needs_hay(self) -> bool:
        """Whether the haystack is an essay."""
        return self.haystack == "essay"

    @property
    def chance(self) -> float:
        """Score of one random value of the right form for each that is asked."""
        return CHANCE[self.values]

    def least(self, ground: Ground) -> int:
        return self.keys * self.each

    def write(self, random: np.random.Generator, units: int, ground: Ground) -> Prompt:
        keys = [drawn(random, self.names) for _ in range(self.keys)]
        values = [[drawn(random, self.values) for _ in range(self.each)] for _ in keys]
        told = [self._needle(key, value) for key, of in zip(keys, values, strict=True) for value in of]
        needles = [told[number] for number in random.permutation(len(told))]
        order = random.permutation(self.keys)[: self.asked]
        query = listed([keys[number] for number in order])
        is_one = self.asked * self.each == 1
        words = {"some": "A", "be": "is", "be_all": "is"} if is_one else {"some": "Some", "be": "are", "be_all": "are all"}
        kind = self.values[:-1] if is_one else self.values
        text = ASKED.format(**words, kind=kind, query=query, context=self._context(random, units, ground.hay, needles))
        return Prompt(text, tuple(value for number in order for value in values[number]))

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.values, key=key, value=value)

    def _context(self, random: np.random.Generator, units: int, hay: str, needles: Sequence[str]) -> str:
        """The haystack of `units` words or lines with the needles in it."""
        if self.haystack == "essay":
            return among_sentences(random, repeated_words(hay, units), needles)
        lines = [NOISE] * units
        if self.haystack == "needle":
            lines = [self._needle(drawn(random, self.names), drawn(random, self.values)) for _ in range(units)]
        return "\n".join(inserted(lines, needles, np.sort(random.permutation(units)[: len(needles)]).tolist()))

    def hits(self, said: str, prompt: Prompt) -> list[bool]:
        return match_all(said, prompt.references)


def listed(names: Sequence[str]) -> str:
    """Names as RULER lists them: "a, b, and c"."""
    return f"{', '.join(names[:-1])}, and {names[-1]}" if len(names) > 1 else names[0]


def repeated_words(text: str, count: int) -> str:
    """The first `count` words of a text, which begins anew where it ends, with one space between them."""
    words = text.split()
    return " ".join((words * (-(-count // len(words))))[:count])


def among_sentences(random: np.random.Generator, text: str, needles: Sequence[str]) -> str:
    """A text with the needles between its sentences, at different depths of forty from its beginning to its end."""
    sentences = split_sentences(text)
    depths = np.sort(random.permutation(DEPTHS)[: len(needles)])
    return " ".join(inserted(sentences, needles, [len(sentences) * depth // 100 for depth in depths]))
