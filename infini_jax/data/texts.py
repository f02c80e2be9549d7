"""Documents as text: a folder or archive of files, Metamath databases, the standard library."""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import ClassVar

from infini_jax.data.batch import SPLIT_NUMBER, Split
from infini_jax.data.decoding import Errors, decoded
from infini_jax.data.raw_files import Files, open_files, read_foreign
from infini_jax.data.stdlib import packages_below, split_of
from infini_jax.errors import ConfigError, require, suggestion

Lists = tuple[tuple[Split, Path], ...]
REPLACEMENT, NAMED = "\ufffd", 20  # what stands for bytes that are no text; files that one error names
HELD_OUT: tuple[Split, ...] = ("validation", "test")
READING = 2  # version of how files become text, part of the digests: 2 leaves out hidden files and takes off byte order marks
SHARE = 20  # one file in so many is held out, for each of them


class Texts(abc.ABC):
    """A source of documents as text.

    Attributes:
      takes_lists: whether the held-out documents can be listed.
    """

    takes_lists: ClassVar[bool] = False

    @abc.abstractmethod
    def digest(self) -> str:
        """Hash that changes with any name, byte or rule of reading, sixteen hex digits."""

    @abc.abstractmethod
    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        """(name, text) of every document of a split, its text some at a time, to be taken before the next document.

        Raises `ConfigError` for a file that cannot be read, when it is read.
        """

    def left_out(self) -> list[str]:
        """The hidden and junk files and folders beside the documents, and files that are named and missing."""
        return []

    def checked(self) -> list[str]:
        """Reads all files once, and says what was replaced. Raises `ConfigError` that names every file that cannot be read."""
        return []

    def counted_words(self, split: Split) -> int | None:
        """The words that a split's word perplexity divides by, where they are not those of its text; None where they are."""
        return None


@dataclasses.dataclass(frozen=True)
class FileTexts(Texts):
    """Texts in the files of a folder or an archive.

    Attributes:
      path: a folder or an archive.
    """

    path: Path

    def left_out(self) -> list[str]:
        return open_files(self.path).left_out()


def ruled_digest(content: bytes, rules: tuple) -> str:
    """Sixteen hex digits of the digest of files and of the rules by which they are read."""
    return hashlib.sha256(content + repr(rules).encode()).hexdigest()[:16]


def file_text(files: Files, name: str, errors: Errors, field: str = "path") -> str:
    """The whole text of a file. Raises `ConfigError` as `decoded` does."""
    return "".join(decoded(functools.partial(files.blocks, name), name, errors, field))


@dataclasses.dataclass(frozen=True)
class TextFiles(FileTexts):
    """Texts with one document per file.

    Attributes:
      path: a folder or an archive.
      suffixes: endings of the files that are read.
      errors: treatment of bytes that are no UTF-8.
      lists: (split, file with one name per line) for the held-out splits; all other files are for training.
    """

    suffixes: tuple[str, ...] = (".txt", ".md")
    errors: Errors = "refuse"
    lists: Lists = ()
    takes_lists = True

    def digest(self) -> str:
        rules = (
            READING,
            type(self).__name__,
            self.suffixes,
            self.errors,
            [(split, listed(file)) for split, file in self.lists],
        )
        return ruled_digest(open_files(self.path).digest(self.suffixes), rules)

    def checked(self) -> list[str]:
        files, wrong, replaced = open_files(self.path), list[ConfigError](), dict[str, int]()
        for name in files.ending(self.suffixes):
            read = functools.partial(files.blocks, name)
            try:
                found = sum(text.count(REPLACEMENT) for text in decoded(read, name, self.errors))
            except ConfigError as error:
                wrong.append(error)
                continue
            if found and self.errors == "replace":
                replaced[name] = found - b"".join(read()).count(REPLACEMENT.encode())
        check_all_read(wrong)
        replaced = {name: count for name, count in replaced.items() if count > 0}
        return [replaced_in(replaced)] if replaced else []

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        files = open_files(self.path)
        names = files.ending(self.suffixes)
        require(
            bool(names), "path", f"{self.path} has no file that ends in {' or '.join(self.suffixes)}", "give another folder"
        )
        short = short_names(names)
        place = splits_of(short, self.lists)
        for name, title in zip(names, short, strict=True):
            if place[title] == split:
                yield title, decoded(functools.partial(files.blocks, name), title, self.errors)


