"""Files that a reader never sees half of, files that come with the package, and where prepared data lie."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

FOLDER_VARIABLE = "INFINI_JAX_DATA"


@contextlib.contextmanager
def replaced_at_once(file: Path) -> Iterator[Path]:
    """A path to write to inside the block. Afterwards it becomes `file`; where the block raises or the process dies, `file`
    stays as it was."""
    partial = file.with_name(f".{file.name}.partial")
    yield partial
    partial.replace(file)


def write_at_once(text: str, file: Path) -> None:
    """Writes `text` to `file` whole or not at all, whenever the process dies."""
    with replaced_at_once(file) as partial:
        partial.write_text(text, encoding="utf-8")


def open_regular(file: Path) -> io.BufferedReader:
    """A regular file opened for reading; links are followed.

    Raises OSError for anything else: reading a pipe or a device may wait for ever or never come to an end.
    """
    if stat.S_ISREG(os.stat(file).st_mode):  # opening a device may already do something
        no_waiting = getattr(os, "O_NONBLOCK", 0)  # for a pipe that was put in its place since
        opened = os.fdopen(os.open(file, os.O_RDONLY | no_waiting | getattr(os, "O_BINARY", 0)), "rb")
        if stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            return opened
        opened.close()
    raise OSError("is no regular file")


def shipped(folder: str) -> Path:
    """The path of a folder that comes with infini_jax, such as experiments.

    In a wheel it lies inside the package, in the repository beside it.
    """
    package = Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def data_folder() -> Path:
    """Where corpora lie: $INFINI_JAX_DATA, else the user's cache. Never part of a run's settings."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "infini_jax")
