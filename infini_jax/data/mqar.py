"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): pairs first, then a gap, then every key is asked.

A row is `key value key value ... filler ... key key ...`; the target at an asked key is its value. Keys come from the lower
half of the vocabulary and values from the upper half; token 0 is the filler. Only the asked keys are scored. Every key is
asked `repeats` times, the questions in random order: the answers never stand in the row, so asking again gives nothing away.
With `overwrites`, that many keys are written once more behind all pairs, each with another value, and the newer value counts.
DEVIATION: the original spreads the questions by a power law of the distance and fills gaps with random tokens; by default all
stand at the end, so that the distance, and with it the memory needed, is one number. `spread` and `noise` are the original's.
DEVIATION: two keys of a row may have the same value; the original draws values without repetition.

`MixedMqarConfig` trains on rows of several lengths and numbers of pairs, as the figures of Zoology and Based do.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from infini_jax.data.batch import Batch, Rows, generator
from infini_jax.data.examples import Example, ExampleConfig, ExampleRows, Label
from infini_jax.errors import LATER, require, require_positive

FILLER = 0


@dataclasses.dataclass(frozen=True)
class MqarConfig(ExampleConfig):
    """Settings of multi-query associative recall.

    Attributes:
      pairs: number of pairs per row.
      symbols: number of tokens in the vocabulary, the filler included.
      repeats: number of questions per key.
      overwrites: number of pairs written again with another value; the last one counts.
      spread: exponent a of the power law by which questions are spread behind the pairs: a question is at place g = 1, 2, ...
        with probability proportional to g^(a - 1), where every second token is a place. 1 is uniform, the original's is 0.01;
        0 asks all at the end.
      noise: fraction of filler tokens drawn from the whole vocabulary; the original's is 1.
    """

    title = "MQAR"
    pairs: int = 16
    symbols: int = 128
    repeats: int = 1
    overwrites: int = 0
    spread: float = dataclasses.field(default=0.0, metadata=LATER)
    noise: float = dataclasses.field(default=0.0, metadata=LATER)

    @property
    def vocab(self) -> int:
        return self.symbols

    @property
    def least(self) -> int:
        """Tokens of the shortest row, one without a gap."""
        return 2 * (self.pairs + self.overwrites) + self.repeats * self.pairs * (2 if self.spread else 1)

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
        require(self.spread >= 0, "data.spread", f"{self.spread} is negative", "give 0, or an exponent such as 0.01")
        once = not self.spread or self.repeats == 1
        require(once, "data.repeats", f"{self.repeats} questions per key cannot be spread", "give 1, or data.spread 0")
        require(0 <= self.noise <= 1, "data.noise", f"{self.noise} is not a fraction", "give 0 to 1")
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
        return 1 if self.spread else self.gap(tokens) + 1

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
        tokens_BxT = with_noise(random, np.full((rows, tokens), FILLER, np.int32), self.noise, self.symbols)
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
        places_BxQ = self._places(random, rows, tokens)
        np.put_along_axis(tokens_BxT, places_BxQ, np.take_along_axis(keys_BxP, asked_BxQ, axis=1), axis=1)
        targets_BxT = np.zeros_like(tokens_BxT)
        np.put_along_axis(targets_BxT, places_BxQ, np.take_along_axis(values_BxP, asked_BxQ, axis=1), axis=1)
        weights_BxT = np.zeros(tokens_BxT.shape, np.float32)
        np.put_along_axis(weights_BxT, places_BxQ, 1.0, axis=1)
        return tokens_BxT, targets_BxT, weights_BxT

    def _places(self, random: np.random.Generator, rows: int, tokens: int) -> np.ndarray:
        """The places of the questions, BxQ: the last ones, or every second behind the pairs with the chances of `spread`."""
        questions = self.pairs * self.repeats
        if not self.spread:
            return np.broadcast_to(np.arange(tokens - questions, tokens), (rows, questions))
        first = 2 * (self.pairs + self.overwrites)
        return first + 2 * drawn_places(random, rows, (tokens - first) // 2, questions, self.spread)


def with_noise(random: np.random.Generator, filler_BxT: np.ndarray, share: float, symbols: int) -> np.ndarray:
    """Filler of which a share is drawn from all symbols."""
    if not share:
        return filler_BxT
    drawn_BxT = random.integers(0, symbols, filler_BxT.shape, np.int32)
    return np.where(random.random(filler_BxT.shape) < share, drawn_BxT, filler_BxT)


def drawn_places(random: np.random.Generator, rows: int, places: int, count: int, exponent: float) -> np.ndarray:
    """Different places g = 0, 1, ..., rows x count, with a chance that goes as (g + 1)^(exponent - 1).

    The largest of logarithmic chances with Gumbel noise are a draw without repetition.
    """
    log_chance_G = (exponent - 1.0) * np.log(np.arange(1, places + 1))
    drawn_BxG = log_chance_G + random.gumbel(size=(rows, places))
    return np.argsort(-drawn_BxG, axis=1)[:, :count]


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


@dataclasses.dataclass(frozen=True)
class MixedMqarConfig(MqarConfig):
    """Settings of recall in rows of several lengths and numbers of pairs; `pairs` is the largest number.

    A row holds as many examples of its length as fit, each a document of its own, so that short ones cost no padding. The
    default is the training mixture of Based's figure 2 (Arora et al. 2024, arXiv 2402.18668).
    DEVIATION: examples are drawn afresh, where the original repeats 180 000 of them for 32 to 64 epochs, and mixed within a
    batch.

    Attributes:
      mixture: (tokens, pairs, weight) of each kind of example; weights are numbers of examples out of their sum.
    """

    pairs: int = 64
    symbols: int = 8192
    spread: float = 0.01
    noise: float = 1.0
    mixture: tuple[tuple[int, int, int], ...] = (
        (64, 4, 100),
        (128, 8, 20),
        (256, 16, 20),
        (256, 32, 20),
        (256, 64, 20),
    )

    def kind(self, pairs: int) -> MqarConfig:
        """The settings of examples with one number of pairs."""
        names = [field.name for field in dataclasses.fields(MqarConfig)]
        return MqarConfig(**{name: getattr(self, name) for name in names} | {"pairs": pairs})

    def with_labels(self, labels: Mapping[str, Label]) -> MqarConfig:
        return self.kind(self.pairs).with_labels(labels)

    def covers(self, asked: MqarConfig) -> bool:
        return asked in [self.kind(pairs) for _, pairs, _ in self.mixture]

    def check(self, tokens: int) -> None:
        require(bool(self.mixture), "data.mixture", "it is empty", "give (tokens, pairs, weight) of at least one kind")
        for length, pairs, weight in self.mixture:
            self.kind(pairs).check(length)
            require_positive("data.mixture", weight=weight)
            divides = f"rows of {tokens} tokens hold no whole number of examples of {length}"
            require(tokens % length == 0, "data.mixture", divides, "give lengths that divide train.sequence")
        most = max(pairs for _, pairs, _ in self.mixture)
        require(self.pairs == most, "data.pairs", f"{self.pairs} is not the largest of the mixture", f"give {most}")

    def most_scored(self, tokens: int) -> int:
        """The largest number of questions in any row."""
        return max(tokens // length * self.kind(pairs).most_scored(length) for length, pairs, _ in self.mixture)

    def distance(self, tokens: int) -> float:
        return min(self.kind(pairs).distance(length) for length, pairs, _ in self.mixture)

    def open(self, rows: Rows) -> "MixedMqar":
        return MixedMqar(self, rows)


@dataclasses.dataclass(frozen=True)
class MixedMqar(ExampleRows):
    """Source of rows of several lengths and numbers of pairs.

    Attributes:
      config: settings of the task.
    """

    config: MixedMqarConfig

    def batch(self, step: int) -> Batch:
        shape, mixture = self.shape, self.config.mixture
        random = generator(shape, step)
        share_K = np.array([weight * length for length, _, weight in mixture], float)
        kind_B = random.choice(len(mixture), shape.batch, p=share_K / share_K.sum())
        tokens_BxT, targets_BxT, document_BxT = (np.zeros((shape.batch, shape.tokens), np.int32) for _ in range(3))
        weights_BxT = np.zeros((shape.batch, shape.tokens), np.float32)
        for number, (length, pairs, _) in enumerate(mixture):
            of_kind, packed = np.flatnonzero(kind_B == number), shape.tokens // length
            drawn = self.config.kind(pairs).draw(random, len(of_kind) * packed, length)
            for field, values in zip((tokens_BxT, targets_BxT, weights_BxT), drawn, strict=True):
                field[of_kind] = values.reshape(len(of_kind), shape.tokens)
            document_BxT[of_kind] = np.repeat(np.arange(packed), length)
        most = shape.tokens // min(length for length, _, _ in mixture)  # documents of a row
        row_B = (step * shape.batch + np.arange(shape.batch)) * most
        return Batch(tokens_BxT, targets_BxT, weights_BxT, (document_BxT + row_B[:, None]).astype(np.int32))

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Rows `first` to `first + count` of batch `step`, cut from the whole batch: its rows share one random stream."""
        return Batch(*(field[first : first + count] for field in self.batch(step)))
