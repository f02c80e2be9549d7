"""The page's section on one task: the finding, the score against bytes, curves, and all numbers."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from infini_jax.config import ModelConfig
from infini_jax.config.plain import from_plain
from infini_jax.errors import ConfigError
from infini_jax.files import json_text
from infini_jax.memory import MECHANISMS
from infini_jax.records.rows import Row
from infini_jax.report.controls import decisions, memory_gains
from infini_jax.report.curves import NO_CURVE
from infini_jax.report.dots import has_one_size, score_by_name
from infini_jax.report.found import Found, at, by_task
from infini_jax.report.looks import BASELINE, Series, Style, label_of, styles_of
from infini_jax.report.parts import Drawn, flops_text, spread
from infini_jax.report.plots import by_series, medians_of, points_of, score_against_bytes, training_curves
from infini_jax.report.scores import WINDOW, against_window, behind_score, score_for
from infini_jax.report.settled import unsettled_runs
from infini_jax.report.summary import NO_CLIMB, Climb, sizes_table, verdict
from infini_jax.report.tasks import chance_of
from infini_jax.study.scores import Score
from infini_jax.training.trained import flattened
from infini_jax.units import human_bytes

EQUAL = 0.05  # training FLOPs this close (a share of the largest) are called equal: a budget buys whole steps only
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


def task_view(
    task: str, rows: list[Row], found: Found, styles: dict[Series, Style], climb: Climb = NO_CLIMB
) -> dict[str, Any]:
    """The template's variables of one task: verdict, finding, notes, figure, curves and numbers.

    Args:
      task: name of the task.
      rows: its rows that are compared.
      found: all results.
      styles: the look of each mechanism and variant.
      climb: its ladder, with the rows of the chosen rates on all rungs.
    """
    score = score_for(rows, found)
    chance = chance_of(rows, found, score)
    decided = decisions(rows, found, score)
    common = {
        "name": task,
        "controls": [*(one.sentence for one in decided), *memory_gains(rows, found, score)],
        "score": score,
        "curves": loss_curves(task, rows, found, styles),
        **numbers(rows, score, found),
    }
    rows = [row for row in rows if math.isfinite(score.of(row))]
    if not rows:
        return common | unscored(score)
    equal, flops = equality(rows)
    by_name = has_one_size(rows)
    title = (
        f"{score.name.capitalize()}{'' if by_name else ' against memory'}{' at equal training FLOPs' if equal else ''}: {task}"
    )
    ranges = [f"{label_of(series)}: {range_of(runs, score)}" for series, runs in by_series(rows).items()]
    climbed, best = climb.standing(score), finding(rows, score, chance)
    changing = unsettled_runs(climb.rows, climbed)
    empty = " Hollow: the score still changed between the last two budgets, or there is one budget only." if changing else ""
    return common | {
        "verdict": verdict(best, decided, climbed, rows),
        "finding": best,
        "sizes": sizes_table(rows, score),
        "notes": [behind_score(rows, score), *notes(rows, score), flops],
        "figure": Drawn(
            f"score-{task}",
            title,
            (score_by_name if by_name else score_against_bytes)(rows, score, styles, chance, changing),
            f"Every marker is one seed; {'bars are' if by_name else 'lines join'} the medians over seeds.{empty} "
            f"{behind_score(rows, score)}",
            f"Smallest to largest memory. {'; '.join(ranges)}." + (f" Chance {score.text(chance)}." if chance else ""),
            tuple(rows),
        ),
    }


def numbers(rows: list[Row], score: Score, found: Found) -> dict[str, list]:
    """The tables of a task: all numbers, and gates."""
    gated = [row for row in rows if row.gate_mean is not None]
    return {
        "table": [table_line(series, runs, score, found) for series, runs in groups(rows)],
        "gates": [gate_line(series, runs) for series, runs in groups(gated)],
    }


def unscored(score: Score) -> dict[str, Any]:
    """The template's variables that say that no run of a task has a score."""
    said = f"No run has a finite {score.name}."
    return {"verdict": said, "finding": said, "sizes": None, "notes": [], "figure": None}


