"""A made corpus of summaries with a known answer: the marked sentences of a text, word for word.

A text is sentences of common words. A few of its first ones, in random places, are of other words, each of which a text has
once, and begin with a number sign and their number. The summary is these sentences in their order. Behind them stand so many
common sentences that a window which does not reach back over them can only guess: a summary tells whether a memory kept what
was marked.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from infini_jax.data.batch import SPLIT_NUMBER, Split
from infini_jax.data.target_marks import Turn, marked
from infini_jax.data.texts import Texts, ruled_digest
from infini_jax.data.words import made_up

FORM = 1  # version of the rules, part of the digest
DOCUMENTS: dict[Split, int] = {"train": 8192, "validation": 64, "test": 64}


@dataclasses.dataclass(frozen=True)
class MarkedSentences(Texts):
    """Texts of common sentences, some marked ones among the first, and the marked ones as the target.

    Attributes:
      kept: number of marked sentences.
      length: words of a sentence.
      near: number of sentences among which the marked ones stand.
      far: number of common sentences behind them.
      common: number of different words of common sentences.
      rare: number of different words of marked ones.
    """

    kept: int = 2
    length: int = 3
    near: int = 4
    far: int = 6
    common: int = 16
    rare: int = 32

    def digest(self) -> str:
        return ruled_digest(b"", (FORM, self, DOCUMENTS))

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        for number in range(DOCUMENTS[split]):
            random = np.random.default_rng([SPLIT_NUMBER[split], number])
            text, summary = self.drawn(random)
            yield f"{split}/{number}", marked([text], [Turn(summary)])

    def drawn(self, random: np.random.Generator) -> tuple[str, str]:
        """(text, summary) of one document."""
        told = iter(random.permutation(self.rare)[: self.kept * self.length].reshape(self.kept, self.length))
        places = set(random.permutation(self.near)[: self.kept].tolist())
        sentences, summary = [], []
        for place in range(self.near + self.far):
            if place in places:
                summary.append(f"#{len(summary) + 1} {sentence(self.common + next(told))}")
                sentences.append(summary[-1])
            else:
                sentences.append(sentence(random.integers(self.common, size=self.length)))
        return "\n".join(sentences), "\n".join(summary)


def sentence(numbers: np.ndarray) -> str:
    """The sentence of these words, by number."""
    return " ".join(made_up(int(number)) for number in numbers) + "."
