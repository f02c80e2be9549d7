"""TFDS's sorting of a split on disk: by itself TFDS holds a gigabyte in memory, and sorts more only where TensorFlow is."""

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IN_MEMORY = 64 << 20  # bytes of a split that are sorted in memory
HEAD = struct.Struct("=16sQ")  # the hash of an example's key, and the example's length


class Bucket:
    """Examples whose hashes are neighbors, in a file that is closed after each: TFDS has a thousand buckets at once."""

    def __init__(self, path: os.PathLike):
        self.path = Path(path)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, key: int, data: bytes) -> None:
        """Appends an example and the hash of its key."""
        self._length += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(HEAD.pack(key.to_bytes(16, "big"), len(data)) + data)

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        """(hash of the key, example) of each, in the order of `add`."""
        if not self._length:
            return
        with self.path.open("rb") as file:
            while head := file.read(HEAD.size):
                key, size = HEAD.unpack(head)
                yield int.from_bytes(key, "big"), file.read(size)

    def del_file(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def sorting_on_disk(shuffle: Any) -> Iterator[None]:
    """A context in which TFDS holds at most `IN_MEMORY` bytes of a split that it writes, and the rest in `Bucket`s.

    `shuffle` is TFDS's module `core.shuffle`. The order of examples, and so each file, is the same as without.
    """
    before = shuffle.MAX_MEM_BUFFER_SIZE, shuffle._Bucket
    shuffle.MAX_MEM_BUFFER_SIZE, shuffle._Bucket = IN_MEMORY, Bucket
    try:
        yield
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE, shuffle._Bucket = before
