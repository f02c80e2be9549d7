"""Prepared corpora are removed, and measured on disk."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from infini_jax.data.batch import SPLIT_NUMBER
from infini_jax.data.prepared import MANIFEST_FILE, MODEL_FILE, existing_folder, only_preparer
from infini_jax.errors import ConfigError, require
from infini_jax.files import open_regular

TOKEN_FILES = tuple(f"{split}.{kind}" for split in SPLIT_NUMBER for kind in ("tokens", "starts"))
FILES = (MANIFEST_FILE, MODEL_FILE, *TOKEN_FILES)


def bytes_on_disk(folder: Path) -> int:
    """Bytes of all files in a folder, those of folders in it included; links are not followed."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def removable(name: str) -> Path:
    """The folder of a prepared corpus that may be removed, damaged ones included.

    Raises `ConfigError` where there is none of this name, or it is a link or holds anything but a prepared corpus.
    """
    folder = existing_folder(name)
    mend = "look at it, and remove it by hand"
    require(not folder.is_symlink(), "name", f"'{name}' is a link to {folder.resolve()}", mend)
    found = sorted(file.name for file in folder.iterdir())
    foreign = [file for file in found if file not in FILES]
    require(not foreign, "name", f"'{name}' is not a prepared corpus: it holds {', '.join(map(ascii, foreign[:3]))}", mend)
    require(MANIFEST_FILE in found, "name", f"'{name}' is not a prepared corpus: it has no {MANIFEST_FILE}", mend)
    return folder


def remove(name: str) -> int:
    """Removes a prepared corpus; returns the bytes that are free now.

    Raises `ConfigError` as `removable` does, and while a process prepares it or reads it.
    """
    folder = removable(name)
    with only_preparer(folder), unread(folder):
        size, old = bytes_on_disk(folder), folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)  # at once: nobody sees half of it
        shutil.rmtree(old)
    return size


@contextlib.contextmanager
def unread(folder: Path) -> Iterator[None]:
    """Context in which no process reads the tokens: their readers hold shared locks (`Prepared.documents`).

    Raises `ConfigError` where one does.
    """
    import fcntl

    with contextlib.ExitStack() as closing:
        for name in TOKEN_FILES:
            if (folder / name).is_file():
                file = closing.enter_context(open_regular(folder / name))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ConfigError("name", f"'{folder.name}' is being read by a process", "wait until it ends") from error
        yield
