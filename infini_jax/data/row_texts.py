"""Corpora that are no folder of documents: files of rows, and one large file that is cut into rows."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from infini_jax.data.batch import SPLIT_NUMBER, Split
from infini_jax.data.decoding import Errors, decoded
from infini_jax.data.raw_files import LARGEST_DOCUMENT, NO_LIMIT, Archive, OneFile, open_files
from infini_jax.data.readers import OF_ROWS, WHOLE, texts_of_rows
from infini_jax.data.stdlib import split_of
from infini_jax.data.texts import (
    READING,
    SHARE,
    FileTexts,
    Lists,
    TextFiles,
    Texts,
    ruled_digest,
    short_names,
    split_folder,
    splits_of,
)
from infini_jax.errors import ConfigError, require

MOST_ROWS, LEAST_ROW = 100, 4096  # rows of a file that is cut, and bytes of one where the file has so many
SPLIT_FILE = re.compile(r"(train|validation|test)(?![^-_.])")


@dataclasses.dataclass(frozen=True)
class Tables(FileTexts):
    """Texts with one document per row of JSONL, Parquet or Arrow files.

    The files are split by lists, or by their names where all are called, or lie in folders called, train, validation and test;
    else each row by a hash of the file's name and its number.

    Attributes:
      path: a folder, an archive or one file.
      column: column that holds the text.
      errors: treatment of bytes that are no UTF-8.
      lists: (split, file with one name of a file per line) for the held-out splits; all other files are for training.
    """

    column: str
    errors: Errors = "refuse"
    lists: Lists = ()
    takes_lists = True

    def digest(self) -> str:
        rules = (READING, type(self).__name__, self.column, self.errors, self._splits())
        return ruled_digest(open_files(self.path).digest(OF_ROWS, NO_LIMIT), rules)

    def _names(self) -> list[str]:
        """The names of the files, without what the datasets library keeps beside its own."""
        names = [name for name in open_files(self.path).ending(OF_ROWS) if not PurePosixPath(name).name.startswith("cache-")]
        endings = ", ".join(OF_ROWS)
        require(
            bool(names), "path", f"{self.path} has no file that ends in {endings}", "leave --column out to read text files"
        )
        return names

    def _splits(self) -> dict[str, Split]:
        """The split of each file by its short name; empty where rows are split by their own."""
        short = short_names(self._names())
        if self.lists:
            return splits_of(short, self.lists)
        found: dict[str, Split | None] = {name: split_folder(name) or split_file(name) for name in short}
        named: dict[str, Split] = {name: split for name, split in found.items() if split is not None}
        return named if len(named) == len(short) else {}

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        files, names, place = open_files(self.path), self._names(), self._splits()
        for name, title in zip(names, short_names(names), strict=True):
            if place and place[title] != split:
                continue
            for number, text in enumerate(texts_of_rows(files, name, self.column, self.errors)):
                row = f"{title}/{number}"
                if place or split_of(row) == split:
                    yield row, iter([text or ""])


def split_file(name: str) -> Split | None:
    """The split that a file's name begins with, as in train-00000-of-00002.parquet; None where it names none."""
    found = SPLIT_FILE.match(PurePosixPath(name).name)
    return next((split for split in SPLIT_NUMBER if found and split == found[1]), None)


@dataclasses.dataclass(frozen=True)
class CutFile(Texts):
    """Texts of one large file: rows of equal bytes, the last twentieth for test and the one before for validation.

    A file of 400 KiB or more has a hundred rows, so that enwik8 has its usual splits of 90, 5 and 5 million bytes; a smaller
    one has fewer. A row ends between characters, so it may be some bytes longer.

    Attributes:
      path: path of the file, packed by gzip where it ends in .gz, or of an archive of one file.
      errors: treatment of bytes that are no UTF-8.
    """

    path: Path
    errors: Errors = "refuse"

    def digest(self) -> str:
        rules = (READING, type(self).__name__, MOST_ROWS, LEAST_ROW, SHARE, self.errors)
        return ruled_digest(open_files(self.path).digest(("",), NO_LIMIT), rules)

    def _text(self) -> Iterator[str]:
        files = open_files(self.path)
        require(len(files.names()) == 1, "path", f"{self.path} is hidden", "rename it")
        name = files.names()[0]
        return decoded(lambda: files.blocks(name, MOST_ROWS * LARGEST_DOCUMENT), name, self.errors)

    @functools.cached_property
    def _bytes(self) -> int:
        """Bytes of the text in UTF-8, counted by reading it."""
        return sum(len(block.encode()) for block in self._text())

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        count = number_of_rows(self._bytes)
        held_out = count // SHARE
        bounds: dict[Split, tuple[int, int]] = {
            "train": (0, count - 2 * held_out),
            "validation": (count - 2 * held_out, count - held_out),
            "test": (count - held_out, count),
        }
        first, last = bounds[split]
        for number, parts in itertools.groupby(cut(self._text(), self._bytes, count), key=lambda part: part[0]):
            if number >= last:
                return
            if number >= first:
                yield f"{self.path.name}/{number}", (text for _, text in parts)


def number_of_rows(size: int) -> int:
    """Number of rows of a text of so many bytes, a multiple of the share that is held out."""
    return min(MOST_ROWS, max(1, size // LEAST_ROW // SHARE) * SHARE)


def cut(text: Iterator[str], size: int, count: int) -> Iterator[tuple[int, str]]:
    """(row, text) of a text of `size` bytes, some at a time: each row begins at the first character of its share."""
    done, row = 0, 0
    for block in text:
        raw = block.encode()
        start = 0
        while start < len(raw):
            while row + 1 < count and done + start >= (row + 1) * size // count:
                row += 1
            end = len(raw) if row + 1 == count else min(len(raw), (row + 1) * size // count - done)
            while end < len(raw) and raw[end] & 0xC0 == 0x80:  # inside of a character
                end += 1
            yield row, raw[start:end].decode()
            start = end
        done += len(raw)


def open_texts(path: Path, errors: Errors, lists: Lists, column: str = "") -> Texts:
    """The texts of a folder or an archive of files, or of one file, by the endings in `READERS`.

    Raises `ConfigError` where there is nothing to read, or rows without a `column`.
    """
    if column:
        return Tables(path, column, errors, lists)
    files = open_files(path)
    whole, of_rows = files.ending(WHOLE), files.ending(OF_ROWS)
    if of_rows and not whole:
        raise ConfigError("column", f"{path} holds rows ({of_rows[0]})", "name the column of the text, such as --column text")
    if isinstance(files, OneFile) or (isinstance(files, Archive) and not whole and len(files.names()) == 1):
        return CutFile(path, errors)
    return TextFiles(path, WHOLE, errors, lists)
