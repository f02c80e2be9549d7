"""Fine-tuning on classification as an evaluation: what a run's features are worth to GLUE and SuperGLUE.

Defaults are the recipe of BabyLM's evaluation of 2025 (Charpentier et al. 2025, arXiv 2502.10645; its scripts): AdamW at
3e-5 after 6 % of warm-up, by a cosine down to a tenth, decay 0.01, 10 epochs of batches of 32 (30 epochs of `wsc`; batches
of 16 of `boolq` and `multirc`), 512 tokens, 10 000 training examples of `mnli` and `qqp`, dropout of 0.1 in the head, and the
epoch with the best score on the validation split, which is also the score that is reported: an optimistic one, see `held_out`.

DEVIATION: training ends after `patience` epochs without a better score, as in BabyLM's evaluation of 2024 (3); that of 2025
goes on.
DEVIATION: the optimizer is that of runs: second moments decay by 0.95 instead of 0.999, gradients are clipped at a norm of 1,
the head is not decayed, and the model has the run's own dropout.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from infini_jax.analysis.classification import METRICS, counts_of, metric_interval
from infini_jax.config import Origin, RunConfig, TrainConfig
from infini_jax.config.train import Trains
from infini_jax.data.base import tokenizer_of
from infini_jax.data.classification import Labelled, examples_of, labelled
from infini_jax.devices.queue import keep_close
from infini_jax.devices.sharding import Layout, data_mesh
from infini_jax.errors import (
    require,
    require_file_name,
    require_local,
    require_not_negative,
    require_one_line,
    require_positive,
)
from infini_jax.evals.base import Evaluation, Subject, Watch, spread_evenly, unwatched
from infini_jax.finetuning.classifier import ClassifierProgram, TunedState, said_of
from infini_jax.finetuning.rows import Encoded, encoded_examples, reading_batches, row_length, training_batches
from infini_jax.model.cost import model_cost
from infini_jax.records.measures import Measure

BABYLM = ("boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc")  # tasks of BabyLM's evaluation of 2025
EPOCHS, BATCH = {"wsc": 30}, {"boolq": 16, "multirc": 16}  # others: 10 and 32
EXAMPLES = {"mnli": 10_000, "qqp": 10_000}  # others: all


@dataclasses.dataclass(frozen=True)
class Epoch:
    """An epoch of fine-tuning. Attributes: number, from 1; loss in nats per example; score of the examples that choose."""

    number: int
    loss: float
    score: float


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What fine-tuning has found.

    Attributes:
      measures: figures of the best epoch; the first is the task's score.
      epochs: the epochs that were done.
      best: number of the epoch with the best score.
      answers: class that the best epoch gives to each example that was scored, by split.
    """

    measures: list[Measure]
    epochs: list[Epoch]
    best: int
    answers: dict[str, list[int]]

    def to_plain(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class TaskExamples:
    """The examples of a task in a run's tokens.

    Attributes:
      train: examples that are trained on.
      scored: examples of each split that is scored, by name; the first split gives the score.
      choosing: examples that choose the epoch.
      source: where all are from, with classes and metrics.
    """

    train: Encoded
    scored: dict[str, Encoded]
    choosing: Encoded
    source: Labelled

    def digest(self) -> str:
        """Digests of all examples, in one text."""
        return "-".join(one.digest() for one in (self.train, self.choosing, *self.scored.values()))


@dataclasses.dataclass(frozen=True)
class FineTuning(Evaluation):
    """Fine-tunes a run on a task of classification, and scores it on the task's validation split.

    Attributes:
      task: a GLUE or SuperGLUE task, or the name of JSONL files of one's own.
      path: folder or archive of <task>.train.jsonl and <task>.valid.jsonl, or TFDS's; by default a place in the data folder.
      epochs: number of times that training examples are seen; 0 is BabyLM's: 30 of wsc, 10 of others.
      batch: examples per step; 0 is BabyLM's: 16 of boolq and multirc, 32 of others.
      learning_rate: peak of the schedule; gates have as many times more as in the run.
      warmup: share of the steps with a rising rate.
      weight_decay: decay of matrices.
      dropout: share of the head's features that training sets to zero.
      patience: epochs without a better score after which training ends; 0 never ends it early.
      tokens: tokens of an example, of which longer ones lose the end of the longer text; 0 reads all, through the memory.
      train_examples: number of training examples, drawn by the seed; 0 is BabyLM's: 10000 of mnli and qqp, all of others.
      validation_examples: number of validation examples, spread evenly; 0 is all.
      held_out: share of training examples that choose the epoch in place of the validation split; 0 chooses on that.
      trains: parameters that are trained beside the head: all, memory or lora, as in training.
      lora_rank: rank of the factors of lora.
      lora_alpha: scale of the factors of lora, divided by the rank.
      seed: seed of the head, the examples, their order and dropout.
    """

    name: ClassVar[str] = "finetune"

    task: str = "rte"
    path: str = ""
    epochs: int = 0
    batch: int = 0
    learning_rate: float = 3e-5
    warmup: float = 0.06
    weight_decay: float = 0.01
    dropout: float = 0.1
    patience: int = 3
    tokens: int = 512
    train_examples: int = 0
    validation_examples: int = 0
    held_out: float = 0.0
    trains: Trains = "all"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    seed: int = 42

    def __post_init__(self):
        super().__post_init__()
        require_file_name("finetune.task", self.task)
        require_one_line("finetune.path", self.path)
        require_local("finetune.path", self.path)
        counts = {
            "epochs": self.epochs,
            "batch": self.batch,
            "patience": self.patience,
            "tokens": self.tokens,
            "seed": self.seed,
        }
        limits = {"train_examples": self.train_examples, "validation_examples": self.validation_examples}
        require_not_negative("finetune", **counts, **limits)
        require_positive("finetune", learning_rate=self.learning_rate)
        require(self.tokens != 1, "finetune.tokens", "1 is the token of context alone", "give at least 2, or 0 for all")
        require(
            0 <= self.dropout < 1, "finetune.dropout", f"{self.dropout} is no share to drop", "give 0 to below 1, e.g. 0.1"
        )
        require(0 <= self.held_out < 1, "finetune.held_out", f"{self.held_out} is no share", "give 0 to below 1, e.g. 0.1")
        self._train(RunConfig().train, 1, RunConfig().model.segment)

    def applies(self, run: RunConfig) -> bool:
        """Whether the run reads text."""
        return run.data.open_tokenizer() is not None

    def check(self, run: RunConfig) -> None:
        """Checks the settings against a run: raises `ConfigError` where it has no text, or the task is not here."""
        tokenizer_of(run.data)
        self.tuned_run(run, 1)
        labelled(self.task, self.path)

    def cost(self, run: RunConfig) -> float:
        """FLOPs of all epochs: a forward pass for an example that is read, three for one that is trained; padding included."""
        return self.cost_of(run, self.examples(run))

    def cost_of(self, run: RunConfig, found: TaskExamples) -> float:
        """`cost` with the examples at hand."""
        segment = run.model.segment

        def padded(examples: Encoded) -> int:
            return sum(row_length(segment, len(text)) for text in examples.texts)

        read = sum(map(padded, {id(one): one for one in (found.choosing, *found.scored.values())}.values()))
        return model_cost(run.model).flops * self._epochs * (3 * padded(found.train) + read)

    def examples(self, run: RunConfig) -> TaskExamples:
        """The examples in the tokens of a run. Raises `ConfigError` where they are not here or too few to hold some out."""
        tokenizer, source = tokenizer_of(run.data), labelled(self.task, self.path)

        def encoded(fields: Sequence[dict[str, Any]], numbers: Sequence[int]) -> Encoded:
            return encoded_examples(tokenizer, examples_of(source, fields, numbers), self.tokens)

        count, wanted = len(source.train), self.train_examples or EXAMPLES.get(self.task, 0)
        order = np.random.default_rng(self.seed).permutation(count)[: wanted or count].tolist()
        scored = {
            name: encoded(fields, spread_evenly(len(fields), self.validation_examples))
            for name, fields in source.validation.items()
        }
        first, held = next(iter(scored.values())), round(self.held_out * len(order))
        is_enough = len(order) > held and len(first) > 0 and (held > 0 or not self.held_out)
        problem = f"{len(order)} training and {len(first)} validation examples are too few"
        require(is_enough, "finetune.train_examples", problem, "give more, or another held_out")
        choosing = encoded(source.train, order[:held]) if held else first
        return TaskExamples(encoded(source.train, order[held:]), scored, choosing, source)

    def measure(self, subject: Subject, watch: Watch = unwatched) -> list[Measure]:
        """The figures of the best epoch, determined by settings, examples and parameters; `watch` counts steps."""
        return self.tuned(subject, self.examples(subject.run), watch).measures

    def tuned(self, subject: Subject, examples: TaskExamples, watch: Watch = unwatched) -> Tuned:
        """Fine-tunes the run and scores it after every epoch; ends early where the score has not risen for long."""
        rows = min(self._batch, len(examples.train))
        run = self.tuned_run(subject.run, rows)
        steps_an_epoch, classes, metrics = len(examples.train) // rows, len(examples.source.classes), examples.source.metrics()
        steps = self._epochs * steps_an_epoch
        layout = Layout(data_mesh(rows)) if rows % jax.device_count() == 0 else None
        program = ClassifierProgram(run, classes, steps, self.dropout, layout)
        state, epochs, best, answers = program.begin(subject.params), [], Epoch(0, np.nan, -np.inf), {}
        for number in range(1, self._epochs + 1):
            losses = []
            for batch in training_batches(examples.train, rows, run.model.segment, self.seed, number):
                state, nats = program.step(state, batch)
                losses.append(nats)
                keep_close(losses)
                watch((number - 1) * steps_an_epoch + len(losses), steps)
            chosen = answered(program, state, examples.choosing, rows)
            score = float(METRICS[metrics[0]](counts_of(examples.choosing.classes, chosen, classes)))
            epochs.append(Epoch(number, float(np.mean(losses)), score))
            if score > best.score:
                best = epochs[-1]
                answers = {
                    name: chosen if one is examples.choosing else answered(program, state, one, rows)
                    for name, one in examples.scored.items()
                }
            if self.patience and number - best.number >= self.patience:
                break
        watch(steps, steps)
        measures = self._figures(examples, answers)
        return Tuned(measures, epochs, best.number, {name: said.tolist() for name, said in answers.items()})

    def tuned_run(self, run: RunConfig, rows: int) -> RunConfig:
        """The settings of the model and of this training, rows one segment long. Raises `ConfigError` where they cannot be."""
        origin = run.origin if self.trains == "memory" else Origin("", "", "", 0, "", run.model)
        train = self._train(run.train, rows, run.model.segment)
        return dataclasses.replace(run, train=train, origin=origin, seed=self.seed)

    def _train(self, train: TrainConfig, rows: int, segment: int) -> TrainConfig:
        return TrainConfig(
            batch=rows,
            sequence=segment,
            rematerialise=train.rematerialise,
            layer_loop=train.layer_loop,
            trains=self.trains,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            learning_rate=self.learning_rate,
            gate_learning_rate=self.learning_rate * train.gate_learning_rate / train.learning_rate,
            gate_weight_decay=train.gate_weight_decay,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            dropout=train.dropout,
        )

    def _figures(self, examples: TaskExamples, answers: dict[str, np.ndarray]) -> list[Measure]:
        """The figures of answers: of each split, the task's metrics with their intervals over examples."""
        found, classes = [], len(examples.source.classes)
        for split, said in answers.items():
            counts = counts_of(examples.scored[split].classes, said, classes)
            labels = {"task": self.task, "split": split, "seed": float(self.seed)}
            for metric in examples.source.metrics():
                low, high = metric_interval(metric, counts)
                found.append(Measure(self.name, metric, float(METRICS[metric](counts)), len(said), low, high, dict(labels)))
        return found

    @property
    def _epochs(self) -> int:
        return self.epochs or EPOCHS.get(self.task, 10)

    @property
    def _batch(self) -> int:
        return self.batch or BATCH.get(self.task, 32)


def answered(program: ClassifierProgram, state: TunedState, examples: Encoded, rows: int) -> np.ndarray:
    """N, the class that each example is taken for."""
    said_N = np.zeros(len(examples), int)
    for batch, numbers in reading_batches(examples, rows, program.run.model.segment):
        said_N[numbers] = said_of(program.answer(state, batch))[: len(numbers)]
    return said_N
