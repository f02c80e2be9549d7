"""Figures of evaluations as a long table: one line per figure, with `labels` that tell it from others of its metric."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infini_jax.data.examples import Label
from infini_jax.files import json_text
from infini_jax.records.parquet import write_table

OTHER_MEMORY = "memory_bytes"  # label of figures of a run read with another memory than it was trained with: its bytes
OTHER_DATA = "data"  # label of figures of other documents than those of the run's own data: their name


@dataclasses.dataclass(frozen=True)
class Measure:
    """One figure of an evaluation.

    Attributes:
      eval: the evaluation, such as passkey.
      metric: name of the measured quantity, such as exact_match.
      value: the figure, in the metric's unit.
      count: trials or tokens behind it.
      low, high: its 95 % interval, NaN where none is known.
      labels: values that tell it from other figures of the same metric: length, depth, novelty, pairs, age ...
    """

    eval: str
    metric: str
    value: float
    count: int
    low: float = math.nan
    high: float = math.nan
    labels: dict[str, Label] = dataclasses.field(default_factory=dict)


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("run", "eval", "metric")]
    + [("value", pa.float64()), ("count", pa.int64()), ("low", pa.float64()), ("high", pa.float64()), ("labels", pa.string())]
)


def write_measures(run: str, measures: Sequence[Measure], file: Path) -> None:
    """Writes the figures of a run to `file` at once or not at all."""
    lines = [{"run": run, **dataclasses.asdict(one), "labels": json_text(one.labels, sort_keys=True)} for one in measures]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(pa.Table.from_pylist(lines, schema=SCHEMA), file)


def join_measures(files: Sequence[Path], file: Path) -> None:
    """Writes the figures of several files as one table, at once or not at all; removes `file` where there are none."""
    write_joined([pq.ParquetFile(one).read() for one in files], file)


def write_joined(tables: Sequence[pa.Table], file: Path) -> None:
    """Writes figures as one table, at once or not at all; removes `file` where there are none."""
    if tables:
        write_table(pa.concat_tables([as_measures(one) for one in tables]).combine_chunks(), file)
    else:
        file.unlink(missing_ok=True)


def as_measures(table: pa.Table) -> pa.Table:
    """The table with the columns of `SCHEMA`. Raises `KeyError` where one is missing."""
    return table if table.schema.equals(SCHEMA) else table.select(SCHEMA.names).cast(SCHEMA)


def read_measures(files: Sequence[Path]) -> list[tuple[str, Measure]]:
    """(run, figure) of all lines of the files, in their order."""
    return [line for file in files for line in measures_in(pq.ParquetFile(file).read())]


def measures_in(table: pa.Table) -> list[tuple[str, Measure]]:
    """(run, figure) of all lines of a table, in their order."""
    runs, *columns, labels = (column.to_pylist() for column in as_measures(table).columns)
    known: dict[str, dict[str, Label]] = {}  # most lines have labels that others have, too
    named = ({**(known.get(text) or known.setdefault(text, json.loads(text)))} for text in labels)
    return [(run, Measure(*values, labels=its)) for run, its, *values in zip(runs, named, *columns, strict=True)]


def of_own_data(figures: Sequence[tuple[str, Measure]]) -> list[tuple[str, Measure]]:
    """The (run, figure) lines that tell of each run's own data, by which runs are compared."""
    return [(run, figure) for run, figure in figures if OTHER_DATA not in figure.labels]
