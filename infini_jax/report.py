"""A study's results as one self-contained HTML page, and as a table for the terminal.

Every sentence and number on the page is computed from the rows of the study; the same rows give the same page.
"""

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.table import Table

from infini_jax.errors import require
from infini_jax.memory import MECHANISMS
from infini_jax.plots import (
    BASELINE,
    Metrics,
    Score,
    Series,
    Style,
    label_of,
    medians_of,
    points_of,
    score_against_bytes,
    score_of,
    series_of,
    styles_of,
    svg,
    training_curves,
)
from infini_jax.results import Row, read_rows
from infini_jax.run import CONFIG_FILE, METRICS_FILE
from infini_jax.study import FAILED_FILE, TABLE_FILE, Failure
from infini_jax.units import human_bytes

REPORT_FILE = "report.html"
EQUAL = 0.05  # training FLOPs this close (a share of the largest) are called equal: a budget buys whole steps only
WINDOW = f"the sliding window ({BASELINE})"
COUNTS = {
    "budget_unit": "budget, unit",
    "budget_amount": "budget, amount",
    "flops_per_token": "forward FLOPs/token",
    "parameters": "parameters",
    "steps": "steps",
    "tokens": "tokens",
}
MADE_WITH = ("package", "version", "python", "jax", "flax", "device")
NAMES = {"package": "infini_jax", "version": "version of the runs"}


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies in a study's folder. Attributes: rows; missing runs; configs and metrics of the rows' runs, by run name."""

    rows: list[Row]
    missing: list[Failure]
    configs: dict[str, dict[str, Any]]
    metrics: dict[str, Metrics]


def write_report(study_folder: Path, held_equal: dict[str, str], question: str, command: str = "") -> Path:
    """Writes `report.html` into the study's folder, at once or not at all, and returns its path.

    Args:
      held_equal: what the study kept the same in all runs, name -> value; question: what it asks; command: the line that
        remakes it, by default `infini-jax study` with its name.

    Raises `ConfigError` where the folder has no finished run.
    """
    found = find(study_folder)
    styles = styles_of(found.rows)
    tasks = [task_view(task, rows, found, styles) for task, rows in by_task(found.rows).items()]
    study = found.rows[0].study
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("infini_jax"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        study=study,
        question=question,
        command=command or f"infini-jax study {study}",
        missing=found.missing,
        runs=len(found.rows),
        tasks=tasks,
        mechanisms=mechanisms(found.rows),
        held_equal=held_equal,
        settings=same_settings(found),
        provenance=provenance(found.rows),
    )
    file = study_folder / REPORT_FILE
    partial = file.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(file)


def find(folder: Path) -> Found:
    """Reads a study's folder. A run counts as missing where it is in failed.json, or has a folder, but no row."""
    table, noted = folder / TABLE_FILE, folder / FAILED_FILE
    rows = read_rows(table) if table.exists() else []
    errors = {note["run"]: note["error"] for note in json.loads(noted.read_text())} if noted.exists() else {}
    require(
        bool(rows),
        "study",
        f"no finished run in {folder}" + (f" ({len(errors)} failed, the first: {first_line(errors)})" if errors else ""),
        "run the study first" if not errors else "mend that and run it again",
    )
    done = {row.run for row in rows}
    begun = {file.parent.name for file in sorted(folder.glob(f"runs/*/{CONFIG_FILE}"))}
    unfinished = dict.fromkeys(sorted(begun - done), "not finished, and no error was noted")
    return Found(
        rows,
        [Failure(run, error) for run, error in (unfinished | errors).items() if run not in done],
        {run: json.loads(text) for run, text in texts(folder, CONFIG_FILE, done)},
        {run: [json.loads(line) for line in text.splitlines()] for run, text in texts(folder, METRICS_FILE, done)},
    )


def first_line(errors: dict[str, str]) -> str:
    run, error = next(iter(errors.items()))
    return f"{run}: {' '.join(error.split())}"


