"""What stands in the tables that `load` makes: name, unit and meaning of every column and of every metric of the curves."""

import dataclasses
import re
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the tables that `load` makes, or a metric of the curves.

    Attributes:
      table: it stands in, "metrics" for a name in the column `metric` of the curves.
      name: of the column, where N is any whole number.
      unit: "" for text and for what has none.
      meaning: in words.
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
    ("version", "", "of the run: raised where the same name means something new"),
    ("fingerprint", "", "twelve hex digits of the settings that decide the result"),
    ("seed", "", "of parameters and data"),
    ("study", "", "name of the study, empty where the run was trained alone"),
    ("task", "", "data source, such as mqar"),
    ("mechanism", "", "name in the registry, such as infini"),
    ("variant", "", "what sets it apart from the mechanism's defaults, or empty"),
    ("memory_bytes", "bytes", "carried for one sequence, all layers together"),
    ("parameters", "scalars", "that are learned"),
    ("learning_rate", "", "peak of the schedule; null where nothing is learned"),
    ("flops_per_token", "FLOPs", "of the forward pass for one raw token, counted"),
    ("budget_unit", "", "what the budget is counted in"),
    ("budget_amount", "budget_unit", "what the run might spend"),
    ("gives", "", "what gave way to meet the budget: steps, width or window"),
    ("flops_planned", "FLOPs", "of training, forward and backward by formulas, for the planned steps"),
    ("flops_actual", "FLOPs", "the same for the steps that were done"),
    ("flops_counted", "FLOPs", "of the same steps, counted in their program, recomputation left out; null in old tables"),
    ("flops_executed", "FLOPs", "of the compiled steps, recomputation included"),
    ("steps", "steps", "of the optimiser that were done"),
    ("tokens", "tokens", "raw ones, trained on"),
    ("seconds", "s", "of training, without compiling and without scoring held-out data"),
    ("compile_seconds", "s", "of compiling"),
    ("train_loss", "nats/token", "of the last logged step"),
    ("loss", "nats/token", "of the scored tokens of the validation split"),
    ("accuracy", "share", "of the scored tokens of the validation split whose top prediction is right"),
    ("test_loss", "nats/token", "the same as loss of the test split, by which nothing is chosen; null without one"),
    ("test_accuracy", "share", "the same as accuracy of the test split; null without one"),
    ("gate_mean", "share", "mean gate over heads and layers after training; null without gates"),
    ("gate_spread", "share", "how far the gates lie apart; null without gates"),
    ("corpus", "", "what the data was made from"),
    ("python", "", "version"),
    ("jax", "", "version"),
    ("flax", "", "version"),
    ("package", "", "version of infini_jax"),
    ("device", "", "that it ran on"),
    ("finished", "", "UTC time, ISO 8601"),
    ("config", "", "all settings as JSON; null where the run's folder is not there"),
)

CURVES = (
    ("folder", "", "as in runs"),
    ("run", "", "as in runs; runs that are not finished have curves, too"),
    ("step", "steps", "of the optimiser so far"),
    ("tokens", "tokens", "raw ones, trained on so far; null where the log does not say"),
    ("metric", "", "what was measured, see metrics"),
    ("value", "of the metric", "at this step"),
)

MEASURES = (
    ("folder", "", "as in runs"),
    ("run", "", "as in runs"),
    ("eval", "", "the evaluation, such as passkey"),
    ("metric", "", "what was measured, such as exact_match"),
    ("value", "of the metric", "the figure: shares from 0 to 1, losses in nats a token"),
    ("count", "", "trials or tokens behind it"),
    ("low", "of the metric", "lower end of its 95 % interval, NaN where none is known"),
    ("high", "of the metric", "upper end of it"),
    ("labels", "", "what sets it apart from others of its metric (length, depth, layer, head ...), as JSON"),
)

METRICS = (
    ("seconds", "s", "of training so far, over all restarts, without compiling"),
    ("tokens_per_second", "tokens/s", "of the whole run so far"),
    ("recent_tokens_per_second", "tokens/s", "since the line before, or since the restart"),
    ("mfu", "share", "model FLOPs utilisation of those steps; only where the device's peak is known"),
    ("loss", "nats/token", "of the scored tokens of this step"),
    ("accuracy", "share", "of right predictions of this step"),
    ("gradient_norm", "", "Euclidean norm of the gradient before clipping"),
    ("gate_mean", "share", "mean over all memory gates"),
    ("gate_spread", "share", "largest gate minus the smallest"),
    ("share", "share", "of the work that is done; of jobs that train no transformer"),
    ("validation_loss", "nats/token", "of held-out documents, memory carried"),
    ("validation_word_perplexity", "", "of them, the exponential of nats a word"),
    ("validation_bits_per_byte", "bits/byte", "of them"),
    ("validation_accuracy", "share", "of right predictions in them"),
    ("validation_tokens", "tokens", "of them that were scored"),
    ("validation_loss_reset", "nats/token", "of them, memory emptied at every segment"),
    ("validation_loss_another", "nats/token", "of them, with another document's memory"),
    ("validation_loss_from_N", "nats/token", "memory carried, from N to 2N - 1 tokens into the document"),
)

TABLES: tuple[tuple[Any, tuple], ...] = (("runs", RUNS), ("curves", CURVES), ("measures", MEASURES), ("metrics", METRICS))
COLUMNS = tuple(Column(table, *line) for table, lines in TABLES for line in lines)


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
