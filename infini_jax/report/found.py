"""Results in the folders of one study or several: rows, missing runs, settings, logs and the figures of evaluations."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from infini_jax.config import RunConfig
from infini_jax.config.plain import each_made_once, from_plain
from infini_jax.data.base import DataConfig
from infini_jax.errors import ConfigError, require
from infini_jax.records.folder import StudyFolder
from infini_jax.records.inventory import Disk, looked_at
from infini_jax.records.measures import Label, Measure, measures_in, of_own_data
from infini_jax.records.rows import Row, checked_table, rows_in
from infini_jax.report.curves import Curves, curves_by_run
from infini_jax.report.looks import Series, series_of
from infini_jax.study.factors import Design
from infini_jax.study.jobs import Job
from infini_jax.study.ladder import Ladder, is_same_size
from infini_jax.study.study import Failure, noted_failures
from infini_jax.units import human_bytes


@dataclasses.dataclass(frozen=True)
class StudySource:
    """One study on the page.

    Attributes:
      folder: folder of the study.
      question: question that the study asks.
      held_equal: settings that the study kept the same in all runs, name -> value.
      command: command that remakes the study, by default `infini-jax study` with its name.
      jobs: jobs of the study, for settings that rows do not have.
      ladder: budgets that they climb, None where each has one.
      design: factors whose levels the jobs combine, None where they are no such design.
    """

    folder: Path
    question: str = ""
    held_equal: dict[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""
    jobs: tuple[Job, ...] = ()
    ladder: Ladder | None = None
    design: Design | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """The contents of a study's folder.

    Attributes:
      rows: rows of finished runs.
      missing: runs without a row.
      configs: saved settings by run name.
      curves: curves of the training logs by run name.
      measures: (run name, figure) pairs of evaluations.
      commands: command that remakes each run, by run name.
      jobs: jobs of the study by run name, as far as known.
    """

    rows: list[Row]
    missing: list[Failure]
    configs: dict[str, dict[str, Any]]
    curves: dict[str, Curves]
    measures: list[tuple[str, Measure]]
    commands: dict[str, str]
    jobs: dict[str, Job] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def data(self) -> dict[str, DataConfig]:
        """The data that each run was trained on, by run name, for the runs whose settings are known and can be read."""
        with each_made_once():
            each = {row.run: data_of(self.configs.get(row.run), self.jobs.get(row.run)) for row in self.rows}
        return {run: data for run, data in each.items() if data is not None}

    @property
    def all_commands(self) -> list[str]:
        """The lines that remake everything."""
        return list(dict.fromkeys(self.commands.values()))

    def commands_of(self, rows: Sequence[Row]) -> list[str]:
        """The lines that remake these runs."""
        return list(dict.fromkeys(self.commands[row.run] for row in rows))


def data_of(config: dict[str, Any] | None, job: Job | None) -> DataConfig | None:
    """The data that a run was trained on, from its saved settings, or from its job where they are lost.

    None for a job without data, and for settings that are too old, or another package's, to be read.
    """
    if config is None:
        return job.data if isinstance(job, RunConfig) else None
    try:
        data = from_plain(DataConfig, config["data"], "data")
        data.check(config["train"]["sequence"])
    except (ConfigError, LookupError, TypeError, ValueError):
        return None
    return data


@dataclasses.dataclass(frozen=True)
class Point:
    """A figure of an evaluation beside its run.

    Attributes:
      row: row of the run.
      config: saved settings of the run, {} where they are lost.
      measure: the figure.
    """

    row: Row
    config: dict[str, Any]
    measure: Measure

    @property
    def value(self) -> float:
        """The figure's value."""
        return self.measure.value

    @property
    def series(self) -> Series:
        """The run's mechanism and variant."""
        return series_of(self.row)

    def label(self, name: str, default: Label = 0.0) -> Any:
        """The value of the figure's label `name`, a number or a word."""
        return self.measure.labels.get(name, default)


