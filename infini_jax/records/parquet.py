"""Parquet files that tell by themselves whether they are what was written.

The format finds a file that was cut, not every flipped bit. A file's footer therefore holds a digest of all other bytes; where
none is, in a file of an earlier version, only what cannot be decoded is found.
"""

import functools
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
    content = file.read_bytes()
    place = place_of_digest(content)
    if place < 0:
        state = file.stat()
        return can_be_decoded(file, state.st_size, state.st_mtime_ns, state.st_ino)
    return content[place : place + len(EMPTY)] == digest_without(content, place)


def place_of_digest(content: bytes) -> int:
    """Where the digest stands in a file's bytes, -1 where it has none."""
    found = content.rfind(MARK.encode())
    return found + len(MARK) if found >= 0 else -1


def digest_without(content: bytes, place: int) -> bytes:
    """BLAKE2b of a file's bytes without the digest at `place`, 32 hex digits."""
    found = hashlib.blake2b(content[:place], digest_size=16)
    found.update(content[place + len(EMPTY) :])
    return found.hexdigest().encode()


@functools.lru_cache(maxsize=2**14)
def can_be_decoded(file: Path, *state: int) -> bool:
    """Whether a file can be read as Parquet, cached for a state (size, time, inode)."""
    del state
    try:
        return pq.read_table(file) is not None
    except (OSError, pa.ArrowException):
        return False
