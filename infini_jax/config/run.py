"""Settings of a run: validated when made, JSON round trip, fingerprint.

Impossible values raise `ConfigError` (one line: field, problem, mend) before anything compiles. Plain JSON values are made in
`infini_jax.config.plain`.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any

from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.config.model import ModelConfig
from infini_jax.config.origin import Origin
from infini_jax.config.plain import digest_of, from_plain, kind_of, science_of, to_plain
from infini_jax.config.train import Budget, TrainConfig
from infini_jax.data import SOURCES
from infini_jax.data.base import DataConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import LATER, check_fields, require, require_file_name, require_not_negative, require_one_line

STOPPING = ("patience", "improvement")  # settings of training that end a run early


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Settings of a run: everything that decides its result; hardware and paths never enter.

    Attributes:
      name: name that identifies the run, together with its version.
      version: version of the name; raise it when the same name should mean something new.
      variant: name that tells the run from others of its mechanism in tables.
      seed: seed of the parameters, of the order of the data and of the masks of dropout.
      model: sizes of the transformer, its memory included.
      data: settings of the task.
      train: settings of training.
      budget: limit of the run, in FLOPs, tokens, steps or seconds.
      evaluation: how much of the held-out documents is read, where the task is made of documents.
      origin: parameters of another run at which this one begins, None for fresh ones; see `infini_jax.training.origin`.
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
    origin: Origin | None = dataclasses.field(default=None, metadata=LATER)

    def __post_init__(self):
        check_fields("", self)
        require_file_name("name", self.name)
        require_one_line("variant", self.variant)
        require_not_negative("", version=self.version, seed=self.seed)
        sequence, segment = self.train.sequence, self.model.segment
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
            sequence // segment % max(self.train.segments_per_step, 1) == 0,
            "train.segments_per_step",
            f"{sequence // segment} segments are not whole steps of {self.train.segments_per_step}",
            f"give a divisor of {sequence // segment}",
        )
        segments = sequence // segment
        problem = f"{self.train.bptt} segments are more than the {segments} of train.sequence"
        require(self.train.bptt <= segments, "train.bptt", problem, f"give at most {segments}, or 0 for all of them")
        if self.train.lora_rank:
            self._check_rank(self.train.lora_rank)
        self.model.check_at_once(self.train.segments_per_step)
        self.data.check(sequence)
        require(
            self.data.vocab <= self.model.vocab,
            "model.vocab",
            f"{self.model.vocab} symbols, but the data has {self.data.vocab}",
            f"give at least {self.data.vocab}",
        )

    def _check_rank(self, rank: int) -> None:
        d, mlp_dim = self.model.dims, self.model.mlp_dim or 4 * self.model.d_model
        smallest = min(d.d_model, d.kv_heads * d.key_dim, d.kv_heads * d.value_dim, mlp_dim)
        problem = f"{rank} is above {smallest}, the smallest side of a matrix with low-rank factors"
        require(rank <= smallest, "train.lora_rank", problem, f"give at most {smallest}")

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
        """Bytes of memory per sequence, all layers together, measured on shapes."""
        return self.model.memory_bytes

    @property
    def most_scored(self) -> int:
        """Number of places of a row of one step that are scored, at most."""
        return self.data.most_scored(self.train.sequence)

    @property
    def tokens_per_step(self) -> int:
        """Number of raw tokens in one optimizer step."""
        return self.train.batch * self.train.sequence

    def with_learning_rate(self, rate: float) -> "RunConfig":
        """This run at another learning rate, the peak of its schedule."""
        return dataclasses.replace(self, train=dataclasses.replace(self.train, learning_rate=rate))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of the run; the memory and the data carry their registry name under `kind`."""
        return to_plain(self)

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "RunConfig":
        """The run of plain JSON values, the inverse of `to_dict`.

        Raises `ConfigError` with the nearest name for an unknown field.
        """
        return from_plain(RunConfig, plain, "config")

    def program(self, steps: int) -> "RunConfig":
        """This run with a budget of `steps`, and defaults for all settings that its compiled programs do not depend on.

        Runs that share this form, such as trials and seeds, share compiled programs.
        """
        plain = TrainConfig()
        rates = {
            name: getattr(plain, name)
            for name in ("learning_rate", "gate_learning_rate", "log_every", "evaluate_every", *STOPPING)
        }
        train, budget = dataclasses.replace(self.train, **rates), Budget("steps", steps)
        origin = self.origin.anonymous if self.origin and train.trains != "all" else None  # decides what is trained
        return dataclasses.replace(self, name="run", version=1, variant="", seed=0, train=train, budget=budget, origin=origin)

    def in_common(self, steps: int) -> Hashable:
        """What runs of `steps` have in common that may train side by side in one program, see `infini_jax.training.fleet`."""
        program = self.program(steps)
        return self.model, program.train, program.origin, steps, self.most_scored

    def fingerprint(self) -> str:
        """Digest of the settings that decide the result, twelve hex digits.

        Names, rhythms and the number of segments taken at once do not enter. Nor do the steps that seconds were found to buy:
        they are the machine's.
        """
        science = science_of(self)
        del science["name"], science["variant"], science["train"]["log_every"]
        del science["budget"]["gives"], science["budget"]["steps"]
        for name in ("segments_per_step", "rematerialise", "layer_loop", "accumulate"):
            del science["train"][name]
        if not self.train.patience:
            for name in ("evaluate_every", *STOPPING):  # readings decide nothing then
                del science["train"][name]
        if self.origin:
            science["origin"] = {name: science["origin"][name] for name in ("fingerprint", "step", "digest")}
        return digest_of(science)
