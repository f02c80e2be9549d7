"""Files that a reader never sees half of, JSON that may be damaged, files of the package, and where prepared data lie."""

import contextlib
import io
import json
import math
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infini_jax.errors import ConfigError, one_line, require_local

FOLDER_VARIABLE = "INFINI_JAX_DATA"


@contextlib.contextmanager
def replaced_at_once(file: Path) -> Iterator[Path]:
    """A context with a path to write to, which becomes `file` at the end.

    Where the block raises, the process dies or the power fails, `file` stays as it was. Of several writers at once the last
    one counts.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        to_disk(partial)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some systems open no folders; the file itself is safe
        to_disk(file.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, where they are missing. Raises `ConfigError` where there can be none, as in /proc."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise ConfigError("folder", f"{folder} cannot be created ({one_line(error)})", "give another folder") from error


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `folder` at the end; nothing of it stays where the block raises."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk and not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_at_once(text: str, file: Path) -> None:
    """Writes `text` to `file` whole or not at all, whenever the process dies."""
    with replaced_at_once(file) as partial:
        partial.write_text(text, encoding="utf-8")


def json_text(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """Plain values as JSON. Numbers that are not finite, for which JSON has no words, become null."""
    try:
        return json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False)
    except ValueError:  # it holds such a number, which is rare: looking for one takes longer than writing
        return json.dumps(without_nan(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def without_nan(value: Any) -> Any:
    """Plain values with None in place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    return [without_nan(one) for one in value] if isinstance(value, list | tuple) else value


def with_nan(numbers: dict[str, float | None]) -> dict[str, float]:
    """Numbers that were read from JSON, NaN in place of null."""
    return {name: math.nan if value is None else value for name, value in numbers.items()}


def write_json(value: Any, file: Path, indent: int | None = 2) -> None:
    """Writes plain values to a file as JSON, whole or not at all."""
    write_at_once(json_text(value, indent) + "\n", file)


def json_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a text is. Raises `ValueError` where it is anything else."""
    value = json_value(text)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def json_value(text: str | bytes) -> Any:
    """The JSON value that a text is. Raises `ValueError` where it is none."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError as error:
        raise ValueError("brackets in brackets without end") from error


def read_object(file: Path, field: str, mend: str) -> dict[str, Any]:
    """The JSON object in a file. Raises `ConfigError` of `field` with the file, and `mend`, where there is none."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigError(field, f"{file} is damaged ({one_line(error)})", mend) from error
    return checked_object(text, file, field, mend)


def checked_object(text: bytes, file: Path, field: str, mend: str) -> dict[str, Any]:
    """The JSON object that the text of a file is. Raises `ConfigError` of `field` with the file, and `mend`, otherwise."""
    try:
        return json_object(text)
    except ValueError as error:
        raise ConfigError(field, f"{file} is damaged ({one_line(error)})", mend) from error


def object_or_none(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where the file is missing or damaged, so that it is made again."""
    with contextlib.suppress(FileNotFoundError):
        return object_in(file.read_bytes())
    return None


def object_in(text: bytes) -> dict[str, Any] | None:
    """The JSON object that the text of a file is; None where it is damaged."""
    with contextlib.suppress(ValueError):
        return json_object(text)
    return None


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
    raise OSError("is not a regular file")


def shipped(folder: str) -> Path:
    """The path of a folder that comes with infini_jax, such as experiments.

    In a wheel it lies inside the package, in the repository beside it.
    """
    package = Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def data_folder() -> Path:
    """The path of the folder of corpora: $INFINI_JAX_DATA, else the user's cache. Never part of a run's settings.

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
