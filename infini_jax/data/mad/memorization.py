"""MAD's memorization: each key asks for a value that is the same in every row, which only parameters can hold.

No memory that is carried helps here: it tells what a block stores in its parameters, and the floor solves it, too.
"""

import dataclasses
import functools

import numpy as np

from infini_jax.data.examples import Example
from infini_jax.data.symbols import SymbolTask, require_symbols

SEED = 12345  # MAD's, of the values


@functools.lru_cache(maxsize=8)
def value_of_keys(keys: int, values: int) -> np.ndarray:
    """The value of each key, as numbers from 0 on, without repetition."""
    return np.random.default_rng(SEED).permutation(values)[:keys]


@dataclasses.dataclass(frozen=True)
class MemorizationConfig(SymbolTask):
    """Settings of memorization. Half of the symbols but the last are keys, the others values; the last asks."""

    title = "memorization"
    symbols: int = 256

    @property
    def keys(self) -> int:
        """Number of keys, which are the first symbols."""
        return (self.symbols - 1) // 2

    @property
    def least(self) -> int:
        return 2

    def check_settings(self) -> None:
        require_symbols(self.symbols, 3)

    def chance(self) -> dict[str, float]:
        """Score of a value drawn uniformly."""
        return {"accuracy": 1 / (self.symbols - 1 - self.keys)}

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check(tokens)
        key_P = random.integers(self.keys, size=(tokens + 1) // 2)
        text_T = np.stack([key_P, np.full_like(key_P, self.symbols - 1)], axis=1).ravel()[:tokens]
        answers = self.keys + value_of_keys(self.keys, self.symbols - 1 - self.keys)[key_P[: tokens // 2]]
        return self.row(text_T, np.arange(1, tokens, 2), answers)