def points(found: Found, evaluation: str, metric: str, **labels: Label) -> list[Point]:
    """The figures of one metric of an evaluation that have these labels, of finished runs, in the order of the rows."""
    rows = {row.run: number for number, row in enumerate(found.rows)}
    kept = [
        Point(found.rows[rows[run]], found.configs.get(run, {}), measure)
        for run, measure in found.measures
        if run in rows and is_of(measure, evaluation, metric, labels)
    ]
    return sorted(kept, key=lambda point: rows[point.row.run])


def is_of(measure: Measure, evaluation: str, metric: str, labels: dict[str, Label]) -> bool:
    """Whether a figure is of this evaluation and metric, and has these labels."""
    return (measure.eval, measure.metric) == (evaluation, metric) and labels.items() <= measure.labels.items()


def by(items: Iterable[Any], key) -> dict[Any, list[Any]]:
    """The items by key, keys in ascending order."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return dict(sorted(groups.items()))


def with_most_memory(of: Sequence[Point]) -> list[Point]:
    """The figures of the runs with the largest memory of their mechanism and variant."""
    most = {series: max(point.row.memory_bytes for point in group) for series, group in by(of, lambda p: p.series).items()}
    return [point for point in of if point.row.memory_bytes == most[point.series]]


def find(sources: Sequence[StudySource]) -> Found:
    """Reads the folders of studies.

    With several folders, runs carry their folder's name, and a mechanism and variant that more than one of them has carries
    it too: runs of different studies are never pooled.

    Raises `ConfigError` where a folder has no finished run.
    """
    return joined([source.folder for source in sources], find_each(sources))


def find_each(sources: Sequence[StudySource]) -> list[Found]:
    """Reads the folder of each study. Raises `ConfigError` where one has no finished run."""
    return [find_one(source) for source in sources]


def joined(folders: Sequence[Path], each: Sequence[Found]) -> Found:
    """The contents of several folders as one, with runs and mechanisms told apart by folder as `find` says."""
    if len(each) == 1:
        return each[0]
    names = folder_names(folders)
    holders = by({(series_of(row), number) for number, one in enumerate(each) for row in one.rows}, lambda held: held[0])
    shared = {series for series, held in holders.items() if len(held) > 1}
    whole = Found([], [], {}, {}, [], {})
    for name, one in zip(names, each, strict=True):
        whole.rows.extend(renamed(row, name, series_of(row) in shared) for row in one.rows)
        whole.missing.extend(Failure(f"{name}/{missing.run}", missing.error) for missing in one.missing)
        whole.configs.update({f"{name}/{run}": config for run, config in one.configs.items()})
        whole.curves.update({f"{name}/{run}": curves for run, curves in one.curves.items()})
        whole.commands.update({f"{name}/{run}": command for run, command in one.commands.items()})
        whole.jobs.update({f"{name}/{run}": job for run, job in one.jobs.items()})
        whole.measures.extend((f"{name}/{run}", measure) for run, measure in one.measures)
    whole.rows.sort(key=lambda row: (row.task, row.mechanism, row.variant, row.memory_bytes, row.seed))
    return whole


def folder_names(folders: Sequence[Path]) -> list[str]:
    """Short names that tell folders apart: the last part of their path, or as many as it takes.

    Raises `ConfigError` where a folder is named twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("folder", "the same folder is named twice", "name each once")


def renamed(row: Row, name: str, is_shared: bool) -> Row:
    """The row of a run whose name carries its folder's, and its variant too where the mechanism `is_shared`."""
    variant = " ".join(filter(None, (row.variant, f"({name})"))) if is_shared else row.variant
    return dataclasses.replace(row, run=f"{name}/{row.run}", variant=variant)


