"""Whether a task decided anything, and which gains are those of a memory.

A task declares its controls itself, see `infini_jax.data.base.Controls`. It has decided something where its positive control
is better than its floor, among runs that can tell: the control's slots hold what is asked about, and the floor's window does
not reach it. Runs are paired by seed, each seed with the best of its runs. From `FEWEST` seeds on, the 95 % interval of the
mean difference (Student's t over seeds) must lie above zero; with fewer, every difference must, and the sentence says so.

A gain is called memory only where the memory carried beats every negative control: an empty one, and another document's. Where
there are fewer seeds, the interval of each run's gain between documents decides.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from infini_jax.config.evaluation import CARRIED
from infini_jax.data import SOURCES
from infini_jax.data.base import Controls
from infini_jax.data.examples import ExampleConfig
from infini_jax.records.rows import Row
from infini_jax.report.found import Found, Point, at, by, points, with_most_memory
from infini_jax.report.looks import label_of
from infini_jax.report.parts import listed
from infini_jax.report.plots import Score

FEWEST = 3  # seeds for an interval
SEQUENCE, SLOTS, POSITIONS = "train.sequence", "model.memory.slots", "model.memory.positions"
NAMES = {"full": "full attention", "local": "the sliding window"}


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the controls say of a task, or of what it asks at one distance.

    Attributes:
      is_decided: whether the positive control is better than the floor.
      sentence: the reason, with both scores.
    """

    is_decided: bool
    sentence: str


@dataclasses.dataclass(frozen=True)
class Question:
    """What all runs of a task are asked, as trained or at one distance.

    Attributes:
      distance: fewest tokens back to an answer; 0 where it is not known.
      score: what is compared.
      values: the score by run name.
      controls: the controls that the task declares.
      found: settings of the runs.
    """

    distance: float
    score: Score
    values: dict[str, float]
    controls: Controls
    found: Found

    @property
    def where(self) -> str:
        """The distance in words, "" for the task as trained."""
        return where_of(self.distance) if self.controls.by else ""

    def failed(self, reason: str) -> Decision:
        """The decision that there is none."""
        return Decision(False, f"This task decided nothing{self.where}, because {reason}.")

    def setting(self, row: Row, name: str, default: Any = None) -> Any:
        """A setting of a run by its dotted name, the default where it is not known."""
        return at(self.found.configs.get(row.run, {}), name, default)


def decisions(rows: Sequence[Row], found: Found, score: Score) -> list[Decision]:
    """What the controls of one task say, for each distance that is asked about; none for a task that is not in the registry.

    Args:
      rows: rows of the task's runs.
      found: settings and figures of the runs.
      score: score of the rows.
    """
    if rows[0].task not in SOURCES:
        return []
    return [decision(one, rows) for one in questions_of(rows, found, SOURCES[rows[0].task].controls, score)]


def questions_of(rows: Sequence[Row], found: Found, controls: Controls, score: Score) -> list[Question]:
    """What a task's runs are compared by: the figures of its evaluation where there are any, else the score of rows."""
    if asked := figures_of(rows, found, controls, controls.metric, condition=CARRIED):
        said = Score("loss", f"{controls.evaluation} {controls.metric}", controls.unit or score.unit, False)
        values = {distance: {point.row.run: point.value for point in of} for distance, of in asked.items()}
        return [Question(distance, said, values[distance], controls, found) for distance in values]
    known = [row for row in rows if row.run in found.data]
    away = [found.data[row.run].distance(at(found.configs.get(row.run, {}), SEQUENCE, 0)) for row in known]
    return [Question(min(away, default=0.0), score, {row.run: score.of(row) for row in rows}, controls, found)]


def figures_of(rows: Sequence[Row], found: Found, controls: Controls, metric: str, **labels: str) -> dict[float, list[Point]]:
    """The figures of a task's evaluation by distance, 0 for one that has no such label; of its rows only."""
    runs = {row.run for row in rows}
    of = [point for point in points(found, controls.evaluation, metric, **labels) if point.row.run in runs]
    if not controls.by:
        return {0.0: of} if of else {}
    return {distance: group for distance, group in by(of, lambda point: point.label(controls.by)).items() if distance > 0}


def where_of(distance: float) -> str:
    """A distance in words, "" where it is not known."""
    return f" at {distance:,.0f} tokens" if distance else ""


def named(mechanism: str) -> str:
    """A mechanism in words."""
    return NAMES.get(mechanism, mechanism)


def decision(question: Question, rows: Sequence[Row]) -> Decision:
    """What the controls say of one question."""
    controls = question.controls
    scored = [row for row in rows if math.isfinite(question.values.get(row.run, math.nan))]
    every = [row for row in scored if row.mechanism == controls.positive]
    positive = [row for row in every if holds(row, question)]
    windows = [row for row in scored if row.mechanism == controls.floor]
    floor = [row for row in windows if not question.distance or reach(row, question.found) < question.distance]
    if not every:
        return question.failed(f"no positive control was run: {named(controls.positive)} with enough slots")
    if not positive:
        return question.failed(f"{described(question, every)} does not hold all that is asked about")
    if not windows:
        return question.failed(f"no floor was run: {named(controls.floor)}, which the answers lie outside of")
    if not floor:
        return question.failed(f"its floor, {named(controls.floor)}, reaches the answers")
    return compared(question, positive, floor)


