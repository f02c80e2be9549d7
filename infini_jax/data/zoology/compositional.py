"""Zoology's compositional MQAR: a value belongs to two keys together, neither of which tells it alone.

A row is `key key value ... key key ...`: the two keys of each value are a cell of a square, so that each key stands with
several values. The target at the second key of a question is the value.
"""

import dataclasses
import math

import numpy as np

from infini_jax.data.examples import Example
from infini_jax.data.mqar import drawn_places, with_noise
from infini_jax.data.symbols import SymbolTask, require_symbols
from infini_jax.errors import require


@dataclasses.dataclass(frozen=True)
class CompositionalMqarConfig(SymbolTask):
    """Settings of compositional MQAR. A third of the symbols each is first keys, second keys and values; 0 is the filler.

    Attributes:
      pairs: number of values, a square.
      spread: exponent of the power law by which questions are spread, as `MqarConfig.spread`; not 0.
      noise: share of filler tokens that are drawn from the whole vocabulary instead.
    """

    title = "compositional MQAR"
    axes = ("pairs",)
    symbols: int = 8192
    pairs: int = 4
    spread: float = 0.01
    noise: float = 1.0

    @property
    def side(self) -> int:
        """Number of first keys of a row, and of second keys."""
        return math.isqrt(self.pairs)

    @property
    def least(self) -> int:
        return 6 * self.pairs

    def check_settings(self) -> None:
        is_square = self.pairs >= 1 and self.side**2 == self.pairs
        require(is_square, "data.pairs", f"{self.pairs} is no square", "give 1, 4, 9, 16, ...")
        require_symbols(self.symbols, 3 * max(self.pairs, self.side + 1))
        require(self.spread > 0, "data.spread", f"{self.spread} spreads nothing", "give an exponent such as 0.01")
        require(0 <= self.noise <= 1, "data.noise", f"{self.noise} is no share", "give 0 to 1")

    def most_scored(self, tokens: int) -> int:
        """The number of values."""
        return self.pairs

    def chance(self) -> dict[str, float]:
        """Score of a value drawn uniformly from all values."""
        return {"accuracy": 1 / (self.symbols - 2 * (self.symbols // 3))}

    def distance(self, tokens: int) -> float:
        """Tokens from a question back to the nearest value, as the first may stand right behind the last."""
        return 2

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check(tokens)
        third, pairs = self.symbols // 3, self.pairs
        firsts, seconds = (1 + random.permutation(third - 1)[: self.side], third + random.permutation(third)[: self.side])
        cell_P = random.permutation(pairs)
        first_P, second_P = firsts[cell_P // self.side], seconds[cell_P % self.side]
        value_P = 2 * third + random.permutation(self.symbols - 2 * third)[:pairs]
        text_T = with_noise(random, np.zeros((1, tokens), np.int32), self.noise, self.symbols)[0]
        text_T[: 3 * pairs] = np.stack([first_P, second_P, value_P], axis=1).ravel()
        slot_P = drawn_places(random, 1, (tokens - 3 * pairs) // 3, pairs, self.spread)[0]
        text_T[3 * (pairs + slot_P)], text_T[3 * (pairs + slot_P) + 1] = first_P, second_P
        return self.row(text_T, 3 * (pairs + slot_P) + 1, value_P)