def check_all_read(wrong: list[ConfigError]) -> None:
    """Raises one `ConfigError` for all files that cannot be read; the first of many are named."""
    if len(wrong) < 2:
        for error in wrong:
            raise error
        return
    told = [str(error).partition(": ")[2].rpartition("; ")[0] for error in wrong]
    more = f", and {len(told) - NAMED} more" if len(told) > NAMED else ""
    mend = str(wrong[0]).rpartition("; ")[2].replace("the file", "the files")
    raise ConfigError(wrong[0].field, f"{len(told)} files cannot be read: {', '.join(told[:NAMED])}{more}", mend)


def replaced_in(replaced: dict[str, int]) -> str:
    """A line about the bytes that were replaced in files, by name."""
    named = ", ".join(f"{name} ({count:,})" for name, count in list(replaced.items())[:3])
    more = ", ..." if len(replaced) > 3 else ""
    return f"replaced by U+FFFD: {sum(replaced.values()):,} invalid sequences in {len(replaced)} files: {named}{more}"


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
    text = "".join(decoded(lambda: iter([read_foreign(file, "splits")]), str(file), "refuse", "splits"))
    return [line.strip() for line in text.splitlines() if line.strip()]


def split_folder(name: str) -> Split | None:
    """The split after which the outermost such folder of a file is named; None where no folder is."""
    return next((split for part in PurePosixPath(name).parts[:-1] for split in SPLIT_NUMBER if part == split), None)


def splits_of(names: list[str], lists: Lists) -> dict[str, Split]:
    """The split of every file: by lists, else by folders called train, validation and test, else by name.

    By name, the twentieth with the smallest hashes is for validation and the next twentieth for test, at least one each, so
    that a further file moves few others. Fewer than three files are all for training. Raises `ConfigError` for a list with a
    name that is no document, or is listed twice.
    """
    if lists:
        place: dict[str, Split] = dict.fromkeys(names, "train")
        for split, file in lists:
            for name in listed(file):
                require(
                    name in place, "splits", f"{file.name} lists '{name}', which is not a document", suggestion(name, names)
                )
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
    takes_lists = False

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        files = open_files(self.path)
        for file in files.ending(self.suffixes):
            text = file_text(files, file, self.errors)
            for number, section in enumerate(sections(text)):
                name = f"{file}/{number}"
                if split_of(name) == split:
                    yield name, iter([section])


HEADING = re.compile(r"^(?=\$\([ \t]*\n(?:=-){10,}=?-?[ \t]*\n)", re.MULTILINE)


def sections(text: str) -> list[str]:
    """The parts of a Metamath database; joined they are the text again."""
    starts = [0, *(match.start() for match in HEADING.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(starts) if b > a]


@dataclasses.dataclass(frozen=True)
class Repositories(TextFiles):
    """Texts of source code with one document per repository, a folder each: its files behind one another, by name.

    The form of Memorizing Transformers (Wu et al. 2022, arXiv 2203.08913, section 4.1).
    DEVIATION: there the order of a repository's files is drawn at random among the orders that keep folders together.
    """

    errors: Errors = "latin-1"

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        files = open_files(self.path)
        names = files.ending(self.suffixes)
        require(bool(names), "path", f"{self.path} has no file that ends in {' or '.join(self.suffixes)}", "give another")
        of: dict[str, list[str]] = {}
        for name, short in zip(names, short_names(names), strict=True):
            split_or_repository, *below = PurePosixPath(short).parts
            is_split = split_or_repository in SPLIT_NUMBER and len(below) > 1
            of.setdefault(f"{split_or_repository}/{below[0]}" if is_split else split_or_repository, []).append(name)
        place = splits_of(list(of), self.lists)
        for repository, own in of.items():
            if place[repository] == split:
                yield repository, itertools.chain.from_iterable(self._text(files, name) for name in sorted(own))

    def _text(self, files: Files, name: str) -> Iterator[str]:
        return decoded(functools.partial(files.blocks, name), name, self.errors)


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
        whole = hashlib.sha256(repr((READING, type(self).__name__, self.errors)).encode())
        for name, files in packages_below(self.path).items():
            whole.update(name.encode() + b"\0" + b"".join(hashlib.sha256(read_foreign(file)).digest() for file in files))
        return whole.hexdigest()[:16]

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        packages = packages_below(self.path)
        for name in sorted(packages):
            if split_of(name) == split:
                yield name, itertools.chain.from_iterable(self._text(file) for file in packages[name])

    def _text(self, file: Path) -> Iterator[str]:
        return decoded(lambda: iter([read_foreign(file)]), file.name, self.errors)  # a file of source code is small


def first_place(places: list[Path]) -> Path | None:
    """The first of `places` that exists; None where none does."""
    for place in places:
        with contextlib.suppress(OSError):
            if place.exists():
                return place
    return None
