"""What is settled: whether scores and orders still changed between the last two rungs of a ladder, and where rates stand.

A study with a ladder has a point at several budgets. Figures and tables show each on its highest finished rung; the sentences
made here say whether that rung still changed anything.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

from infini_jax.records.rows import Row
from infini_jax.report.behind import rung_of
from infini_jax.report.found import Found, StudySource, by, by_task, folder_names
from infini_jax.report.looks import Series, label_of, series_of
from infini_jax.report.parts import listed
from infini_jax.report.scores import score_for
from infini_jax.report.trials import only_rows
from infini_jax.study.ladder import Ladder, carried, is_equal, is_same_size, order_of
from infini_jax.study.scores import Score
from infini_jax.units import human_bytes

ONE_BUDGET = "One budget: whether the order holds at a larger one is not known."
MOST_NAMED = 8  # points or pairs that a sentence names


def top_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of one task on the highest finished rung of each point; all of them where the task climbs no ladder."""
    if all(row.rung is None for row in rows):
        return list(rows)
    places = by(rows, _place)
    top = {place: max((row.rung or 0) for row in of) for place, of in places.items()}
    return [row for row in rows if row.rung is not None and row.rung == top[_place(row)]]


def _place(row: Row) -> tuple:
    return (row.study, row.corpus, series_of(row), row.memory_bytes, row.budget_unit, row.gives)


