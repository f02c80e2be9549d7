"""Rows of finished runs as Parquet: one row per run, columns with a meaning and a unit."""

import dataclasses
import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from infini_jax.files import replaced_at_once

PARQUET = b"PAR1"  # how a file of the format begins and ends


@dataclasses.dataclass(frozen=True)
class Row:
    """One finished run.

    Attributes:
      run: name of the run.
      version: of the name, see `RunConfig`.
      fingerprint: twelve hex digits of the settings that decide the result.
      seed: of the parameters and of the order of the data.
      study: name of the study that it belongs to.
      task: registry name of the data.
      mechanism: registry name of the memory.
      variant: name that tells it from the mechanism's defaults, or "".
      memory_bytes: carried bytes per sequence, all layers.
      parameters: scalars in the parameters.
      learning_rate: peak of the schedule, None where nothing is learned or an old table does not say.
      flops_per_token: forward FLOPs of one raw token, counted.
      budget_unit, budget_amount: the run's budget.
      gives: the quantity that gave way to meet it: steps, width or window.
      flops_planned: training FLOPs of the planned steps, forward and backward, by the mechanism's formulas.
      flops_actual: the same of the steps really done.
      flops_counted: FLOPs of these steps counted in the program, recomputation left out; None in old tables.
      flops_executed: FLOPs of the compiled step's program, recomputation included, times the steps done.
      steps: optimizer steps done.
      tokens: raw tokens trained on.
      seconds: of training without compiling.
      compile_seconds: of compiling.
      train_loss: of the last logged step, nats per scored token.
      loss: nats per scored token of the validation split.
      accuracy: share of the validation split's scored tokens whose top prediction is right.
      test_loss, test_accuracy: loss and accuracy of the test split, by which nothing is ever chosen, None without one.
      gate_mean, gate_spread: over heads and layers after training, None without gates.
      corpus: description of the data.
      python, jax, flax, package: versions.
      device: that it ran on.
      finished: UTC time, ISO 8601.
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


ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), float | None: pa.float64()}
SCHEMA = pa.schema([(field.name, ARROW[field.type]) for field in dataclasses.fields(Row)])
# Columns that old tables lack, with what stands for them.
LATER = dict.fromkeys(("learning_rate", "flops_counted", "test_loss", "test_accuracy"), "null") | {"gives": "'steps'"}


def is_whole(file: Path) -> bool:
    """Whether a Parquet file is there to its end; one that was cut off lacks the mark that the format ends with."""
    if not file.is_file() or file.stat().st_size < 2 * len(PARQUET):
        return False
    with file.open("rb") as opened:
        opened.seek(-len(PARQUET), os.SEEK_END)
        return opened.read() == PARQUET


def write_rows(rows: list[Row], file: Path) -> None:
    """Writes the table at once or not at all: a reader never sees half a file."""
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
    with replaced_at_once(file) as partial:
        pq.write_table(table, partial)


def read_rows(file: Path) -> list[Row]:
    """The rows of a table by task, mechanism, variant, bytes and seed. An old table may lack the columns in `LATER`."""
    there = pq.read_schema(file).names
    columns = [f"{LATER[name]} as {name}" if name in LATER and name not in there else name for name in SCHEMA.names]
    found = duckdb.sql(
        f"select {', '.join(columns)} from read_parquet($file) order by task, mechanism, variant, memory_bytes, seed",
        params={"file": str(file)},
    )
    return [Row(*values) for values in found.fetchall()]
