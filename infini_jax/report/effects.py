"""The table of effects: what each factor of a study's design changes, and each two of them together.

Runs of one task, mechanism and budget are the cells of the design. Bytes of memory are a factor beside those that are
declared, so that the effect of another one is over all sizes, at equal bytes. Floor and ceiling are no part of it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from infini_jax.analysis.factorial import Contrast, Levels, contrast, without
from infini_jax.analysis.intervals import Estimate, share_deviation
from infini_jax.records.rows import Row
from infini_jax.report.behind import behind
from infini_jax.report.claims import verdict_on_difference
from infini_jax.report.found import Found, StudySource, by, by_task, folder_names
from infini_jax.report.parts import NotMeasured, Table, estimate, listed
from infini_jax.report.scores import score_for
from infini_jax.report.sections import plain
from infini_jax.report.settled import common_rows
from infini_jax.study.factors import Design, Factor, Level, size_classes
from infini_jax.study.scores import Score
from infini_jax.study.study import BOUNDS
from infini_jax.training.trained import flattened
from infini_jax.units import human_bytes

MEMORY = Factor("memory", setting="memory_bytes")  # bytes of a run's row, by classes of the same size
TITLE = "Effects of factors, and of two together"


@dataclasses.dataclass(frozen=True)
class Combined:
    """The runs of one mechanism on one task, as the cells of a design.

    Attributes:
      about: mechanism and task in words.
      score: score of the task.
      factors: factors that have two levels at least.
      levels: levels of each factor, in order.
      cells: runs by their levels.
      unknown: number of runs without a level of one of the factors, which have no part.
      note: remark on all lines, "" for none.
      why: reason why nothing can be said, "" where there is none.
    """

    about: str
    score: Score
    factors: tuple[Factor, ...] = ()
    levels: tuple[tuple[Level, ...], ...] = ()
    cells: Mapping[Levels, Sequence[Row]] = dataclasses.field(default_factory=dict)
    unknown: int = 0
    note: str = ""
    why: str = ""

    @property
    def scale(self) -> float:
        """The factor of scores in the table: shares are in points of a hundred."""
        return 1.0 if self.score.unit else 100.0

    @property
    def scores(self) -> dict[Levels, dict[int, float]]:
        """The score of each seed in each cell."""
        return {cell: {row.seed: self.scale * self.score.of(row) for row in rows} for cell, rows in self.cells.items()}

    @property
    def deviations(self) -> dict[Levels, float]:
        """The standard deviation of a seed's share by the number of questions, of the cells where that is known."""
        counted = {cell: rows for cell, rows in self.cells.items() if all(map(self.score.asked, rows))}
        return {} if self.score.unit else {cell: self.scale * self._deviation(rows) for cell, rows in counted.items()}

    def _deviation(self, rows: Sequence[Row]) -> float:
        counts = [(self.score.of(row) * self.score.asked(row), self.score.asked(row)) for row in rows]
        return float(share_deviation(*np.mean(counts, axis=0)))


def effects_table(sources: Sequence[StudySource], each: Sequence[Found]) -> Table | NotMeasured:
    """The table of effects and interactions of all studies that declare a design.

    Each step from a level of a factor to the next has a line, and every two factors have one, from their first to their last
    levels, where all combinations were measured.

    Args:
      sources: the studies.
      each: rows of the chosen rates of each source, on all rungs.
    """
    names = folder_names([source.folder for source in sources])
    lines, scores = [], dict[str, None]()
    for name, source, found in zip(names, sources, each, strict=True):
        if source.design is None:
            continue
        for made in combinations_of(source.design, found):
            where = f"{made.about} ({name})" if len(sources) > 1 else made.about
            lines += [(line[0], where, *line[1:]) for line in lines_of(made, source.design.tolerance)]
            better = "higher" if made.score.higher_is_better else "lower"
            scores[f"{made.about}: {made.score.name}, {made.score.unit or 'points of a hundred'}, {better} is better"] = None
    if not lines:
        return NotMeasured("effects", TITLE, "a study whose runs combine levels of factors and that declares its `design`")
    intervals = sum("[" in line[3] for line in lines)
    return Table(
        f"{TITLE} (×): of each seed the difference from one level to the next, mean over all settings of the other factors, "
        "at equal bytes of memory; of two factors the effect of the first at the last level of the second minus that at its "
        "first level. Mean over seeds, 95 % interval by Student's t. An interval within the tolerance agrees with 0, one on a "
        "side of 0 is above or below, all else is not settled. "
        f"Of {intervals} intervals about {0.05 * intervals:.0f} would miss 0 if nothing had an effect. {'; '.join(scores)}.",
        ("Factor", "About", "From → to", "Effect [95 % interval]", "Verdict", "Why", "Settings", "From"),
        tuple(lines),
        words=True,
    )


def combinations_of(design: Design, found: Found) -> list[Combined]:
    """The cells of every task and mechanism in which a factor has two levels."""
    made = []
    for task, rows in by_task(found.rows, found.configs).items():
        compared, score = [row for row in rows if row.mechanism not in BOUNDS], score_for(rows, found)
        for mechanism, of in by(compared, lambda row: row.mechanism).items():
            made.append(combined(design, f"{mechanism}, {task}", of, found, score))
    return [one for one in made if one.factors]


