"""MAD's in-context recall: pairs of key and value, drawn with repetition; each key that came before asks for its value.

The last pair repeats a key of the row, so that every row asks at least once. `NoisyRecallConfig` is the noisy form: some pairs
are tokens of a vocabulary of their own that mean nothing.
"""

import dataclasses

import numpy as np

from infini_jax.data.examples import Example
from infini_jax.data.symbols import SymbolTask, require_symbols
from infini_jax.errors import require


@dataclasses.dataclass(frozen=True)
class InContextRecallConfig(SymbolTask):
    """Settings of in-context recall. Half of the symbols that are no noise are keys, the others values.

    Attributes:
      noise: share of pairs that are noise.
      noise_symbols: symbols that noise is drawn from.
    """

    title = "in-context recall"
    axes = ("noise",)
    noise: float = 0.0
    noise_symbols: int = 0

    @property
    def keys(self) -> int:
        """Number of keys, which are the first symbols."""
        return (self.symbols - self.noise_symbols) // 2

    @property
    def values(self) -> int:
        """Number of values, which stand behind the keys."""
        return self.symbols - self.noise_symbols - self.keys

    @property
    def least(self) -> int:
        return 3  # a pair and a key

    def check_settings(self) -> None:
        require_symbols(self.symbols, 2)
        most = self.symbols - 2
        noises = f"{self.noise_symbols} of {self.symbols} leave no key and value"
        require(0 <= self.noise_symbols <= most, "data.noise_symbols", noises, f"give 0 to {most}")
        require(0 <= self.noise < 1, "data.noise", f"{self.noise} is no share of pairs", "give 0, or less than 1")
        drawn = not self.noise or self.noise_symbols > 0
        require(drawn, "data.noise_symbols", "noise needs symbols", "give at least 1, or data.noise 0")

    def chance(self) -> dict[str, float]:
        """Score of a value drawn uniformly."""
        return {"accuracy": 1 / self.values}

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check(tokens)
        pairs = (tokens + 1) // 2  # the last value is not read where `tokens` is odd
        key_P, value_K = random.integers(self.keys, size=pairs), self.keys + random.integers(self.values, size=self.keys)
        noisy_P = random.random(pairs) < self.noise
        noisy_P[[int(random.integers(pairs - 1)), -1]] = False  # one pair at least, and the last
        key_P[-1] = random.choice(np.unique(key_P[:-1][~noisy_P[:-1]]))
        row_Px2 = np.stack([key_P, value_K[key_P]], axis=1)
        first_noise = self.symbols - self.noise_symbols
        row_Px2[noisy_P] = first_noise + random.integers(max(self.noise_symbols, 1), size=(int(noisy_P.sum()), 2))
        told = np.flatnonzero(~noisy_P)
        again = np.setdiff1d(told, told[np.unique(key_P[told], return_index=True)[1]])
        return self.row(row_Px2.ravel()[:tokens], 2 * again, value_K[key_P[again]])
