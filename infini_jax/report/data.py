"""The data behind a figure: a line for every run that is drawn, as text that spreadsheets and other programs read."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from infini_jax.records.rows import Row

COLUMNS = (
    "run",
    "task",
    "mechanism",
    "variant",
    "seed",
    "memory_bytes",
    "memory_bytes_bf16",
    "neighborhood_bytes",
    "parameters",
    "learning_rate",
    "rate_inside",
    "budget_unit",
    "budget_amount",
    "rung",
    "flops_planned",
    "flops_per_token",
    "steps",
    "tokens",
    "loss",
    "accuracy",
    "test_loss",
    "test_accuracy",
    "gate_mean",
)
"""Columns of a row that stand in the data of every figure; docs/results.md says what they mean."""


def runs_behind(rows: Sequence[Row]) -> str:
    """The runs behind a figure as comma-separated values: a head of `COLUMNS`, then a line per run, empty where unknown.

    Figures of evaluations stand in the study's measures.parquet under the run's name.
    """
    file = io.StringIO()
    table: Any = csv.writer(file, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        table.writerow(["" if (value := getattr(row, name)) is None else value for name in COLUMNS])
    return file.getvalue()
