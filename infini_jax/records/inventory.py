"""What lies in the folders of many runs, found in one pass; what has not changed since an earlier pass is remembered.

A pass lists the folders and asks the system for the state of each file: time of its last change, size and inode. A file whose
state is the one that it was read in is not read again, neither for its digest nor for what stands in it: both are remembered
beside the runs, in one file. That file is never needed and never waited for: it may be deleted at any time, is ignored where
it is damaged or of another version, and is replaced as a whole, so that of several writers the last one counts. A folder that
cannot be written to is read without.

A file may be changed twice within one tick of its clock; one that changed in the last seconds before a pass is therefore read
by the next one again.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from infini_jax.records import measures, rows
from infini_jax.records.folder import MEASURES_FOLDER, METRICS_FILE, REMEMBERED_FILE, ROW_FILE, RunFolder
from infini_jax.records.parquet import is_as_written, read_table, table_in, write_table
from infini_jax.records.training_log import CURVES, curves_in, log_text

RECENT = 2_000_000_000  # nanoseconds: longer than a tick of the clock of any file system
LARGEST = 2**18  # bytes of a text that is remembered; to read a longer one takes as long wherever it lies
TABLE = ".parquet"  # the end of the name of every table
WORTH = 64  # what is new is remembered once it is more than one part in so many


class State(NamedTuple):
    """The state of a file: nanoseconds of the last change of its bytes and of its entry, bytes, inode."""

    modified: int
    changed: int
    size: int
    inode: int

    @staticmethod
    def of(found: os.stat_result) -> "State":
        """The state that the system tells."""
        return State(found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


KINDS = {"row": rows.SCHEMA, "figures": measures.SCHEMA, "curves": CURVES}  # of tables, each a column of lists, one per file
INDEX = pa.schema(
    [("file", pa.string())]
    + [(name, pa.int64()) for name in ("modified", "changed", "size")]
    + [("inode", pa.uint64()), ("is_whole", pa.bool_()), ("text", pa.large_binary())]
)
SCHEMA = pa.schema(
    [*INDEX, *((name, pa.large_list(pa.struct(list(schema)))) for name, schema in KINDS.items())]
)  # of the remembered file, whose version it is


@dataclasses.dataclass(frozen=True)
class Content:
    """What was found in a file.

    Attributes:
      is_whole: whether a table is what was written; True for a text.
      text: the text, None for a table and for a text that is not remembered.
      table: the table, that of its curves for a log; None where it is damaged, or nobody asked for it.
    """

    is_whole: bool = True
    text: bytes | None = None
    table: pa.Table | None = None


class Disk:
    """The files of runs as they are now; each answer reads its file."""

    def exists(self, file: Path) -> bool:
        """Whether there is such a file."""
        return file.exists()

    def modified(self, file: Path) -> float:
        """Time of the last change of a file that is there, in seconds."""
        return file.stat().st_mtime

    def is_whole(self, file: Path) -> bool:
        """Whether a Parquet file is there and holds what was written."""
        return rows.is_whole(file)

    def table(self, file: Path) -> pa.Table | None:
        """The table of a row or of figures; None where it is missing or damaged."""
        return read_table(file)

    def figures(self, run: RunFolder) -> list[Path]:
        """The files of a run's figures, by name."""
        return sorted(run.all_measures.glob("*" + TABLE))

    def text(self, file: Path) -> bytes:
        """The text of a file, b"" where there is none."""
        return log_text(file)

    def curves(self, log: Path) -> pa.Table:
        """The curves of a log as a table of `CURVES`. Raises `ConfigError` for a damaged line."""
        return curves_in(self.text(log), log)


NOW = Disk()
"""The files as they are now."""


