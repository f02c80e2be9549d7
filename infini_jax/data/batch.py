"""What training reads: batches as a pure function of the step."""

import dataclasses
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

Split = Literal["train", "validation", "test"]
SPLIT_NUMBER: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}

Leaf = TypeVar("Leaf")


class Batch(NamedTuple, Generic[Leaf]):
    """All (batch, tokens). A row continues where the row of the step before ended; document ids tell what belongs together.

    Attributes: tokens int32; targets int32, the next token; weights float32, 1 where the target is scored; documents int32.
    Leaves are arrays of the host or of devices, or what is said of each of them, such as its sharding.
    """

    tokens: Leaf
    targets: Leaf
    weights: Leaf
    documents: Leaf


@dataclasses.dataclass(frozen=True)
class Rows:
    """Shape and seed of the batches asked for."""

    batch: int
    tokens: int
    seed: int
    split: Split = "train"


class Source(Protocol):
    """`batch(step)` depends on nothing but its settings and the step: any process, any restart sees the same."""

    @property
    def corpus(self) -> str:
        """What the data is made from, for the result table."""
        ...

    def batch(self, step: int) -> Batch: ...

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Rows `first` to `first + count` of batch `step`: what one process of many reads."""
        ...


def generator(rows: Rows, *counters: int) -> np.random.Generator:
    """An independent random stream for each (seed, split, counters)."""
    return np.random.default_rng([rows.seed, SPLIT_NUMBER[rows.split], *counters])
