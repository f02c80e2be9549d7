"""Named files of a folder or an archive, read in blocks: regular ones only, and none beyond a limit.

What a user's folder or an archive from elsewhere holds is foreign: a pipe or device would be read for ever, and an archive of
a few megabytes can hold terabytes. So sizes are checked before anything is read, and bytes are counted while they are: what an
archive says of its own sizes may be wrong.
"""

import abc
import contextlib
import functools
import gzip
import hashlib
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from infini_jax.errors import ConfigError, one_line, require
from infini_jax.files import open_regular

LARGEST_DOCUMENT = 1 << 30  # bytes of a file, unpacked
NO_LIMIT = 1 << 62  # of files that are no single document
BLOCK = 1 << 20  # bytes that are read at once
DAMAGED = (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, UnicodeError)
JUNK = ("__macosx", "thumbs.db", "desktop.ini")  # what systems put beside files, beside what begins with a dot
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".deb")
PACKAGE, ENTRY = b"!<arch>\n", 60  # what a Debian package begins with, and bytes of the head of each entry


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes, none at the end."""
        ...


class Files(abc.ABC):
    """Named byte strings: a folder or an archive. Names are relative, with '/'.

    Attributes:
      path: path of the folder or archive.
      field: setting that gave the path, named in errors.
    """

    def __init__(self, path: Path, field: str = "path"):
        self.path, self.field = path, field

    @abc.abstractmethod
    def entries(self) -> list[str]:
        """The names of all files; below what is hidden there may be none."""

    @functools.cached_property
    def _sorted_out(self) -> tuple[list[str], list[str]]:
        kept: list[str] = []
        left: dict[str, None] = {}
        for name in self.entries():
            out = hidden(name)
            if out is None:
                kept.append(name)
            else:
                left[out] = None
        return kept, sorted(left)

    def names(self) -> list[str]:
        """The names of all files that are neither hidden nor junk of a system."""
        return self._sorted_out[0]

    def left_out(self) -> list[str]:
        """The hidden and junk files and folders, the outermost of each."""
        return self._sorted_out[1]

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """The bytes of a file as the folder or archive declares them."""

    @abc.abstractmethod
    def open(self, name: str) -> BinaryIO:
        """A file opened for reading. Raises OSError for what is no regular file."""

    @abc.abstractmethod
    def digest(self, suffixes: tuple[str, ...], most: int = LARGEST_DOCUMENT) -> bytes:
        """SHA-256 of the names and contents of the files with these endings, which hold at most so many bytes each."""

    def ending(self, suffixes: tuple[str, ...]) -> list[str]:
        """The names of the files with these endings, in any case. Raises `ConfigError` for a name that is no UTF-8."""
        names = [name for name in self.names() if name.lower().endswith(suffixes)]
        for name in names:
            is_text = not any(0xD800 <= ord(letter) < 0xE000 for letter in name)  # bytes that are no UTF-8
            require(is_text, self.field, f"the name {name!a} is not UTF-8", "rename it")
        return names

    def blocks(self, name: str, most: int = LARGEST_DOCUMENT) -> Iterator[bytes]:
        """The content of a file, some bytes at a time, unpacked where its name ends in .gz.

        Raises `ConfigError` with its name where it cannot be read or holds more than `most` bytes, whatever size it declares.
        """
        with naming(name, self.field):
            check_size(name, self.size(name), self.field, most)
            with contextlib.ExitStack() as closing:
                opened = closing.enter_context(self.open(name))
                if name.lower().endswith(".gz"):
                    opened = closing.enter_context(gzip.GzipFile(fileobj=opened))
                yield from counted_blocks(opened, name, self.field, most)


def hidden(name: str) -> str | None:
    """The outermost file or folder on the way to a name that is hidden or junk of a system; None where nothing is."""
    parts = PurePosixPath(name).parts
    for number, part in enumerate(parts, 1):
        if (part.startswith(".") and part != "..") or part.lower() in JUNK:
            return "/".join(parts[:number])
    return None


def counted_blocks(opened: Readable, name: str, field: str, most: int = LARGEST_DOCUMENT) -> Iterator[bytes]:
    """The bytes of an open file called `name`. Raises `ConfigError` as soon as they are more than `most`."""
    size = 0
    while block := opened.read(BLOCK):
        size += len(block)
        check_size(name, size, field, most)
        yield block


def check_size(name: str, size: int, field: str, most: int = LARGEST_DOCUMENT) -> None:
    """Raises `ConfigError` where `size` bytes are more than a document may hold."""
    require(
        size <= most,
        field,
        f"{name} holds {max(size, most + 1):,} bytes or more, and a document at most {most:,}",
        "split it into smaller files, or leave it out",
    )


@contextlib.contextmanager
def naming(name: str, field: str) -> Iterator[None]:
    """Context that turns what reading raises into a `ConfigError` with the file's name."""
    try:
        yield
    except (*DAMAGED, KeyError, RuntimeError) as error:
        raise ConfigError(field, f"{name} cannot be read ({one_line(error)})", "mend or remove it") from error