class Inventory(Disk):
    """The files of the runs in a folder as one pass found them.

    Attributes:
      folder: folder that holds the folders of the runs.
    """

    def __init__(self, folder: Path):
        self.folder, self.began = folder, time.time_ns()
        self.prefix = str(folder / "x")[:-1]  # of the paths of all files, as `str` has them
        self.states = dict(states_in(folder, self.prefix))
        self.new: dict[str, Content] = {}

    def exists(self, file: Path) -> bool:
        return str(file) in self.states

    def modified(self, file: Path) -> float:
        return self.states[str(file)].modified / 1e9

    def is_whole(self, file: Path) -> bool:
        name = str(file)
        if name not in self.states:
            return False
        place = self.place(name)
        return self.read(name).is_whole if place is None else self.remembered.is_whole[place]

    def table(self, file: Path) -> pa.Table | None:
        name = str(file)
        if name not in self.states:
            return None
        place = self.place(name)
        if place is not None and not self.remembered.is_whole[place]:
            return None
        found = self.known_table(name)
        return self.decode(name) if found is None else found

    def known_table(self, name: str) -> pa.Table | None:
        """The table of a file that is remembered in the file's state, None where none is."""
        place = self.place(name)
        return None if place is None else self.remembered.table(kind_of_table(name), place)

    def text(self, file: Path) -> bytes:
        name = str(file)
        if name not in self.states:
            return b""
        place = self.place(name)
        found = None if place is None else self.remembered.texts[place].as_py()
        return self.read(name).text or b"" if found is None else found

    def curves(self, log: Path) -> pa.Table:
        name = str(log)
        found = self.new[name].table if name in self.new else self.known_table(name) if name in self.states else None
        if found is None:
            text = self.text(log)
            found = curves_in(text, log)
            if name in self.states:
                self.new[name] = Content(text=text, table=found)
        return found

    def figures(self, run: RunFolder) -> list[Path]:
        return self.figures_by_folder.get(str(run.all_measures), [])

    @functools.cached_property
    def figures_by_folder(self) -> dict[str, list[Path]]:
        """The files of figures by their folder, by name."""
        found: dict[str, list[Path]] = {}
        for name in sorted(self.states):
            folder = os.path.dirname(name)
            if name.endswith(TABLE) and folder.endswith("/" + MEASURES_FOLDER):
                found.setdefault(folder, []).append(Path(name))
        return found

    @functools.cached_property
    def remembered(self) -> "Remembered":
        """What an earlier pass left."""
        return Remembered.of(self.folder / REMEMBERED_FILE, self.prefix)

    def place(self, name: str) -> int | None:
        """Where a file stands in what is remembered; None where it is not, or not in this state, or was read in this pass."""
        return None if name in self.new else self.remembered.place(name, self.states[name])

    def read(self, name: str) -> Content:
        """What a file holds, read once in this pass. A table is checked, and decoded by `decode` when it is asked for."""
        if name not in self.new:
            content = self.bytes_of(name)
            is_table = name.endswith(TABLE)
            is_whole = content is not None and (not is_table or is_as_written(content))
            self.new[name] = Content(is_whole, None if is_table else content)
        return self.new[name]

    def decode(self, name: str) -> pa.Table | None:
        """The table of a file; None where it is gone or damaged."""
        known = self.new.get(name)
        if known is None or (known.is_whole and known.table is None):
            content = self.bytes_of(name)
            table = None if content is None else table_in(content)
            known = self.new[name] = Content(
                table is not None, table=None if table is None else shaped(table, kind_of_table(name))
            )
        return known.table

    def bytes_of(self, name: str) -> bytes | None:
        """The bytes of a file; None where it is gone. One that changed since the pass began is not remembered."""
        try:
            with open(name, "rb") as file:
                content, state = file.read(), State.of(os.fstat(file.fileno()))
        except FileNotFoundError:
            return None
        if state != self.states[name]:
            self.states[name] = state._replace(changed=self.began)
        return content

    def is_old(self, name: str) -> bool:
        """Whether a file had not changed for so long that its state tells what is in it."""
        state = self.states[name]
        return max(state.modified, state.changed) < self.began - RECENT

    def remember(self) -> None:
        """Writes what is known for the next pass, where enough is new; a folder that cannot be written to stays as it is."""
        fresh = {name: one for name, one in self.new.items() if self.is_old(name)}
        if len(fresh) * WORTH < max(len(self.remembered.places), 1):
            return
        kept = [
            place
            for name, place in self.remembered.places.items()
            if name not in fresh and self.remembered.place(name, self.states.get(name)) is not None
        ]
        with contextlib.suppress(OSError):
            write_table(self.joined(kept, fresh), self.folder / REMEMBERED_FILE)

    def joined(self, kept: Sequence[int], fresh: dict[str, Content]) -> pa.Table:
        """The table of what is remembered: places of the table before, and what this pass read."""
        index = [(name[len(self.prefix) :], *self.states[name], one.is_whole, short(one.text)) for name, one in fresh.items()]
        columns: list[Any] = [
            pa.array(values, field.type) for values, field in zip(zip(*index, strict=True), INDEX, strict=True)
        ]
        for kind, schema in KINDS.items():
            tables = [one.table if kind_of_table(name) == kind else None for name, one in fresh.items()]
            columns.append(lists_of(tables, schema))
        new = pa.table(columns, schema=SCHEMA)
        return pa.concat_tables([self.remembered.whole.take(kept), new]) if kept else new


