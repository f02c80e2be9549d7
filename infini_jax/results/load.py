"""Results as tables for a Python shell: the Parquet files and logs that studies and runs leave.

A folder is a study's (results.parquet, measures.parquet, runs/), a run's own (config.json, metrics.jsonl, row.parquet,
measures/), or holds folders of these kinds.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from infini_jax.errors import installs, require, require_local
from infini_jax.records.folder import (
    CONFIG_FILE,
    MEASURES_FILE,
    METRICS_FILE,
    ROW_FILE,
    RUN_SIGNS,
    STUDY_SIGNS,
    TABLE_FILE,
    RunFolder,
    StudyFolder,
)
from infini_jax.records.inventory import NOW, Disk, File, looked_at
from infini_jax.records.remembered import KINDS, Joined
from infini_jax.records.rows import checked_table
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
      runs: the runs' own folders, by name; none of a study before its files were looked at.
    """

    folder: Path
    is_study: bool
    files: Disk = NOW
    runs: Sequence[RunFolder] = ()

    @staticmethod
    def at(folder: Path, files: Disk) -> "Place | None":
        """The place of a folder, None where the folder itself holds no results."""
        if any(files.exists(f"{folder}/{name}") for name in STUDY_SIGNS):
            return Place(folder, True)
        is_run = any(files.exists(f"{folder}/{name}") for name in RUN_SIGNS)
        return Place(folder, False, files, [RunFolder(folder)]) if is_run else None

    @property
    def figures(self) -> list[str]:
        """The files of figures of the runs."""
        return [file for run in self.runs for file in self.files.figures(run)]

    def there(self, name: str) -> list[str]:
        """The files of this name in the folders of the runs, as far as they are there."""
        return [file for run in self.runs if self.files.exists(file := f"{run.path}/{name}")]

    @functools.cached_property
    def settings(self) -> str | None:
        """The settings of a run's own folder, see `settings_in`."""
        return settings_in(RunFolder(self.folder), self.files)

    def whole(self, name: str) -> Path | None:
        """The study's table of this name, of all its runs; None where there is none yet, for "", and for a run alone."""
        file = self.folder / name
        return file if name and self.is_study and file.exists() else None


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
    found = [place for inner in files.runs if (place := Place.at(inner.path, files)) is not None]
    require(bool(found), "path", f"{folder} holds no results", mend)
    return [in_one_pass(place, passes) for place in found]


def in_one_pass(place: Place, passes: contextlib.ExitStack) -> Place:
    """A study's place with the files of its runs as one pass finds them; a run's as it is."""
    if not place.is_study:
        return place
    files = passes.enter_context(looked_at(StudyFolder(place.folder).all_runs))
    return dataclasses.replace(place, files=files, runs=files.runs)


def runs_of(places: Sequence[Place]) -> pa.Table:
    """The table of finished runs, each with its folder and its settings. Raises `ConfigError` for a damaged file."""
    found = tables_of(places, "row", lambda place: place.there(ROW_FILE), TABLE_FILE)
    names = zip(found.owners, found.table.column("run").to_pylist(), strict=True)
    return found.with_folders().append_column("config", pa.array([config_of(*one) for one in names], pa.string()))


class Gathered(NamedTuple):
    """Lines of the tables of several places.

    Attributes:
      table: table of all lines.
      files: each file with its place, damaged ones left out.
      counts: number of lines of each file.
    """

    table: pa.Table
    files: list[tuple[Place, File]]
    counts: list[int]

    @property
    def owners(self) -> list[Place]:
        """The place of each line."""
        return [place for (place, _), count in zip(self.files, self.counts, strict=True) for _ in range(count)]

    def with_folders(self) -> pa.Table:
        """The table with each place's folder as the first column."""
        return self.table.add_column(0, "folder", repeated([str(place.folder) for place, _ in self.files], self.counts))


def tables_of(places: Sequence[Place], kind: str, files_of: Callable[[Place], Sequence[File]], whole: str = "") -> Gathered:
    """The lines of all files of a kind; a study's come from its table called `whole` where that is there.

    A damaged file of a run counts as missing, as for its study. Raises `ConfigError` where `whole` or a log is damaged.
    """
    parts, found, counts = [], [], []
    for (files, table), same in itertools.groupby(places, lambda place: (place.files, place.whole(whole))):
        if table is None:
            asked = [(place, file) for place in same for file in files_of(place)]
            part = files.joined([file for _, file in asked], kind)
        else:
            asked = [(next(same), table)]
            part = Joined.of([checked_table(table, "path")], kind)
        for one, count in zip(asked, part.counts, strict=True):
            if count is None:
                logger.warning("%s is damaged and left out; the command of its run or study makes it again", one[1])
            else:
                found.append(one)
                counts.append(count)
        parts.append(part)
    return Gathered(pa.concat_tables([KINDS[kind].empty_table(), *(part.table for part in parts)]), found, counts)


def repeated(texts: Sequence[str], counts: Sequence[int]) -> pa.Array:
    """Each text as many times as it counts."""
    return pa.array(texts, pa.string()).take(pa.array(np.repeat(np.arange(len(texts)), np.asarray(counts, int))))


def config_of(place: Place, run: str) -> str | None:
    """The settings of a run as JSON, None where its folder is not there. Raises `ConfigError` where they are damaged."""
    return settings_in(StudyFolder(place.folder).run(run), place.files) if place.is_study else place.settings


def settings_in(folder: RunFolder, files: Disk) -> str | None:
    """The settings in a run's own folder as JSON, None where there are none. Raises `ConfigError` where they are damaged."""
    file = f"{folder.path}/{CONFIG_FILE}"
    return files.settings(file) if files.exists(file) else None


def curves_of(places: Sequence[Place]) -> pa.Table:
    """The table of all lines of all logs, one row per metric. Raises `ConfigError` for a damaged line."""
    found = tables_of(places, "curves", lambda place: place.there(METRICS_FILE))
    names = [run_of(log, place) for place, log in found.files]
    return found.with_folders().add_column(1, "run", repeated(names, found.counts))


def measures_of(places: Sequence[Place]) -> pa.Table:
    """The table of the figures of all evaluations. Raises `ConfigError` for a damaged file."""
    return tables_of(places, "figures", lambda place: place.figures, MEASURES_FILE).with_folders()


def run_of(log: File, place: Place) -> str:
    """The name of a log's run: its folder's name in a study; alone the name in its settings, as its folder may be renamed."""
    if place.is_study:
        return Path(log).parent.name
    return (json.loads(place.settings).get("name") if place.settings else None) or place.folder.resolve().name
