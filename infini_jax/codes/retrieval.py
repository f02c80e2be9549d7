"""Setting 1 of Schlag, Irie and Schmidhuber 2021 (arXiv 2102.11174, section 6.1): a matrix memory that is taught to retrieve.

S keys and S values are paired at random, all S pairs are written, and one key is asked. The answer is scored by its squared
error against the value, so that the task tells a matrix memory's rank, not its best guess: with F features per key,
1/2 max(0, 1 - F/S) is what no linear memory of random keys falls below. Values are one-hot and never trained; keys and queries
are projections of trained embeddings, and a key's projection sees its value, too. Features, write and read are those of
Infini-attention's linear update (`infini_jax.memory.infini`), which is the paper's sum with its normalizer.

`infini_jax.codes.retrieving` trains and scores. Its protocol is the authors': Adam at one rate, an examination every 100
steps, the lowest loss of all examinations counts, and training ends when it is low enough or has not fallen for a while. Their
loss is a mean of batches of unequal size (`retrieving.authors_weights`); the mean over all questions stands beside it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from infini_jax.codes.settings import CodesSettings
from infini_jax.config import Budget
from infini_jax.config.plain import mechanism_of
from infini_jax.errors import (
    LARGEST,
    check_fields,
    require,
    require_file_name,
    require_not_negative,
    require_one_line,
    require_positive,
)
from infini_jax.memory import memory_of
from infini_jax.memory.base import Dims, MemoryConfig, memory_bytes
from infini_jax.memory.costs import BACKWARD
from infini_jax.memory.infini import InfiniConfig

NAME = "retrieval"
EVERY = 100  # steps between examinations
GROWTH = 1.1  # entries of a key's embedding per symbol: 1.1 (S keys + S values)


@dataclasses.dataclass(frozen=True)
class RetrievalRun(CodesSettings):
    """One memory at one number of pairs, as a job of a study.

    Attributes:
      name: name of the job and of its folder.
      version: version of the name; raise it when the same name should mean something new.
      variant: name that tells the job from others in tables.
      seed: seed of parameters, pairs and questions.
      memory: Infini-attention's settings; its feature map is what is compared.
      key_dim: entries of a key before the feature map.
      pairs: S, number of keys, of values, and of pairs in every sequence.
      batch: number of sequences per step, each with one question.
      learning_rate: Adam's rate, the same at every step.
      budget: most training steps, in steps.
      sequences: number of sequences per examination; all S keys of each are asked.
      enough: loss at which training ends.
      patience: number of examinations without a lower loss behind which training ends.
      published: loss that the authors report for this point, printed beside ours; None where there is none.

    Raises:
      ConfigError: sizes out of range, or a memory that is not the sum with its normalizer.
    """

    kind = NAME
    name: str = "retrieval"
    version: int = 1
    variant: str = ""
    seed: int = 0
    memory: MemoryConfig = InfiniConfig()
    key_dim: int = 64
    pairs: int = 100
    batch: int = 32
    learning_rate: float = 1e-3
    budget: Budget = Budget("steps", 100_000)
    sequences: int = 20
    enough: float = 1e-3
    patience: int = 10
    published: float | None = None

    def __post_init__(self):
        require_file_name("name", self.name)
        check_fields(NAME, self)
        require_one_line("variant", self.variant)
        require_not_negative(NAME, version=self.version, seed=self.seed, enough=self.enough, patience=self.patience)
        require_not_negative(NAME, published=self.published or 0.0)
        sizes = ("key_dim", "batch", "learning_rate", "sequences")
        require_positive(NAME, **{field: getattr(self, field) for field in sizes})
        require(self.pairs >= 2, f"{NAME}.pairs", f"{self.pairs} leave nothing to choose", "give at least 2")
        require(
            isinstance(self.memory, InfiniConfig) and self.memory.update == "linear" and self.memory.normalises,
            "memory",
            "the task is about the sum with its normalizer",
            "choose infini with the linear update, normalized reads, and a feature map without a sign",
        )
        unit, amount = self.budget.unit, self.budget.amount
        require(unit == "steps", "budget.unit", f"training ends by its loss, not by {unit}", "give the most steps")
        require(EVERY <= amount <= LARGEST, "budget.amount", f"{amount:g} steps", f"give {EVERY} at least")
        self.memory.check(self.dims)

    @property
    def dims(self) -> Dims:
        """The memory's dimensions: one head, whose values are one-hot over S."""
        return Dims(d_model=self.pairs, heads=1, kv_heads=1, key_dim=self.key_dim, value_dim=self.pairs, segment=self.pairs)

    @property
    def features(self) -> int:
        """F, number of features of a key, measured on the map's real output."""
        return features_of(self.memory, self.key_dim)

    @property
    def embedding(self) -> int:
        """Entries of a key's embedding."""
        return int(GROWTH * 2 * self.pairs)

    @property
    def steps(self) -> int:
        """Most training steps, a whole number of examinations."""
        return int(self.budget.amount) // EVERY * EVERY

    @property
    def task(self) -> str:
        """The name of this task."""
        return NAME

    @property
    def mechanism(self) -> str:
        """The registry name of the memory."""
        return mechanism_of(self.memory)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory per sequence."""
        return memory_bytes(memory_of(self.memory, self.dims))

    def with_learning_rate(self, rate: float) -> "RetrievalRun":
        """This job at another learning rate."""
        return dataclasses.replace(self, learning_rate=rate)


def features_of(memory: Any, key_dim: int) -> int:
    """Number of features of a key of `key_dim` entries, by the map of Infini-attention's settings."""
    return jax.eval_shape(memory.features, jax.ShapeDtypeStruct((key_dim,), jnp.float32)).shape[0]


def forward_flops(run: RetrievalRun) -> float:
    """Forward FLOPs of one step: projections of all S keys' embeddings and of the asked ones, the write, the read."""
    written = 2.0 * run.features * run.pairs  # a pair into the matrix, or the matrix read once
    projected = 2.0 * run.embedding * run.key_dim * (run.pairs + run.batch)
    return projected + run.batch * ((run.pairs + 1) * written + 2.0 * run.features)


def step_flops(run: RetrievalRun) -> float:
    """Forward and backward FLOPs of one training step. One-hot values are not trained: the write has no gradient for them."""
    unneeded = 2.0 * run.batch * run.features * run.pairs**2
    return (1.0 + BACKWARD) * forward_flops(run) - unneeded


def planned_flops(run: RetrievalRun) -> float:
    """Forward and backward FLOPs of the most steps; training mostly ends far earlier, by its loss."""
    return run.steps * step_flops(run)