class Remembered:
    """What an earlier pass left in a file: places of a table by name, with the states that files were read in."""

    def __init__(self, content: bytes | None, prefix: str):
        self.file = pq.ParquetFile(pa.BufferReader(content)) if content else None
        names = [field.name for field in INDEX if field.name != "text"]
        index = self.file.read(names) if self.file else SCHEMA.empty_table().select(names)
        files, *states, self.is_whole = (column.to_pylist() for column in index.columns)
        self.places = {prefix + file: place for place, file in enumerate(files)}
        self.states = [State(*values) for values in zip(*states, strict=True)]

    @staticmethod
    def of(file: Path, prefix: str) -> "Remembered":
        """What is in a file; nothing where it is missing, damaged or of another version."""
        with contextlib.suppress(OSError, pa.ArrowException):
            content = file.read_bytes()
            if is_as_written(content) and pq.read_schema(pa.BufferReader(content)).equals(SCHEMA):
                return Remembered(content, prefix)
        return Remembered(None, prefix)

    def place(self, name: str, state: State | None) -> int | None:
        """Where a file in this state stands, None where it is not known."""
        place = self.places.get(name)
        return place if place is not None and self.states[place] == state else None

    @functools.cached_property
    def whole(self) -> pa.Table:
        """All that is remembered."""
        return self.file.read().combine_chunks() if self.file else SCHEMA.empty_table()

    def column(self, name: str) -> Any:
        """One column, read without the others."""
        return (self.file.read([name]) if self.file else SCHEMA.empty_table()).column(name).combine_chunks()

    @functools.cached_property
    def texts(self) -> Any:
        """The texts by place."""
        return self.column("text")

    @functools.cached_property
    def lines(self) -> dict[str, "Lines"]:
        """The lines of all tables by kind."""
        return {kind: Lines.of(self.column(kind)) for kind in KINDS}

    def table(self, kind: str, place: int) -> pa.Table | None:
        """The table at a place, None where it was not decoded."""
        return self.lines[kind].at(place)


class Lines(NamedTuple):
    """The lines of many tables as one, where those of each begin, and whether there is no such table."""

    table: pa.Table
    begins: list[int]
    is_null: list[bool]

    @staticmethod
    def of(lists: pa.LargeListArray) -> "Lines":
        """The lines in an array of lists."""
        return Lines(pa.Table.from_struct_array(lists.values), lists.offsets.to_pylist(), lists.is_null().to_pylist())

    def at(self, place: int) -> pa.Table | None:
        """The table at a place, None where there is none."""
        begin, end = self.begins[place : place + 2]
        return None if self.is_null[place] else self.table.slice(begin, end - begin)


@contextlib.contextmanager
def looked_at(folder: Path) -> Iterator[Inventory]:
    """A context with the files of the runs in a folder, found in one pass; what it read is remembered at its end."""
    found = Inventory(folder)
    yield found
    found.remember()


def states_in(folder: Path, prefix: str) -> Iterator[tuple[str, State]]:
    """(path, state) of each file directly in the folders in a folder, and of their figures."""
    for run in entries_in(folder):
        if run.is_dir():
            yield from files_in(prefix + run.name)


def files_in(folder: str) -> Iterator[tuple[str, State]]:
    """(path, state) of each file directly in a run's folder, and of its figures."""
    for entry in entries_in(folder):
        if entry.name == MEASURES_FOLDER:
            yield from files_in(f"{folder}/{entry.name}")
            continue
        with contextlib.suppress(OSError):  # removed since
            if stat.S_ISREG((found := entry.stat()).st_mode):
                yield f"{folder}/{entry.name}", State.of(found)


def entries_in(folder: Path | str) -> list[os.DirEntry]:
    """The entries of a folder, none where it is not there."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def kind_of_table(name: str) -> str:
    """The kind of the table that a Parquet file of a run holds, or that is made of its log."""
    return {ROW_FILE: "row", METRICS_FILE: "curves"}.get(os.path.basename(name), "figures")


def shaped(table: pa.Table, kind: str) -> pa.Table:
    """A table with the columns of its kind."""
    return rows.with_later(table) if kind == "row" else measures.as_measures(table)


def short(text: bytes | None) -> bytes | None:
    """A text, None where it is too long to be remembered."""
    return text if text is not None and len(text) <= LARGEST else None


def lists_of(tables: Sequence[pa.Table | None], schema: pa.Schema) -> pa.LargeListArray:
    """An array with the lines of each table as a list, null where there is no table."""
    there = [one for one in tables if one is not None]
    lines = pa.concat_tables([schema.empty_table(), *there]).combine_chunks()
    structs = pa.StructArray.from_arrays([column.combine_chunks() for column in lines.columns], fields=list(schema))
    ends = itertools.accumulate((0 if one is None else one.num_rows for one in tables), initial=0)
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), structs, mask=pa.array([one is None for one in tables]))