def common_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows on the highest rung that every point of them has finished; all of them where they climb no ladder.

    None where the points have no finished rung in common: what is compared between points must have the same budget.
    """
    if all(row.rung is None for row in rows):
        return list(rows)
    finished = [{row.rung for row in of if row.rung is not None} for of in by(rows, _place).values()]
    common = set.intersection(*finished)
    return [row for row in rows if common and row.rung == max(common)]


def only_top(found: Found) -> Found:
    """The results on the highest finished rung of each point."""
    tasks = by_task(found.rows, found.configs).values()
    return only_rows(found, {row.run for rows in tasks for row in top_rows(rows)})


@dataclasses.dataclass(frozen=True)
class Climbed:
    """A point on the rungs that it has finished.

    Attributes:
      series: mechanism and variant.
      memory_bytes: bytes of its memory.
      scores: median score over seeds by number of the rung.
      budgets: budget of each rung as text.
    """

    series: Series
    memory_bytes: int
    scores: dict[int, float]
    budgets: dict[int, str]

    @property
    def name(self) -> str:
        """Mechanism, variant and bytes as text."""
        return f"{label_of(self.series)} at {human_bytes(self.memory_bytes)}"

    def moved(self, score: Score, tolerance: float) -> bool:
        """Whether the score changed between the last two rungs; False for a point with one."""
        last = [score.goodness(self.scores[rung]) for rung in sorted(self.scores)[-2:]]
        return not is_equal(last[0], last[-1], tolerance)


@dataclasses.dataclass(frozen=True)
class Order:
    """How two mechanisms stand at the same bytes on the last two rungs that either has climbed.

    Attributes:
      one, other: the two points.
      rungs: the two rungs, as text.
      before, now: on the lower and on the higher rung 1 where `one` is ahead, -1 where it is behind, 0 where they are equal.
    """

    one: Climbed
    other: Climbed
    rungs: tuple[str, str]
    before: int
    now: int

    @property
    def is_settled(self) -> bool:
        """Whether both rungs say the same."""
        return self.before == self.now

    def text(self) -> str:
        """The pair, and who is ahead on each rung."""
        said = {1: f"{label_of(self.one.series)} ahead", -1: f"{label_of(self.other.series)} ahead", 0: "equal"}
        pair = f"{label_of(self.one.series)} and {label_of(self.other.series)} at {human_bytes(self.one.memory_bytes)}"
        return f"{pair} ({said[self.before]} at {self.rungs[0]}, {said[self.now]} at {self.rungs[1]})"


def climbed(rows: Sequence[Row], score: Score) -> list[Climbed]:
    """The points of one task of one study, from the rows of their chosen rates on finished rungs."""
    places = by([row for row in rows if row.rung is not None], lambda row: (row.memory_bytes, series_of(row)))
    found = []
    for (size, series), of in places.items():
        rungs = by(of, lambda row: row.rung)
        scores = {rung: median_of(group, score) for rung, group in rungs.items()}
        found.append(Climbed(series, size, scores, {rung: rung_of(group[0]) for rung, group in rungs.items()}))
    return found


def median_of(rows: Sequence[Row], score: Score) -> float:
    """The median of the scores that are finite, NaN where none is."""
    return statistics.median([value for value in map(score.of, rows) if math.isfinite(value)] or [math.nan])


def orders(rows: Sequence[Row], score: Score, tolerance: float) -> list[Order]:
    """The order of every two mechanisms of one task at the same bytes on their last two rungs.

    A point that climbed no further keeps its last score. Pairs of which one has finished a single rung, or none, are left out.
    """
    points = [point for point in climbed(rows, score) if len(point.scores) > 1]
    found = []
    for one, other in itertools.combinations(points, 2):
        if one.series != other.series and is_same_size(one.memory_bytes, other.memory_bytes):
            budgets = one.budgets | other.budgets
            lower, upper = sorted(budgets)[-2:]
            left, right = ({rung: score.goodness(value) for rung, value in point.scores.items()} for point in (one, other))
            before, now = (order_of(carried(left, rung), carried(right, rung), tolerance) for rung in (lower, upper))
            found.append(Order(one, other, (budgets[lower], budgets[upper]), before, now))
    return found


def settled_sentences(sources: Sequence[StudySource], each: Sequence[Found]) -> list[str]:
    """A sentence for each task of each study: settled or not, and what turned; one for a study that has no ladder.

    `each` has the rows of the chosen rates of each source, on all rungs.
    """
    said = []
    for name, source, found in zip(folder_names([one.folder for one in sources]), sources, each, strict=True):
        where = f"{name}: " if len(sources) > 1 else ""
        tasks = by_task(found.rows, found.configs) if source.ladder else {}
        said += [] if source.ladder else [where + ONE_BUDGET]
        for task, rows in tasks.items():
            if source.ladder and any(row.learning_rate is not None for row in rows):  # what learns nothing climbs nothing
                said.append(f"{where}{task}: {settled_sentence(rows, score_for(rows, found), source.ladder)}")
    return said


@dataclasses.dataclass(frozen=True)
class Standing:
    """What the last two rungs say of one task.

    Attributes:
      top: the largest budget that a point has finished, as text; "" where none has.
      turned: pairs of mechanisms whose order turned, as text.
      moved: points whose score still changed.
      single: points with one finished rung.
    """

    top: str
    turned: tuple[str, ...]
    moved: tuple[Climbed, ...]
    single: tuple[Climbed, ...]

    @property
    def is_settled(self) -> bool:
        """Whether no score and no order changed any more."""
        return bool(self.top) and not (self.turned or self.moved or self.single)

    def short(self) -> str:
        """How much is not settled, in a few words."""
        if not self.top:
            return "Not settled: no point has finished a rung"
        counts = (
            (len(self.turned), "order{} of two mechanisms turned"),
            (len(self.moved), "score{} still changed"),
            (len(self.single), "point{} finished one budget only"),
        )
        said = [f"{count} {words.format('s' if count > 1 else '')}" for count, words in counts if count]
        return f"Not settled at {self.top}: {listed(said)}"


def standing(rows: Sequence[Row], score: Score, ladder: Ladder) -> Standing:
    """What the last two rungs say of one task, from the rows of its chosen rates on all rungs."""
    points, tolerance = climbed(rows, score), ladder.tolerance
    if not points:
        return Standing("", (), (), ())
    budget = max(points, key=lambda point: max(point.scores))
    return Standing(
        budget.budgets[max(budget.scores)],
        tuple(order.text() for order in orders(rows, score, tolerance) if not order.is_settled),
        tuple(point for point in points if point.moved(score, tolerance)),
        tuple(point for point in points if len(point.scores) == 1),
    )


def unsettled_runs(rows: Sequence[Row], climbed: Standing | None) -> frozenset[str]:
    """The names of the runs of points whose score still changed, or that finished one budget; none without a ladder."""
    if climbed is None:
        return frozenset()
    places = {(point.series, point.memory_bytes) for point in (*climbed.moved, *climbed.single)}
    return frozenset(row.run for row in rows if (series_of(row), row.memory_bytes) in places)


def settled_sentence(rows: Sequence[Row], score: Score, ladder: Ladder) -> str:
    """Whether the scores and orders of one task are settled, and what is not."""
    found = standing(rows, score, ladder)
    if not found.top:
        return "not settled: no point has finished a rung."
    parts = []
    if found.turned:
        parts.append(f"The order turned for {several(found.turned)}.")
    if found.moved:
        parts.append(f"Scores still change: {several([moved_text(point, score) for point in found.moved])}.")
    if found.single:
        names = several([point.name for point in found.single])
        parts.append(f"One finished rung only, so that nothing is known of a larger budget: {names}.")
    if parts:
        return f"not settled at {found.top}. {' '.join(parts)}"
    return (
        f"settled at {found.top}: between its last two rungs no score changed by more than {score.text(ladder.tolerance)}, "
        "and no order of two mechanisms at the same bytes turned."
    )


def moved_text(point: Climbed, score: Score) -> str:
    """A point with its scores on its last two rungs."""
    lower, upper = sorted(point.scores)[-2:]
    change = f"{score.text(point.scores[lower])} at {point.budgets[lower]}, {score.text(point.scores[upper])}"
    return f"{point.name} ({change} at {point.budgets[upper]})"


def rate_sentences(rows: Sequence[Row]) -> list[str]:
    """A sentence that names the points whose chosen rate is at the edge of those tried, where there are any."""
    points = by([row for row in rows if row.rate_inside is not None], lambda row: (row.task, *_place(row), row.budget_amount))
    first = [of[0] for of in points.values()]
    edge = [
        f"{label_of(series_of(row))} at {human_bytes(row.memory_bytes)} on {row.task} ({row.learning_rate:g})"
        for row in first
        if row.rate_inside is False
    ]
    if not edge:
        return []
    return [
        f"Learning rates: at {len(edge)} of {len(first)} points validation chose a rate at the edge of those tried, so that "
        f"their scores may be too low: {several(edge)}."
    ]


def several(texts: Sequence[str]) -> str:
    """Texts as a list in prose, the first `MOST_NAMED` of them and how many more there are."""
    more = len(texts) - MOST_NAMED
    return listed([*texts[:MOST_NAMED], f"{more} more"] if more > 0 else texts)