class Folder(Files):
    """Files below a folder in order of their names; also entries that are no files, so that reading them shows it.

    Links to folders are followed. Raises `ConfigError` for a folder that cannot be listed: its documents would be missing.
    """

    def entries(self) -> list[str]:
        return sorted(name.relative_to(self.path).as_posix() for name in self._below(self.path, ()))

    def _below(self, folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        here = folder.resolve()
        shown = folder.relative_to(self.path).as_posix()
        require(here not in above, self.field, f"{shown} leads back to a folder that it lies in", "remove the link")
        try:
            entries = [(entry, entry.is_dir()) for entry in folder.iterdir()]
        except OSError as error:
            raise ConfigError(self.field, f"{shown} cannot be listed ({one_line(error)})", "mend or remove it") from error
        for entry, is_folder in entries:
            yield entry
            if is_folder and hidden(entry.name) is None:
                yield from self._below(entry, (*above, here))

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        return open_regular(self.path / name)

    def digest(self, suffixes: tuple[str, ...], most: int = LARGEST_DOCUMENT) -> bytes:
        whole = hashlib.sha256()
        for name in self.ending(suffixes):
            content = hashlib.sha256()
            for block in self.blocks(name, most):
                content.update(block)
            whole.update(hashlib.sha256(name.encode()).digest() + content.digest())
        return whole.digest()


class Archive(Files):
    """Files of a zip, tar or Debian package, in the archive's order: a compressed tar is then read from front to back.

    Raises `ConfigError` where the archive is damaged.
    """

    @functools.cached_property
    def _open(self) -> zipfile.ZipFile | tarfile.TarFile:
        file = open_regular(self.path)
        if zipfile.is_zipfile(file):
            return zipfile.ZipFile(file)
        file.seek(0)
        return tarfile.open(fileobj=packed_tar(file) if is_package(self.path) else file)

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
                self.field, f"{self.path} is not a complete archive ({one_line(error)})", f"give a complete {kinds}"
            ) from error

    def entries(self) -> list[str]:
        return list(self._members)

    def size(self, name: str) -> int:
        member = self._members[name]
        return member.file_size if isinstance(member, zipfile.ZipInfo) else member.size

    def open(self, name: str) -> BinaryIO:
        member = self._members[name]
        if isinstance(self._open, zipfile.ZipFile):
            if stat.S_ISLNK(member.external_attr >> 16):
                raise OSError("is a link")  # a zip holds only the name that it leads to
            return cast(BinaryIO, self._open.open(member))
        file = self._open.extractfile(member)  # follows links inside the archive
        if file is None:
            raise OSError("is not a regular file")
        return cast(BinaryIO, file)

    def digest(self, suffixes: tuple[str, ...], most: int = LARGEST_DOCUMENT) -> bytes:
        with naming(self.path.name, self.field), open_regular(self.path) as file:
            return hashlib.file_digest(file, "sha256").digest()


class OneFile(Folder):
    """A single file as a folder that holds nothing else; `path` is the file's."""

    def entries(self) -> list[str]:
        return [self.path.name]

    def size(self, name: str) -> int:
        return self.path.stat().st_size

    def open(self, name: str) -> BinaryIO:
        return open_regular(self.path)


def is_package(path: Path) -> bool:
    """Whether a file is a Debian package, by its content."""
    with open_regular(path) as file:
        return file.read(len(PACKAGE)) == PACKAGE


def packed_tar(package: BinaryIO) -> BinaryIO:
    """The tar of a Debian package's files, as it is packed: the entry `data.tar...` of the outer archive (deb(5), ar(5)).

    Raises OSError where there is none.
    """
    package.seek(len(PACKAGE))
    while len(head := package.read(ENTRY)) == ENTRY:
        name, digits = head[:16].decode("ascii", "replace").strip(), head[48:58].strip()
        if not digits.isdigit():
            break
        if name.startswith("data.tar"):
            return io.BytesIO(package.read(int(digits)))
        package.seek(int(digits) + int(digits) % 2, 1)
    raise OSError("is no whole Debian package")


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its name (a damaged one is one, too) or else by its content."""
    with open_regular(path) as file:
        return path.name.lower().endswith(ARCHIVES) or zipfile.is_zipfile(file) or tarfile.is_tarfile(path)


def open_files(path: Path, field: str = "path") -> Files:
    """The files of a folder or an archive, or a single one. Raises `ConfigError` where `path` does not exist or is no file.

    Args:
      path: path of the folder, archive or file.
      field: setting that gave it, named in errors.
    """
    require(path.exists(), field, f"{path} does not exist", "give a folder or an archive")
    require(path.is_dir() or path.is_file(), field, f"{path} is not a regular file", "give a folder or an archive")
    if path.is_dir():
        return Folder(path, field)
    with naming(str(path), field):
        return Archive(path, field) if is_archive(path) else OneFile(path, field)


def read_foreign(file: Path, field: str = "path") -> bytes:
    """The content of a file from elsewhere. Raises `ConfigError` for what is no regular file, or too large to be one document.

    Args:
      file: file to read; links are followed.
      field: setting that gave it, named in errors.
    """
    with naming(str(file), field):
        check_size(str(file), file.stat().st_size, field)
        with open_regular(file) as opened:
            return b"".join(counted_blocks(opened, str(file), field))