def texts(folder: Path, name: str, runs: Iterable[str]) -> Iterable[tuple[str, str]]:
    """(run, content) of the file `name` of each run that has it."""
    files = ((run, folder / "runs" / run / name) for run in sorted(runs))
    return ((run, file.read_text()) for run, file in files if file.exists())


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Task -> its rows, tasks by name."""
    return {task: [row for row in rows if row.task == task] for task in sorted({row.task for row in rows})}


def by_series(rows: Sequence[Row]) -> dict[Series, list[Row]]:
    """Mechanism and variant -> its rows, in the order of the figures."""
    return {series: [row for row in rows if series_of(row) == series] for series in styles_of(rows)}


def chance_of(rows: Sequence[Row], configs: dict[str, dict[str, Any]]) -> float | None:
    """The accuracy of a guess in associative recall, one in the number of value symbols; None where runs differ on it."""
    data = [configs.get(row.run, {}).get("data", {}) for row in rows]
    symbols = {settings.get("symbols") if settings.get("kind") == "mqar" else None for settings in data}
    number = symbols.pop() if len(symbols) == 1 else None
    return 1 / (number - number // 2) if number else None


def task_view(task: str, rows: list[Row], found: Found, styles: dict[Series, Style]) -> dict[str, Any]:
    """What the page says about one task."""
    score, chance = score_of(task), chance_of(rows, found.configs)
    equal, flops = equality(rows)
    title = f"{score.name.capitalize()} against memory{' at equal training FLOPs' if equal else ''}: {task}"
    ranges = [f"{label_of(series)}: {range_of(runs, score)}" for series, runs in by_series(rows).items()]
    told = [line for line in (found.metrics.get(row.run) for row in rows) if line]
    gated = [row for row in rows if row.gate_mean is not None]
    return {
        "name": task,
        "finding": finding(rows, score, chance),
        "ranges": ranges,
        "several": bool(median_word(rows)),
        "notes": [*notes(rows, score), flops],
        "score": score,
        "title": title,
        "figure": Markup(
            svg(
                score_against_bytes(rows, score, styles, chance),
                f"score-{task}",
                title,
                f"Smallest to largest memory. {'; '.join(ranges)}." + (f" Chance {score.text(chance)}." if chance else ""),
            )
        ),
        "curves": curves(task, rows, found.metrics, "loss", "training loss, nats", styles) if told else None,
        "gate_curves": curves(task, gated, found.metrics, "gate_mean", "mean gate", styles) if told and gated else None,
        "table": [table_line(series, runs) for series, runs in groups(rows)],
        "gates": [gate_line(series, runs) for series, runs in groups(gated)],
    }


def curves(
    task: str, rows: list[Row], metrics: dict[str, Metrics], column: str, name: str, styles: dict[Series, Style]
) -> Markup:
    """The small multiples of one metric as an element of the page."""
    said = f"{name.capitalize()} of every run of {task} against tokens trained on, one panel a mechanism"
    return Markup(
        svg(
            training_curves(rows, metrics, column, name, styles), f"{column}-{task}", said, "A paler line is a smaller memory."
        )
    )


def groups(rows: Sequence[Row]) -> list[tuple[Series, list[Row]]]:
    """The runs that differ in nothing but the seed, by mechanism and memory."""
    return [(series, seeds) for series, runs in by_series(rows).items() for seeds in points_of(runs).values()]


def median_word(rows: Sequence[Row]) -> str:
    return "median " if any(len(runs) > 1 for _, runs in groups(rows)) else ""


def range_of(rows: Sequence[Row], score: Score) -> str:
    """The median score with the smallest and the largest memory of one mechanism."""
    ends = [f"{score.text(value)} at {human_bytes(size)}" for size, value in medians_of(rows, score).items()]
    return ends[0] if len(ends) == 1 else f"{ends[0]}, {ends[-1]}"


def finding(rows: Sequence[Row], score: Score, chance: float | None) -> str:
    """One sentence: the best score and who reached it, the sliding window's, and a guess's."""
    medians = [
        (value, f"{label_of(series)} at {human_bytes(size)}")
        for series, runs in by_series(rows).items()
        for size, value in medians_of(runs, score).items()
    ]
    best = (max if score.higher_is_better else min)(value for value, _ in medians)
    reached = [where for value, where in medians if score.text(value) == score.text(best)]
    most = "highest" if score.higher_is_better else "lowest"
    where = ", ".join(reached) if len(reached) <= 3 else f"{len(reached)} of {len(medians)} points"
    parts = [f"The {most} {median_word(rows)}{score.name} is {score.text(best)} ({where})"]
    if window := [row for row in rows if row.mechanism == BASELINE]:
        parts.append(f"{WINDOW} has {range_of(window, score)}")
    if chance is not None:
        parts.append(f"a guess has {score.text(chance)}")
    return "; ".join(parts) + "."


def notes(rows: Sequence[Row], score: Score) -> list[str]:
    """What the rows allow to be said about memory against the window, and how many seeds stand behind it."""
    found = []
    sign = 1 if score.higher_is_better else -1
    window = [sign * score.of(row) for row in rows if row.mechanism == BASELINE]
    others = by_series([row for row in rows if row.mechanism != BASELINE])
    largest = {label_of(series): list(points_of(runs).values())[-1] for series, runs in others.items()}
    if window and largest:
        bar = max(window)
        better = [label for label, runs in largest.items() if all(sign * score.of(row) > bar for row in runs)]
        found.append(
            f"With its largest memory, every run of {', '.join(better)} is better than every run of {WINDOW}."
            if better
            else f"No mechanism's runs with its largest memory are all better than every run of {WINDOW}."
        )
    counts = sorted({len(runs) for _, runs in groups(rows)})
    found.append(
        "One seed a point: how much a score varies from seed to seed is not known."
        if counts == [1]
        else f"{'–'.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} seeds a point."
    )
    return found


def equality(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether the training FLOPs of a task's runs are equal, and the sentence that says so."""
    low, high = min(row.flops_actual for row in rows), max(row.flops_actual for row in rows)
    apart = (high - low) / high if high else 0.0
    return apart <= EQUAL, (
        f"Training FLOPs spent: {flops_text(low)} to {flops_text(high)}, {100 * apart:.1f} % apart"
        f"{'' if apart <= EQUAL else ': not equal'}."
    )


