"""Batches of training data as a pure function of the step, and the interface of their sources."""

import dataclasses
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

Split = Literal["train", "validation", "test"]
SPLIT_NUMBER: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}

Leaf = TypeVar("Leaf")


class Batch(NamedTuple, Generic[Leaf]):
    """The data of one step; every leaf is (batch, tokens). A row continues where the row of the step before ended.

    Leaves are arrays of the host or of devices, or something about each of them, such as its sharding.

    Attributes:
      tokens: int32, the input.
      targets: int32, the next token at each place.
      weights: float32, 1 where the target is scored, else 0.
      documents: int32, number of the document that each token belongs to; it changes at every edge.
    """

    tokens: Leaf
    targets: Leaf
    weights: Leaf
    documents: Leaf


@dataclasses.dataclass(frozen=True)
class Rows:
    """Shape, seed and split of the batches asked for.

    Attributes:
      batch: rows of a batch.
      tokens: tokens of a row in one batch.
      seed: seed of the random streams.
      split: part of the data.
    """

    batch: int
    tokens: int
    seed: int
    split: Split = "train"


class Source(Protocol):
    """A source of batches that depends on its settings and the step alone: any process and any restart sees the same."""

    @property
    def corpus(self) -> str:
        """Description of the data in one line, for the result table."""
        ...

    def batch(self, step: int) -> Batch:
        """Batch number `step`, all rows."""
        ...

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Rows `first` to `first + count` of batch `step`: one process's part."""
        ...


def generator(rows: Rows, *counters: int) -> np.random.Generator:
    """An independent random stream for each combination of seed, split and counters."""
    return np.random.default_rng([rows.seed, SPLIT_NUMBER[rows.split], *counters])
