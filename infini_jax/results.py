"""Results as Parquet: one row a run, columns with a meaning and a unit."""

import dataclasses
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

ROW_FILE = "row.parquet"


@dataclasses.dataclass(frozen=True)
class Row:
    """One finished run.

    Attributes:
      run, version, fingerprint, seed: identity (see `RunConfig`); study: name of the study it belongs to.
      task: data source; mechanism: registry name; variant: what sets it apart from the mechanism's defaults, or "".
      memory_bytes: carried bytes a sequence, all layers; parameters: scalars.
      flops_per_token: forward FLOPs of one raw token, counted; budget_unit, budget_amount: what the run might spend.
      flops_planned: the training FLOPs that the planned steps need; flops_actual: those of the steps really done, both
        three times the forward FLOPs; flops_executed: FLOPs of the compiled step's program, recomputation included, times
        the steps done.
      steps, tokens: optimiser steps done, raw tokens trained on; seconds: training without compiling; compile_seconds.
      train_loss: of the last logged step; loss: held-out nats a scored token; accuracy: held-out share of scored tokens
        whose top prediction is right; gate_mean, gate_spread: over heads and layers after training, None without gates.
      corpus: what the data was made from; python, jax, flax, package: versions; device: what it ran on.
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
    flops_per_token: float
    budget_unit: str
    budget_amount: float
    flops_planned: float
    flops_actual: float
    flops_executed: float
    steps: int
    tokens: int
    seconds: float
    compile_seconds: float
    train_loss: float
    loss: float
    accuracy: float
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


def write_rows(rows: list[Row], file: Path) -> None:
    """Writes the table at once or not at all: a reader never sees half a file."""
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
    partial = file.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(file)


def read_rows(file: Path) -> list[Row]:
    """The rows of a table, ordered by task, mechanism, variant, bytes and seed."""
    found = duckdb.sql(
        f"select {', '.join(SCHEMA.names)} from read_parquet($file) order by task, mechanism, variant, memory_bytes, seed",
        params={"file": str(file)},
    )
    return [Row(*values) for values in found.fetchall()]
