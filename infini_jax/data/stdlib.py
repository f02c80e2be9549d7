"""The embedded corpus: the source code of the running Python's standard library, as bytes, one document per package.

Nothing is downloaded. The text depends on the Python version, so results name it and carry the corpus fingerprint.
"""

import dataclasses
import functools
import hashlib
import importlib
import sysconfig
from pathlib import Path

import numpy as np

from infini_jax.data.base import DataConfig
from infini_jax.data.batch import Rows, Split
from infini_jax.data.documents import DocumentRows, Documents
from infini_jax.data.prepared import Counts
from infini_jax.data.tokenizers import Bytes
from infini_jax.errors import ConfigError, require

SKIPPED = ("site-packages", "dist-packages", "__pycache__")


@dataclasses.dataclass(frozen=True)
class StdlibConfig(DataConfig):
    """Settings of the standard library's source as bytes; a document is one package folder or one top-level module."""

    loss_unit = "nats per byte"

    @property
    def vocab(self) -> int:
        return 256

    def check(self, tokens: int) -> None:
        require(tokens >= 1, "train.sequence", f"{tokens} tokens are not a sequence", "give at least 1")

    def open(self, rows: Rows) -> DocumentRows:
        return DocumentRows(stdlib_documents(rows.split), rows)

    def whole(self, split: Split) -> tuple[Documents, Counts]:
        return stdlib_documents(split), stdlib_counts(split)

    def open_tokenizer(self) -> Bytes:
        return Bytes()


@functools.cache
def stdlib_documents(split: Split, root: str | None = None) -> Documents:
    """The documents of a split below `root` (the running Python's library by default).

    Raises `ConfigError` where there is no Python source.
    """
    folder = Path(root or sysconfig.get_paths()["stdlib"])
    packages = {name: files for name, files in packages_below(folder).items() if split_of(name) == split}
    require(
        bool(packages),
        "data",
        f"no Python source for the {split} split in {folder.name}",
        "install Python with its library sources",
    )
    texts = [b"".join(file.read_bytes() for file in packages[name]) for name in sorted(packages)]
    return Documents.join(texts, f"'python_stdlib' ({split} split)")


@functools.cache
def stdlib_counts(split: Split) -> Counts:
    """The counts of a split's documents."""
    return counted_bytes(stdlib_documents(split))


def packages_below(folder: Path) -> dict[str, list[Path]]:
    """The source files of each package by its name, sorted. Empty files are left out; a top-level module is a package."""
    packages: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder)
        if any(part in SKIPPED for part in inside.parts) or not file.stat().st_size:
            continue
        name = ".".join(inside.parts[:-1]) or inside.stem
        packages.setdefault(name, []).append(file)
    return packages


def split_of(name: str) -> Split:
    """The split of a package by a hash of its name, stable across versions: a twentieth each is validation and test."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 20
    held_out: dict[int, Split] = {0: "validation", 1: "test"}
    return held_out.get(number, "train")


def counted_bytes(documents: Documents) -> Counts:
    """The counts of documents whose tokens are bytes; words are counted in the bytes."""
    parts = np.split(documents.text, documents.starts[1:-1])
    digests = (hashlib.sha256(array.data).hexdigest() for array in (documents.text, documents.starts))
    return Counts(
        documents=len(parts),
        empty=0,
        tokens=len(documents.text),
        words=sum(len(part.tobytes().split()) for part in parts),
        bytes=len(documents.text),
        longest=int(documents.lengths.max()),
        **dict(zip(("tokens_sha256", "starts_sha256"), digests, strict=True)),
    )


@functools.cache
def reference_text() -> str:
    """The language reference of the running Python, English text of some 460 kB, as far as its help texts hold it.

    Raises `ConfigError` where Python came without them.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise ConfigError(
            "data", "this Python has no language reference", "name a file or folder of texts with --data"
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))
