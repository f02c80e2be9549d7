"""Capacity: how many pairs one memory layer recalls, with codes that are trained for it, and no transformer around it.

A pair is one token that carries a key and a value. n pairs are written segment by segment, then segments of questions are
read: tokens with a query of their own, whose keys and values are the same neutral ones everywhere, so that local attention
knows nothing. What the layer answers is scored against all values. Every mechanism of the registry is measured through the
`Memory` interface only, see `infini_jax.codes.coded_layer`; `infini_jax.codes.learning` trains and scores.

n is drawn log-uniformly while training and walks a grid when scored. Rows have fixed shapes: the last n pairs are the open
document's, what stands before them belongs to another document, which every mechanism must forget.
"""

import dataclasses

from infini_jax.codes.settings import CodesSettings
from infini_jax.config import Budget
from infini_jax.config.plain import mechanism_of
from infini_jax.errors import (
    LARGEST,
    ConfigError,
    check_fields,
    require,
    require_file_name,
    require_not_negative,
    require_one_line,
    require_positive,
)
from infini_jax.layers.segment import length_with_landmarks
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.base import LONGEST_SEGMENT, Dims, MemoryConfig
from infini_jax.memory.costs import BACKWARD
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.neighborhood import neighborhood_bytes
from infini_jax.memory.sizes import memory_bytes, memory_bytes_bf16

NAME = "capacity"