def flops_text(flops: float) -> str:
    mantissa, exponent = f"{flops:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def spread(values: Iterable[float], text: Callable[[float], str]) -> str:
    """The value, or the smallest and the largest where they differ."""
    ordered = sorted(values)
    return "–".join(dict.fromkeys((text(ordered[0]), text(ordered[-1]))))


def tokens_per_second(rows: Sequence[Row]) -> str:
    """Median training throughput."""
    rates = [row.tokens / row.seconds for row in rows if row.seconds > 0]
    return f"{statistics.median(rates):,.0f}" if rates else "–"


def table_line(series: Series, runs: list[Row]) -> dict[str, Any]:
    """One line of the task's table: the runs of a mechanism with one memory."""
    score = score_of(runs[0].task)
    return {
        "series": series,
        "cells": [
            f"{runs[0].memory_bytes:,}",
            spread((row.parameters for row in runs), "{:,}".format),
            *(
                spread((getattr(row, name) for row in runs), flops_text)
                for name in ("flops_per_token", "flops_planned", "flops_actual", "flops_executed")
            ),
            spread((row.steps for row in runs), "{:,}".format),
            spread((row.tokens for row in runs), "{:,}".format),
            tokens_per_second(runs),
            f"{statistics.median(row.compile_seconds for row in runs):.1f}",
        ],
        "scores": [(row.seed, score.number(score.of(row))) for row in runs],
    }


def gate_line(series: Series, runs: list[Row]) -> dict[str, Any]:
    """One line of the table of gates."""
    return {
        "series": series,
        "bytes": f"{runs[0].memory_bytes:,}",
        "means": [(row.seed, f"{row.gate_mean:.3f}") for row in runs],
        "spreads": [(row.seed, f"{row.gate_spread:.3f}") for row in runs if row.gate_spread is not None],
    }


def mechanisms(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Name, summary and paper of the mechanisms that the registry knows."""
    names = dict.fromkeys(mechanism for mechanism, _ in styles_of(rows))
    return [(name, MECHANISMS[name].summary, MECHANISMS[name].paper) for name in names if name in MECHANISMS]


def same_settings(found: Found) -> dict[str, list[str]]:
    """Setting -> its value in each task, "" where it varies or does not exist: computed to be the same in all runs."""
    tasks = by_task(found.rows).values()
    same = [same_in(rows, found.configs) for rows in tasks]
    return {
        name: [values.get(name, "") for values in same] for name in dict.fromkeys(name for values in same for name in values)
    }


def same_in(rows: Sequence[Row], configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The settings and counts with one value in all of `rows`. Settings of a run whose config is lost count as different."""
    counts = [{label: plain(getattr(row, name)) for name, label in COUNTS.items()} for row in rows]
    given = [flat(configs.get(row.run, {})) for row in rows]
    return {
        name: value
        for lines in (counts, given)
        for name, value in lines[0].items()
        if all(line.get(name) == value for line in lines)
    }


def flat(config: dict[str, Any]) -> dict[str, str]:
    """A run's settings by dotted name; what names the run, and the budget, which its row has too, left out."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": text for inner, text in flat(value).items()}
        elif name not in ("name", "seed", "variant", "version"):
            found[name] = plain(value)
    return {name: value for name, value in found.items() if not name.startswith("budget.")}


def plain(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else flops_text(value)
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def provenance(rows: Sequence[Row]) -> dict[str, str]:
    """Versions, device, corpora and dates; where runs differ, each value with its number of runs."""
    found = {NAMES.get(name, name): counted(rows, name) for name in MADE_WITH}
    found |= {f"corpus of {task}": counted(of_task, "corpus") for task, of_task in by_task(rows).items()}
    dates = sorted(row.finished for row in rows)
    return found | {"finished": " to ".join(dict.fromkeys((dates[0], dates[-1])))}


def counted(rows: Sequence[Row], column: str) -> str:
    values = Counter(str(getattr(row, column)) for row in rows)
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({number} runs)" for value, number in sorted(values.items()))


def terminal_table(rows: Sequence[Row]) -> Table:
    """The rows in 80 columns: a line a mechanism and memory, the median over seeds, their range where there are several."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    several = bool(median_word(rows))
    table.add_column("task", no_wrap=True)
    table.add_column("mechanism", overflow="fold")
    for head in ("memory", "score", *(["seeds"] if several else []), "FLOPs", "tokens/s"):
        table.add_column(head, justify="right", no_wrap=True)
    for task, of_task in by_task(rows).items():
        score = score_of(task)
        for number, (series, runs) in enumerate(groups(of_task)):
            values = [score.of(row) for row in runs]
            table.add_row(
                "" if number else task,
                label_of(series),
                human_bytes(runs[0].memory_bytes),
                score.number(statistics.median(values)) + ("" if score.unit else " %"),
                *([spread(values, score.number)] if several else []),
                spread([statistics.median(row.flops_actual for row in runs)], flops_text),
                tokens_per_second(runs),
            )
        table.add_section()
    return table
