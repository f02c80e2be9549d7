"""MAD's fuzzy in-context recall: keys and values of several tokens; each key that came before asks for its value.

Keys have `key_length` tokens, values one to `value_length`, none of which repeats within one of them. All rows ask at least
once, as their last key came before; they are filled up from the left.
DEVIATION: keys always have the full length, as in MAD's test; MAD trains on keys of any length up to it.
"""

import dataclasses

import numpy as np

from infini_jax.data.examples import Example
from infini_jax.data.symbols import SymbolTask, require_symbols
from infini_jax.errors import require

Motif = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class FuzzyRecallConfig(SymbolTask):
    """Settings of fuzzy in-context recall. Half of the symbols but the last are keys, the others values; the last fills up.

    Attributes:
      key_length: tokens of a key.
      value_length: most tokens of a value.
    """

    title = "fuzzy recall"
    axes = ("key_length", "value_length")
    key_length: int = 3
    value_length: int = 3

    @property
    def keys(self) -> int:
        """Number of tokens that keys are made of, the first symbols."""
        return (self.symbols - 1) // 2

    @property
    def values(self) -> int:
        """Number of tokens that values are made of, which stand behind those of keys."""
        return self.symbols - 1 - self.keys

    @property
    def least(self) -> int:
        return 2 * (self.key_length + self.value_length) - 1

    def check_settings(self) -> None:
        require_symbols(self.symbols, 3)
        for name, most in (("key_length", self.keys), ("value_length", self.values)):
            length = getattr(self, name)
            require(1 <= length <= most, f"data.{name}", f"{length} of {most} different tokens", f"give 1 to {most}")

    def chance(self) -> dict[str, float]:
        """Score of a token of values drawn uniformly."""
        return {"accuracy": 1 / self.values}

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check(tokens)
        told: dict[Motif, Motif] = {}
        asked = self._key(random)
        told[asked] = self._value(random)
        room = tokens + 1 - 2 * len((*asked, *told[asked]))
        keys: list[Motif] = []
        while room >= self.key_length + self.value_length:
            key = self._key(random)
            told.setdefault(key, self._value(random))
            keys.append(key)
            room -= len((*key, *told[key]))
        keys.insert(int(random.integers(len(keys) + 1)), asked)
        text, places, seen = [self.symbols - 1] * room, [], set()
        for key in (*keys, asked):
            if key in seen:
                begin = len(text) + len(key) - 1  # the target at a place is the token behind it
                places += range(begin, begin + len(told[key]))
            seen.add(key)
            text += [*key, *told[key]]
        text_T = np.array(text)
        return self.row(text_T[:-1], np.array(places), text_T[np.array(places) + 1])

    def _key(self, random: np.random.Generator) -> Motif:
        return tuple(random.permutation(self.keys)[: self.key_length].tolist())

    def _value(self, random: np.random.Generator) -> Motif:
        length = int(random.integers(1, self.value_length + 1))
        return tuple((self.keys + random.permutation(self.values)[:length]).tolist())
