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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from infini_jax.files import checked_object, json_text
from infini_jax.records import rows
from infini_jax.records.folder import MEASURES_FOLDER, REMEMBERED_FILE, RunFolder
from infini_jax.records.parquet import is_as_written, read_table, table_in, write_table
from infini_jax.records.remembered import INDEX, KINDS, SCHEMA, Joined, Remembered, kind_of_table, lists_of, picked, shaped
from infini_jax.records.training_log import curves_in, last_line, log_text, newest_of

RECENT = 2_000_000_000  # nanoseconds: longer than a tick of the clock of any file system
TABLE = ".parquet"  # the end of the name of every table
WORTH = 64  # what is new is remembered once it is more than one part in so many
File = Path | str


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


@dataclasses.dataclass(frozen=True)
class Content:
    """What was found in a file.

    Attributes:
      is_whole: whether a table is what was written; True for a text.
      line: what is asked of a text: settings as one line of JSON, the last whole line of a log; None for a table.
      table: the table, that of its curves for a log; None where it is damaged, or nobody asked for it.
    """

    is_whole: bool = True
    line: bytes | None = None
    table: pa.Table | None = None


class Disk:
    """The files of runs as they are now; each answer reads its file."""

    def exists(self, file: File) -> bool:
        """Whether there is such a file."""
        return Path(file).exists()

    def modified(self, file: Path) -> float:
        """Time of the last change of a file that is there, in seconds."""
        return file.stat().st_mtime

    def is_whole(self, file: Path) -> bool:
        """Whether a Parquet file is there and holds what was written."""
        return rows.is_whole(file)

    def table(self, file: File) -> pa.Table | None:
        """The table of a row or of figures; None where it is missing or damaged."""
        return read_table(Path(file))

    def joined(self, files: Sequence[File], kind: str) -> Joined:
        """The tables of many files of a kind as one, those of logs ("curves") too. Raises `ConfigError` as `curves`."""
        return Joined.of([self.curves(file) if kind == "curves" else self.table(file) for file in files], kind)

    def figures(self, run: RunFolder) -> list[str]:
        """The files of a run's figures, by name."""
        return sorted(map(str, run.all_measures.glob("*" + TABLE)))

    def settings(self, file: File) -> str:
        """The settings in a file as one line of JSON. Raises `ConfigError` where they are damaged."""
        return settings_line(Path(file).read_bytes(), file).decode()

    def newest_line(self, log: Path) -> dict[str, float]:
        """The last whole line of a log; empty where there is none that can be read."""
        return newest_of(log_text(log))

    def curves(self, log: File) -> pa.Table:
        """The curves of a log as a table of `CURVES`. Raises `ConfigError` for a damaged line."""
        return curves_in(log_text(Path(log)), Path(log))


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
        self.folders = sorted(entry.name for entry in entries_in(folder) if entry.is_dir())
        self.states = {name: state for run in self.folders for name, state in files_in(self.prefix + run)}
        self.new: dict[str, Content] = {}

    @property
    def runs(self) -> list[RunFolder]:
        """The folders in the folder, by name."""
        return [RunFolder(self.folder / name) for name in self.folders]

    def exists(self, file: File) -> bool:
        return str(file) in self.states

    def modified(self, file: Path) -> float:
        return self.states[str(file)].modified / 1e9

    def is_whole(self, file: Path) -> bool:
        name = str(file)
        if name not in self.states:
            return False
        place = self.place(name)
        return self.read(name).is_whole if place is None else self.remembered.is_whole[place]

    def table(self, file: File) -> pa.Table | None:
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
        lines = self.remembered.lines(kind_of_table(name))
        span = lines.span(self.place(name))
        return None if span is None else lines.table.slice(*span)

    def joined(self, files: Sequence[File], kind: str) -> Joined:
        lines = self.remembered.lines(kind)
        places = [self.place(str(file)) for file in files]
        known = [lines.span(place) for place in places]
        fresh = super().joined([file for file, span in zip(files, known, strict=True) if span is None], kind)
        ends = itertools.accumulate((count or 0 for count in fresh.counts), initial=lines.table.num_rows)
        read = iter([None if count is None else (end, count) for end, count in zip(ends, fresh.counts, strict=False)])
        spans = [next(read) if span is None else span for span in known]
        whole = pa.concat_tables([lines.table, fresh.table]) if fresh.counts else lines.table
        return Joined(picked(whole, list(filter(None, spans))), [None if span is None else span[1] for span in spans])

    def settings(self, file: File) -> str:
        return self.line(str(file), lambda text: settings_line(text, file)).decode()

    def newest_line(self, log: Path) -> dict[str, float]:
        return newest_of(self.line(str(log), last_line)) if str(log) in self.states else {}

    def line(self, name: str, made_of: Callable[[bytes], bytes]) -> bytes:
        """What is asked of a text, as it is remembered, or made of it."""
        place = self.place(name)
        found = self.new[name].line if name in self.new else None if place is None else self.remembered.texts[place].as_py()
        if found is None:
            found = made_of(self.bytes_of(name) or b"")
            self.new[name] = Content(line=found)
        return found

    def curves(self, log: File) -> pa.Table:
        name = str(log)
        if name not in self.states:
            return curves_in(b"", Path(log))
        found = self.new[name].table if name in self.new else self.known_table(name)
        if found is None:
            text = self.bytes_of(name) or b""
            found = curves_in(text, Path(log))
            self.new[name] = Content(line=last_line(text), table=found)
        return found

    def figures(self, run: RunFolder) -> list[str]:
        return self.figures_by_folder.get(f"{run.path}/{MEASURES_FOLDER}", [])

    @functools.cached_property
    def figures_by_folder(self) -> dict[str, list[str]]:
        """The files of figures by their folder, by name."""
        found: dict[str, list[str]] = {}
        for name in sorted(name for name in self.states if name.endswith(TABLE)):
            folder = os.path.dirname(name)
            if folder.endswith("/" + MEASURES_FOLDER):
                found.setdefault(folder, []).append(name)
        return found

    @functools.cached_property
    def remembered(self) -> Remembered:
        """What an earlier pass left."""
        return Remembered.of(self.folder / REMEMBERED_FILE, self.prefix)

    @functools.cached_property
    def known(self) -> dict[str, int]:
        """Where files stand in what is remembered, those that are in the same state."""
        return self.remembered.places(self.states)

    def place(self, name: str) -> int | None:
        """Where a file stands in what is remembered; None where it is not, or not in this state, or was read in this pass."""
        return None if name in self.new else self.known.get(name)

    def read(self, name: str) -> Content:
        """What a table's file holds, read once in this pass. It is checked; `decode` decodes it when it is asked for."""
        if name not in self.new:
            content = self.bytes_of(name)
            self.new[name] = Content(content is not None and is_as_written(content))
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
        if len(fresh) * WORTH < max(len(self.remembered.states), 1):
            return
        kept = [place for name, place in self.known.items() if name not in self.new]
        with contextlib.suppress(OSError):
            write_table(self.to_remember(kept, fresh), self.folder / REMEMBERED_FILE)

    def to_remember(self, kept: Sequence[int], fresh: dict[str, Content]) -> pa.Table:
        """The table of what is remembered: places of the table before, and what this pass read."""
        index = [(name[len(self.prefix) :], *self.states[name], one.is_whole, one.line) for name, one in fresh.items()]
        columns: list[Any] = [
            pa.array(values, field.type) for values, field in zip(zip(*index, strict=True), INDEX, strict=True)
        ]
        for kind, schema in KINDS.items():
            tables = [one.table if kind_of_table(name) == kind else None for name, one in fresh.items()]
            columns.append(lists_of(tables, schema))
        new = pa.table(columns, schema=SCHEMA)
        return pa.concat_tables([self.remembered.whole.take(kept), new]) if kept else new


@contextlib.contextmanager
def looked_at(folder: Path) -> Iterator[Inventory]:
    """A context with the files of the runs in a folder, found in one pass; what it read is remembered at its end."""
    found = Inventory(folder)
    yield found
    found.remember()


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


def settings_line(text: bytes, file: File) -> bytes:
    """The settings that the text of a file is, as one line of JSON. Raises `ConfigError` where they are damaged."""
    return json_text(checked_object(text, Path(file), "path", "restore it, or leave its folder out")).encode()
