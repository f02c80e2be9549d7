"""The first screen of a page: one verdict per task with its conditions, and the score of every mechanism at every size."""

import dataclasses
import statistics
from collections.abc import Sequence

from infini_jax.records.rows import Row
from infini_jax.report.controls import Decision
from infini_jax.report.found import alike, by, sizes_text
from infini_jax.report.looks import label_of, series_of
from infini_jax.report.parts import Table
from infini_jax.report.plots import by_series
from infini_jax.report.settled import Standing, standing
from infini_jax.study.ladder import Ladder
from infini_jax.study.scores import Score
from infini_jax.units import human_bytes


@dataclasses.dataclass(frozen=True)
class Climb:
    """A task on its ladder of budgets.

    Attributes:
      rows: rows of the chosen rates on all rungs.
      ladder: the study's ladder; None without one, and where several studies are on the page.
    """

    rows: tuple[Row, ...]
    ladder: Ladder | None

    def standing(self, score: Score) -> Standing | None:
        """What the last two rungs say; None without a ladder."""
        return standing(self.rows, score, self.ladder) if self.ladder else None


NO_CLIMB = Climb((), None)


def verdict(finding: str, decided: Sequence[Decision], climbed: Standing | None, rows: Sequence[Row]) -> str:
    """One or two sentences on a task: what was found and the conditions under which it holds, or why nothing is decided.

    Args:
      finding: the sentence on the best score.
      decided: what the task's controls say.
      climbed: what its ladder says; None without one.
      rows: the rows that are compared.
    """
    failed = [one for one in decided if not one.is_decided]
    if failed and len(failed) == len(decided):
        return failed[0].sentence
    if climbed is None:
        return f"One budget, so no conclusion. {finding}"
    if not climbed.is_settled:
        return f"{climbed.short()}. {finding}"
    points = by(rows, lambda row: (series_of(row), row.memory_bytes)).values()
    seeds = min(len({row.seed for row in of}) for of in points)
    return f"{finding} Settled at {climbed.top}, with {seeds} seed{'s' if seeds > 1 else ''} per point or more."


def sizes_table(rows: Sequence[Row], score: Score) -> Table:
    """The score of every mechanism at every size, median over seeds; sizes so alike that they are compared share a column."""
    sizes = alike(rows)
    lines = []
    for series, runs in by_series(rows).items():
        cells = [[row for row in runs if row.memory_bytes in {one.memory_bytes for one in of}] for of in sizes]
        lines.append((label_of(series), *(_cell(of, score) for of in cells)))
    several = ", median over seeds" if len({row.seed for row in rows}) > 1 else ""
    caption = f"{score.name.capitalize()}{f', {score.unit}' if score.unit else ', %'}, by memory per sequence{several}."
    return Table(caption, ("Mechanism", *map(sizes_text, sizes)), tuple(lines))


def _cell(rows: Sequence[Row], score: Score) -> str:
    """The median score of some runs as text; with the bytes of each where a mechanism has several sizes in a column."""
    sizes = by(rows, lambda row: row.memory_bytes)
    medians = {size: score.number(statistics.median(map(score.of, of))) for size, of in sizes.items()}
    if len(medians) < 2:
        return next(iter(medians.values()), "")
    return "; ".join(f"{value} ({human_bytes(size)})" for size, value in medians.items())
