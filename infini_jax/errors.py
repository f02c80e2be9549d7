"""Errors a user can mend: one line that names the field and the mend."""

import difflib
from collections.abc import Iterable
from typing import TypeVar

Value = TypeVar("Value")


class ConfigError(Exception):
    """A setting that cannot work. `str(error)` is one line: field, problem, mend."""

    def __init__(self, field: str, problem: str, mend: str):
        self.field = field
        super().__init__(f"{field}: {problem}; {mend}")


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the run stopped at once."""


class Stopped(RuntimeError):
    """A run was asked to stop, and was saved; the same command goes on from there."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. `str(error)` is one line: what, why, mend."""


def require(holds: bool, field: str, problem: str, mend: str) -> None:
    """Raises `ConfigError` unless `holds`."""
    if not holds:
        raise ConfigError(field, problem, mend)


def require_positive(owner: str, **values: float) -> None:
    """Raises `ConfigError` for the first of `values` that is not above zero."""
    for name, value in values.items():
        require(value > 0, f"{owner}.{name}", f"{value} is not above zero", "give at least 1")


def require_file_name(field: str, name: str) -> None:
    """Raises `ConfigError` for a name that could not be a file's on every system."""
    is_name = name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    require(is_name, field, f"'{name}' is no file name", "use letters, digits, '-', '_' and '.'")


def lookup(field: str, name: str, table: dict[str, Value]) -> Value:
    """`table[name]`, or a `ConfigError` that suggests the nearest name."""
    require(name in table, field, f"'{name}' is not known", suggestion(name, table))
    return table[name]


def suggestion(name: str, known: Iterable[str]) -> str:
    """The mend for a misspelt name: the nearest known one, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}"
