"""The score by which the runs of a task are compared, what stands behind it, and its differences between mechanisms."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini_jax.analysis.intervals import paired_difference, share_deviation
from infini_jax.records.rows import Row
from infini_jax.report.behind import behind, rungs
from infini_jax.report.found import Found, points
from infini_jax.report.looks import BASELINE, label_of
from infini_jax.report.parts import reasoned, spread
from infini_jax.report.plots import by_series, medians_of, points_of
from infini_jax.report.tasks import evaluated
from infini_jax.study.scores import FRESH, Evaluated, Score, score_of, scored_by
from infini_jax.units import human_bytes

WINDOW = f"the sliding window ({BASELINE})"


def score_for(rows: Sequence[Row], found: Found) -> Score:
    """The score by which the runs of a task are compared: that of the test split, or an evaluation of the task as trained on.

    Where not all runs have one of them it is that of the validation split, and is called so.
    """
    task = rows[0].task
    if scored_by(task) == "n50":
        return score_of(task, {point.row.run: [point.measure] for point in points(found, task, "n50")})
    score = score_of(task)
    column: Any = f"test_{score.column}"
    of_test = dataclasses.replace(score, column=column, name=score.name.replace("validation", "test"), split="test")
    if all(of_test.of(row) is not None for row in rows):
        return of_test
    asked = evaluated(rows, found) if not score.unit else {}
    is_asked = asked and all(row.run in asked for row in rows)
    return Evaluated("accuracy", "evaluation accuracy", "", True, FRESH, asked) if is_asked else score


def behind_score(rows: Sequence[Row], score: Score) -> str:
    """The sentence on what stands behind a task's scores: split, answers, seeds, budgets, learning rates."""
    answers = [score.asked(row) for row in rows]
    each = f"{spread(answers, '{:,}'.format)} answers per run; " if all(answers) else ""
    chosen = ", by which learning rates are chosen: it says where to look and is no result"
    return f"Split: {score.split}{chosen if score.split == 'validation' else ''}; {each}{behind('', rows)}."


def against_window(rows: Sequence[Row], score: Score) -> list[str]:
    """The sentence on each mechanism's largest memory against the window of the same seed, at the largest budget of all."""
    *_, (rung, rows) = rungs(rows).items()
    window = [row for row in rows if row.mechanism == BASELINE]
    others = by_series([row for row in rows if row.mechanism != BASELINE])
    if not window or not others:
        return []
    medians = medians_of(window, score)
    best = (max if score.higher_is_better else min)(medians, key=lambda size: medians[size])
    bar = points_of(window)[best]
    said = [
        f"{label_of(series)} {difference(list(points_of(runs).values())[-1], bar, score)}" for series, runs in others.items()
    ]
    unit = score.unit or "points of a hundred"
    return [
        f"With its largest memory, minus {WINDOW} at {human_bytes(best)} of the same seed, in {unit}"
        f"{f' at {rung}' if rung else ''} [95 % interval over seeds]: {'; '.join(said)}."
    ]


def difference(rows: Sequence[Row], others: Sequence[Row], score: Score) -> str:
    """The difference of two groups' scores over the seeds that both have, as text; that of shares in points of a hundred."""
    scale = 1.0 if score.unit else 100.0
    deviation = 0.0
    if not score.unit and all(score.asked(row) for row in (*rows, *others)):
        parts = [[(score.of(row) * score.asked(row), score.asked(row)) for row in group] for group in (rows, others)]
        deviation = math.hypot(*(float(share_deviation(*np.mean(part, axis=0))) for part in parts))
    a, b = ({row.seed: scale * score.of(row) for row in group} for group in (rows, others))
    return reasoned(paired_difference(a, b, scale * deviation))
