"""Results as tables for a Python shell: the Parquet files and logs that studies and runs leave.

A folder is a study's (results.parquet, measures.parquet, runs/), a run's own (config.json, metrics.jsonl, row.parquet,
measures/), or holds folders of these kinds.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from infini_jax.errors import installs, require, require_local
from infini_jax.files import checked_object, json_text
from infini_jax.records import measures
from infini_jax.records.folder import RunFolder, StudyFolder
from infini_jax.records.inventory import NOW, Disk, looked_at
from infini_jax.records.measures import as_measures
from infini_jax.records.rows import SCHEMA, checked_table, in_order, with_later
from infini_jax.records.training_log import CURVES
from infini_jax.results.columns import COLUMNS

Library = Literal["pandas", "polars"]
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Results:
    """Tables of one library, pandas or polars; `columns` says what stands in them.

    Attributes:
      runs: table with one row per finished run.
      curves: table with one row per run, step and metric, of all runs that left a log, finished or not.
      measures: table with one row per figure of an evaluation.
      columns: table of the name, unit and meaning of every column and metric.
    """

    runs: Any
    curves: Any
    measures: Any
    columns: Any


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder that holds results.

    Attributes:
      folder: path of the folder.
      is_study: whether the folder is a study's, otherwise a run's own.
      files: the files of its runs.
    """

    folder: Path
    is_study: bool
    files: Disk = NOW

    @staticmethod
    def at(folder: Path, files: Disk) -> "Place | None":
        """The place of a folder, None where the folder itself holds no results."""
        if any(map(files.exists, StudyFolder(folder).signs)):
            return Place(folder, True)
        return Place(folder, False, files) if any(map(files.exists, RunFolder(folder).signs)) else None

    @functools.cached_property
    def runs(self) -> list[RunFolder]:
        """The runs' own folders, by name."""
        return StudyFolder(self.folder).runs if self.is_study else [RunFolder(self.folder)]

    @functools.cached_property
    def settings(self) -> str | None:
        """The settings of a run's own folder, see `settings_in`."""
        return settings_in(RunFolder(self.folder), self.files)

    def tables(self, whole: Path, of_run: Callable[[RunFolder], list[Path]]) -> list[pa.Table]:
        """The study's table `whole`, or the tables of its runs where there is none yet, or of a run alone.

        A damaged file of a run counts as missing, as it does for its study. Raises `ConfigError` where `whole` is damaged.
        """
        if self.is_study and whole.exists():
            return [checked_table(whole, "path")]
        files = [file for run in self.runs for file in of_run(run) if self.files.exists(file)]
        found = [(file, self.files.table(file)) for file in files]
        for file, table in found:
            if table is None:
                logger.warning("%s is damaged and left out; the command of its run or study makes it again", file)
        return [table for _, table in found if table is not None]


def load(path: str | Path | Sequence[str | Path], library: Library = "pandas") -> Results:
    """The results of a study, of a run, or of all of them in a folder; several folders one after the other.

    Args:
      path: a folder or several: of a study, of a run, or one that holds such folders.
      library: library of the tables, pandas or polars.

    Raises:
      ConfigError: there is no such folder, it holds no results, a file is damaged, or the library is missing.
    """
    require(library in ("pandas", "polars"), "library", f"'{library}' is not known", "choose pandas or polars")
    is_there = importlib.util.find_spec(library) is not None
    require(is_there, "library", f"{library} is not installed", installs("explore"))
    with contextlib.ExitStack() as stack:
        places = [place for one in ([path] if isinstance(path, str | Path) else path) for place in places_in(Path(one), stack)]
        found = [runs_of(places), curves_of(places), measures_of(places)]
    described = pa.Table.from_pylist([dataclasses.asdict(column) for column in COLUMNS])
    return Results(*(in_library(library, table) for table in (*found, described)))


def in_library(library: Library, table: pa.Table) -> Any:
    """The table as one of a library that is installed."""
    if library == "pandas":
        return table.to_pandas()
    import polars  # an extra, which pandas' users do without

    return polars.from_arrow(table)


