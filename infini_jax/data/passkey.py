"""Passkey retrieval: a number hidden in filler and asked for at the end, as landmark attention and Infini-attention tested it.

`landmark` (Mohtashami & Jaggi 2023, arXiv 2305.16300, section 4.2 and its released test): the parts are lines, the number is
drawn from 1 to 50000, the filler before it is cut at a uniformly drawn length and begins anew behind it; the end of a number
is part of the answer, as numbers differ in length.
`infini` (Munkhdalai et al. 2024, arXiv 2404.07143, section 4.2 and appendix B): one paragraph, the whole filler several times
before and after the number.
DEVIATION: the Infini-attention paper does not say how its number (9054 in its example) is drawn; ours has a set number of
digits.
DEVIATION: filler is cut where a prompt is full, so that lengths are exact.
Novelty is ours: the papers' filler has some twenty words however long it is; with novelty K it has K made-up ones.
"""

import dataclasses
from typing import Literal

import numpy as np

from infini_jax.data.text_task import FILLER, Filler, Scattered, Story, TextTask
from infini_jax.data.words import MADE_UP, made_up
from infini_jax.errors import require

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
NEEDLE = "The pass key is {0}. Remember it. {0} is the pass key."
QUESTION = "What is the pass key? The pass key is"
LARGEST = 50_000  # of the landmark paper


@dataclasses.dataclass(frozen=True)
class PasskeyConfig(TextTask):
    """Settings of passkey retrieval.

    Attributes:
      format: prompt format, named after its paper: infini or landmark.
      digits: number of digits in the infini format; the landmark format draws 1 to 50000.
      depth: fraction of the filler before the number, in the infini format to the nearest whole filler; None draws it
        uniformly.
      novelty: different words that the filler of an example is made of, each as often as the others; 0 is the papers' filler.
      filler_words: made-up words in the vocabulary, from which the words of an example are drawn.
    """

    format: Literal["infini", "landmark"] = "infini"
    digits: int = 5
    depth: float | None = None
    novelty: int = 0
    filler_words: int = 192

    def story(self, random: np.random.Generator) -> Story:
        low, high = (1, LARGEST) if self.format == "landmark" else (10 ** (self.digits - 1), 10**self.digits - 1)
        return self._told(int(random.integers(low, high + 1)), float(random.random()) if self.depth is None else self.depth)

    def longest_story(self, random: np.random.Generator) -> Story:
        return self._told(LARGEST, 0.0) if self.format == "landmark" else self.story(random)

    def _told(self, number: int, depth: float) -> Story:
        lines = self.format == "landmark"
        end = "." if lines else ""
        return Story(
            head=TASK + "\n" * lines,
            body=Scattered((NEEDLE.format(number),), (depth,), lines),
            question=("\n" if lines else " ") + QUESTION,
            answer=f" {number}{end}",
            longest=f" {LARGEST if lines else number}{end}",
            references=(str(number),),
            labels={"format": self.format, "depth": depth, "novelty": self.novelty},
            hidden=(str(number),),
        )

    def filler(self, random: np.random.Generator) -> Filler:
        if self.novelty:
            return Filler(
                tuple(made_up(number) for number in random.permutation(self.filler_words)[: self.novelty]), "shuffle"
            )
        return Filler(FILLER) if self.format == "landmark" else Filler((" ".join(FILLER),))

    def lexicon(self) -> tuple[str, ...]:
        return (TASK, *FILLER, NEEDLE.format("0123456789"), QUESTION, "\n", *map(made_up, range(self.filler_words)))

    def chance(self) -> dict[str, float]:
        """Score of a number drawn as the task draws it, by metric."""
        return {"exact_match": 1 / LARGEST} if self.format == "landmark" else self.chance_of_number(self.digits)

    def distance(self, tokens: int) -> float:
        """Fewest tokens from the question back to the number in rows of `tokens`, 0 where `depth` is drawn.

        Rows are filler for the most part, so at least half of the share that `depth` leaves stands behind the number.
        """
        return 0.0 if self.depth is None else (1 - self.depth) * tokens / 2

    def covers(self, asked: "PasskeyConfig") -> bool:
        """Whether training on these settings shows all that `asked` needs: equal novelty; format and depth may differ."""
        return asked.novelty == self.novelty

    def check_settings(self) -> None:
        super().check_settings()
        require(1 <= self.digits <= 18, "data.digits", f"{self.digits} digits are not a number", "give 1 to 18")
        share = self.depth is None or 0 <= self.depth <= 1
        require(share, "data.depth", f"{self.depth} is not a fraction of the filler", "give 0 to 1, or None to draw it")
        require(
            0 <= self.novelty <= self.filler_words <= MADE_UP,
            "data.novelty",
            f"{self.novelty} different words cannot be drawn from {self.filler_words}",
            f"give 0 to data.filler_words, which is at most {MADE_UP}",
        )
