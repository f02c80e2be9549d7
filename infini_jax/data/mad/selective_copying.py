"""MAD's selective copying: symbols among blanks, then a mark, behind which the symbols are asked in their order."""

import dataclasses

import numpy as np

from infini_jax.data.examples import Example
from infini_jax.data.symbols import SymbolTask, require_symbols
from infini_jax.errors import require_positive


@dataclasses.dataclass(frozen=True)
class SelectiveCopyingConfig(SymbolTask):
    """Settings of selective copying. The last two symbols are the blank and the mark.

    Attributes:
      copied: number of symbols to copy.
    """

    title = "selective copying"
    axes = ("copied",)
    copied: int = 16

    @property
    def least(self) -> int:
        return 2 * self.copied + 2  # a blank at least

    def check_settings(self) -> None:
        require_symbols(self.symbols, 3)
        require_positive("data", copied=self.copied)

    def most_scored(self, tokens: int) -> int:
        """The number of symbols to copy."""
        return self.copied

    def chance(self) -> dict[str, float]:
        """Score of a symbol drawn uniformly."""
        return {"accuracy": 1 / (self.symbols - 2)}

    def distance(self, tokens: int) -> float:
        """Tokens from the last question back to its symbol, which stands in front of the mark."""
        return self.copied + 1

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check(tokens)
        blank, mark = self.symbols - 2, self.symbols - 1
        symbol_C = random.integers(self.symbols - 2, size=self.copied)
        blanks = tokens - 2 * self.copied - 1
        in_front = np.sort(random.integers(self.copied, size=blanks))  # of which symbol each blank stands
        text_T = np.concatenate([np.insert(symbol_C, in_front, blank), [mark], np.full(self.copied, blank)])
        return self.row(text_T, np.arange(tokens - self.copied, tokens), symbol_C)
