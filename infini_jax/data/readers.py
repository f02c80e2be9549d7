"""Readers of files by their endings: what of a file is a document. One table, shown in docs/corpora.md.

A file of text is one document. A file of rows (JSON lines, Parquet, and Arrow as `datasets.save_to_disk` writes it) has one a
row, in a column that the user names.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infini_jax.data.decoding import Errors, decoded
from infini_jax.data.raw_files import LARGEST_DOCUMENT, NO_LIMIT, Files, naming
from infini_jax.errors import ConfigError, one_line, present, require

LARGEST_LINE = 64 << 20  # characters of a line of JSON, which has to be parsed as a whole
ROWS_AT_ONCE = 64  # of a Parquet file
HALF_PAIR = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, which JSON can name and no text can hold

RowReader = Callable[[Files, str, str, Errors], Iterator[str | None]]


@dataclasses.dataclass(frozen=True)
class FileReader:
    """What of a file is a document.

    Attributes:
      about: description in one line.
      rows: function of (files, name, column, errors) that gives the text of each row; None where the file is one document.
    """

    about: str
    rows: RowReader | None = None


def json_rows(files: Files, name: str, column: str, errors: Errors) -> Iterator[str | None]:
    """The text of each line of a JSONL file. Raises `ConfigError` for a line that is no object with this column."""
    for place, fields in json_objects(files, name, errors):
        check_column(column, list(fields), place)
        yield checked_text(fields[column], place, errors, files.field)


def json_objects(files: Files, name: str, errors: Errors) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place in errors, object) of each line of a JSONL file. Raises `ConfigError` for a line that is no object."""
    text = decoded(lambda: files.blocks(name, NO_LIMIT), name, errors, files.field)
    for number, line in enumerate(lines(text, name, files.field), 1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(files.field, f"{place} is not JSON ({one_line(error)})", "mend or remove it") from error
        require(isinstance(fields, dict), files.field, f"{place} is not a JSON object", "give one object per line")
        yield place, fields


def lines(text: Iterator[str], name: str, field: str) -> Iterator[str]:
    """The lines of a text that comes some at a time. Raises `ConfigError` for one longer than `LARGEST_LINE`."""
    held = ""
    for block in text:
        *whole, held = (held + block).split("\n")
        yield from whole
        require(
            len(held) <= LARGEST_LINE,
            field,
            f"{name} has a line of more than {LARGEST_LINE:,} characters",
            "give an object a line, or leave it out",
        )
    yield held


def parquet_rows(files: Files, name: str, column: str, errors: Errors) -> Iterator[str | None]:
    """The text of each row of a Parquet file. Raises `ConfigError` where it is damaged or has no such column of text."""
    with of_arrow(files, name), files.open(name) as opened, pq.ParquetFile(opened) as table:
        check_column(column, table.schema_arrow.names, name)
        place = table.schema_arrow.names.index(column)
        check_type(table.schema_arrow.field(place), name)
        for group in range(table.metadata.num_row_groups):
            described = table.metadata.row_group(group)
            size = max(described.column(at).total_uncompressed_size for at in range(described.num_columns))
            require(
                size <= LARGEST_DOCUMENT, files.field, f"{name} has a group of rows of {size:,} bytes", "write smaller ones"
            )
        yield from batch_rows(table.iter_batches(ROWS_AT_ONCE, columns=[column]), name, column, errors, files.field)


def arrow_rows(files: Files, name: str, column: str, errors: Errors) -> Iterator[str | None]:
    """The text of each row of an Arrow stream. Raises `ConfigError` where it is damaged or has no such column of text."""
    with of_arrow(files, name), files.open(name) as opened, pa.ipc.open_stream(opened) as table:
        check_column(column, table.schema.names, name)
        check_type(table.schema.field(table.schema.names.index(column)), name)
        yield from batch_rows(table, name, column, errors, files.field)


def batch_rows(batches, name: str, column: str, errors: Errors, field: str) -> Iterator[str | None]:
    """The text of each row of record batches."""
    number = 0
    for batch in batches:
        for value in batch.column(column):
            number += 1
            yield checked_text(value.as_py(), f"{name} row {number}", errors, field)


@contextlib.contextmanager
def of_arrow(files: Files, name: str) -> Iterator[None]:
    """Context that turns what Arrow raises into a `ConfigError` with the file's name."""
    with naming(name, files.field):
        try:
            yield
        except pa.ArrowException as error:
            raise ConfigError(files.field, f"{name} cannot be read ({one_line(error)})", "mend or remove it") from error


def check_column(column: str, columns: list[str], place: str) -> None:
    """Raises `ConfigError` where a row or table has no such column."""
    known = ", ".join(map(repr, columns[:8])) or "none"
    require(column in columns, "column", f"{place} has no column '{column}'", f"name one that it has: {known}")


def check_type(field: pa.Field, place: str) -> None:
    """Raises `ConfigError` where a column holds no text."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    require(is_text, "column", f"{place} has {field.type} in '{field.name}', no text", "name a column of strings")


def checked_text(value: object, place: str, errors: Errors, field: str) -> str | None:
    """The text of a row, None where it has none. Raises `ConfigError` for what is no text."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConfigError("column", f"{place} holds {type(value).__name__}, no text", "name a column of strings")
    if HALF_PAIR.search(value):
        require(errors != "refuse", field, f"{place} holds half of a surrogate pair", "mend it, or read with --errors replace")
        return HALF_PAIR.sub("\ufffd", value)
    return value


READERS: dict[str, FileReader] = {
    ".txt": FileReader("one document"),
    ".md": FileReader("one document"),
    ".txt.gz": FileReader("one document, unpacked"),
    ".md.gz": FileReader("one document, unpacked"),
    ".jsonl": FileReader("a document a line: a column of its JSON object", json_rows),
    ".jsonl.gz": FileReader("a document a line, unpacked", json_rows),
    ".parquet": FileReader("a document a row: a column of strings", parquet_rows),
    ".arrow": FileReader("a document a row: a folder of datasets.save_to_disk", arrow_rows),
}
WHOLE = tuple(suffix for suffix, reader in READERS.items() if reader.rows is None)
OF_ROWS = tuple(suffix for suffix, reader in READERS.items() if reader.rows is not None)


def texts_of_rows(files: Files, name: str, column: str, errors: Errors) -> Iterator[str | None]:
    """The text of each row of a file whose ending is in `OF_ROWS`."""
    suffix = max((suffix for suffix in OF_ROWS if name.lower().endswith(suffix)), key=len)
    reader = present(READERS[suffix].rows, "these suffixes are those of rows")
    return reader(files, name, column, errors)
