"""Columns of the tables that `load` makes: name, unit and meaning of every column and of every metric of the curves."""

import dataclasses
import re
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the tables that `load` makes, or a metric of the curves.

    Attributes:
      table: table that has the column, "metrics" for a name in the column `metric` of the curves.
      name: name of the column, where N is any whole number.
      unit: unit of the values, "" for text and for numbers without one.
      meaning: meaning in words.
    """

    table: Literal["runs", "curves", "measures", "metrics"]
    name: str
    unit: str
    meaning: str

    def fits(self, name: str) -> bool:
        """Whether this describes a column or metric of the given name."""
        return re.fullmatch(self.name.replace("N", r"\d+"), name) is not None


RUNS = (
    ("folder", "", "where the run was found: the study's folder, or the run's own"),
    ("run", "", "name of the run, one of its kind in its folder"),
    ("version", "", "version of the run's name, raised where the same name means something new"),
    ("fingerprint", "", "twelve hex digits of the settings that decide the result"),
    ("seed", "", "seed of parameters and data"),
    ("study", "", "name of the study, empty where the run was trained alone"),
    ("task", "", "data source, such as mqar"),
    ("mechanism", "", "name in the registry, such as infini"),
    ("variant", "", "name that tells it from the mechanism's defaults, or empty"),
    ("memory_bytes", "bytes", "memory per sequence, all layers together, without a neighborhood beside it"),
    ("parameters", "scalars", "number of learned scalars"),
    ("learning_rate", "", "peak of the schedule; null where nothing is learned"),
    ("flops_per_token", "FLOPs", "forward pass per raw token, counted"),
    ("budget_unit", "", "unit of the budget"),
    ("budget_amount", "budget_unit", "amount that the run may spend"),
    ("gives", "", "what gave way to meet the budget: steps, width or window"),
    ("flops_planned", "FLOPs", "training of the planned steps, forward and backward by formulas"),
    ("flops_actual", "FLOPs", "training of the steps that were done, by the same formulas"),
    ("flops_counted", "FLOPs", "the same counted in the step's program, recomputation left out; null in old tables"),
    ("flops_executed", "FLOPs", "compiled steps that were done, recomputation included"),
    ("steps", "steps", "optimizer steps that were done"),
    ("tokens", "tokens", "raw tokens trained on"),
    ("seconds", "s", "training time, without compiling and without scoring held-out data"),
    ("compile_seconds", "s", "compile time"),
    ("train_loss", "nats/token", "loss of the last logged step"),
    ("loss", "nats/token", "loss over the scored tokens of the validation split"),
    ("accuracy", "share", "scored tokens of the validation split whose top prediction is right"),
    ("test_loss", "nats/token", "loss of the test split, by which nothing is chosen; null without one"),
    ("test_accuracy", "share", "accuracy of the test split; null without one"),
    ("gate_mean", "share", "mean gate over heads and layers after training; null without gates"),
    ("gate_spread", "share", "largest gate minus the smallest after training; null without gates"),
    ("corpus", "", "description of the data"),
    ("python", "", "version of Python"),
    ("jax", "", "version of JAX"),
    ("flax", "", "version of Flax"),
    ("package", "", "version of infini_jax"),
    ("device", "", "device that the run used"),
    ("finished", "", "UTC time, ISO 8601"),
    ("skipped_steps", "steps", "that changed nothing, because their gradient was not finite"),
    ("origin", "", "name of the run at whose parameters it began; null where they were fresh"),
    ("origin_fingerprint", "", "fingerprint of that run"),
    ("origin_step", "steps", "step of that run at which its parameters were taken"),
    ("origin_digest", "", "digest of these parameters, twelve hex digits"),
    ("stopped_early", "", "why the run ended before its budget was spent; null where it was spent"),
    ("form", "", "form of the training step: segments at once, what is made again, how layers run; null in old tables"),
    ("fleet", "runs", "that trained side by side in one program and share the seconds; null for a run alone"),
    (
        "neighborhood_bytes",
        "bytes",
        "per sequence, of what memory.local, or the attention of a model that got a memory, carries; 0 for nothing",
    ),
    ("rung", "", "of the study's ladder, from 1, once its point's runs there have ended; null without a ladder"),
    ("rate_inside", "", "whether its point's chosen learning rate lies inside those tried; null where one was tried"),
    ("trained_parameters", "scalars", "that were trained, low-rank factors included; null where all parameters were"),
    ("memory_bytes_bf16", "bytes", "memory_bytes with numbers at bfloat16; null where the mechanism sums in its memory"),
    ("config", "", "all settings as JSON; null where the run's folder is not there"),
)

CURVES = (
    ("folder", "", "as in runs"),
    ("run", "", "as in runs; runs that are not finished have curves, too"),
    ("step", "steps", "optimizer steps so far"),
    ("tokens", "tokens", "raw tokens trained on so far; null where the log does not say"),
    ("metric", "", "what was measured, see metrics"),
    ("value", "of the metric", "value at this step"),
)

MEASURES = (
    ("folder", "", "as in runs"),
    ("run", "", "as in runs"),
    ("eval", "", "the evaluation, such as passkey"),
    ("metric", "", "what was measured, such as exact_match"),
    ("value", "of the metric", "the figure: shares from 0 to 1, losses in nats per token, of echo per byte"),
    ("count", "", "number of trials or tokens behind the figure"),
    ("low", "of the metric", "lower end of the 95 % interval, NaN where none is known"),
    ("high", "of the metric", "upper end of the 95 % interval, NaN where none is known"),
    ("labels", "", "labels that tell the figure from others of its metric (length, depth, layer, head ...), as JSON"),
)

METRICS = (
    ("seconds", "s", "training time so far, over all restarts, without compiling"),
    ("tokens_per_second", "tokens/s", "speed of the whole run so far"),
    ("recent_tokens_per_second", "tokens/s", "speed since the line before, or since the restart"),
    ("mfu", "share", "model FLOPs utilization since the line before; only where the device's peak is known"),
    ("loss", "nats/token", "loss over the scored tokens of this step"),
    ("accuracy", "share", "right predictions of this step"),
    ("gradient_norm", "", "Euclidean norm of the gradient before clipping"),
    (
        "z_loss",
        "nats/token",
        "weighted mean of log(Z)^2 in the training loss, which `loss` leaves out; only with train.z_loss",
    ),
    ("skipped_steps", "steps", "so far that changed nothing, because their gradient was not finite; only where there are any"),
    ("gate_mean", "share", "mean over all memory gates"),
    ("gate_spread", "share", "largest gate minus the smallest"),
    ("share", "share", "work that is done, for jobs that train no transformer"),
    ("validation_loss", "nats/token", "loss of held-out documents, memory carried"),
    ("validation_word_perplexity", "", "exponential of their nats per word, memory carried"),
    ("validation_bits_per_byte", "bits/byte", "their bits per byte of text, memory carried"),
    ("validation_accuracy", "share", "right predictions in held-out documents, memory carried"),
    ("validation_tokens", "tokens", "scored tokens of held-out documents"),
    ("validation_loss_reset", "nats/token", "loss of held-out documents, memory emptied at every segment"),
    ("validation_loss_another", "nats/token", "loss of held-out documents, with another document's memory"),
    ("validation_loss_from_N", "nats/token", "loss from N to 2N - 1 tokens into held-out documents, memory carried"),
)

TABLES: tuple[tuple[Any, tuple], ...] = (("runs", RUNS), ("curves", CURVES), ("measures", MEASURES), ("metrics", METRICS))
COLUMNS = tuple(Column(table, *line) for table, lines in TABLES for line in lines)
"""Every column of the tables of `load` and every metric of the curves."""


def names_of(table: str) -> list[str]:
    """The names of a table's columns, in their order."""
    return [column.name for column in COLUMNS if column.table == table]


def metric_axis(metric: str) -> str:
    """The name of an axis for a metric, with its unit where one is known."""
    unit = next((column.unit for column in COLUMNS if column.table == "metrics" and column.fits(metric)), "")
    return ", ".join(filter(None, (metric.replace("_", " "), unit)))


def markdown() -> str:
    """All columns and metrics as the tables of docs/results.md."""
    parts = []
    for table in dict.fromkeys(column.table for column in COLUMNS):
        lines = [f"| `{column.name}` | {column.unit} | {column.meaning} |" for column in COLUMNS if column.table == table]
        parts.append("\n".join([f"**{table}**", "", "| name | unit | meaning |", "|---|---|---|", *lines]))
    return "\n\n".join(parts)
