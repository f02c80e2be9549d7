"""Whether the ceiling reached the top and the floor stayed at chance: if either did not, the task or the training is wrong."""

import dataclasses
import statistics
from collections.abc import Sequence

from infini_jax.analysis.intervals import wilson
from infini_jax.data import SOURCES
from infini_jax.data.base import Rows
from infini_jax.data.examples import ExampleConfig
from infini_jax.records.rows import Row
from infini_jax.report.controls import SEQUENCE, reach
from infini_jax.report.found import Found, Point, at, by, by_task, points
from infini_jax.report.looks import BASELINE
from infini_jax.report.parts import NotMeasured, middle, percent
from infini_jax.report.tasks import chance_of, example_evaluations, has_ceiling, own_settings
from infini_jax.study.scores import RECALLED, score_of
from infini_jax.units import ratio

CEILING, SOLVED = "full", 0.9


def warnings(found: Found) -> list[str]:
    """The warnings for the top of the page, as sentences."""
    return [*ceiling_warnings(found), *floor_warnings(found)]


def unchecked(found: Found) -> list[NotMeasured]:
    """The runs that are missing for the checks to mean anything."""
    missing = []
    if not ceiling_scores(found):
        tasks = " or ".join(data.title or name for name, data in SOURCES.items() if data.has_ceiling)
        missing.append(NotMeasured("ceiling", "Whether full attention solves the task", f"runs of {CEILING} on {tasks}"))
    if any(has_ceiling(row.task) for row in found.rows) and not any(row.mechanism == BASELINE for row in found.rows):
        missing.append(NotMeasured("floor", "Whether a window alone is at chance", f"runs of {BASELINE} on the same tasks"))
    return missing


@dataclasses.dataclass(frozen=True)
class Asked:
    """A figure of examples, in a metric in which a guess has a known score.

    Attributes:
      point: the figure with its run.
      own: the run's settings of the task.
      settings: settings of the examples.
      chance: score of a guess.
    """

    point: Point
    own: ExampleConfig
    settings: ExampleConfig
    chance: float

    @property
    def metric(self) -> str:
        """Name of the figure's metric."""
        return self.point.measure.metric

    @property
    def length(self) -> int:
        """Tokens of each example."""
        return self.point.label("length")

    @property
    def name(self) -> str:
        """The evaluation's name with the length."""
        return f"{self.point.measure.eval} of {self.length:g} tokens"

    @property
    def is_told_by_row(self) -> bool:
        """Whether the run's row has this figure, too: its accuracy on the task as trained, of other examples."""
        same = self.settings == self.own and self.length == at(self.point.config, SEQUENCE)
        return same and self.metric == self.settings.row_metric

    @property
    def is_as_trained(self) -> bool:
        """Whether training showed all that the examples need, at their length; a corpus counts as the task's own settings."""
        return self.own.covers(self.settings) and self.length <= at(self.point.config, SEQUENCE, 0)


def asked_of(found: Found, mechanism: str) -> list[Asked]:
    """The figures of examples of one mechanism's runs."""
    asked = []
    for evaluation in example_evaluations():
        for metric in sorted({measure.metric for _, measure in found.measures if measure.eval == evaluation}):
            for point in points(found, evaluation, metric):
                own = own_settings(point, found) if point.row.mechanism == mechanism else None
                settings = own and own.with_labels(point.measure.labels)
                chance = settings.chance().get(metric) if settings else None
                if own and settings and chance is not None:
                    asked.append(Asked(point, own, settings, chance))
    return asked


def words(metric: str) -> str:
    """The name of a metric in words."""
    return metric.replace("_", " ")


def ceiling_scores(found: Found) -> dict[str, list[float]]:
    """The accuracies of full attention by task as trained, one value per seed."""
    scores = {}
    for task, rows in by_task(found.rows, found.configs).items():
        if of := [row.accuracy for row in rows if has_ceiling(row.task) and row.mechanism == CEILING]:
            scores[f"{task} ({RECALLED.name})"] = of
    trained = [one for one in asked_of(found, CEILING) if one.settings.has_ceiling and one.is_as_trained]
    for (_, task, metric), of in by(trained, lambda one: (one.point.measure.eval, one.point.row.task, one.metric)).items():
        longest = max(one.length for one in of)
        at_longest = [one for one in of if one.length == longest and not one.is_told_by_row]
        if at_longest:
            runs = by(at_longest, lambda one: one.point.row.run).values()
            name = f"{at_longest[0].name} ({words(metric)}, trained on {task})"
            scores[name] = [statistics.fmean(one.point.value for one in run) for run in runs]
    return scores


def ceiling_warnings(found: Found) -> list[str]:
    """A warning for each task that full attention does not solve."""
    return [
        f"Full attention does not solve {task} at its trained length: {middle(of, percent)} %, "
        f"{'the median over seeds and their range, ' if len(of) > 1 else ''}below {100 * SOLVED:.0f} %. The task or the "
        "training is wrong; what other mechanisms score there says nothing about memory."
        for task, of in ceiling_scores(found).items()
        if statistics.median(of) < SOLVED
    ]


def floor_warnings(found: Found) -> list[str]:
    """A warning for each task on which a window alone is above chance, though what is asked for is out of its reach."""
    found_wrong = []
    for task, rows in by_task(found.rows, found.configs).items():
        outside = [row for row in rows if row.mechanism == BASELINE and is_outside(row, found)]
        chance = chance_of(rows, found, score_of(rows[0].task))
        if outside and chance is not None:
            asked = sum(questions(row, found) for row in outside)
            share = ratio(sum(row.accuracy * questions(row, found) for row in outside), asked)
            found_wrong += above(f"{task} ({RECALLED.name})", share, wilson(share * asked, asked), chance)
    outside = [
        one
        for one in asked_of(found, BASELINE)
        if not one.is_told_by_row and one.settings.distance(one.length) > reach(one.point.row, found)
    ]
    for (_, _, metric, chance), of in by(
        outside, lambda one: (one.point.measure.eval, one.length, one.metric, one.chance)
    ).items():
        asked = sum(one.point.measure.count for one in of)
        share = ratio(sum(one.point.value * one.point.measure.count for one in of), asked)
        found_wrong += above(f"{of[0].name} ({words(metric)})", share, wilson(share * asked, asked), chance)
    return found_wrong


def above(task: str, share: float, interval: Sequence[float] | None, chance: float) -> list[str]:
    """The warning that a share is above chance, where its whole 95 % interval over answers lies above; otherwise nothing."""
    if interval is None or interval[0] <= chance:
        return []
    return [
        f"A window alone is above chance on {task}, though what is asked for lies outside its reach: {percent(share)} % "
        f"({percent(interval[0])}–{percent(interval[1])} by the number of answers) against {100 * chance:.3g} % of a guess. "
        "The answers leak, or the reach is not what it should be."
    ]


def is_outside(row: Row, found: Found) -> bool:
    """Whether all that a run was asked lies further back than its window reaches."""
    data, tokens = found.data.get(row.run), at(found.configs.get(row.run, {}), SEQUENCE)
    return data is not None and tokens is not None and data.distance(tokens) > reach(row, found)


def questions(row: Row, found: Found) -> float:
    """Answers behind a row's accuracy: those per row of its data, times the rows that were scored."""
    config = found.configs[row.run]
    each = found.data[row.run].open(Rows(1, at(config, SEQUENCE), row.seed, "validation")).batch(0).weights.sum()
    return at(config, "train.evaluation_steps", 1) * at(config, "train.batch", 1) * float(each)
