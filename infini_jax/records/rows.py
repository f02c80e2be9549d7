"""Rows of finished runs as Parquet: one row a run, columns with a meaning and a unit."""

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
      run, version, fingerprint, seed: identity (see `RunConfig`); study: name of the study it belongs to.
      task: data source; mechanism: registry name; variant: what sets it apart from the mechanism's defaults, or "".
      memory_bytes: carried bytes a sequence, all layers; parameters: scalars.
      learning_rate: peak of the schedule, None where nothing is learned or an old table does not say.
      flops_per_token: forward FLOPs of one raw token, counted; budget_unit, budget_amount: what the run might spend; gives:
        what gave way to meet it: steps, width or window.
      flops_planned: the training FLOPs that the planned steps need; flops_actual: those of the steps really done, both
        three times the forward FLOPs; flops_executed: FLOPs of the compiled step's program, recomputation included, times
        the steps done.
      steps, tokens: optimiser steps done, raw tokens trained on; seconds: training without compiling; compile_seconds.
      train_loss: of the last logged step; loss: nats a scored token of the validation split; accuracy: share of its scored
        tokens whose top prediction is right; test_loss, test_accuracy: the same of the test split, by which nothing is ever
        chosen, None without one; gate_mean, gate_spread: over heads and layers after training, None without gates.
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
    learning_rate: float | None
    flops_per_token: float
    budget_unit: str
    budget_amount: float
    gives: str
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
LATER = {"learning_rate": "null", "gives": "'steps'", "test_loss": "null", "test_accuracy": "null"}  # in tables before them


def is_whole(file: Path) -> bool:
    """Whether a Parquet file is there to its end; one that was cut in half lacks the mark that the format ends with."""
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
    """The rows of a table, ordered by task, mechanism, variant, bytes and seed; an old one lacks the columns in `LATER`."""
    there = pq.read_schema(file).names
    columns = [f"{LATER[name]} as {name}" if name in LATER and name not in there else name for name in SCHEMA.names]
    found = duckdb.sql(
        f"select {', '.join(columns)} from read_parquet($file) order by task, mechanism, variant, memory_bytes, seed",
        params={"file": str(file)},
    )
    return [Row(*values) for values in found.fetchall()]
