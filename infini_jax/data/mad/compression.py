"""MAD's compression: random symbols, then a mark; all symbols are asked in their order from what is kept of them.

DEVIATION: the original is an autoencoder whose decoder sees the encoding of the mark alone. Here the mark is repeated and asks
for one symbol after the other, so that the memory is the bottleneck where the window is shorter than the symbols.
"""

import dataclasses

import numpy as np

from infini_jax.data.examples import Example
from infini_jax.data.symbols import SymbolTask, require_symbols


@dataclasses.dataclass(frozen=True)
class CompressionConfig(SymbolTask):
    """Settings of compression. The last symbol is the mark; half of a row is symbols."""

    title = "compression"

    @property
    def least(self) -> int:
        return 2

    def check_settings(self) -> None:
        require_symbols(self.symbols, 2)

    def most_scored(self, tokens: int) -> int:
        """The number of symbols."""
        return tokens // 2

    def chance(self) -> dict[str, float]:
        """Score of a symbol drawn uniformly."""
        return {"accuracy": 1 / (self.symbols - 1)}

    def distance(self, tokens: int) -> float:
        """Tokens from each question back to its symbol."""
        return tokens // 2

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check(tokens)
        symbol_N = random.integers(self.symbols - 1, size=tokens // 2)
        mark = self.symbols - 1  # stands in front, too, where `tokens` is odd
        text_T = np.concatenate([[mark] * (tokens % 2), symbol_N, [mark] * len(symbol_N)]).astype(np.int32)
        return self.row(text_T, np.arange(tokens - len(symbol_N), tokens), symbol_N)