def find_one(source: StudySource) -> Found:
    """Reads a study's folder. A run counts as missing where it is in failed.json, or has a folder, but no row.

    A run with damaged settings counts as one that has lost them.

    Raises `ConfigError` where no run is finished, or a table or a log is damaged.
    """
    folder = StudyFolder(source.folder)
    table, measured = folder.table, folder.measures
    rows = rows_in(checked_table(table, "study")) if table.exists() else []
    errors = {note.run: note.error for note in noted_failures(folder.path)}
    require(
        bool(rows),
        "study",
        f"no finished run in {folder.path}" + (f" ({len(errors)} failed, the first: {first_line(errors)})" if errors else ""),
        "run the study first" if not errors else "mend that and run it again",
    )
    done = {row.run for row in rows}
    with looked_at(folder.all_runs) as files:
        begun = {run.path.name for run in files.runs if files.exists(run.config)}
        known = {run: folder.run(run) for run in sorted(done)}
        configs = {run: settings_or_none(files, place.config) for run, place in known.items()}
        logs = {run: place.metrics for run, place in known.items() if files.exists(place.metrics)}
        curves = curves_by_run(list(logs), files.joined(list(logs.values()), "curves"))
    unfinished = dict.fromkeys(sorted(begun - done), "not finished, and no error was noted")
    return Found(
        rows,
        [Failure(run, error) for run, error in (unfinished | errors).items() if run not in done],
        {run: plain for run, plain in configs.items() if plain is not None},
        curves,
        of_own_data(measures_in(checked_table(measured, "study"))) if measured.exists() else [],
        {row.run: source.command or f"infini-jax study {row.study}" for row in rows},
        {job.name: job for job in source.jobs},
    )


def settings_or_none(files: Disk, file: Path) -> dict[str, Any] | None:
    """The settings in a file; None where it is missing or damaged."""
    with contextlib.suppress(ConfigError):
        return json.loads(files.settings(file)) if files.exists(file) else None
    return None


def first_line(errors: dict[str, str]) -> str:
    """The first error with its run, in one line."""
    run, error = next(iter(errors.items()))
    return f"{run}: {' '.join(error.split())}"


def by_task(rows: Sequence[Row], configs: dict[str, dict[str, Any]]) -> dict[str, list[Row]]:
    """The rows by task, tasks by name.

    Runs whose data differ, such as in the number of pairs, are of different tasks.
    """
    tasks: dict[str, list[Row]] = {}
    for task, of_task in by(rows, lambda row: row.task).items():
        data = {row.run: configs.get(row.run, {}).get("data", {}) for row in of_task}
        known = dict.fromkeys(name for one in data.values() for name in one)
        names = [name for name in known if len({str(one.get(name)) for one in data.values()}) > 1]

        def place(row: Row, data=data, names=names) -> tuple:
            values = [data[row.run].get(name) for name in names]
            return tuple((not isinstance(one, int), one if isinstance(one, int) else 0, str(one)) for one in values)

        for same in by(of_task, place).values():
            settings = [f"{name} {data[same[0].run].get(name, 'unknown')}" for name in names]
            tasks[", ".join((task, *settings))] = same
    return tasks


def at(config: dict[str, Any], name: str, default: Any = None) -> Any:
    """A setting by its dotted name; the default where the config is lost or older than the setting."""
    for part in name.split("."):
        if not isinstance(config, dict) or part not in config:
            return default
        config = config[part]
    return config


def alike(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by bytes of memory, from small to large; sizes so alike that they are compared are together."""
    groups: list[list[Row]] = []
    for size, of in by(rows, lambda row: row.memory_bytes).items():
        if groups and is_same_size(groups[-1][0].memory_bytes, size):
            groups[-1] += of
        else:
            groups.append(of)
    return groups


def sizes_text(of: Sequence[Row]) -> str:
    """The bytes of memories that are compared as text."""
    ends = dict.fromkeys(human_bytes(size) for size in (of[0].memory_bytes, of[-1].memory_bytes))
    return " to ".join(ends)