def places_in(folder: Path, passes: contextlib.ExitStack) -> list[Place]:
    """The places in a folder, by name: the folder itself, or those that it holds. Raises `ConfigError` where there is none.

    The files of many runs are looked at in one pass, which ends with `passes`.
    """
    mend = "name a study's folder, such as results/quick, a run's, or one that holds such folders"
    require_local("path", folder)
    require(folder.is_dir(), "path", f"there is no folder {folder}", mend)
    if (itself := Place.at(folder, NOW)) is not None:
        return [in_one_pass(itself, passes)]
    files = passes.enter_context(looked_at(folder))
    found = [place for inner in sorted(folder.glob("*/")) if (place := Place.at(inner, files)) is not None]
    require(bool(found), "path", f"{folder} holds no results", mend)
    return [in_one_pass(place, passes) for place in found]


def in_one_pass(place: Place, passes: contextlib.ExitStack) -> Place:
    """A study's place with the files of its runs as one pass finds them; a run's as it is."""
    if not place.is_study:
        return place
    return dataclasses.replace(place, files=passes.enter_context(looked_at(StudyFolder(place.folder).all_runs)))


def runs_of(places: Sequence[Place]) -> pa.Table:
    """The table of finished runs, each with its folder and its settings. Raises `ConfigError` for a damaged file."""
    tables = [
        (place, in_order(with_later(table)))
        for place in places
        for table in place.tables(StudyFolder(place.folder).table, lambda run: [run.row])
    ]
    rows = with_folders(SCHEMA, tables)
    names = iter(rows.column("run").to_pylist())
    settings = [config_of(place, next(names)) for place, table in tables for _ in range(table.num_rows)]
    return rows.append_column("config", pa.array(settings, pa.string()))


def with_folders(schema: pa.Schema, tables: Sequence[tuple[Place, pa.Table]]) -> pa.Table:
    """Tables of several places as one, with each place's folder as the first column."""
    folders = repeated([str(place.folder) for place, _ in tables], [table.num_rows for _, table in tables])
    whole = pa.concat_tables([schema.empty_table(), *(table for _, table in tables)]).combine_chunks()
    return whole.add_column(0, "folder", folders)


def repeated(texts: Sequence[str], counts: Sequence[int]) -> pa.Array:
    """Each text as many times as it counts."""
    return pa.array(texts, pa.string()).take(pa.array(np.repeat(np.arange(len(texts)), np.asarray(counts, int))))


def config_of(place: Place, run: str) -> str | None:
    """The settings of a run as JSON, None where its folder is not there. Raises `ConfigError` where they are damaged."""
    return settings_in(StudyFolder(place.folder).run(run), place.files) if place.is_study else place.settings


def settings_in(folder: RunFolder, files: Disk) -> str | None:
    """The settings in a run's own folder as JSON, None where there are none. Raises `ConfigError` where they are damaged."""
    file = folder.config
    if not files.exists(file):
        return None
    return json_text(checked_object(files.text(file), file, "path", "restore it, or leave its folder out"))


def curves_of(places: Sequence[Place]) -> pa.Table:
    """The table of all lines of all logs, one row per metric. Raises `ConfigError` for a damaged line."""
    logs = [(place, run.metrics) for place in places for run in place.runs if place.files.exists(run.metrics)]
    tables = [(place, place.files.curves(log)) for place, log in logs]
    names = [run_of(log, place) for place, log in logs]
    return with_folders(CURVES, tables).add_column(1, "run", repeated(names, [table.num_rows for _, table in tables]))


def measures_of(places: Sequence[Place]) -> pa.Table:
    """The table of the figures of all evaluations. Raises `ConfigError` for a damaged file."""
    tables = [
        (place, as_measures(table))
        for place in places
        for table in place.tables(StudyFolder(place.folder).measures, place.files.figures)
    ]
    return with_folders(measures.SCHEMA, tables)


def run_of(log: Path, place: Place) -> str:
    """The name of a log's run: its folder's name in a study; alone the name in its settings, as its folder may be renamed."""
    if place.is_study:
        return log.parent.name
    return (json.loads(place.settings).get("name") if place.settings else None) or log.parent.resolve().name
