"""Rows with several fields, as the files of published data sets hold them: JSON lines, CSV, Parquet."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from infini_jax.data.batch import Split
from infini_jax.data.raw_files import Files
from infini_jax.data.readers import HALF_PAIR, LARGEST_LINE, ROWS_AT_ONCE, json_objects, of_arrow

TABLES = (".csv", ".parquet")
LINES = (".jsonl", ".jsonl.gz", ".jsonl.gathered")
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
SPLIT_WORD = re.compile(rf"(?<![A-Za-z])({'|'.join(SPLIT_WORDS)})(?![A-Za-z])")

Fields = dict[str, Any]


def published_split(name: str) -> Split | None:
    """The split that a file's name says, or else a folder on the way to it, in any of the usual words; None without one."""
    for part in reversed(PurePosixPath(name).parts):
        if found := SPLIT_WORD.search(part):
            return SPLIT_WORDS[found[1]]
    return None


def field_rows(files: Files, name: str) -> Iterator[tuple[str, Fields]]:
    """(place in errors, fields) of each row of a file whose ending is in `TABLES` or `LINES`.

    All fields of CSV are text. Raises `ConfigError` for a file that is damaged.
    """
    if name.lower().endswith(LINES):
        yield from json_objects(files, name, "refuse")
        return
    with of_arrow(files, name), files.open(name) as opened:
        is_csv = name.lower().endswith(".csv")
        batches = csv_batches(opened) if is_csv else pq.ParquetFile(opened).iter_batches(ROWS_AT_ONCE)
        for number, fields in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"{name} row {number}", fields


def csv_batches(opened: Any) -> Iterator[pa.RecordBatch]:
    """The record batches of a CSV file with a head line, whose fields may hold line ends; all columns are text."""
    head = csv.open_csv(opened, csv.ReadOptions(block_size=LARGEST_LINE), csv.ParseOptions(newlines_in_values=True))
    names = head.schema.names
    opened.seek(0)
    types = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    reading = csv.ReadOptions(block_size=LARGEST_LINE)
    yield from csv.open_csv(opened, reading, csv.ParseOptions(newlines_in_values=True), types)


def whole_text(text: str) -> str:
    """A text in which halves of surrogate pairs, which JSON can name and no file can hold, are U+FFFD."""
    return HALF_PAIR.sub("\ufffd", text)