def loss_curves(task: str, rows: list[Row], found: Found, styles: dict[Series, Style]) -> Drawn | None:
    """The training loss of every run; None where no run left its log."""
    if not any(len(found.curves.get(row.run, {}).get("loss", NO_CURVE)[0]) for row in rows):
        return None
    return Drawn(
        f"loss-{task}",
        f"Training loss: {task}",
        training_curves(rows, found.curves, "loss", "training loss, nats", styles),
        "Every run is one line. The thinner and paler a line, the smaller the memory.",
        f"Training loss of every run of {task} against tokens trained on, one panel per mechanism.",
        tuple(rows),
    )


def groups(rows: Sequence[Row]) -> list[tuple[Series, list[Row]]]:
    """The runs that differ in nothing but the seed, by mechanism and memory."""
    return [(series, seeds) for series, runs in by_series(rows).items() for seeds in points_of(runs).values()]


def median_word(rows: Sequence[Row]) -> str:
    """The word "median " where a point has several seeds, "" otherwise."""
    return "median " if any(len(runs) > 1 for _, runs in groups(rows)) else ""


def range_of(rows: Sequence[Row], score: Score) -> str:
    """The median scores with the smallest and the largest memory of one mechanism, as text."""
    ends = [f"{score.text(value)} at {human_bytes(size)}" for size, value in medians_of(rows, score).items()]
    return ends[0] if len(ends) == 1 else f"{ends[0]}, {ends[-1]}"


def finding(rows: Sequence[Row], score: Score, chance: float | None) -> str:
    """One sentence: the best score and its mechanism, the sliding window's score, and a guess's."""
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
    """Sentences about memory against the window, and about the number of seeds behind them."""
    found = against_window(rows, score)
    counts = sorted({len(runs) for _, runs in groups(rows)})
    found.append(
        "One seed per point: how much a score varies from seed to seed is not known."
        if counts == [1]
        else f"{'–'.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} seeds per point."
    )
    if early := [row.steps for row in rows if row.stopped_early]:
        after = spread(early, "{:,}".format)
        found.append(f"{len(early)} of {len(rows)} runs ended early, by their validation loss, after {after} steps.")
    origins = Counter(f"{row.origin} at step {row.origin_step}" for row in rows if row.origin is not None)
    if origins:
        said = ", ".join(f"{origin} ({count})" for origin, count in origins.items())
        found.append(f"Runs that began at another run's parameters: {said}.")
    return found


