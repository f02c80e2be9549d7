"""Results as tables for a Python shell: the Parquet files and logs that studies and runs leave, read by DuckDB.

A folder is a study's (results.parquet, measures.parquet, runs/), a run's own (config.json, metrics.jsonl, row.parquet,
measures/), or holds folders of these kinds.
"""

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa

from infini_jax.errors import ConfigError, installs, one_line, require, require_local
from infini_jax.files import json_text, read_object
from infini_jax.records import measures
from infini_jax.records.folder import RunFolder, StudyFolder
from infini_jax.records.rows import SCHEMA, checked_table, is_whole, read_rows
from infini_jax.records.training_log import damaged_line
from infini_jax.results.columns import COLUMNS

Library = Literal["pandas", "polars"]
logger = logging.getLogger(__name__)

LINES = """
with logs as (select filename, string_split(content, chr(10))[:-2] as lines from read_text($files)),
     lines as (select filename, unnest(lines) as line, generate_subscripts(lines, 1) as place from logs)
"""  # what stands behind the last end of a line is still being written
DAMAGED = (
    LINES + "select filename, place from lines where not json_valid(line) or json_type(line) != 'OBJECT' order by all limit 1"
)
CURVES = (
    LINES
    + """, metrics as (select *, unnest(json_keys(line)) as metric from lines)
select folder, run, (line->>'step')::bigint as step, (line->>'tokens')::bigint as tokens, metric,
       coalesce((line->>metric)::double, 'nan'::double) as value
from metrics join sources using (filename)
where metric not in ('step', 'tokens')
order by number, place, metric
"""
)
MEASURES = """
select folder, m.run, eval, metric, value, count, low, high, labels
from read_parquet($files, filename = true, file_row_number = true) m join sources using (filename)
order by number, file_row_number
"""
NO_CURVES = pa.schema(
    [(name, pa.string()) for name in ("folder", "run")]
    + [(name, pa.int64()) for name in ("step", "tokens")]
    + [("metric", pa.string()), ("value", pa.float64())]
).empty_table()
NO_MEASURES = pa.schema([("folder", pa.string()), *measures.SCHEMA]).empty_table()


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
    """

    folder: Path
    is_study: bool

    @staticmethod
    def at(folder: Path) -> "Place | None":
        """The place of a folder, None where the folder itself holds no results."""
        if StudyFolder(folder).is_there:
            return Place(folder, True)
        return Place(folder, False) if RunFolder(folder).is_there else None

    @property
    def runs(self) -> list[RunFolder]:
        """The runs' own folders, by name."""
        return StudyFolder(self.folder).runs if self.is_study else [RunFolder(self.folder)]

    def tables(self, whole: Path, of_run: Callable[[RunFolder], list[Path]]) -> list[Path]:
        """The study's file `whole`, or the files of its runs where there is none yet, or of a run alone.

        A damaged file of a run counts as missing, as it does for its study. Raises `ConfigError` where `whole` is damaged.
        """
        if self.is_study and whole.exists():
            return [checked_table(whole, "path")]
        found = [file for run in self.runs for file in of_run(run) if file.exists()]
        for file in found:
            if not is_whole(file):
                logger.warning("%s is damaged and left out; the command of its run or study makes it again", file)
        return [file for file in found if is_whole(file)]


File = tuple[Path, Path]  # a file, and the folder of the place that it belongs to


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
    places = [place for one in ([path] if isinstance(path, str | Path) else path) for place in places_in(Path(one))]
    try:
        found = [runs_of(places), curves_of(places), measures_of(places)]
    except duckdb.Error as error:  # a log that is no text; its words name the file
        raise ConfigError("path", f"a log is damaged ({one_line(error)})", "restore it, or leave its folder out") from error
    described = pa.Table.from_pylist([dataclasses.asdict(column) for column in COLUMNS])
    relations = map(duckdb.from_arrow, (*found, described))
    return Results(*(one.df() if library == "pandas" else one.pl() for one in relations))


def places_in(folder: Path) -> list[Place]:
    """The places in a folder, by name: the folder itself, or those that it holds. Raises `ConfigError` where there is none."""
    mend = "name a study's folder, such as results/quick, a run's, or one that holds such folders"
    require_local("path", folder)
    require(folder.is_dir(), "path", f"there is no folder {folder}", mend)
    if (itself := Place.at(folder)) is not None:
        return [itself]
    found = [place for inner in sorted(folder.glob("*/")) if (place := Place.at(inner)) is not None]
    require(bool(found), "path", f"{folder} holds no results", mend)
    return found


def runs_of(places: Sequence[Place]) -> pa.Table:
    """The table of finished runs, each with its folder and its settings. Raises `ConfigError` for a damaged file."""
    lines = [
        {"folder": str(place.folder), **dataclasses.asdict(row), "config": config_of(place, row.run)}
        for place in places
        for file in place.tables(StudyFolder(place.folder).table, lambda run: [run.row])
        for row in read_rows(file)
    ]
    return pa.Table.from_pylist(lines, schema=pa.schema([("folder", pa.string()), *SCHEMA, ("config", pa.string())]))


def config_of(place: Place, run: str) -> str | None:
    """The settings of a run as JSON, None where its folder is not there. Raises `ConfigError` where they are damaged."""
    return settings_in(StudyFolder(place.folder).run(run) if place.is_study else RunFolder(place.folder))


def settings_in(folder: RunFolder) -> str | None:
    """The settings in a run's own folder as JSON, None where there are none. Raises `ConfigError` where they are damaged."""
    file = folder.config
    if not file.exists():
        return None
    return json_text(read_object(file, "path", "restore it, or leave its folder out"))


def curves_of(places: Sequence[Place]) -> pa.Table:
    """The table of all lines of all logs, one row per metric. Raises `ConfigError` for a line that is no JSON object."""
    files = [(file, place.folder) for place in places for run in place.runs if (file := run.metrics).exists()]
    if not files:
        return NO_CURVES
    with duckdb.connect() as connection:
        connection.execute(DAMAGED, {"files": [str(file) for file, _ in files]})
        if (damaged := connection.fetchone()) is not None:
            raise damaged_line(*damaged)
    return selected(CURVES, files)


def measures_of(places: Sequence[Place]) -> pa.Table:
    """The table of the figures of all evaluations. Raises `ConfigError` for a damaged file."""
    files = [
        (file, place.folder)
        for place in places
        for file in place.tables(StudyFolder(place.folder).measures, lambda run: run.all_measures)
    ]
    return selected(MEASURES, files) if files else NO_MEASURES


def selected(query: str, files: Sequence[File]) -> pa.Table:
    """The result of a query over `$files`, in which the table `sources` has each file's number, folder and run."""
    names = [str(file) for file, _ in files]
    sources = {
        "filename": names,
        "number": list(range(len(files))),
        "folder": [str(folder) for _, folder in files],
        "run": [run_of(file, folder) for file, folder in files],
    }
    with duckdb.connect() as connection:
        connection.register("sources", pa.table(sources))
        return connection.sql(query, params={"files": names}).to_arrow_table()


def run_of(log: Path, folder: Path) -> str:
    """The name of a log's run: its folder's name in a study; alone the name in its settings, as its folder may be renamed."""
    settings = settings_in(RunFolder(folder)) if log.parent == folder else None
    return (json.loads(settings).get("name") if settings else None) or log.parent.resolve().name
