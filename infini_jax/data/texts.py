"""Documents as text: a folder or archive of files, Metamath databases, the standard library."""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from infini_jax.data.batch import SPLIT_NUMBER, Split
from infini_jax.data.stdlib import packages_below, split_of
from infini_jax.errors import ConfigError, one_line, require, suggestion

Errors = Literal["refuse", "replace", "latin-1"]
HELD_OUT: tuple[Split, ...] = ("validation", "test")
SHARE = 20  # one file in so many is held out, for each of them
DAMAGED = (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error)
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")


class Texts(abc.ABC):
    """A source of documents as text."""

    @abc.abstractmethod
    def digest(self) -> str:
        """Hash that changes with any name, byte or rule of reading, sixteen hex digits."""

    @abc.abstractmethod
    def documents(self, split: Split) -> Iterator[tuple[str, str]]:
        """(name, text) of every document of a split. Raises `ConfigError` for a file that cannot be read."""


class Files(abc.ABC):
    """Named byte strings: a folder or an archive. Names are relative, with '/'."""

    @abc.abstractmethod
    def names(self) -> list[str]:
        """The names of all files."""
        ...

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file."""
        ...

    @abc.abstractmethod
    def digest(self, suffixes: tuple[str, ...]) -> bytes:
        """SHA-256 of the names and contents of the files with these endings."""

    def ending(self, suffixes: tuple[str, ...]) -> list[str]:
        """The names of the files with these endings, in any case."""
        return [name for name in self.names() if name.lower().endswith(suffixes)]


@dataclasses.dataclass(frozen=True)
class Folder(Files):
    """Files below a folder in order of their names; also entries that are no files, so that reading them shows it.

    Links to folders are followed. Raises `ConfigError` for a folder that cannot be listed: its documents would be missing.

    Attributes:
      path: path of the folder.
    """

    path: Path

    def names(self) -> list[str]:
        return sorted(name.relative_to(self.path).as_posix() for name in self._below(self.path, ()))

    def _below(self, folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        here = folder.resolve()
        shown = folder.relative_to(self.path).as_posix()
        require(here not in above, "path", f"{shown} leads back to a folder that it lies in", "remove the link")
        try:
            entries = [(entry, entry.is_dir()) for entry in folder.iterdir()]
        except OSError as error:
            raise ConfigError("path", f"{shown} cannot be listed ({one_line(error)})", "mend or remove it") from error
        for entry, is_folder in entries:
            is_text = not any(0xD800 <= ord(letter) < 0xE000 for letter in entry.name)  # bytes that are no UTF-8
            require(is_text, "path", f"the name {entry.name!a} is no UTF-8", "rename it")
            yield entry
            if is_folder:
                yield from self._below(entry, (*above, here))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def digest(self, suffixes: tuple[str, ...]) -> bytes:
        whole = hashlib.sha256()
        for name in self.ending(suffixes):
            whole.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(checked_read(self, name)).digest())
        return whole.digest()


class Archive(Files):
    """Files of a zip or tar archive, in the archive's order: a compressed tar is then read from front to back.

    Raises `ConfigError` where the archive is damaged.
    """

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def _open(self) -> zipfile.ZipFile | tarfile.TarFile:
        return zipfile.ZipFile(self.path) if zipfile.is_zipfile(self.path) else tarfile.open(self.path)

    @functools.cached_property
    def _members(self) -> dict[str, Any]:
        """The entries by name; a compressed tar is read to its end. Raises `ConfigError` where the archive is damaged."""
        try:
            if isinstance(self._open, zipfile.ZipFile):
                return {info.filename: info for info in self._open.infolist() if not info.is_dir()}
            return {info.name: info for info in self._open.getmembers() if not info.isdir()}
        except DAMAGED as error:
            kinds = ", ".join(ARCHIVES)
            raise ConfigError(
                "path", f"{self.path} is no whole archive ({one_line(error)})", f"give a whole {kinds}"
            ) from error

    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str) -> bytes:
        if isinstance(self._open, zipfile.ZipFile):
            return self._open.read(self._members[name])
        file = self._open.extractfile(self._members[name])
        if file is None:
            raise OSError("no file")
        return file.read()

    def digest(self, suffixes: tuple[str, ...]) -> bytes:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()


def open_files(path: Path) -> Files:
    """The files of a folder or an archive. Raises `ConfigError` where `path` does not exist."""
    require(path.exists(), "path", f"{path} does not exist", "give a folder or an archive")
    return Folder(path) if path.is_dir() else Archive(path)


def checked_read(files: Files, name: str) -> bytes:
    """The content of a file. Raises `ConfigError` with its name where it cannot be read."""
    try:
        return files.read(name)
    except (*DAMAGED, KeyError, RuntimeError) as error:
        raise ConfigError("path", f"{name} cannot be read ({one_line(error)})", "mend or remove it") from error


def decode(raw: bytes, name: str, errors: Errors) -> str:
    """The text of UTF-8 bytes as they stand, line ends included; other bytes are treated as `errors` says.

    Raises `ConfigError` with the place of the first byte that is no UTF-8 where `errors` is refuse.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if errors == "refuse":
            raise ConfigError(
                "path",
                f"{name} is not UTF-8 at byte {error.start} (0x{raw[error.start]:02x})",
                "mend the file, or read it with --errors replace or --errors latin-1",
            ) from error
        return raw.decode(errors="replace") if errors == "replace" else raw.decode("latin-1")


