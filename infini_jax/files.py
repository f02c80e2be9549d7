"""Files that a reader never sees half of, files that come with the package, and where prepared data lie."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from infini_jax.errors import ConfigError, require_local

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


def shipped(folder: str) -> Path:
    """The path of a folder that comes with infini_jax, such as experiments.

    In a wheel it lies inside the package, in the repository beside it.
    """
    package = Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def data_folder() -> Path:
    """Where corpora lie: $INFINI_JAX_DATA, else the user's cache. Never part of a run's settings.

    Raises `ConfigError` where the user has no home folder, as in a container with a user's number only, and for a bucket.
    """
    if given := os.environ.get(FOLDER_VARIABLE):
        require_local(FOLDER_VARIABLE, given)
        return Path(given)
    try:
        return Path.home() / ".cache" / "infini_jax"
    except RuntimeError as error:
        mend = f"set {FOLDER_VARIABLE} to a folder for corpora, or HOME"
        raise ConfigError("data folder", "this user has no home folder", mend) from error
