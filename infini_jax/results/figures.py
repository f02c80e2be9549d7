"""The standard figures of loaded results, as matplotlib figures; drawn by the code that draws them in reports.

Every one shows the runs in `results.runs` and no others, so that a selection is drawn by taking rows out of that table:

    few = dataclasses.replace(results, runs=results.runs[results.runs.mechanism == "infini"])

Where several learning rates were tried, only the one that was chosen on validation is drawn, as in reports.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from infini_jax.errors import lookup, require
from infini_jax.records.measures import OTHER_MEMORY, Measure, of_own_data
from infini_jax.records.rows import Row
from infini_jax.report.curves import Curves
from infini_jax.report.figures.gates import by_layer
from infini_jax.report.found import Found, by, by_task, joined, points, with_most_memory
from infini_jax.report.looks import styles_of
from infini_jax.report.plots import score_against_bytes
from infini_jax.report.plots import training_curves as drawn_curves
from infini_jax.report.scores import score_for
from infini_jax.report.settled import only_top
from infini_jax.report.tasks import chance_of
from infini_jax.report.trials import only_chosen
from infini_jax.results.columns import metric_axis
from infini_jax.results.load import Results
from infini_jax.study.scores import RECALLED, Score, loss_of


def recall_against_bytes(results: Results, task: str = "") -> Figure:
    """Share of right predictions (or n50, in pairs, where that is how the task is scored) against bytes of memory.

    Args:
      results: the tables of `load`.
      task: one of `tasks(results)`; may be left out where there is only one.

    Raises:
      ConfigError: the task is not there, or no run has a finite score.
    """
    found, rows = of_task(results, task)
    score = score_for(rows, found)
    return against_bytes(found, rows, score if score.higher_is_better else RECALLED)


def loss_against_bytes(results: Results, task: str = "") -> Figure:
    """Held-out loss of the validation split, in nats per token, against bytes of memory.

    Args:
      results: the tables of `load`.
      task: one of `tasks(results)`; may be left out where there is only one.

    Raises:
      ConfigError: the task is not there, or no run has a finite score.
    """
    found, rows = of_task(results, task)
    return against_bytes(found, rows, loss_of(rows[0].task))


def training_curves(results: Results, metric: str = "loss", task: str = "") -> Figure:
    """A metric of the curves against tokens: one panel per mechanism, one line per run, thinner for a smaller memory.

    Args:
      results: the tables of `load`.
      metric: name of the metric, such as loss or accuracy.
      task: one of `tasks(results)`; may be left out where there is only one.

    Raises:
      ConfigError: no run of the task has the metric, or the task is not there.
    """
    found, rows = of_task(results, task)
    curves = [curve for row in rows for curve in found.curves.get(row.run, {}).items()]
    known = {name: True for name, (tokens, _) in curves if len(tokens)}
    require(bool(known), "curves", "no run left a log of its tokens", "load a study's folder with its runs/")
    lookup("metric", metric, known)
    return drawn_curves(rows, found.curves, metric, metric_axis(metric), styles_of(found.rows))


def gates(results: Results) -> Figure:
    """The gate of every head by layer, after training; each mechanism with its largest memory.

    Raises `ConfigError` where no run has figures of the evaluation gates.
    """
    found = only_top(only_chosen(found_of(results)))
    of = with_most_memory(points(found, "gates", "gate"))
    require(
        bool(of), "gates", "none were measured", "`infini-jax evaluate RUN --task gates` does it, for mechanisms with gates"
    )
    return by_layer(of, styles_of(found.rows)).figure


def tasks(results: Results) -> list[str]:
    """The names of the runs' tasks; runs whose data differ, such as in the number of pairs, are of different tasks."""
    found = found_of(results)
    return list(by_task(found.rows, found.configs))


def is_chosen(results: Results) -> list[bool]:
    """Whether validation chose the learning rate of each run in the table; only such runs are drawn.

    It selects rows of a table of either library: `runs[is_chosen(found)]` or `runs.filter(is_chosen(found))`.
    """
    lines = lines_of(results.runs)
    folders = by(lines, lambda line: line["folder"])
    kept = {(folder, row.run) for folder, of in folders.items() for row in only_chosen(folder_of(of, [], [])).rows}
    return [(line["folder"], line["run"]) in kept for line in lines]


