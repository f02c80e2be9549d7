"""The table of slopes: how much the score of a mechanism changes with each doubling of its bytes of memory."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from infini_jax.analysis.intervals import NOTHING, curves_of
from infini_jax.records.rows import Row
from infini_jax.report.behind import behind
from infini_jax.report.claims import verdict_on_difference
from infini_jax.report.found import Found, by_task
from infini_jax.report.looks import label_of
from infini_jax.report.parts import NotMeasured, Table, number, reasoned
from infini_jax.report.plots import by_series, medians_of
from infini_jax.report.scores import score_for
from infini_jax.report.settled import common_rows
from infini_jax.study.scores import HalfPoints, Score
from infini_jax.study.study import BOUNDS
from infini_jax.units import human_bytes

FEWEST_SIZES = 3  # of a slope
TITLE = "Change of the score with each doubling of memory"


def slopes_table(found: Found) -> Table | NotMeasured:
    """The table of slopes of every mechanism and variant with three sizes of memory, on every task.

    n50 is left out: its growth is the exponent of F2. `found` has the rows of the chosen rates on all rungs; a mechanism is
    taken on the highest rung that all of its sizes have finished.
    """
    lines = []
    for task, rows in by_task(found.rows, found.configs).items():
        score = score_for(rows, found)
        compared = [row for row in rows if row.mechanism not in BOUNDS and row.learning_rate is not None and row.memory_bytes]
        for series, every in by_series([] if isinstance(score, HalfPoints) else compared).items():
            of = common_rows(every)
            if len({row.memory_bytes for row in of}) >= FEWEST_SIZES:
                lines.append((label_of(series), task, *slope_line(of, score)))
    if not lines:
        return NotMeasured("slopes", TITLE, f"runs of a mechanism at {FEWEST_SIZES} sizes of memory at least")
    return Table(
        f"{TITLE}: least squares of each seed's scores against log₂ of the bytes; mean over seeds and its 95 % interval by "
        "Student's t. A slope is one number for a curve that need not be straight: where the medians go back on the way, the "
        "line says where, and the slope is no law.",
        ("Mechanism", "Task", "Change per doubling [95 % interval]", "Unit", "Verdict", "Sizes", "Monotone", "From"),
        tuple(lines),
        words=True,
    )


def slope_line(rows: Sequence[Row], score: Score) -> tuple[str, ...]:
    """The cells of one mechanism and variant on one task."""
    scale = 1.0 if score.unit else 100.0
    curves = curves_of([row.memory_bytes for row in rows], [scale * score.of(row) for row in rows], [row.seed for row in rows])
    doublings_N = np.log2(curves.x_N)
    slope = curves.estimate(lambda y_N: float(np.polyfit(doublings_N, y_N, 1)[0])) if len(doublings_N) > 1 else NOTHING
    verdict, _ = verdict_on_difference(slope, 0.0)
    better = "higher" if score.higher_is_better else "lower"
    unit = f"{score.unit or 'points of a hundred'} of {score.name}, {better} is better"
    return reasoned(slope), unit, verdict, span_text(rows), monotone_text(rows, score), str(behind(score.split, rows))


def span_text(rows: Sequence[Row]) -> str:
    """The number of sizes, the smallest and the largest."""
    sizes = sorted({row.memory_bytes for row in rows})
    return f"{number(len(sizes))}, {human_bytes(sizes[0])} to {human_bytes(sizes[-1])}"


def monotone_text(rows: Sequence[Row], score: Score) -> str:
    """Yes where the medians over seeds go one way only as bytes grow, else the first step that goes back."""
    medians = list(medians_of([row for row in rows if math.isfinite(score.of(row))], score).items())
    steps = [(size, bigger, after - before) for (size, before), (bigger, after) in itertools.pairwise(medians)]
    way = sum(change for *_, change in steps)
    back = [f"no: back from {human_bytes(size)} to {human_bytes(bigger)}" for size, bigger, step in steps if step * way < 0]
    return back[0] if back else "yes"
