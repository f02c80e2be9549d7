"""What an earlier pass over the files of runs left, in one Parquet file: see inventory.py."""

import contextlib
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infini_jax.records import measures, rows
from infini_jax.records.folder import METRICS_FILE, ROW_FILE
from infini_jax.records.parquet import is_as_written
from infini_jax.records.training_log import CURVES

KINDS = {"row": rows.SCHEMA, "figures": measures.SCHEMA, "curves": CURVES}  # of tables, each a column of lists, one per file
INDEX = pa.schema(
    [("file", pa.string())]
    + [(name, pa.int64()) for name in ("modified", "changed", "size")]
    + [("inode", pa.uint64()), ("is_whole", pa.bool_()), ("line", pa.large_binary())]
)
SCHEMA = pa.schema(
    [*INDEX, *((name, pa.large_list(pa.struct(list(schema)))) for name, schema in KINDS.items())]
)  # of the remembered file, whose version it is


class Joined(NamedTuple):
    """The lines of many files' tables as one table, one file after the other.

    Attributes:
      table: table of all lines.
      counts: number of lines of each file, None where it is missing or damaged.
    """

    table: pa.Table
    counts: list[int | None]

    @staticmethod
    def of(tables: Sequence[pa.Table | None], kind: str) -> "Joined":
        """The tables of files as one, each with the columns of its kind; None stands for a file without one."""
        there = [shaped(one, kind) for one in tables if one is not None]
        counts = [None if one is None else one.num_rows for one in tables]
        return Joined(pa.concat_tables([KINDS[kind].empty_table(), *there]), counts)

    def only(self, takes: Sequence[bool]) -> "Joined":
        """The lines of the files that are to be taken; the others count as missing."""
        ends = itertools.accumulate(count or 0 for count in self.counts)
        spans = [(end - (count or 0), count or 0) for end, count in zip(ends, self.counts, strict=True)]
        kept = [span for span, take in zip(spans, takes, strict=True) if take]
        return Joined(picked(self.table, kept), [n if take else None for n, take in zip(self.counts, takes, strict=True)])


class Lines(NamedTuple):
    """The lines of all tables of a kind as one, where those of each begin, and whether there is no such table."""

    table: pa.Table
    begins: list[int]
    is_null: list[bool]

    def span(self, place: int | None) -> tuple[int, int] | None:
        """(first line, number of lines) of the table at a place, None where there is none."""
        if place is None or self.is_null[place]:
            return None
        begin, end = self.begins[place : place + 2]
        return begin, end - begin


class Remembered:
    """What an earlier pass left in a file: places of a table by name, with the states that files were read in."""

    def __init__(self, content: bytes | None, prefix: str):
        self.file = pq.ParquetFile(pa.BufferReader(content)) if content else None
        names = [field.name for field in INDEX if field.name != "line"]
        index = self.file.read(names) if self.file else SCHEMA.empty_table().select(names)
        files, *states, self.is_whole = (column.to_pylist() for column in index.columns)
        self.states = {prefix + file: state for file, state in zip(files, zip(*states, strict=True), strict=True)}

    @staticmethod
    def of(file: Path, prefix: str) -> "Remembered":
        """What is in a file; nothing where it is missing, damaged or of another version."""
        with contextlib.suppress(OSError, pa.ArrowException):
            content = file.read_bytes()
            if is_as_written(content) and pq.read_schema(pa.BufferReader(content)).equals(SCHEMA):
                return Remembered(content, prefix)
        return Remembered(None, prefix)

    def places(self, states: Mapping[str, tuple]) -> dict[str, int]:
        """The places of the files that are in the state now that they were read in."""
        return {name: place for place, (name, state) in enumerate(self.states.items()) if states.get(name) == state}

    @functools.cached_property
    def whole(self) -> pa.Table:
        """All that is remembered."""
        return self.file.read().combine_chunks() if self.file else SCHEMA.empty_table()

    def column(self, name: str) -> Any:
        """One column, read without the others."""
        found = (self.file.read([name]) if self.file else SCHEMA.empty_table()).column(name)
        return found.chunk(0) if found.num_chunks == 1 else found.combine_chunks()

    @functools.cached_property
    def texts(self) -> Any:
        """The lines of text by place."""
        return self.column("line")

    @functools.cached_property
    def read_lines(self) -> dict[str, Lines]:
        """The lines of tables by kind, as far as they were asked for."""
        return {}

    def lines(self, kind: str) -> Lines:
        """The lines of all tables of a kind."""
        if kind not in self.read_lines:
            lists = self.column(kind)
            table = pa.Table.from_struct_array(lists.values)
            self.read_lines[kind] = Lines(table, lists.offsets.to_pylist(), lists.is_null().to_pylist())
        return self.read_lines[kind]


def kind_of_table(name: str) -> str:
    """The kind of the table that a Parquet file of a run holds, or that is made of its log."""
    return {ROW_FILE: "row", METRICS_FILE: "curves"}.get(os.path.basename(name), "figures")


def shaped(table: pa.Table, kind: str) -> pa.Table:
    """A table with the columns of its kind, rows in their order. Raises `KeyError` where one is missing."""
    if kind == "row":
        return rows.in_order(rows.with_later(table))
    return measures.as_measures(table) if kind == "figures" else table


def picked(table: pa.Table, spans: Sequence[tuple[int, int]]) -> pa.Table:
    """The lines of a table that lie in spans, (first line, number of lines), one span after the other."""
    begins, counts = np.array([span for span in spans if span[1]], np.int64).reshape(-1, 2).T
    ends = np.cumsum(counts)
    if not len(ends) or (begins == begins[0] + ends - counts).all():  # as they lie there: nothing is copied
        return table.slice(begins[0], ends[-1]) if len(ends) else table.slice(0, 0)
    return table.take(np.repeat(begins - ends + counts, counts) + np.arange(ends[-1]))


def lists_of(tables: Sequence[pa.Table | None], schema: pa.Schema) -> pa.LargeListArray:
    """An array with the lines of each table as a list, null where there is no table."""
    there = [one for one in tables if one is not None]
    lines = pa.concat_tables([schema.empty_table(), *there]).combine_chunks()
    structs = pa.StructArray.from_arrays([column.combine_chunks() for column in lines.columns], fields=list(schema))
    ends = itertools.accumulate((0 if one is None else one.num_rows for one in tables), initial=0)
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), structs, mask=pa.array([one is None for one in tables]))
