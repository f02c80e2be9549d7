"""F11, the score against training FLOPs of a study whose runs climb a ladder of budgets."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from infini_jax.records.rows import Row
from infini_jax.report.found import Found, alike, by, by_task, sizes_text
from infini_jax.report.looks import INK, Series, Style, in_order, label_of, series_of
from infini_jax.report.parts import Drawn, Figures, NotMeasured, flops_text
from infini_jax.report.plots import draw_seeds, key, name_panels, our_look, panels, rule, share_axis
from infini_jax.report.scores import score_for
from infini_jax.report.tasks import chance_of
from infini_jax.study.scores import Score

TITLE = "Score against training FLOPs"


def score_against_flops(found: Found, styles: dict[Series, Style]) -> Figures:
    """F11: the score of every point on every finished rung, one figure per task, one panel for points of the same bytes.

    `found` has the rows of the chosen rates on all rungs.
    """
    tasks = {task: [row for row in rows if row.rung is not None] for task, rows in by_task(found.rows, found.configs).items()}
    drawn = [one_task(task, rows, found, styles) for task, rows in tasks.items() if rows]
    return [*drawn] or [NotMeasured("F11", TITLE, "a study with a ladder of budgets")]


def one_task(task: str, rows: Sequence[Row], found: Found, styles: dict[Series, Style]) -> Drawn:
    """The figure of one task."""
    score, sizes = score_for(rows, found), alike(rows)
    chance = chance_of(rows, found, score)
    series = in_order(map(series_of, rows), styles)
    with our_look():
        figure, each = panels(len(sizes), 1.75, len(series) + (chance is not None))
        for axes, of in zip(each, sizes, strict=True):
            axes.set_title(sizes_text(of), loc="left")
            draw_points(axes, of, score, styles)
            flops_axis(axes, rows)
            if not score.unit:
                share_axis(axes)
            if chance is not None:
                axes.axhline(chance, color=INK, linestyle=(0, (2, 3)), linewidth=1.0, zorder=1)
        entries = [key(styles[one], label_of(one)) for one in series] + [rule("chance")] * (chance is not None)
        name_panels(figure, entries, "training FLOPs planned", f"{score.axis}, validation")
    return Drawn(
        f"F11-{task}",
        f"{TITLE}: {task}",
        figure,
        "Every marker is one seed at the learning rate that validation chose on that rung, a full schedule of its own; lines "
        "join the medians over seeds. Scores are of the validation split, by which rungs are climbed.",
        f"{len(sizes)} panels, one for mechanisms of the same bytes: {'; '.join(map(sizes_text, sizes))}.",
        tuple(rows),
    )


def draw_points(axes: Axes, of: Sequence[Row], score: Score, styles: dict[Series, Style]) -> None:
    """Draws each point as a line over its rungs."""
    for (series, _), rows in by(of, lambda row: (series_of(row), row.memory_bytes)).items():
        draw_seeds(axes, [row.flops_planned for row in rows], [score.of(row) for row in rows], styles[series])


def flops_axis(axes: Axes, rows: Sequence[Row]) -> None:
    """Makes x a logarithmic axis of FLOPs, labeled at the rungs; matplotlib would write powers as mathematics."""
    rungs = by(rows, lambda row: row.rung)
    ticks = [statistics.median(row.flops_planned for row in of) for of in rungs.values()]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [flops_text(tick) for tick in ticks])
    axes.minorticks_off()
