"""Parquet files that tell by themselves whether they are what was written.

The format finds a file that was cut, not every flipped bit. A file's footer therefore holds a digest of all other bytes; where
none is, in a file of an earlier version, only what cannot be decoded is found.
"""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infini_jax.files import replaced_at_once

KEY, MARK = "digest", "infini_jax.blake2b:"  # MARK and 32 hex digits are the value of KEY in the footer
EMPTY = b"0" * 32


def write_table(table: pa.Table, file: Path) -> None:
    """Writes a table and its digest at once or not at all: a reader never sees half a file."""
    with replaced_at_once(file) as partial:
        with pq.ParquetWriter(partial, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({KEY: MARK + EMPTY.decode()})
        content = partial.read_bytes()
        place = place_of_digest(content)
        partial.write_bytes(content[:place] + digest_without(content, place) + content[place + len(EMPTY) :])


def holds_what_was_written(file: Path) -> bool:
    """Whether a file is the Parquet that it was when it was written."""
    return is_as_written(file.read_bytes())


def is_as_written(content: bytes) -> bool:
    """Whether the bytes of a file are the Parquet that was written."""
    place = place_of_digest(content)
    if place < 0:
        return whole_table(content) is not None
    return content[place : place + len(EMPTY)] == digest_without(content, place)


def table_in(content: bytes) -> pa.Table | None:
    """The table that the bytes of a file are; None where they are not what was written. Nothing is read twice."""
    return whole_table(content) if is_as_written(content) else None


def read_table(file: Path) -> pa.Table | None:
    """The table in a file, which is read once; None where it is missing, damaged or no Parquet."""
    return table_in(file.read_bytes()) if file.is_file() else None


def whole_table(content: bytes) -> pa.Table | None:
    """The table that the bytes of a file are; None where they cannot be read as Parquet."""
    try:
        return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)  # starting threads takes longer than a row
    except (OSError, pa.ArrowException):
        return None


def place_of_digest(content: bytes) -> int:
    """Where the digest stands in a file's bytes, -1 where it has none."""
    found = content.rfind(MARK.encode())
    return found + len(MARK) if found >= 0 else -1


def digest_without(content: bytes, place: int) -> bytes:
    """BLAKE2b of a file's bytes without the digest at `place`, 32 hex digits."""
    found = hashlib.blake2b(content[:place], digest_size=16)
    found.update(content[place + len(EMPTY) :])
    return found.hexdigest().encode()
