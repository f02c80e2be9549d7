"""Rows of finished runs as Parquet: one row per run, columns with a meaning and a unit."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infini_jax.errors import required
from infini_jax.records.parquet import holds_what_was_written, read_table, write_table


@dataclasses.dataclass(frozen=True)
class Row:
    """One finished run.

    Attributes:
      run: name of the run.
      version: version of the name, see `RunConfig`.
      fingerprint: twelve hex digits of the settings that decide the result.
      seed: seed of the parameters and of the order of the data.
      study: name of the study that it belongs to.
      task: registry name of the data.
      mechanism: registry name of the memory.
      variant: name that tells it from the mechanism's defaults, or "".
      memory_bytes: bytes of memory per sequence, all layers together, without those of a neighborhood.
      parameters: scalars in the parameters.
      learning_rate: peak of the schedule, None where nothing is learned or an old table does not say.
      flops_per_token: forward FLOPs of one raw token, counted.
      budget_unit, budget_amount: the run's budget.
      gives: the quantity that gave way to meet the budget: steps, width or window.
      flops_planned: training FLOPs of the planned steps, forward and backward, by the mechanism's formulas.
      flops_actual: training FLOPs of the steps really done, by the same formulas.
      flops_counted: FLOPs of these steps counted in the program, recomputation left out; None in old tables.
      flops_executed: FLOPs of the compiled step's program, recomputation included, times the steps done.
      steps: optimizer steps done.
      tokens: raw tokens trained on.
      seconds: seconds of training without compiling.
      compile_seconds: seconds of compiling.
      train_loss: loss of the last logged step, nats per scored token.
      loss: nats per scored token of the validation split.
      accuracy: share of the validation split's scored tokens whose top prediction is right.
      test_loss, test_accuracy: loss and accuracy of the test split, by which nothing is ever chosen, None without one.
      gate_mean, gate_spread: mean of the gates over heads and layers after training, and the largest minus the smallest; None
        without gates.
      corpus: description of the data.
      python, jax, flax, package: versions.
      device: the device that the run used.
      finished: UTC time, ISO 8601.
      skipped_steps: number of steps that changed nothing, because their gradient was not finite.
      origin: name of the run at whose parameters it began, None where they were fresh; and of that run
      origin_fingerprint, origin_step, origin_digest: its fingerprint, its step, and the digest of the parameters.
      stopped_early: reason why the run ended before its budget was spent, None where it was spent.
      form: form of the training step, see `infini_jax.model.form.Form`; None in old tables and where no model is trained.
      fleet: number of runs that took their steps in one program side by side and share the seconds; None for a run alone.
      neighborhood_bytes: bytes per sequence of what `memory.local`, or the attention of a model that got a memory, carries
        beside it, all layers together.
      rung: number of the rung of its study's ladder, from 1, where all runs of its point on that rung have ended; None else,
        and in a run's own table, as are all columns that other runs decide.
      rate_inside: whether the learning rate that validation chose for its point lies inside those that were tried; None where
        one was tried, or runs of the point have not ended.
      trained_parameters: scalars that were trained, low-rank factors included; None where all of the parameters were.
      memory_bytes_bf16: `memory_bytes` with numbers at bfloat16, for mechanisms that can keep them so between segments; None
        for others and in old tables.
    """

    run: str
    version: int
    fingerprint: str
    seed: int
    study: str
    task: str
    mechanism: str
    variant: str
    memory_bytes: int
    parameters: int
    learning_rate: float | None
    flops_per_token: float
    budget_unit: str
    budget_amount: float
    gives: str
    flops_planned: float
    flops_actual: float
    flops_counted: float | None
    flops_executed: float
    steps: int
    tokens: int
    seconds: float
    compile_seconds: float
    train_loss: float
    loss: float
    accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    gate_mean: float | None
    gate_spread: float | None
    corpus: str
    python: str
    jax: str
    flax: str
    package: str
    device: str
    finished: str
    skipped_steps: int = 0
    origin: str | None = None
    origin_fingerprint: str | None = None
    origin_step: int | None = None
    origin_digest: str | None = None
    stopped_early: str | None = None
    form: str | None = None
    fleet: int | None = None
    neighborhood_bytes: int = 0
    rung: int | None = None
    rate_inside: bool | None = None
    trained_parameters: int | None = None
    memory_bytes_bf16: int | None = None


ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
ARROW |= {kind | None: arrow for kind, arrow in ARROW.items()}
SCHEMA = pa.schema([(field.name, ARROW[field.type]) for field in dataclasses.fields(Row)])
ORIGIN = ("origin", "origin_fingerprint", "origin_step", "origin_digest")
MARKS = ("rung", "rate_inside")  # that a study's table has of all runs together
# Columns that old tables lack, with what stands for them.
LATER: dict[str, Any] = dict.fromkeys(
    (
        *("learning_rate", "flops_counted", "test_loss", "test_accuracy"),
        *ORIGIN,
        *("stopped_early", "form", "fleet"),
        *MARKS,
        *("trained_parameters", "memory_bytes_bf16"),
    )
) | {
    "gives": "steps",
    "skipped_steps": 0,
    "neighborhood_bytes": 0,
}


def is_whole(file: Path) -> bool:
    """Whether a Parquet file is there and holds what was written. One that was cut off or altered counts as missing."""
    return file.is_file() and holds_what_was_written(file)


def checked_table(file: Path, field: str) -> pa.Table:
    """The table in a Parquet file. Raises `ConfigError` of `field` where it is not whole."""
    mend = f"make it again with the command of the study or `infini-jax report {file.parent}`, or restore it"
    return required(read_table(file), field, f"{file} is damaged or no Parquet", mend)


def write_rows(rows: list[Row], file: Path) -> None:
    """Writes the table at once or not at all: a reader never sees half a file."""
    write_table(pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA), file)


def read_rows(file: Path) -> list[Row]:
    """The rows of a table by task, mechanism, variant, bytes and seed. An old table may lack the columns in `LATER`."""
    return rows_in(pq.ParquetFile(file).read())


def rows_in(table: pa.Table) -> list[Row]:
    """The rows of a table, which may lack the columns in `LATER`, by task, mechanism, variant, bytes and seed."""
    return rows_as_they_stand(in_order(with_later(table)))


def rows_as_they_stand(table: pa.Table) -> list[Row]:
    """The rows of a table of `SCHEMA` in its order."""
    columns = [column.to_pylist() for column in table.columns]
    return [Row(*values) for values in zip(*columns, strict=True)]


def marked(table: pa.Table, marks: Mapping[str, tuple[int | None, bool | None]]) -> pa.Table:
    """A table of `SCHEMA` with the values of the columns `MARKS` by run name, None for runs that have none."""
    found = [marks.get(run, (None, None)) for run in table.column("run").to_pylist()]
    for place, name in enumerate(MARKS):
        values = pa.array([one[place] for one in found], SCHEMA.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), values)
    return table


def in_order(table: pa.Table) -> pa.Table:
    """The rows of a table by task, mechanism, variant, bytes and seed."""
    order = [(name, "ascending") for name in ("task", "mechanism", "variant", "memory_bytes", "seed")]
    return table.sort_by(order) if table.num_rows > 1 else table


def with_later(table: pa.Table) -> pa.Table:
    """The table with the columns of `SCHEMA`, those in `LATER` filled up. Raises `KeyError` where another is missing."""
    if table.schema.equals(SCHEMA):
        return table
    for name in SCHEMA.names:
        if name in LATER and name not in table.column_names:
            table = table.append_column(name, pa.array([LATER[name]] * table.num_rows, SCHEMA.field(name).type))
    return table.select(SCHEMA.names).cast(SCHEMA)