def combined(design: Design, about: str, every: Sequence[Row], found: Found, score: Score) -> Combined:
    """The cells of one mechanism on one task, on the highest rung that all of its points have finished.

    Bytes of memory are a factor where runs of equal levels have several; where they follow from the levels, that is told.
    """
    rows = common_rows(every)
    if not rows:
        return Combined(about, score, design.factors, why="its points have no finished rung in common")
    factors, told = (*design.factors, MEMORY), levels_of(design, rows, found)
    sizes = by_levels(rows, told, range(len(design.factors)))
    has_sizes = any(len({told[row.run][-1] for row in of}) > 1 for of in sizes.values())
    orders = [in_order(factor, {levels[place] for levels in told.values()}) for place, factor in enumerate(factors)]
    used = [place for place, order in enumerate(orders) if len(order) > 1 and (has_sizes or factors[place] is not MEMORY)]
    cells = by_levels(rows, told, used)
    known = {cell: of for cell, of in cells.items() if None not in cell}
    twice = [of[0].run for of in known.values() if len({row.seed for row in of}) < len(of)]
    return Combined(
        about,
        score,
        tuple(factors[place] for place in used),
        tuple(orders[place] for place in used),
        known,
        sum(len(of) for cell, of in cells.items() if cell not in known),
        "" if has_sizes or len(orders[-1]) == 1 else "bytes of memory follow from the levels",
        f"several runs of a seed have the levels of {twice[0]}" if twice else "",
    )


def by_levels(
    rows: Sequence[Row], told: Mapping[str, tuple[Level | None, ...]], places: Iterable[int]
) -> dict[Levels, list[Row]]:
    """The runs by their levels of the factors at some places."""
    cells: dict[Levels, list[Row]] = {}
    for row in rows:
        cells.setdefault(tuple(told[row.run][place] for place in places), []).append(row)
    return cells


def levels_of(design: Design, rows: Sequence[Row], found: Found) -> dict[str, tuple[Level | None, ...]]:
    """The levels of each run, by name, its class of bytes last; None where settings are lost or have no such level."""
    classes = size_classes(row.memory_bytes for row in rows)
    settings = {row.run: flattened(found.configs.get(row.run, {})) for row in rows}
    return {row.run: (*design.levels(settings[row.run], row.variant), classes[row.memory_bytes]) for row in rows}


def in_order(factor: Factor, levels: set[Level | None]) -> tuple[Level, ...]:
    """The levels of a factor that are known, in order."""
    return tuple(sorted((level for level in levels if level is not None), key=factor.place))


def lines_of(made: Combined, tolerance: float) -> list[tuple[str, ...]]:
    """The lines of one mechanism on one task without their second cell: effects of each factor, then of every two."""
    if made.why:
        return [(listed([one.name for one in made.factors]), "–", "–", "not settled", made.why, "–", "–")]
    steps = [{n: step} for n, levels in enumerate(made.levels) for step in itertools.pairwise(levels)]
    ends = [(levels[0], levels[-1]) for levels in made.levels]
    pairs = [{n: ends[n] for n in pair} for pair in itertools.combinations(range(len(ends)), 2)]
    scores, deviations = made.scores, made.deviations
    return [line(made, one, contrast(scores, one, deviations), made.scale * tolerance) for one in (*steps, *pairs)]


def line(made: Combined, ends: Mapping[int, tuple[Any, Any]], found: Contrast, tolerance: float) -> tuple[str, ...]:
    """One line of the table: an effect, or an interaction, which is told where all combinations were measured only."""
    measured = found.estimate
    if len(ends) > 1 and not found.is_complete:
        measured = Estimate(math.nan, why="not all combinations of these levels were measured")
    verdict, why = verdict_on_difference(measured, tolerance)
    others = [factor for place, factor in enumerate(made.factors) if place not in ends]
    left = [" and ".join(level_text(*one) for one in zip(others, rest, strict=True)) for rest in found.left_out]
    reasons = (
        why,
        f"without {listed(measured.dropped)}" if measured.dropped else "",
        f"lacking at {listed(left)}" if any(left) else "",
        f"without {made.unknown} runs whose levels are not known" if made.unknown else "",
        made.note,
    )
    taken = [cell for cell in made.cells if all(cell[n] in ends[n] for n in ends) and without(cell, ends) in found.settings]
    rows = [row for cell in taken for row in made.cells[cell]]
    stands = dataclasses.replace(behind(made.score.split, rows), answers=sum(map(made.score.asked, rows)))
    return (
        " × ".join(made.factors[place].name for place in ends),
        "; ".join(" → ".join(level_text(made.factors[place], level) for level in pair) for place, pair in ends.items()),
        estimate(measured) or "–",
        verdict,
        "; ".join(filter(None, reasons)),
        f"{len(found.settings)} of {len(found.settings) + len(found.left_out)}",
        str(stands) or "–",
    )


def level_text(factor: Factor, level: Any) -> str:
    """A level as text."""
    if factor is MEMORY:
        return human_bytes(level)
    return "/".join(map(plain, level)) if isinstance(level, tuple) else plain(level)
