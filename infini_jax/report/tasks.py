"""Tasks as the report sees them: what a guess scores, the settings of their figures; study/scores.py says how they are scored.

A task answers by its settings, see `DataConfig`; an evaluation by its class, see `ExampleEvaluation`. No task is named here.
"""

from collections.abc import Sequence

from infini_jax.data import SOURCES
from infini_jax.data.base import DataConfig
from infini_jax.data.examples import ExampleConfig
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.evals.tasks import ExampleEvaluation
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row
from infini_jax.report.found import Found, Point, at, points
from infini_jax.study.scores import Score


def has_ceiling(task: str) -> bool:
    """Whether full attention should solve a task; False for an unknown one."""
    return SOURCES.get(task, DataConfig).has_ceiling


def chance_of(rows: Sequence[Row], found: Found, score: Score) -> float | None:
    """The accuracy of a guess; None for other scores, and where it is not known or not the same for all runs."""
    if score.unit:
        return None
    return only({data.chance().get(data.row_metric) if (data := found.data.get(row.run)) else None for row in rows})


def only(chances: set[float | None]) -> float | None:
    """The one chance that all runs have; None where they differ."""
    return next(iter(chances)) if len(chances) == 1 else None


def example_evaluations() -> dict[str, type[ExampleEvaluation]]:
    """The evaluations that ask examples of a task, by name."""
    return {name: kind for name, kind in EVALUATIONS.items() if issubclass(kind, ExampleEvaluation)}


def title_of(evaluation: type[ExampleEvaluation]) -> str:
    """The title of the task that an evaluation asks."""
    return evaluation.Config.title or evaluation.name


def own_settings(point: Point, found: Found) -> ExampleConfig | None:
    """The run's own settings of the task that a figure is about; None where they are not known, or are of another task."""
    data, evaluation = found.data.get(point.row.run), example_evaluations()[point.measure.eval]
    return evaluation.own(data) if data is not None and evaluation.asks(data) else None


def is_as_trained(point: Point, found: Found) -> bool:
    """Whether a figure asks what the run's row scores, the task as it was trained on at its length, of other examples."""
    own = own_settings(point, found)
    data, length = found.data.get(point.row.run), at(point.config, "train.sequence")
    if own is None or own is not data or point.measure.metric != own.row_metric:
        return False
    return own.with_labels(point.measure.labels) == own and point.label("length") == length


def evaluated(rows: Sequence[Row], found: Found) -> dict[str, list[Measure]]:
    """The figures of evaluations that ask the runs what training asked, see `is_as_trained`, by run name."""
    measures: dict[str, list[Measure]] = {}
    runs = {row.run for row in rows}
    for name in example_evaluations():
        for metric in sorted({one.metric for run, one in found.measures if one.eval == name and run in runs}):
            for point in points(found, name, metric):
                if point.row.run in runs and is_as_trained(point, found):
                    measures.setdefault(point.row.run, []).append(point.measure)
    return measures


def chance_at(point: Point, found: Found) -> float | None:
    """The score of a guess in a figure of examples; None where it is not known."""
    own = own_settings(point, found)
    return own.with_labels(point.measure.labels).chance().get(point.measure.metric) if own else None