@dataclasses.dataclass(frozen=True)
class CapacityRun(CodesSettings):
    """The capacity of one memory at one size, as a job of a study.

    Attributes:
      name: name of the job and of its folder.
      version: version of the name; raise it when the same name should mean something new.
      variant: name that tells the job from others of its mechanism in tables.
      seed: seed of codes and pairs.
      memory: the mechanism and its settings.
      heads: number of heads of the memory.
      key_dim: key dimension of one head.
      value_dim: value dimension of one head.
      d_model: width of the layer's inputs and outputs, 0 for heads x value_dim.
      segment: number of pairs that are written at once, and of questions that are asked at once.
      symbols: V, number of keys that exist and of values that exist.
      pairs: range from which n is drawn, ends included; n is scored on a grid over it.
      grid: number of n on that grid.
      overwrites: number of earlier writes of every key with other values, where overwriting is scored; 0 scores none. Codes
        are always trained on keys that are written once: what overwriting does is the update rule's own doing.
      batch: number of rows per training step.
      learning_rate: peak of Adam's rate, which rises for a twentieth of the steps and falls by a cosine to a tenth.
      budget: budget of training in steps, tokens or FLOPs.
      rows: number of memories scored at each n.
      questions: number of segments of questions per memory.

    Raises:
      ConfigError: sizes out of range, or a mechanism that cannot work without a transformer around it.
    """

    kind = NAME
    name: str = "capacity"
    version: int = 1
    variant: str = ""
    seed: int = 0
    memory: MemoryConfig = InfiniConfig()
    heads: int = 1
    key_dim: int = 16
    value_dim: int = 16
    d_model: int = 0
    segment: int = 16
    symbols: int = 512
    pairs: tuple[int, int] = (2, 64)
    grid: int = 10
    overwrites: int = 1
    batch: int = 16
    learning_rate: float = 3e-2
    budget: Budget = Budget("steps", 1500)
    rows: int = 32
    questions: int = 4

    def __post_init__(self):
        require_file_name("name", self.name)
        check_fields(NAME, self)
        require_one_line("variant", self.variant)
        require_not_negative(NAME, version=self.version, seed=self.seed, d_model=self.d_model, overwrites=self.overwrites)
        sizes = ("heads", "key_dim", "value_dim", "segment", "symbols", "batch", "learning_rate", "rows", "questions")
        require_positive(NAME, **{field: getattr(self, field) for field in sizes})
        long = f"{self.segment} are too many"
        require(self.segment <= LONGEST_SEGMENT, f"{NAME}.segment", long, f"give at most {LONGEST_SEGMENT}")
        low, high = self.pairs
        require(
            1 <= low < high <= self.symbols,
            f"{NAME}.pairs",
            f"{low} to {high} is not a range of different keys among {self.symbols}",
            f"give 1 to {self.symbols} at most, the smaller first",
        )
        require(self.grid >= 2, f"{NAME}.grid", f"{self.grid} numbers show no curve", "give at least 2")
        every = self.memory.landmark_every
        require(
            every is None or self.segment % every == 0,
            f"{NAME}.segment",
            f"{self.segment} pairs are not whole blocks of {every}",
            f"give a multiple of {every}",
        )
        if any(self.memory.memory_tokens) or memory_of(self.memory, self.dims).works_on_stream():
            problem = f"{self.mechanism} works on the residual stream, and there is a memory layer alone"
            raise ConfigError("memory", problem, "choose another, or a task of a whole model")
        require(self.memory.layers is None, "memory.layers", "there is one layer", "leave it out")
        self.memory.check(self.dims)

    @property
    def dims(self) -> Dims:
        """The memory's dimensions, its landmarks included."""
        return Dims(
            d_model=self.d_model or self.heads * self.value_dim,
            heads=self.heads,
            kv_heads=self.heads,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            segment=length_with_landmarks(self.segment, self.memory.landmark_every),
        )

    @property
    def segments(self) -> int:
        """W, the number of segments that hold the largest n."""
        return -(-self.pairs[1] // self.segment)

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
        """Bytes of memory per sequence, those of a neighborhood apart."""
        return memory_bytes(memory_of(self.memory, self.dims))

    @property
    def memory_bytes_bf16(self) -> int | None:
        """Bytes of memory per sequence with numbers at bfloat16; None where the mechanism cannot keep them so."""
        return memory_bytes_bf16(memory_of(self.memory, self.dims))

    @property
    def neighborhood_bytes(self) -> int:
        """Bytes per sequence of what `memory.local` carries beside the memory."""
        return neighborhood_bytes(memory_of(self.memory, self.dims))

    def at_bytes(self, total: int, axis: str = "") -> "CapacityRun":
        """This run with the largest memory of at most `total` bytes per sequence, grown along `axis`, or else the first one.

        Raises `ConfigError` where even the smallest does not fit, or the memory does not grow along `axis`.
        """
        memory, dims = MECHANISMS[self.mechanism].at_bytes(self.memory, self.dims, total, axis)
        return dataclasses.replace(self, memory=memory, key_dim=dims.key_dim, value_dim=dims.value_dim, heads=dims.heads)

    def with_learning_rate(self, rate: float) -> "CapacityRun":
        """This job at another peak of the learning rate."""
        return dataclasses.replace(self, learning_rate=rate)


def forward_flops(run: CapacityRun) -> tuple[float, float]:
    """(forward FLOPs of writing one pair, of asking one question), counted; landmarks are charged to the pairs they follow.

    A landmark's value is the mean of its block's, so that only pairs are projected. A memory that reads its own segment may
    make the writes of a segment of questions, too, and drop them.
    """
    d = run.dims
    cost, places = memory_of(run.memory, d).cost(d.segment), d.segment / run.segment
    projected = 2.0 * d.d_model * d.kv_heads * d.value_dim
    output = 2.0 * d.heads * d.value_dim * d.d_model
    written = projected + places * cost.write
    read = cost.local + cost.read + cost.write_again
    asked = projected + places * (read + output) + 2.0 * d.d_model * run.symbols
    return written, asked


def step_flops(run: CapacityRun) -> float:
    """Forward and backward FLOPs of one training step, with one segment of questions per row."""
    cost, places = memory_of(run.memory, run.dims).cost(run.dims.segment), run.dims.segment / run.segment
    written, asked = ((1.0 + BACKWARD) * flops for flops in forward_flops(run))
    written, asked = written - places * cost.write_saved, asked - places * cost.read_saved
    return run.batch * run.segment * (run.segments * written + asked)


def capacity_steps(run: CapacityRun) -> int:
    """The number of training steps that the budget pays for.

    Raises `ConfigError` where it pays for none, or its unit does not exist for this job.
    """
    prices = {"flops": step_flops(run), "tokens": run.batch * run.segment * (run.segments + 1), "steps": 1}
    unit = run.budget.unit
    require(unit in prices, "budget.unit", f"{unit} are not counted here", f"choose {', '.join(prices)}")
    steps = int(run.budget.amount // prices[unit])
    require(steps <= LARGEST, "budget.amount", f"{run.budget.amount:g} {unit} are {steps:.3g} steps", "lower it")
    require(steps >= 1, "budget.amount", f"{run.budget.amount:g} {unit} do not pay for one step", "raise it")
    return steps


def planned_flops(run: CapacityRun) -> float:
    """Forward and backward FLOPs of all training steps.

    Raises `ConfigError` where the budget pays for no step, or its unit does not exist for this job.
    """
    return capacity_steps(run) * step_flops(run)
