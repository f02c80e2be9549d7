"""Runs that differ only in learning rate and seed are trials of one point; the rate with the lowest median loss is taken."""

import copy
import dataclasses
import json
import statistics
from collections.abc import Sequence
from typing import Any

from infini_jax.plots import series_of
from infini_jax.report.found import Found, at, by
from infini_jax.results import Row


@dataclasses.dataclass(frozen=True)
class Tried:
    """One point. Attributes: rates, learning rate -> its seeds; rate, the one that is taken."""

    rates: dict[float, list[Row]]
    rate: float

    @property
    def chosen(self) -> list[Row]:
        return self.rates[self.rate]


def trials_of(rows: Sequence[Row], configs: dict[str, dict[str, Any]]) -> list[Tried]:
    """The points, in the order of the rows. A run whose config is lost is no trial of anything: it stands for itself."""
    places: dict[str, list[Row]] = {}
    for row in rows:
        places.setdefault(point_of(row, configs.get(row.run, {})), []).append(row)
    tried = []
    for group in places.values():
        rates = by(group, lambda row: float(at(configs.get(row.run, {}), "train.learning_rate", 0.0)))
        tried.append(Tried(rates, min(rates, key=lambda rate, rates=rates: statistics.median(r.loss for r in rates[rate]))))
    return tried


def point_of(row: Row, config: dict[str, Any]) -> str:
    """What the trials of a point have in common."""
    if not config:
        return f"run {row.run}"
    same = copy.deepcopy(config)
    for name in ("name", "seed"):
        same.pop(name, None)
    same.get("train", {}).pop("learning_rate", None)
    return json.dumps([row.study, row.task, *series_of(row), same], sort_keys=True)


def only_chosen(found: Found) -> Found:
    """What was found, without the trials that were not taken."""
    runs = {row.run for point in trials_of(found.rows, found.configs) for row in point.chosen}
    tried = {row.run for row in found.rows}
    return dataclasses.replace(
        found,
        rows=[row for row in found.rows if row.run in runs],
        measures=[(run, measure) for run, measure in found.measures if run in runs or run not in tried],
    )
