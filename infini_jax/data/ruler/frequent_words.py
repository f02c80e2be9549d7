"""RULER's frequent words extraction: the three most frequent of coded words, whose counts follow a zeta distribution."""

import dataclasses
import string
from typing import ClassVar

import numpy as np

from infini_jax.data.asked import Asked, Ground, Prompt
from infini_jax.data.ruler.scores import match_all
from infini_jax.data.ruler.variables import different

LETTERS, ASKED_WORDS, TOKENS_A_WORD = 6, 3, 50  # tokens of a prompt for each different word
LEAST = 73  # words, from which on the three that are asked, and the next, always differ in number
ZETA_2 = np.pi**2 / 6
DOTS = "..."
ASKED = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text? "
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)


@dataclasses.dataclass(frozen=True)
class FrequentWords(Asked):
    """Words by how often they occur, the first of which are dots that mean nothing; a unit is a word of the list."""

    new: ClassVar[int] = 50

    @property
    def chance(self) -> float:
        """Score of as many random words of six letters."""
        return ASKED_WORDS * 26.0**-LETTERS

    def least(self, ground: Ground) -> int:
        return LEAST

    def write(self, random: np.random.Generator, units: int, ground: Ground) -> Prompt:
        count = max((ground.tokens - self.new) // TOKENS_A_WORD, ASKED_WORDS + 2)
        words = [DOTS, *different(random, count - 1, string.ascii_lowercase, LETTERS)]
        counts = np.floor(units / np.arange(1, count + 1) ** 2.0 / ZETA_2).astype(int)
        whole = random.permutation(np.repeat(np.arange(count), counts))
        return Prompt(ASKED.format(" ".join(words[number] for number in whole)), tuple(words[1 : ASKED_WORDS + 1]))

    def hits(self, said: str, prompt: Prompt) -> list[bool]:
        return match_all(said, prompt.references)
