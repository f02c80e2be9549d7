"""A prepared corpus on disk: tokens in an array of fixed width, the start of each document, and their origin.

A folder holds for each split `train.tokens` (uint8, uint16 or uint32 by the vocabulary) and `train.starts` (int64, one more
than documents), both little-endian without a header; `tokenizer.model` for SentencePiece; and `manifest.json`, written last.
The folder gets its name only when it is whole. Opening it compares sizes and checksums, so that damage is never trained on.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from infini_jax.data.batch import Split
from infini_jax.data.documents import Documents
from infini_jax.data.tokenizers import Bytes
from infini_jax.errors import ConfigError, require, require_file_name, suggestion
from infini_jax.files import FOLDER_VARIABLE, data_folder, json_text
from infini_jax.locks import only_writer
from infini_jax.units import exponential, ratio

FORMAT = 1
MANIFEST_FILE, MODEL_FILE = "manifest.json", "tokenizer.model"
PREPARED, SNAPSHOTS = "prepared", "tfds"
MEND = "prepare it again: infini-jax corpus prepare"


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts and checksums of one split.

    Attributes:
      documents: number of documents with text.
      empty: number of documents without text, which are left out.
      tokens: number of tokens of all documents.
      words: number of parts between white space; word perplexity divides by it.
      bytes: size of the text in UTF-8; bits per byte divide by it.
      longest: number of tokens of the longest document.
      tokens_sha256: checksum of the tokens as they lie on disk.
      starts_sha256: checksum of the documents' starts.
    """

    documents: int
    empty: int
    tokens: int
    words: int
    bytes: int
    longest: int
    tokens_sha256: str
    starts_sha256: str

    def word_perplexity(self, nats: float) -> float:
        """Perplexity per word, exp(nats per token x tokens / words): comparable between tokenizers.

        Infinite beyond the largest float, as of text without white space, which is a single word; NaN without a word.
        """
        return exponential(ratio(nats * self.tokens, self.words))

    def bits_per_byte(self, nats: float) -> float:
        """Bits per byte of text, nats per token x tokens / bytes / ln 2: comparable between tokenizers."""
        return ratio(nats * self.tokens, self.bytes) / math.log(2)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of a prepared corpus, which lies beside it as manifest.json.

    Attributes:
      corpus: name of the corpus it was made from.
      source: digest of the texts.
      tokenizer: name of the tokenizer, with the hash of its model.
      settings: the tokenizer that was asked for, in words.
      vocab: number of tokens in the vocabulary.
      splits: counts of each split.
      format: version of the manifest's format.
    """

    corpus: str
    source: str
    tokenizer: str
    settings: str
    vocab: int
    splits: dict[Split, Counts]
    format: int = FORMAT

    @property
    def content(self) -> str:
        """Hash of all that a run reads, sixteen hex digits: the tokenizer and every split's tokens and documents."""
        read = [self.format, self.tokenizer, self.vocab]
        read += [(name, counts.tokens_sha256, counts.starts_sha256) for name, counts in sorted(self.splits.items())]
        return hashlib.sha256(repr(read).encode()).hexdigest()[:16]

    @property
    def dtype(self) -> np.dtype:
        """The narrowest unsigned type that holds every token, little-endian."""
        bits = 8 if self.vocab <= 1 << 8 else 16 if self.vocab <= 1 << 16 else 32
        return np.dtype(f"<u{bits // 8}")

    def to_json(self) -> str:
        """The manifest as JSON, with its content hash and a hash of all fields."""
        return json_text({**dataclasses.asdict(self), "content": self.content, "sha256": self._sha256()}, indent=2) + "\n"

    def _sha256(self) -> str:
        """Hash of all fields, so that a changed count is noticed too."""
        return hashlib.sha256(json_text(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> "Manifest":
        """The manifest from its JSON values.

        Raises KeyError, TypeError or ValueError where they are no manifest of this format.
        """
        if plain["format"] != FORMAT:
            raise ValueError(f"format {plain['format']}, and this version reads {FORMAT}")
        fields = {field.name: plain[field.name] for field in dataclasses.fields(Manifest)}
        fields["splits"] = {name: Counts(**counts) for name, counts in plain["splits"].items()}
        manifest = Manifest(**fields)
        if manifest._sha256() != plain["sha256"]:
            raise ValueError("its own hash does not fit")
        return manifest


def prepared_folder(name: str) -> Path:
    """The folder of a prepared corpus, there or not. Raises `ConfigError` for a name that is no file name."""
    require_file_name("data.name", name)
    return data_folder() / PREPARED / name


def prepared_folders() -> list[Path]:
    """The folders of all prepared corpora, damaged ones included, by name."""
    folder = prepared_folder("any").parent
    return sorted(folder.glob("[!.]*")) if folder.is_dir() else []


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A whole prepared corpus.

    Attributes:
      folder: folder of the corpus.
      manifest: description of the corpus.
    """

    folder: Path
    manifest: Manifest

    @staticmethod
    def open(name: str) -> "Prepared":
        """The prepared corpus of this name. Raises `ConfigError` where there is none, or it is damaged."""
        return Prepared.read(existing_folder(name))

    @staticmethod
    def read(folder: Path) -> "Prepared":
        """The prepared corpus in a folder. Raises `ConfigError` where sizes or checksums do not fit."""
        manifest = read_manifest(folder)
        for split, counts in manifest.splits.items():
            check_file(folder / f"{split}.tokens", counts.tokens * manifest.dtype.itemsize, counts.tokens_sha256)
            check_file(folder / f"{split}.starts", (counts.documents + 1) * 8, counts.starts_sha256)
        if manifest.tokenizer != Bytes.name:
            checked_model(folder, manifest)
        return Prepared(folder, manifest)

    def counts(self, split: Split) -> Counts:
        """The counts of a split. Raises `ConfigError` where the corpus has no such split."""
        require(
            split in self.manifest.splits,
            "data.name",
            f"'{self.folder.name}' has no {split} split",
            f"it has {', '.join(self.manifest.splits) or 'none'}; prepare a corpus with more documents, or give lists",
        )
        return self.manifest.splits[split]

    def documents(self, split: Split) -> Documents:
        """The documents of a split; tokens and starts stay on disk and are read when needed.

        Raises `ConfigError` where the corpus has no such split.
        """
        counts = self.counts(split)
        files: list[BinaryIO] = [(self.folder / f"{split}.{kind}").open("rb") for kind in ("tokens", "starts")]
        for file in files:
            hold(file)
        text, starts = np.memmap(files[0], self.manifest.dtype, "r"), np.memmap(files[1], "<i8", "r")
        described = (
            f"{self.manifest.corpus} {split}: {counts.documents} documents, {counts.tokens} tokens "
            f"({self.manifest.tokenizer}), content {self.manifest.content}"
        )
        check = functools.partial(check_unchanged, files, [state_of(file) for file in files])
        return Documents(text, starts, described, check, f"'{self.folder.name}' ({split} split)")


def hold(file: BinaryIO) -> None:
    """Locks a file that is read, shared with other readers, until it is closed: `corpus remove` refuses it meanwhile.

    Where the system has no such locks, nothing is held.
    """
    with contextlib.suppress(OSError, ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def state_of(file: BinaryIO) -> tuple[int, int]:
    """(size, time of the last change) of an open file: of this one, also where another has got its name."""
    now = os.fstat(file.fileno())
    return now.st_size, now.st_mtime_ns


def check_unchanged(files: list[BinaryIO], opened: list[tuple[int, int]]) -> None:
    """Checks that open files are in the state they were `opened` in: raises `ConfigError` where one has changed.

    Reading behind the end of a mapped file would kill the process.
    """
    for file, state in zip(files, opened, strict=True):
        name = Path(file.name)
        require(state_of(file) == state, "data.name", f"{name.parent.name}/{name.name} was changed while it was read", MEND)


def only_preparer(folder: Path) -> AbstractContextManager[None]:
    """A context in which no other process prepares or removes a corpus. Raises `ConfigError` while one does, with its name."""
    lock = folder.with_name(f".{folder.name}.lock")
    return only_writer(lock, "name", f"'{folder.name}'", "wait until it is done, or give another --name")


def existing_folder(name: str) -> Path:
    """The folder of a prepared corpus. Raises `ConfigError` with the nearest name where there is none."""
    folder = prepared_folder(name)
    others = [other.name for other in folder.parent.glob("[!.]*")] if folder.parent.is_dir() else []
    require(
        folder.is_dir(),
        "data.name",
        f"no prepared corpus '{name}' in ${FOLDER_VARIABLE} or the cache",
        suggestion(name, others) if others else "make one: infini-jax corpus prepare --help",
    )
    return folder


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a folder. Raises `ConfigError` where it is missing or damaged."""
    try:
        return Manifest.from_plain(json.loads((folder / MANIFEST_FILE).read_text()))
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError("data.name", f"'{folder.name}' is not a complete preparation ({error})", MEND) from error


def checked_model(folder: Path, manifest: Manifest) -> Path:
    """The path of the SentencePiece model. Raises `ConfigError` where it is not the one of the manifest."""
    file = folder / MODEL_FILE
    check_file(file, None, manifest.tokenizer.partition(":")[2])
    return file


def check_file(file: Path, size: int | None, sha256: str) -> None:
    """Checks a file: raises `ConfigError` unless it has this size (any for None) and its SHA-256 begins with `sha256`.

    The file is read once, and again when it changes.
    """
    try:
        now = file.stat()
        whole = size in (None, now.st_size)
        whole = whole and file_checksum(file, now.st_size, now.st_mtime_ns, now.st_ino).startswith(sha256)
    except OSError:
        whole = False
    require(whole, "data.name", f"{file.parent.name}/{file.name} is damaged", MEND)


@functools.lru_cache(maxsize=256)
def file_checksum(file: Path, *state: int) -> str:
    """SHA-256 of a file, cached for a state (size, time, inode)."""
    del state
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
