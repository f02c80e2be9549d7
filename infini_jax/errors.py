"""Errors that a user can mend: one line that names the field and the mend."""

import dataclasses
import difflib
import errno
import functools
import os
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

Value = TypeVar("Value")


class ConfigError(Exception):
    """A setting that cannot work. `str(error)` is one line: field, problem, mend.

    Attributes:
      field: the setting at fault, such as train.batch.
    """

    def __init__(self, field: str, problem: str, mend: str):
        self.field = field
        super().__init__(f"{field}: {problem}; {mend}")


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the run stopped at once."""


class Stopped(RuntimeError):
    """A run was asked to stop, and was saved; the same command goes on from there.

    Attributes:
      signal: number of the signal that asked, None where it was something else.
    """

    signal: int | None = None


class EvaluationFailed(RuntimeError):
    """An evaluation of a trained run failed. Its row is written without it; the same command makes the evaluation again."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C asked a run to stop, and it was saved."""


class Announced(KeyboardInterrupt):
    """A signal announced the end of a process that had nothing to save itself. `str(error)` is the signal's name."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. `str(error)` is one line: what, why, mend."""


FULL_OR_LOCKED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
TFDS_IS_FULL = "Not enough disk space"  # what TFDS says where nothing at all is free
DISK = (*FULL_OR_LOCKED, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EEXIST)


def disk_reason(error: BaseException) -> str | None:
    """The system's words for a disk that is full or a place that cannot be written, whatever library raised the error.

    None for any other error.
    """
    if TFDS_IS_FULL in str(error):
        return os.strerror(errno.ENOSPC)
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in DISK else None
    return next((words for words in map(os.strerror, FULL_OR_LOCKED) if words in str(error)), None)


def disk_fault(error: BaseException) -> str | None:
    """One line for an error of a disk: the file where it is known, why, mend. None for any other error."""
    reason = disk_reason(error)
    if reason is None:
        return None
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return f"disk: {place}{reason}; make room or give another folder and call again: what was finished is kept"


def one_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]


def named_line(error: BaseException) -> str:
    """One line for an error that nobody expected: its kind, and the first line of what it says."""
    said = one_line(error)
    kind = type(error).__name__
    return said if isinstance(error, ConfigError) or said == kind else f"{kind}: {said}"


def installs(extra: str) -> str:
    """The command that installs an optional part, as the mend of an error."""
    return f"pip install 'infini_jax[{extra}]'"


def require(holds: bool, field: str, problem: str, mend: str) -> None:
    """Checks a setting: raises `ConfigError` with `field`, `problem` and `mend` unless `holds`."""
    if not holds:
        raise ConfigError(field, problem, mend)


def require_positive(owner: str, **values: float) -> None:
    """Checks numbers of one owner: raises `ConfigError` for the first of `values` that is not above zero."""
    for name, value in values.items():
        require(value > 0, f"{owner}.{name}", f"{value} is not above zero", "give at least 1")


hints_of = functools.cache(typing.get_type_hints)


def check_choices(owner: str, settings: Any, **tables: dict[str, Any]) -> None:
    """Raises `ConfigError` for the first field of a dataclass with a value that its type does not name.

    Looked at are `Literal`, tuples of it, and both beside None. `tables`: the registries of fields whose values they name.
    """
    kinds = hints_of(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{owner}.{field.name}"
        if field.name in tables:
            for one in value if typing.get_origin(kinds[field.name]) is tuple else (value,):
                lookup(name, one, tables[field.name])
        else:
            check_choice(name, value, kinds[field.name])


def check_choice(field: str, value: Any, kind: Any) -> None:
    """Raises `ConfigError` for a value that is none of a `Literal`, or of one in a tuple; other types have no choices."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        known = [str(one) for one in inner]
        among = ", ".join(known[:-1]) + f" or {known[-1]}" if len(known) > 1 else known[0]
        is_known = any(value == one and type(value) is type(one) for one in inner)  # True is not 1
        require(is_known, field, f"'{value}' is not known", f"choose {among}")
    elif typing.get_origin(kind) is tuple and isinstance(value, tuple):
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        for one, its_kind in zip(value, kinds, strict=False):
            check_choice(field, one, its_kind)
    elif typing.get_origin(kind) in (typing.Union, types.UnionType) and value is not None:
        others = [one for one in inner if one is not type(None)]
        if len(others) == 1:
            check_choice(field, value, others[0])


def require_file_name(field: str, name: str) -> None:
    """Checks a name: raises `ConfigError` where it could not be a file's name on every system."""
    is_name = name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    require(is_name, field, f"'{name}' is no file name", "use letters, digits, '-', '_' and '.'")


def required(value: Value | None, field: str, problem: str, mend: str) -> Value:
    """`value` itself. Raises `ConfigError` where it is None."""
    if value is None:
        raise ConfigError(field, problem, mend)
    return value


def lookup(field: str, name: str, table: dict[str, Value]) -> Value:
    """`table[name]`. Raises `ConfigError` with the nearest name where the table has no such entry."""
    require(name in table, field, f"'{name}' is not known", suggestion(name, table))
    return table[name]


def suggestion(name: str, known: Iterable[str]) -> str:
    """The mend for a misspelled name: the nearest known one, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}"
