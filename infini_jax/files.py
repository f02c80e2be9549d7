"""Files that a reader never sees half of, files that come with the package, and where prepared data lie."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

FOLDER_VARIABLE = "INFINI_JAX_DATA"


@contextlib.contextmanager
def replaced_at_once(file: Path) -> Iterator[Path]:
    """A path to write to inside the block. Afterwards it becomes `file`; where the block raises or the process dies, `file`
    stays as it was. Of several writers at once the last one counts."""
    partial = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_at_once(text: str, file: Path) -> None:
    """Writes `text` to `file` whole or not at all, whenever the process dies."""
    with replaced_at_once(file) as partial:
        partial.write_text(text, encoding="utf-8")


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