def equality(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether the training FLOPs of a task's runs are equal, and the sentence that says so."""
    low, high = min(row.flops_actual for row in rows), max(row.flops_actual for row in rows)
    apart = (high - low) / high if high else 0.0
    return apart <= EQUAL, (
        f"Training FLOPs spent: {flops_text(low)} to {flops_text(high)}, {100 * apart:.1f} % apart"
        f"{'' if apart <= EQUAL else ': not equal'}."
    )


def tokens_per_second(rows: Sequence[Row]) -> str:
    """Median training throughput in tokens per second, as text."""
    rates = [row.tokens / row.seconds for row in rows if row.seconds > 0]
    return f"{statistics.median(rates):,.0f}" if rates else "–"


def compression(row: Row, found: Found) -> str:
    """Bytes of a cache of all keys and values of a training sequence, all layers, per byte of memory."""
    config = found.configs.get(row.run, {})
    tokens, model = at(config, "train.sequence"), at(config, "model")
    if not row.memory_bytes or tokens is None or model is None:
        return "–"
    try:
        cache_bytes = from_plain(ModelConfig, model, "model").cache_bytes(tokens)
    except (ConfigError, KeyError, TypeError):  # of another version, or of a mechanism that is not here
        return "–"
    return f"{cache_bytes / row.memory_bytes:.3g}×"


def table_line(series: Series, runs: list[Row], score: Score, found: Found) -> dict[str, Any]:
    """One line of the task's table: the runs of a mechanism with one memory."""
    return {
        "series": series,
        "cells": [
            f"{runs[0].memory_bytes:,}",
            "–" if runs[0].memory_bytes_bf16 is None else f"{runs[0].memory_bytes_bf16:,}",
            compression(runs[0], found),
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
        "scores": [(row.seed, score_text(score, row)) for row in runs],
    }


def score_text(score: Score, row: Row) -> str:
    """The score of a run as text, a dash where it is not finite."""
    value = score.of(row)
    return score.number(value) if math.isfinite(value) else "–"


def gate_line(series: Series, runs: list[Row]) -> dict[str, Any]:
    """One line of the table of gates."""
    return {
        "series": series,
        "bytes": f"{runs[0].memory_bytes:,}",
        "means": [(row.seed, f"{row.gate_mean:.3f}") for row in runs],
        "spreads": [(row.seed, f"{row.gate_spread:.3f}") for row in runs if row.gate_spread is not None],
    }


def mechanisms(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """The mechanisms of the rows that the registry knows: (name, summary, paper)."""
    names = dict.fromkeys(mechanism for mechanism, _ in styles_of(rows))
    found = {name: MECHANISMS.get(name) for name in names}
    return [(name, mechanism.summary, mechanism.paper) for name, mechanism in found.items() if mechanism]


def same_settings(found: Found) -> dict[str, list[str]]:
    """The settings that are the same in all runs of a task, computed from their configs.

    Returns setting -> its value in each task, "" where it varies or does not exist.
    """
    tasks = by_task(found.rows, found.configs).values()
    same = [same_in(rows, found.configs) for rows in tasks]
    return {
        name: [values.get(name, "") for values in same] for name in dict.fromkeys(name for values in same for name in values)
    }


def same_in(rows: Sequence[Row], configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The settings and counts with one value in all of `rows`. Settings of a run whose config is lost count as different."""
    counts = [{label: getattr(row, name) for name, label in COUNTS.items()} for row in rows]
    given = [named_in(configs.get(row.run, {})) for row in rows]
    return {
        name: plain(value)
        for lines in (counts, given)
        for name, value in lines[0].items()
        if all(name in line and is_same(line[name], value) for line in lines)
    }


def named_in(config: dict[str, Any]) -> dict[str, Any]:
    """A run's settings by dotted name, without what names the run and without the budget, which its row has, too."""
    return {
        name: value
        for name, value in flattened(config).items()
        if name.split(".")[-1] not in ("name", "seed", "variant", "version") and not name.startswith("budget.")
    }


def is_same(value: Any, other: Any) -> bool:
    """Whether two settings are the same as text."""
    if type(value) is type(other) and not isinstance(value, list) and value == other:
        return True  # as most are, without their texts
    return plain(value) == plain(other)


def plain(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else flops_text(value)
    return value if isinstance(value, str) else "none" if value is None else json_text(value)


def provenance(rows: Sequence[Row]) -> dict[str, str]:
    """Versions, device, corpora and dates; where runs differ, each value with its number of runs."""
    found = {NAMES.get(name, name): counted(rows, name) for name in MADE_WITH}
    found |= {f"corpus of {task}": counted(of_task, "corpus") for task, of_task in by_task(rows, {}).items()}
    dates = sorted(row.finished for row in rows)
    return found | {"finished": " to ".join(dict.fromkeys((dates[0], dates[-1])))}


def counted(rows: Sequence[Row], column: str) -> str:
    """The value of a column in all rows; where rows differ, each value with its number of runs."""
    values = Counter(str(getattr(row, column)) for row in rows)
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({number} runs)" for value, number in sorted(values.items()))