def against_bytes(found: Found, rows: Sequence[Row], score: Score) -> Figure:
    """A score of runs against bytes of memory. Raises `ConfigError` where no run has a score that is a number."""
    finite = [row for row in rows if math.isfinite(score.of(row))]
    require(bool(finite), "task", f"no run has a finite {score.name}", "choose another task")
    return score_against_bytes(finite, score, styles_of(found.rows), chance_of(finite, found, score))


def of_task(results: Results, task: str) -> tuple[Found, list[Row]]:
    """(all that is known, rows of the task's runs), for the given task or the only one.

    Raises `ConfigError` where the task is not there, or there are several and none is named.
    """
    found = only_top(only_chosen(found_of(results)))
    named = by_task(found.rows, found.configs)
    require(bool(named), "runs", "there are none that are finished", "load the folder of a study that has finished runs")
    several = not task and len(named) > 1
    require(not several, "task", f"there are {len(named)}: {'; '.join(named)}", "name one of them")
    return found, lookup("task", task or next(iter(named)), named)


def found_of(results: Results) -> Found:
    """The tables as reports see them. Runs of different folders are never pooled."""
    rows = by(lines_of(results.runs), lambda line: line["folder"])
    curves = by(lines_of(results.curves), lambda line: line["folder"])
    measured = by(lines_of(results.measures), lambda line: line["folder"])
    each = [folder_of(lines, curves.get(folder, []), measured.get(folder, [])) for folder, lines in rows.items()]
    return joined([Path(folder) for folder in rows], each) if each else Found([], [], {}, {}, [], {})


def lines_of(frame: Any) -> list[dict[str, Any]]:
    """The rows of a table of either library; what is missing is None."""
    table = frame.to_arrow() if hasattr(frame, "to_arrow") else pa.Table.from_pandas(frame, preserve_index=False)
    return table.to_pylist()


def folder_of(rows: list[dict], curves: list[dict], measured: list[dict]) -> Found:
    """The results of one folder, as reports see them."""
    configs = {line["run"]: json.loads(line["config"]) for line in rows if line["config"]}
    drawn = {run: curves_of_lines(metric_lines(lines)) for run, lines in by(curves, lambda line: line["run"]).items()}
    figures = [(line["run"], measure_of(line)) for line in measured]
    own = [one for one in of_own_data(figures) if OTHER_MEMORY not in one[1].labels]  # the rows' bytes are of these
    return Found([row_of(line) for line in rows], [], configs, drawn, own, {})


def row_of(line: dict[str, Any]) -> Row:
    """A line of the table of runs as a `Row`.

    pandas has one mark for what is missing and what is not a number; which it was, the column tells.
    """
    types = {field.name: field.type for field in dataclasses.fields(Row)}
    values: dict[str, Any] = {name: not_a_number(line[name]) if kind is float else line[name] for name, kind in types.items()}
    return Row(**values)


def not_a_number(value: float | None) -> float:
    """The value, NaN in place of None."""
    return math.nan if value is None else value


def metric_lines(curves: list[dict]) -> list[dict[str, float]]:
    """The lines of a run's log, put together again from one row per metric; metrics of the same step are one line."""
    lines: dict[int, dict[str, float]] = {}
    for one in curves:
        known = {name: one[name] for name in ("step", "tokens") if one[name] is not None}
        lines.setdefault(one["step"], known)[one["metric"]] = not_a_number(one["value"])
    return list(lines.values())


def curves_of_lines(lines: list[dict[str, float]]) -> Curves:
    """The curves in the lines of a run's log."""
    names = dict.fromkeys(name for line in lines for name in line if name not in ("step", "tokens"))
    told = [line for line in lines if "tokens" in line]
    columns = {name: [(line["tokens"], line[name]) for line in told if name in line] for name in names}
    arrays_2xP = {name: np.array(of_name, float).reshape(-1, 2).T for name, of_name in columns.items()}
    return {name: (tokens_P, values_P) for name, (tokens_P, values_P) in arrays_2xP.items()}


def measure_of(line: dict[str, Any]) -> Measure:
    """A line of the table of measures as a figure."""
    value, low, high = (not_a_number(line[name]) for name in ("value", "low", "high"))
    return Measure(line["eval"], line["metric"], value, line["count"], low, high, json.loads(line["labels"]))
