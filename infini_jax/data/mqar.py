"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): pairs first, then a gap, then every key is asked.

A row is `key value key value ... filler ... key key ...`; the target at an asked key is its value. Keys come from the lower
half of the vocabulary and values from the upper half; token 0 is the filler. Only the asked keys are scored. Every key is
asked `repeats` times, the questions in random order: the answers never stand in the row, so asking again gives nothing away.
DEVIATION: the original spreads the questions by a power law of the distance; here they all stand at the end, so that the
distance, and with it the memory needed, is one number.
"""

import dataclasses

import numpy as np

from infini_jax.data.base import Batch, DataConfig, Rows, generator
from infini_jax.errors import require, require_positive

FILLER = 0


@dataclasses.dataclass(frozen=True)
class MqarConfig(DataConfig):
    """Multi-query associative recall.

    Attributes:
      pairs: to remember in a row.
      symbols: in the vocabulary, the filler included.
      repeats: times that each key is asked.
    """

    pairs: int = 16
    symbols: int = 128
    repeats: int = 1

    @property
    def vocab(self) -> int:
        return self.symbols

    def gap(self, tokens: int) -> int:
        """Filler tokens between the last pair and the first question in a row of `tokens`."""
        return tokens - (2 + self.repeats) * self.pairs

    def check(self, tokens: int) -> None:
        require_positive("data", pairs=self.pairs, symbols=self.symbols, repeats=self.repeats)
        keys = self.symbols // 2 - 1
        require(
            self.pairs <= keys,
            "data.pairs",
            f"{self.pairs} different keys do not exist among {keys}",
            f"give at most {keys} pairs, or data.symbols of at least {2 * self.pairs + 2}",
        )
        require(
            self.gap(tokens) >= 0,
            "train.sequence",
            f"{tokens} tokens do not hold {self.pairs} pairs and their questions",
            f"give at least {(2 + self.repeats) * self.pairs}",
        )

    def open(self, rows: Rows) -> "Mqar":
        return Mqar(self, rows)


@dataclasses.dataclass(frozen=True)
class Mqar:
    """Fresh examples at every step; each row of each step is a document of its own."""

    config: MqarConfig
    shape: Rows

    @property
    def corpus(self) -> str:
        return "drawn afresh at every step"

    def batch(self, step: int) -> Batch:
        rows, pairs, half = self.shape, self.config.pairs, self.config.symbols // 2
        random = generator(rows, step)
        keys_BxP = 1 + random.random((rows.batch, half - 1)).argsort(axis=1)[:, :pairs]
        values_BxP = random.integers(half, self.config.symbols, (rows.batch, pairs))
        questions = pairs * self.config.repeats
        asked_BxQ = random.random((rows.batch, questions)).argsort(axis=1) % pairs
        tokens = np.full((rows.batch, rows.tokens), FILLER, np.int32)
        tokens[:, 0 : 2 * pairs : 2] = keys_BxP
        tokens[:, 1 : 2 * pairs : 2] = values_BxP
        tokens[:, -questions:] = np.take_along_axis(keys_BxP, asked_BxQ, axis=1)
        targets = np.zeros_like(tokens)
        targets[:, -questions:] = np.take_along_axis(values_BxP, asked_BxQ, axis=1)
        weights = np.zeros(tokens.shape, np.float32)
        weights[:, -questions:] = 1.0
        document_B = np.int32(step * rows.batch) + np.arange(rows.batch, dtype=np.int32)
        return Batch(tokens, targets, weights, np.broadcast_to(document_B[:, None], tokens.shape))

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Makes the whole batch: it is small, and its rows share one random stream."""
        return Batch(*(field[first : first + count] for field in self.batch(step)))
