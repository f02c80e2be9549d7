"""Settings of training, and its budget. Impossible values raise `ConfigError` before anything compiles."""

import dataclasses
from typing import TYPE_CHECKING, Literal

from infini_jax.config.optimisers import OPTIMISERS, SCHEDULES
from infini_jax.errors import LARGEST, LATER, check_fields, require, require_not_negative, require_positive

Unit = Literal["flops", "tokens", "steps", "seconds"]
Gives = Literal["steps", "width", "window"]
Trains = Literal["all", "memory", "lora"]
MOST: dict[Unit, float] = {"flops": 1e28, "tokens": 1e18, "steps": LARGEST, "seconds": 1e9}  # beyond what anything runs for
if TYPE_CHECKING:
    Optimiser = Schedule = str
else:  # what the command line offers; an experiment may register more
    Optimiser, Schedule = Literal[tuple(OPTIMISERS)], Literal[tuple(SCHEDULES)]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limit of a run.

    Attributes:
      unit: unit of the budget. FLOPs are those of training without recomputation, tokens are raw ones, steps are the
        optimizer's, and seconds those of training on this device, without compilation. Seconds are converted to a number of
        steps before training, see `infini_jax.training.timed_budget`.
      amount: amount of the unit.
      gives: quantity adjusted to meet the budget: the number of steps, or the width or the window of the model, sized by
        `infini_jax.model.balance`. A note for tables; the sizes themselves are in the model.
      steps: number of steps that the seconds were converted to; 0 before that, and for every other unit.
    """

    unit: Unit = "steps"
    amount: float = 1000.0
    gives: Gives = "steps"
    steps: int = 0

    def __post_init__(self):
        check_fields("budget", self)
        require(self.amount > 0, "budget.amount", f"{self.amount:g} {self.unit} is not a budget", "give a positive number")
        most = MOST[self.unit]
        require(self.amount <= most, "budget.amount", f"{self.amount:g} {self.unit} are too many", f"give at most {most:g}")
        require(
            self.steps == 0 or (self.steps > 0 and self.unit == "seconds"),
            "budget.steps",
            f"{self.steps} steps are found for seconds only",
            "give 0; with --budget.unit steps, budget.amount is their number",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a model's training.

    Attributes:
      batch: number of rows per step; each row is a stream of documents.
      sequence: number of raw tokens per row and step.
      bptt: number of segments that gradients flow through; 0 is the whole sequence.
      segments_per_step: number of segments that each layer processes at once. The result is the same; it is faster for
        mechanisms with a parallel form over segments, and needs more memory. 0 chooses by platform and size, see
        `infini_jax.devices.chosen_form`.
      rematerialise: activations that are recomputed for the gradient: none keeps all of them; segment keeps what passes
        between segments, and all layers of one segment at a time; layer keeps one layer at a time, at the cost of another
        forward pass; auto chooses by what fits.
      layer_loop: form of the layers in the program: scan compiles one of each kind; unroll compiles every layer, which takes
        longer to compile and gives fewer and larger kernels; auto chooses by platform.
      accumulate: number of parts of the batch whose gradients are accumulated; the same step with less memory.
      trains: trained parameters: all; memory, those that the run's origin does not have and a mechanism adds; lora, these and
        low-rank factors beside the matrices of the layers, see `infini_jax.model.parts`.
      lora_rank: rank of the low-rank factors; 0 without factors.
      lora_alpha: numerator of the scale lora_alpha / lora_rank of the product of the factors.
      optimiser: optimizer, see `infini_jax.config.optimisers.OPTIMISERS`.
      schedule: learning rate schedule after the warm-up, see `infini_jax.config.optimisers.SCHEDULES`.
      learning_rate: peak learning rate. With rsqrt it is the numerator of rate / sqrt(step).
      gate_learning_rate: peak learning rate of the memory gates.
      gate_weight_decay: weight decay of the memory gates, toward one half.
      weight_decay: weight decay of matrices, except those that a mechanism declares in `no_decay`.
      warmup: fraction of the steps with a rising learning rate.
      average: decay of the moving average of the parameters, which is evaluated and saved; shorter in the first tenth of its
        horizon. 0 uses the parameters themselves.
      z_loss: weight of the z-loss, the mean of log(Z)^2 over scored tokens, with Z the sum of the softmax. It keeps logits
        from drifting (Chowdhery et al. 2022, section 5: 1e-4). Reported losses exclude it; 0 disables it.
      dropout: dropout rate on the embeddings and on the output of each sub-layer before the residual sum; the other entries
        are scaled up (Vaswani et al. 2017, section 5.4: 0.1). Held-out scores, evaluations and generation use none.
      clip: maximum global norm of the gradient; larger gradients are scaled down to it.
      evaluation_steps: number of held-out batches scored at the end, for tasks without documents.
      evaluate_every: number of steps between evaluations on held-out documents. 0 evaluates at the end only; see
        `RunConfig.evaluation`.
      patience: number of these evaluations without a lower validation loss (memory carried) after which the run stops; 0 never
        stops early.
      improvement: smallest decrease of the loss, in nats per token, that counts as lower.
      log_every: number of steps between two metric lines.
    """

    batch: int = 8
    sequence: int = 512
    bptt: int = 0
    segments_per_step: int = 0
    rematerialise: Literal["auto", "none", "segment", "layer"] = "auto"
    layer_loop: Literal["auto", "scan", "unroll"] = "auto"
    accumulate: int = 1
    trains: Trains = dataclasses.field(default="all", metadata=LATER)
    lora_rank: int = dataclasses.field(default=0, metadata=LATER)
    lora_alpha: float = dataclasses.field(default=16.0, metadata=LATER)
    optimiser: Optimiser = "adamw"
    schedule: Schedule = "cosine"
    learning_rate: float = 1e-3
    gate_learning_rate: float = 1e-2
    gate_weight_decay: float = dataclasses.field(default=0.0, metadata=LATER)
    weight_decay: float = 0.1
    warmup: float = 0.1
    average: float = 0.0
    z_loss: float = dataclasses.field(default=0.0, metadata=LATER)
    dropout: float = dataclasses.field(default=0.0, metadata=LATER)
    clip: float = 1.0
    evaluation_steps: int = 8
    evaluate_every: int = 0
    patience: int = 0
    improvement: float = 0.0
    log_every: int = 20

    def __post_init__(self):
        check_fields("train", self, optimiser=OPTIMISERS, schedule=SCHEDULES)
        require_positive(
            "train",
            batch=self.batch,
            sequence=self.sequence,
            learning_rate=self.learning_rate,
            gate_learning_rate=self.gate_learning_rate,
            clip=self.clip,
            evaluation_steps=self.evaluation_steps,
            log_every=self.log_every,
        )
        require(self.evaluate_every >= 0, "train.evaluate_every", f"{self.evaluate_every} steps", "give 0 or more")
        require_not_negative("train", segments_per_step=self.segments_per_step, gate_weight_decay=self.gate_weight_decay)
        require_not_negative("train", patience=self.patience, improvement=self.improvement, z_loss=self.z_loss)
        problem = f"a patience of {self.patience} readings, and none before the end"
        require(not self.patience or self.evaluate_every > 0, "train.evaluate_every", problem, "give a number of steps")
        problem = f"{self.improvement:g} decides nothing without a patience"
        require(not self.improvement or self.patience > 0, "train.improvement", problem, "give train.patience too")
        require(
            self.bptt >= 0, "train.bptt", f"{self.bptt} segments", "give a number of segments, or 0 for the whole sequence"
        )
        require(
            self.bptt % max(self.segments_per_step, 1) == 0,
            "train.segments_per_step",
            f"gradients are cut every {self.bptt} segments, not at edges of steps of {self.segments_per_step}",
            f"give a divisor of {self.bptt}, or change train.bptt",
        )
        require(
            0 <= self.dropout < 1,
            "train.dropout",
            f"{self.dropout} is not a dropout rate",
            "give at least 0 and below 1, such as 0.1",
        )
        require(
            0 <= self.average < 1,
            "train.average",
            f"{self.average} is not a decay",
            "give at least 0 and below 1, such as 0.999",
        )
        require(
            self.accumulate >= 1 and self.batch % self.accumulate == 0,
            "train.accumulate",
            f"{self.batch} rows are not {self.accumulate} equal parts",
            f"give a divisor of {self.batch}",
        )
        self._check_factors()
        require(
            0 <= self.warmup < 1,
            "train.warmup",
            f"{self.warmup} is not a fraction of the steps",
            "give at least 0 and below 1",
        )
        require(self.weight_decay >= 0, "train.weight_decay", f"{self.weight_decay} is negative", "give 0 or more")

    def _check_factors(self) -> None:
        is_lora, mend = self.trains == "lora", "leave it out, or give train.trains lora, too"
        require_not_negative("train", lora_rank=self.lora_rank)
        problem = f"{self.lora_rank} is the rank of no factors with train.trains {self.trains}"
        require(is_lora or not self.lora_rank, "train.lora_rank", problem, mend)
        require(self.lora_rank > 0 or not is_lora, "train.lora_rank", "factors have a rank", "give at least 1, e.g. 8")
        require_positive("train", lora_alpha=self.lora_alpha)
        problem = f"{self.lora_alpha:g} multiplies no factors with train.trains {self.trains}"
        require(is_lora or self.lora_alpha == TrainConfig.lora_alpha, "train.lora_alpha", problem, mend)
