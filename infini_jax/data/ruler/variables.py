"""RULER's variable tracking: a chain of assignments among lines of noise, behind one solved example."""

import dataclasses
import itertools
import string
from typing import ClassVar

import numpy as np

from infini_jax.data.asked import Asked, Ground, Prompt, inserted
from infini_jax.data.ruler.needles import NOISE
from infini_jax.data.ruler.scores import match_all

LETTERS, SHOWN_LETTERS = 5, 3  # of a variable's name, and of one in the solved example
SHOWN_LINES = 5  # of noise in the solved example, which RULER gives 500 tokens
ASKED = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above. "
    "Answer: According to the chain(s) of variable assignment in the text above, "
    "{count} variables are assigned the value {value}, they are: "
)


@dataclasses.dataclass(frozen=True)
class Variables(Asked):
    """Variables that a chain of assignments gives one value.

    DEVIATION: RULER fills the solved example to 500 tokens; here it has five lines of noise in any tokenizer.

    Attributes:
      hops: assignments behind the first.
    """

    new: ClassVar[int] = 30
    hops: int = 4

    @property
    def chance(self) -> float:
        """Score of random names."""
        return (self.hops + 1) * 26.0**-LETTERS

    def least(self, ground: Ground) -> int:
        return self.hops + 1

    def write(self, random: np.random.Generator, units: int, ground: Ground) -> Prompt:
        shown, answers = self._asked(random, SHOWN_LINES, SHOWN_LETTERS)
        text, names = self._asked(random, units, LETTERS)
        return Prompt(f"{shown} {' '.join(answers)}\n\n{text}", names)

    def _asked(self, random: np.random.Generator, lines: int, letters: int) -> tuple[str, tuple[str, ...]]:
        """(a text with `lines` of noise, the question behind it; the variables that answer it)."""
        names = different(random, self.hops + 1, string.ascii_uppercase, letters)
        value = str(random.integers(10_000, 99_999))
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {name} = VAR {before} " for before, name in itertools.pairwise(names)]
        places = np.sort(random.permutation(lines)[: len(chain)]).tolist()
        context = "\n".join(inserted([NOISE] * lines, chain, places))
        return ASKED.format(context=context, value=value, count=len(names)), tuple(names)

    def hits(self, said: str, prompt: Prompt) -> list[bool]:
        return match_all(said, prompt.references)


def different(random: np.random.Generator, count: int, alphabet: str, letters: int) -> list[str]:
    """`count` different words of so many letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(alphabet[number] for number in random.integers(len(alphabet), size=letters))] = None
    return list(found)
