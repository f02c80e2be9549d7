"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): pairs first, then a gap, then every key is asked.

A row is `key value key value ... filler ... key key ...`; the target at an asked key is its value. Keys come from the lower
half of the vocabulary and values from the upper half; token 0 is the filler. Only the asked keys are scored. Every key is
asked `repeats` times, the questions in random order: the answers never stand in the row, so asking again gives nothing away.
With `overwrites`, that many keys are written once more behind all pairs, each with another value, and the newer value counts.
DEVIATION: the original spreads the questions by a power law of the distance; here they all stand at the end, so that the
distance, and with it the memory needed, is one number.
"""

import dataclasses

import numpy as np

from infini_jax.data.batch import Batch, Rows, generator
from infini_jax.data.examples import Example, ExampleConfig, ExampleRows
from infini_jax.errors import require, require_positive

FILLER = 0


@dataclasses.dataclass(frozen=True)
class MqarConfig(ExampleConfig):
    """Settings of multi-query associative recall.

    Attributes:
      pairs: number of pairs per row.
      symbols: number of tokens in the vocabulary, the filler included.
      repeats: number of questions per key.
      overwrites: number of pairs that are written again with another value, which counts.
    """

    title = "MQAR"
    pairs: int = 16
    symbols: int = 128
    repeats: int = 1
    overwrites: int = 0

    @property
    def vocab(self) -> int:
        return self.symbols

    @property
    def least(self) -> int:
        """Tokens of the shortest row, one without a gap."""
        return 2 * (self.pairs + self.overwrites) + self.repeats * self.pairs

    def gap(self, tokens: int) -> int:
        """Filler tokens between the last pair and the first question in a row of `tokens`."""
        return tokens - self.least

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
            0 <= self.overwrites <= self.pairs,
            "data.overwrites",
            f"{self.overwrites} of {self.pairs} pairs cannot be written again",
            f"give 0 to {self.pairs}",
        )
        require(
            self.gap(tokens) >= 0,
            "train.sequence",
            f"{tokens} tokens do not hold {self.pairs} pairs and their questions",
            f"give at least {self.least}",
        )

    def most_scored(self, tokens: int) -> int:
        """The number of questions."""
        return self.pairs * self.repeats

    def chance(self) -> dict[str, float]:
        """Score of a value drawn uniformly from all values, by metric."""
        return {"accuracy": 1 / (self.symbols - self.symbols // 2)}

    def distance(self, tokens: int) -> float:
        """Tokens from the first question back to the last value, across the gap, in a row of `tokens`."""
        return self.gap(tokens) + 1

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check(tokens)
        labels = (("pairs", self.pairs), ("length", tokens), ("overwrites", self.overwrites))
        return Example(*(field[0] for field in self.draw(random, 1, tokens)), labels=labels)

    def open(self, rows: Rows) -> "Mqar":
        return Mqar(self, rows)

    def draw(self, random: np.random.Generator, rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, targets, weights) of many rows at once, each `rows` x `tokens`."""
        pairs, half = self.pairs, self.symbols // 2
        keys_BxP = 1 + random.random((rows, half - 1)).argsort(axis=1)[:, :pairs]
        values_BxP = random.integers(half, self.symbols, (rows, pairs))
        questions = pairs * self.repeats
        asked_BxQ = random.random((rows, questions)).argsort(axis=1) % pairs
        tokens_BxT = np.full((rows, tokens), FILLER, np.int32)
        tokens_BxT[:, 0 : 2 * pairs : 2] = keys_BxP
        tokens_BxT[:, 1 : 2 * pairs : 2] = values_BxP
        if self.overwrites:
            again_BxO = random.random((rows, pairs)).argsort(axis=1)[:, : self.overwrites]
            step_BxO = random.integers(1, self.symbols - half, again_BxO.shape)  # to another value, round the circle of them
            old_BxO = np.take_along_axis(values_BxP, again_BxO, axis=1)
            new_BxO = half + (old_BxO - half + step_BxO) % (self.symbols - half)
            np.put_along_axis(values_BxP, again_BxO, new_BxO, axis=1)
            behind = slice(2 * pairs, 2 * (pairs + self.overwrites))
            written_BxOx2 = np.stack([np.take_along_axis(keys_BxP, again_BxO, axis=1), new_BxO], axis=2)
            tokens_BxT[:, behind] = written_BxOx2.reshape(rows, -1)
        tokens_BxT[:, -questions:] = np.take_along_axis(keys_BxP, asked_BxQ, axis=1)
        targets_BxT = np.zeros_like(tokens_BxT)
        targets_BxT[:, -questions:] = np.take_along_axis(values_BxP, asked_BxQ, axis=1)
        weights_BxT = np.zeros(tokens_BxT.shape, np.float32)
        weights_BxT[:, -questions:] = 1.0
        return tokens_BxT, targets_BxT, weights_BxT


@dataclasses.dataclass(frozen=True)
class Mqar(ExampleRows):
    """Source of recall examples whose rows are drawn together from one random stream per step, much faster than one by one.

    Attributes:
      config: settings of the task.
    """

    config: MqarConfig

    def batch(self, step: int) -> Batch:
        shape = self.shape
        fields = self.config.draw(generator(shape, step), shape.batch, shape.tokens)
        document_B = np.int32(step * shape.batch) + np.arange(shape.batch, dtype=np.int32)
        return Batch(*fields, np.broadcast_to(document_B[:, None], fields[0].shape))

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Rows `first` to `first + count` of batch `step`, cut from the whole batch: its rows share one random stream."""
        return Batch(*(field[first : first + count] for field in self.batch(step)))
