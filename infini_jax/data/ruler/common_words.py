"""RULER's common words extraction: the ten words of a numbered list that stand in it most often, behind one solved example."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from infini_jax.data.asked import Asked, Ground, Prompt
from infini_jax.data.ruler.scores import match_all
from infini_jax.data.words import MADE_UP, SYLLABLES, made_up

SHORT = 4096  # tokens, below which RULER's words stand less often
ASKED = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{}\nQuestion: What are the 10 most common words in the above list?"
    " Answer: The top 10 words that appear most often in the list are:"
)


def different_words(random: np.random.Generator, count: int) -> list[str]:
    """`count` different made-up words, of four letters each, or of six where there are too few of those."""
    if count <= MADE_UP:
        return [made_up(int(number)) for number in random.permutation(MADE_UP)[:count]]
    pairs = (divmod(int(number), MADE_UP) for number in random.permutation(MADE_UP * len(SYLLABLES))[:count])
    return [made_up(first) + SYLLABLES[more] for more, first in pairs]


def numbered(words: Sequence[str]) -> str:
    """Words with their places in front: "1. a 2. b"."""
    return " ".join(f"{number}. {one}" for number, one in enumerate(words, 1))


@dataclasses.dataclass(frozen=True)
class CommonWords(Asked):
    """Words of a list by how often they occur; a unit is a different word.

    Attributes:
      common: number of words that are asked.
    """

    new: ClassVar[int] = 120
    common: int = 10

    @property
    def chance(self) -> float:
        """Score of as many made-up words of four letters."""
        return self.common / MADE_UP

    def least(self, ground: Ground) -> int:
        return self.common + 1

    def write(self, random: np.random.Generator, units: int, ground: Ground) -> Prompt:
        is_short = ground.tokens < SHORT
        shown, answers = self._list(random, *((20, 3, 1) if is_short else (40, 10, 3)))
        asked, common = self._list(random, units, *((6, 1) if is_short else (30, 3)))
        return Prompt(f"{ASKED.format(shown)} {numbered(answers)}\n{ASKED.format(asked)}", tuple(common))

    def _list(self, random: np.random.Generator, words: int, often: int, rarely: int) -> tuple[str, list[str]]:
        """(a list of `words` different words, the common ones so often and the others so rarely; the common ones)."""
        chosen = different_words(random, words)
        whole = chosen[: self.common] * often + chosen[self.common :] * rarely
        return numbered([whole[place] for place in random.permutation(len(whole))]), chosen[: self.common]

    def hits(self, said: str, prompt: Prompt) -> list[bool]:
        return match_all(said, prompt.references)
