"""Frozen dataclasses of a run: validated when made, JSON round trip, fingerprint.

Impossible values raise `ConfigError` (one line: field, problem, mend) before anything compiles. Their plain form: plain.py.
"""

import dataclasses
import typing
from typing import Any, Literal

from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.config.plain import digest_of, from_plain, kind_of, mechanism_configs, to_plain
from infini_jax.data import SOURCES
from infini_jax.data.base import DataConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import ConfigError, require, require_file_name, require_positive
from infini_jax.layers.precision import Compute
from infini_jax.layers.segment import length_with_landmarks
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.base import Dims, MemoryConfig, memory_bytes
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.segment_only import SegmentOnlyConfig


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer whose layers carry `memory`.

    Attributes:
      memory: the mechanism and its settings.
      vocab: number of raw tokens (landmarks get ids above it).
      layers: number of blocks.
      d_model: width of the residual stream.
      heads: of the attention's queries.
      kv_heads: of its keys, values and memory, each shared by heads / kv_heads queries; 0 means as many as heads.
      key_dim: of one head; 0 means d_model / heads.
      value_dim: of one head; 0 means d_model / heads.
      mlp_dim: width of the MLP; 0 means 4 d_model.
      segment: raw tokens of a segment.
      key_taps: tokens that a key is made of, by a short causal convolution; 1 is the token alone, as the papers have it.
      compute: type of activations; the others follow from it, see precision.py.
    """

    memory: MemoryConfig = InfiniConfig()
    vocab: int = 256
    layers: int = 2
    d_model: int = 64
    heads: int = 2
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    mlp_dim: int = 0
    segment: int = 64
    key_taps: int = 1
    compute: Compute = "float32"

    def __post_init__(self):
        require_positive(
            "model",
            vocab=self.vocab,
            layers=self.layers,
            d_model=self.d_model,
            heads=self.heads,
            segment=self.segment,
            key_taps=self.key_taps,
        )
        require(
            self.compute in typing.get_args(Compute),
            "model.compute",
            f"'{self.compute}' is no compute type",
            "choose float32 or bfloat16",
        )
        require(
            self.kv_heads >= 0 and self.heads % (self.kv_heads or 1) == 0,
            "model.kv_heads",
            f"{self.kv_heads} key heads cannot be shared evenly by {self.heads} heads",
            f"give a divisor of {self.heads}, or 0 for as many",
        )
        for field in ("key_dim", "value_dim"):
            size = getattr(self, field)
            require(size >= 0, f"model.{field}", f"{size} is negative", "give a size, or 0 for d_model / heads")
            require(
                size > 0 or self.d_model % self.heads == 0,
                "model.heads",
                f"{self.heads} heads do not divide d_model {self.d_model}",
                f"choose heads that divide {self.d_model}, or give model.{field}",
            )
        require(self.mlp_dim >= 0, "model.mlp_dim", f"{self.mlp_dim} is negative", "give a width, or 0 for 4 d_model")
        inserts = (self.memory.landmark_every is not None, any(self.memory.memory_tokens))
        require(not all(inserts), "memory", "it asks for landmarks and for memory tokens", "choose one of them")
        dims = self.dims
        require(dims.key_dim % 2 == 0, "model.key_dim", f"{dims.key_dim} is odd and rotary turns pairs", "give an even size")
        for layer in self.memory.layers or ():
            require(
                0 <= layer < self.layers,
                "memory.layers",
                f"layer {layer} does not exist",
                f"name layers 0 to {self.layers - 1}",
            )
        require(self.memory.layers != (), "memory.layers", "no layer carries the memory", "name at least one, or None for all")
        self.memory.check(dims)

    @property
    def dims(self) -> Dims:
        """Sizes of one attention layer."""
        return Dims(
            d_model=self.d_model,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            key_dim=self.key_dim or self.d_model // self.heads,
            value_dim=self.value_dim or self.d_model // self.heads,
            segment=length_with_landmarks(self.segment, self.memory.landmark_every) + sum(self.memory.memory_tokens),
            compute=self.compute,
        )

    @property
    def has_phase(self) -> bool:
        """Landmarks fall at other places in each segment, because segments are no whole landmark blocks."""
        every = self.memory.landmark_every
        return every is not None and self.segment % every != 0

    @property
    def ids(self) -> int:
        """Rows of the embedding: the raw tokens and, behind them, what is inserted into segments."""
        return self.vocab + (self.memory.landmark_every is not None or any(self.memory.memory_tokens))

    @property
    def mechanism(self) -> str:
        """The registry name of the memory."""
        return kind_of(self.memory, mechanism_configs())

    def check_at_once(self, segments: int) -> None:
        """Raises `ConfigError` where so many segments of a stream cannot be taken at once."""
        if segments > 1 and memory_of(self.memory, self.dims).works_on_stream():
            problem = f"{self.mechanism} works on the residual stream, and takes the segments of a stream in turn"
            raise ConfigError("train.segments_per_step", problem, "give 1")

    def layer_memory(self, layer: int) -> MemoryConfig:
        """What layer `layer` carries: the memory, or nothing where `memory.layers` leaves it out."""
        return self.memory if self.memory.layers is None or layer in self.memory.layers else SegmentOnlyConfig()

    @property
    def memory_layers(self) -> int:
        """Number of layers that carry the memory."""
        return self.layers if self.memory.layers is None else len(set(self.memory.layers))

    @property
    def memory_bytes(self) -> int:
        """Bytes a sequence of all layers together, measured on shapes."""
        return self.memory_layers * memory_bytes(memory_of(self.memory, self.dims))

    def at_bytes(self, total: int, axis: str = "") -> "ModelConfig":
        """This model with the largest memory of at most `total` bytes a sequence, all layers together.

        Args:
          axis: one of the mechanism's `axes`, along which the memory grows; its first where none is named. Heads and their
            dims grow in the whole model, which then has more parameters and FLOPs a token.
        """
        mechanism = MECHANISMS[self.mechanism]
        require_positive("memory", bytes=total)
        memory, dims = mechanism.at_bytes(self.memory, self.dims, total // self.memory_layers, axis)
        return dataclasses.replace(
            self,
            memory=memory,
            heads=dims.heads,
            kv_heads=self.kv_heads and dims.kv_heads,
            key_dim=dims.key_dim,
            value_dim=dims.value_dim,
        )


Unit = Literal["flops", "tokens", "steps", "seconds"]
Gives = Literal["steps", "width", "window"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a run may spend.

    Attributes:
      unit: FLOPs of training (three times the forward pass), raw tokens, optimiser steps, or seconds of training on the
        device at hand, without compiling. Seconds become a number of steps before the first one, see
        `infini_jax.training.timed_budget`.
      amount: of that unit.
      gives: what gave way to meet the budget: the number of steps, or the width or the window of the model, sized by
        `infini_jax.model.balance`. It is a note for tables; the sizes themselves stand in the model.
      steps: that the seconds were found to buy, 0 until then and for every other unit.
    """

    unit: Unit = "steps"
    amount: float = 1000.0
    gives: Gives = "steps"
    steps: int = 0

    def __post_init__(self):
        units, gives = typing.get_args(Unit), typing.get_args(Gives)
        require(self.unit in units, "budget.unit", f"'{self.unit}' is no unit", f"choose from {', '.join(units)}")
        require(self.amount > 0, "budget.amount", f"{self.amount:g} {self.unit} buy nothing", "give a positive number")
        require(self.gives in gives, "budget.gives", f"'{self.gives}' cannot give way", f"choose from {', '.join(gives)}")
        require(
            self.steps == 0 or (self.steps > 0 and self.unit == "seconds"),
            "budget.steps",
            f"{self.steps} steps are found for seconds only",
            "give 0; with --budget.unit steps, budget.amount is their number",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
      batch: rows, each a stream of documents.
      sequence: raw tokens of a row a step.
      bptt: segments that gradients flow through; 0 is the whole sequence.
      segments_per_step: segments that every layer takes at once: the same result, sooner where a mechanism has a parallel
        form over segments, with more memory.
      rematerialise: what is made again for the gradient: segment keeps what passes between segments, and all layers of one
        segment at a time; layer keeps one layer at a time, which costs another forward pass.
      accumulate: parts of the batch whose gradients are added up one after the other; the same step with less memory.
      optimiser: by name, see optimiser.py.
      schedule: of the learning rate after the warm-up, see optimiser.py.
      learning_rate: peak of the schedule; with rsqrt, what is divided by the square root of the step.
      gate_learning_rate: peak for the memory gates, which also have no weight decay.
      weight_decay: of matrices, but for what a mechanism declares in `no_decay`.
      warmup: share of the steps with a rising rate.
      average: decay of the moving average of the parameters that is evaluated and kept; 0 keeps the parameters themselves.
      clip: largest norm of the gradient.
      evaluation_steps: batches of held-out data scored at the end, where the task is not made of documents.
      evaluate_every: steps between two readings of held-out documents, see `RunConfig.evaluation`; 0 reads them at the end.
      log_every: steps between metric lines.
    """

    batch: int = 8
    sequence: int = 512
    bptt: int = 0
    segments_per_step: int = 1
    rematerialise: Literal["segment", "layer"] = "segment"
    accumulate: int = 1
    optimiser: Literal["adamw", "adafactor"] = "adamw"
    schedule: Literal["cosine", "rsqrt", "constant"] = "cosine"
    learning_rate: float = 1e-3
    gate_learning_rate: float = 1e-2
    weight_decay: float = 0.1
    warmup: float = 0.1
    average: float = 0.0
    clip: float = 1.0
    evaluation_steps: int = 8
    evaluate_every: int = 0
    log_every: int = 20

    def __post_init__(self):
        require_positive(
            "train",
            batch=self.batch,
            sequence=self.sequence,
            segments_per_step=self.segments_per_step,
            learning_rate=self.learning_rate,
            gate_learning_rate=self.gate_learning_rate,
            clip=self.clip,
            evaluation_steps=self.evaluation_steps,
            log_every=self.log_every,
        )
        require(
            self.rematerialise in ("segment", "layer"),
            "train.rematerialise",
            f"'{self.rematerialise}' is not known",
            "choose segment or layer",
        )
        require(self.evaluate_every >= 0, "train.evaluate_every", f"{self.evaluate_every} steps", "give 0 or more")
        require(
            self.bptt >= 0, "train.bptt", f"{self.bptt} segments", "give a number of segments, or 0 for the whole sequence"
        )
        require(
            self.bptt % self.segments_per_step == 0,
            "train.segments_per_step",
            f"gradients are cut every {self.bptt} segments, not at edges of steps of {self.segments_per_step}",
            f"give a divisor of {self.bptt}, or change train.bptt",
        )
        for field, known in (("optimiser", ("adamw", "adafactor")), ("schedule", ("cosine", "rsqrt", "constant"))):
            name = getattr(self, field)
            require(name in known, f"train.{field}", f"'{name}' is not known", f"choose {' or '.join(known)}")
        require(0 <= self.average < 1, "train.average", f"{self.average} is no decay", "give 0 to below 1, e.g. 0.999")
        require(
            self.accumulate >= 1 and self.batch % self.accumulate == 0,
            "train.accumulate",
            f"{self.batch} rows are not {self.accumulate} equal parts",
            f"give a divisor of {self.batch}",
        )
        require(0 <= self.warmup < 1, "train.warmup", f"{self.warmup} is no share of the steps", "give 0 to below 1")
        require(self.weight_decay >= 0, "train.weight_decay", f"{self.weight_decay} is negative", "give 0 or more")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result; hardware and paths never enter.

    Attributes:
      name: identifies the run, with its version.
      version: raise it when the same name should mean something new.
      variant: tells the run from others of its mechanism in tables.
      seed: of the parameters and of the order of the data.
      model: sizes of the transformer, its memory included.
      data: the task.
      train: how it is trained.
      budget: what it may spend.
      evaluation: what is read of the held-out documents, where the task is made of documents.
    """

    name: str = "run"
    version: int = 1
    variant: str = ""
    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = MqarConfig()
    train: TrainConfig = TrainConfig()
    budget: Budget = Budget()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self):
        sequence, segment = self.train.sequence, self.model.segment
        require_file_name("name", self.name)
        require(
            segment <= sequence,
            "model.segment",
            f"{segment} tokens are longer than the sequence of {sequence}",
            f"give at most {sequence}, or a longer train.sequence",
        )
        require(
            sequence % segment == 0,
            "train.sequence",
            f"{sequence} tokens are not whole segments of {segment}",
            f"give a multiple of {segment}",
        )
        require(
            sequence // segment % self.train.segments_per_step == 0,
            "train.segments_per_step",
            f"{sequence // segment} segments are not whole steps of {self.train.segments_per_step}",
            f"give a divisor of {sequence // segment}",
        )
        self.model.check_at_once(self.train.segments_per_step)
        require(
            self.data.vocab <= self.model.vocab,
            "model.vocab",
            f"{self.model.vocab} symbols, but the data has {self.data.vocab}",
            f"give at least {self.data.vocab}",
        )
        self.data.check(sequence)

    @property
    def task(self) -> str:
        """The registry name of the data."""
        return kind_of(self.data, SOURCES)

    @property
    def mechanism(self) -> str:
        """The registry name of the memory."""
        return self.model.mechanism

    @property
    def memory_bytes(self) -> int:
        """Bytes a sequence of all layers together, measured on shapes."""
        return self.model.memory_bytes

    @property
    def tokens_per_step(self) -> int:
        """Raw tokens of one optimiser step."""
        return self.train.batch * self.train.sequence

    def with_learning_rate(self, rate: float) -> "RunConfig":
        """The same run at another peak of the schedule."""
        return dataclasses.replace(self, train=dataclasses.replace(self.train, learning_rate=rate))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the memory and the data carry their registry name under `kind`."""
        return to_plain(self)

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "RunConfig":
        """The inverse of `to_dict`. Raises `ConfigError` for unknown fields, with a suggestion."""
        return from_plain(RunConfig, plain, "config")

    def program(self, steps: int) -> "RunConfig":
        """The run of so many steps with all fixed that its compiled programs do not depend on: trials and seeds share them."""
        plain = TrainConfig()
        rates = {name: getattr(plain, name) for name in ("learning_rate", "gate_learning_rate", "log_every", "evaluate_every")}
        train, budget = dataclasses.replace(self.train, **rates), Budget("steps", steps)
        return dataclasses.replace(self, name="run", version=1, variant="", seed=0, train=train, budget=budget)

    def fingerprint(self) -> str:
        """Twelve hex digits of what decides the result; names, rhythms and how many segments run at once do not.

        Nor do the steps that seconds were found to buy: they are the machine's.
        """
        science = self.to_dict()
        del science["name"], science["variant"], science["train"]["log_every"]
        del science["budget"]["gives"], science["budget"]["steps"]
        for name in ("evaluate_every", "segments_per_step", "rematerialise", "accumulate"):
            del science["train"][name]
        return digest_of(science)