def compared(question: Question, positive: Sequence[Row], floor: Sequence[Row]) -> Decision:
    """The decision from the runs of the positive control and of the floor, paired by seed."""
    score, controls = question.score, question.controls
    best, least = best_by_seed(positive, question), best_by_seed(floor, question)
    seeds = sorted(best.keys() & least.keys())
    if not seeds:
        return question.failed("no seed was run with both the positive control and the floor")
    sign, above = (1, "above") if score.higher_is_better else (-1, "below")
    differences = [sign * (best[seed] - least[seed]) for seed in seeds]
    interval = seed_interval(differences)
    top, bottom = (score.text(statistics.median(of[seed] for seed in seeds)) for of in (best, least))
    reached, spread = f"{described(question, positive)} has {top}", ""
    if interval:
        ends = " to ".join(map(score.number, interval))
        spread = f"; paired over {len(seeds)} seeds it is better by {score.number(statistics.fmean(differences))} ({ends})"
    if not (interval[0] if interval else min(differences)) > 0:
        return question.failed(f"{reached}, not {above} the floor's {bottom}{spread}{doubt(question, positive)}")
    few = "" if interval else f"; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, too few for an interval"
    perfect = "" if controls.perfect is None else f" ({score.text(controls.perfect)} is perfect)"
    return Decision(True, f"The controls hold{question.where}: {reached}, {above} the floor's {bottom}{perfect}{spread}{few}.")


def described(question: Question, positive: Sequence[Row]) -> str:
    """The positive control in words, with its slots where they are known."""
    slots = sorted({slots for row in positive if (slots := question.setting(row, SLOTS)) is not None})
    held = f", {'–'.join(f'{count:,}' for count in dict.fromkeys((slots[0], slots[-1])))} slots" if slots else ""
    return f"the positive control ({named(question.controls.positive)}{held})"


def doubt(question: Question, positive: Sequence[Row]) -> str:
    """What may keep the positive control from seeing so far: positions that do not carry beyond a training row; else ""."""
    used = {question.setting(row, POSITIONS) for row in positive}
    longest = max(question.setting(row, SEQUENCE, 0) for row in positive)
    kinds = sorted(used - {None, *question.controls.carrying})
    if not kinds or question.distance <= longest:
        return ""
    return f"; its positions ({listed(kinds)}) may not carry beyond the {longest:,} tokens of a training row"


def holds(row: Row, question: Question) -> bool:
    """Whether a run's slots hold what is asked about; True where either is not known."""
    slots = question.setting(row, SLOTS, math.inf)
    if isinstance(question.found.data.get(row.run), ExampleConfig):  # an answer may stand anywhere before the last segment
        return slots >= question.setting(row, SEQUENCE, 0) - question.setting(row, "model.segment", 0)
    return slots >= question.distance


def best_by_seed(rows: Sequence[Row], question: Question) -> dict[int, float]:
    """The best score of each seed's runs."""
    best = max if question.score.higher_is_better else min
    return {seed: best(question.values[row.run] for row in of) for seed, of in by(rows, lambda row: row.seed).items()}


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of one value a seed by Student's t; None for fewer than `FEWEST`."""
    if len(values) < FEWEST:
        return None
    from scipy import stats  # takes a second to load

    mean, half = statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1))
    half *= statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def memory_gains(rows: Sequence[Row], found: Found, score: Score) -> list[str]:
    """For each distance, which mechanisms' gains are those of a memory, by what, and which are not and why.

    A mechanism is taken with its largest memory. The floor is left out.
    """
    if rows[0].task not in SOURCES:
        return []
    controls = SOURCES[rows[0].task].controls
    others = [row for row in rows if row.mechanism != controls.floor]
    told = []
    for distance, of in figures_of(others, found, controls, "gain").items():
        gains = by(with_most_memory(of), lambda point: point.series)
        yes, no = [], []
        for series, group in gains.items():
            beaten = {name: beats([point for point in group if point.label("control") == name]) for name in controls.negative}
            least = min(statistics.fmean(p.value for p in same) for same in by(group, lambda p: p.label("control")).values())
            lost = [name for name, is_beaten in beaten.items() if not is_beaten]
            (no if lost else yes).append(f"{label_of(series)} ({' and '.join(lost) if lost else f'{least:.3f}'})")
        unit, where = controls.unit or score.unit, where_of(distance)
        seeds = len({point.row.seed for point in of})
        few = "" if seeds >= FEWEST else f"; {seeds} seed{'s' if seeds > 1 else ''}, too few for an interval over them"
        told += [f"Memory{where}, better than each control by at least so many {unit}: {listed(yes)}{few}."] if yes else []
        told += [f"Not called memory{where}, for want of a sure gain over a control: {listed(no)}."] if no else []
    return told


def beats(gains: Sequence[Point]) -> bool:
    """Whether gains over one control, one a run, are above zero: over seeds, or between each one's documents for few seeds."""
    interval = seed_interval([point.value for point in gains])
    lowest = interval[0] if interval else min((point.measure.low for point in gains), default=math.nan)
    return lowest > 0


def reach(row: Row, found: Found) -> float:
    """Number of tokens that a sliding window reaches back: its length less one, per layer; infinite where it is not known."""
    config = found.configs.get(row.run, {})
    window, layers = at(config, "model.memory.window"), at(config, "model.layers")
    return (window - 1) * layers if window and layers else math.inf
