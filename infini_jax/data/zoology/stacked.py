"""Zoology's stacked MQAR: a pair is one token, so that one layer solves it without looking at the token before.

A row is all pairs in random order, `passes` times, then every key alone; the target at a key is its value.
DEVIATION: the original gives a model two fixed vectors side by side; here each pair of a key and a value is a token of its own
with a learned embedding. A gap of filler stands in front of the questions.
"""

import dataclasses
import math

import numpy as np

from infini_jax.data.examples import Example
from infini_jax.data.symbols import SymbolTask, require_symbols
from infini_jax.errors import require, require_positive


@dataclasses.dataclass(frozen=True)
class StackedMqarConfig(SymbolTask):
    """Settings of stacked MQAR. The symbols are a square: all pairs of K keys and K values, the keys, the values, the filler.

    Attributes:
      pairs: number of pairs of a row.
      passes: times that all pairs are written.
    """

    title = "stacked MQAR"
    axes = ("pairs", "passes")
    symbols: int = 289
    pairs: int = 8
    passes: int = 1

    @property
    def keys(self) -> int:
        """Number of keys, and of values: K with (K + 1)^2 symbols."""
        return math.isqrt(self.symbols) - 1

    @property
    def least(self) -> int:
        return self.pairs * (self.passes + 1)

    def check_settings(self) -> None:
        require_positive("data", pairs=self.pairs, passes=self.passes)
        require_symbols(self.symbols, 4)
        is_square = (self.keys + 1) ** 2 == self.symbols
        require(is_square, "data.symbols", f"{self.symbols} is no square", "give (keys + 1)^2, such as 289 for 16 keys")
        require(self.pairs <= self.keys, "data.pairs", f"{self.pairs} of {self.keys} keys", f"give at most {self.keys}")

    def most_scored(self, tokens: int) -> int:
        """The number of pairs."""
        return self.pairs

    def chance(self) -> dict[str, float]:
        """Score of a value drawn uniformly from all values."""
        return {"accuracy": 1 / self.keys}

    def distance(self, tokens: int) -> float:
        """Tokens from the first question back to the last pair, across the gap."""
        return tokens - self.least + 1

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check(tokens)
        key_P, value_P = (random.permutation(self.keys)[: self.pairs] for _ in range(2))
        written = np.concatenate([random.permutation(self.pairs) for _ in range(self.passes)])
        asked = random.permutation(self.pairs)
        pair_W = key_P[written] * self.keys + value_P[written]
        gap = np.full(tokens - self.least, self.symbols - 1)
        text_T = np.concatenate([pair_W, gap, self.keys**2 + key_P[asked]])
        return self.row(text_T, np.arange(tokens - self.pairs, tokens), self.keys**2 + self.keys + value_P[asked])