@dataclasses.dataclass(frozen=True)
class TextFiles(Texts):
    """Texts with one document per file.

    Attributes:
      path: a folder or an archive.
      suffixes: endings of the files that are read.
      errors: treatment of bytes that are no UTF-8.
      lists: (split, file with one name per line) for the held-out splits; all other files are for training.
    """

    path: Path
    suffixes: tuple[str, ...] = (".txt", ".md")
    errors: Errors = "refuse"
    lists: tuple[tuple[Split, Path], ...] = ()

    def digest(self) -> str:
        rules = (type(self).__name__, self.suffixes, self.errors, [(split, listed(file)) for split, file in self.lists])
        return hashlib.sha256(open_files(self.path).digest(self.suffixes) + repr(rules).encode()).hexdigest()[:16]

    def documents(self, split: Split) -> Iterator[tuple[str, str]]:
        files = open_files(self.path)
        names = files.ending(self.suffixes)
        require(
            bool(names), "path", f"{self.path} has no file that ends in {' or '.join(self.suffixes)}", "give another folder"
        )
        short = short_names(names)
        place = splits_of(short, self.lists)
        for name, title in zip(names, short, strict=True):
            if place[title] == split:
                yield title, decode(checked_read(files, name), title, self.errors)


def short_names(names: list[str]) -> list[str]:
    """The names below the folder that holds all files, so that a corpus is the same packed, unpacked or a level deeper.

    Folders with the name of a split stay.
    """
    paths = [PurePosixPath(name) for name in names]
    root = PurePosixPath(os.path.commonpath([path.parent for path in paths]))
    level = next((number for number, part in enumerate(root.parts) if part in SPLIT_NUMBER), len(root.parts))
    return [PurePosixPath(*path.parts[level:]).as_posix() for path in paths]


def listed(file: Path) -> list[str]:
    """The names in a list, one per line. Raises `ConfigError` where the file does not exist."""
    require(file.is_file(), "splits", f"{file} does not exist", "give a file with one name per line")
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def split_folder(name: str) -> Split | None:
    """The split after which the outermost such folder of a file is named; None where no folder is."""
    return next((split for part in PurePosixPath(name).parts[:-1] for split in SPLIT_NUMBER if part == split), None)


def splits_of(names: list[str], lists: tuple[tuple[Split, Path], ...]) -> dict[str, Split]:
    """The split of every file: by lists, else by folders called train, validation and test, else by name.

    By name, the twentieth with the smallest hashes is for validation and the next twentieth for test, at least one each, so
    that a further file moves few others. Fewer than three files are all for training. Raises `ConfigError` for a list with a
    name that is no document, or is listed twice.
    """
    if lists:
        place: dict[str, Split] = dict.fromkeys(names, "train")
        for split, file in lists:
            for name in listed(file):
                require(name in place, "splits", f"{file.name} lists '{name}', which is no document", suggestion(name, names))
                require(place[name] == "train", "splits", f"'{name}' is listed twice", "list it for one split")
                place[name] = split
        return place
    folders: list[Split | None] = [split_folder(name) for name in names]
    named: list[Split] = [folder for folder in folders if folder is not None]
    if len(named) == len(names):
        return dict(zip(names, named, strict=True))
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    held = max(1, len(names) // SHARE) if len(names) >= 3 else 0
    place = dict.fromkeys(names, "train")
    for number, split in enumerate(HELD_OUT):
        place |= dict.fromkeys(ranked[number * held : (number + 1) * held], split)
    return place


@dataclasses.dataclass(frozen=True)
class Metamath(TextFiles):
    """Texts of Metamath databases: a document begins at each heading between lines of '=-=-' (the style of set.mm)."""

    suffixes: tuple[str, ...] = (".mm",)

    def documents(self, split: Split) -> Iterator[tuple[str, str]]:
        files = open_files(self.path)
        for file in files.ending(self.suffixes):
            text = decode(checked_read(files, file), file, self.errors)
            for number, section in enumerate(sections(text)):
                name = f"{file}/{number}"
                if split_of(name) == split:
                    yield name, section


HEADING = re.compile(r"^(?=\$\([ \t]*\n(?:=-){10,}=?-?[ \t]*\n)", re.MULTILINE)


def sections(text: str) -> list[str]:
    """The parts of a Metamath database; joined they are the text again."""
    starts = [0, *(match.start() for match in HEADING.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(starts) if b > a]


@dataclasses.dataclass(frozen=True)
class StandardLibrary(Texts):
    """Texts of a Python's standard library: one document per package, split by its name.

    Attributes:
      path: folder of the library.
      errors: treatment of bytes that are no UTF-8.
    """

    path: Path
    errors: Errors = "latin-1"

    def digest(self) -> str:
        whole = hashlib.sha256(repr((type(self).__name__, self.errors)).encode())
        for name, files in packages_below(self.path).items():
            whole.update(name.encode() + b"\0" + b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files))
        return whole.hexdigest()[:16]

    def documents(self, split: Split) -> Iterator[tuple[str, str]]:
        packages = packages_below(self.path)
        for name in sorted(packages):
            if split_of(name) == split:
                yield name, "".join(decode(file.read_bytes(), file.name, self.errors) for file in packages[name])


def first_place(places: list[Path]) -> Path | None:
    """The first of `places` that exists; None where none does."""
    for place in places:
        with contextlib.suppress(OSError):
            if place.exists():
                return place
    return None
