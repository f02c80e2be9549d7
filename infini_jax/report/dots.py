"""The scores of one task by mechanism and variant, for studies that compare settings at one size of memory."""

import statistics
from collections.abc import Collection, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from infini_jax.records.rows import Row
from infini_jax.report.found import alike
from infini_jax.report.looks import INK, OF_MECHANISMS, Series, Style, in_order, label_of, series_of
from infini_jax.report.plots import WIDTH, hollow, marks, our_look
from infini_jax.study.scores import Score

BOUNDS = tuple(name for name, look in OF_MECHANISMS.items() if look.colour == INK)  # floor and ceiling
FEWEST = 3  # mechanisms and variants of one size, from which on their names make a better axis than their bytes


def has_one_size(rows: Sequence[Row]) -> bool:
    """Whether all memories but floor and ceiling have one size, and there are several, so that bytes tell nothing."""
    compared = [row for row in rows if row.mechanism not in BOUNDS]
    return len({series_of(row) for row in compared}) >= FEWEST and len(alike(compared)) == 1


def score_by_name(
    rows: Sequence[Row],
    score: Score,
    styles: dict[Series, Style],
    chance: float | None = None,
    unsettled: Collection[str] = (),
) -> Figure:
    """The scores of one task, one line per mechanism and variant: a marker for every seed, a bar for their median.

    Args:
      rows: the runs of one task.
      score: how they are scored.
      styles: the look of each mechanism and variant.
      chance: score of a guess, drawn as a line where it is known.
      unsettled: names of runs whose markers are hollow, as their score still changes with the budget.
    """
    drawn = in_order(map(series_of, rows), styles)
    with our_look():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.19 * len(drawn)), layout="constrained")
        axes = figure.add_subplot()
        for place, series in enumerate(drawn):
            look, of = styles[series], [row for row in rows if series_of(row) == series]
            for row in of:
                settings = hollow(look) if row.run in unsettled else marks(look)
                axes.plot([score.of(row)], [place], **settings, linestyle="none", clip_on=False, zorder=3)
            middle = statistics.median(map(score.of, of))
            axes.plot([middle], [place], "|", color=INK, markersize=11, markeredgewidth=1.4, clip_on=False, zorder=4)
        if chance is not None:
            axes.axvline(chance, color=INK, linestyle=(0, (2, 3)), linewidth=1.0, zorder=1)
        if not score.unit:
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=None))
        axes.set_yticks(range(len(drawn)), [label_of(series) for series in drawn])
        axes.tick_params(axis="y", labelsize=7.5, length=0)
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.set_xlabel(f"{score.axis}{f' (dotted: chance, {score.text(chance)})' if chance is not None else ''}")
    return figure
