"""Errors that a user can mend: one line that names the field and the mend."""

import contextlib
import dataclasses
import difflib
import errno
import functools
import math
import numbers
import os
import re
import types
import typing
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
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
DISK = (*FULL_OR_LOCKED, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


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
    return f"disk: {place}{reason}; make room or give another folder, then repeat the command: finished work is kept"


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
        mend = "give at least 1" if isinstance(value, numbers.Integral) else "give a positive number, such as 0.001"
        require(value > 0, f"{owner}.{name}", f"{value} is not positive", mend)


def require_not_negative(owner: str, **values: float) -> None:
    """Checks numbers of one owner: raises `ConfigError` for the first of `values` that is below zero."""
    for name, value in values.items():
        require(value >= 0, f"{owner}.{name}" if owner else name, f"{value} is negative", "give 0 or more")


LARGEST = 2**31 - 1  # whole number: sizes, counts and seeds have 32 bits in JAX
LARGEST_FLOAT = 3.4028234e38  # number: settings become float32
LARGEST_OF: dict[type, float] = {int: LARGEST, float: LARGEST_FLOAT}
WORDS: dict[type, tuple[str, str]] = {  # what a value of a type is called, and an example
    bool: ("boolean", "True or False"),
    int: ("whole number", "a number such as 8"),
    float: ("number", "a number such as 0.5"),
    str: ("string", "a string"),
    tuple: ("tuple", "one such as (1, 2)"),
    dict: ("table of settings", "names with their values"),
}
LATER = {"later": True}  # `metadata` of a setting that came when results were there: its default enters no fingerprint
ABSTRACT: dict[type, type] = {int: numbers.Integral, float: numbers.Real}  # NumPy's numbers are some, too
hints_of = functools.cache(typing.get_type_hints)


def check_fields(owner: str, settings: Any, **tables: Mapping[str, Any]) -> None:
    """Checks every field of a dataclass against its type: raises `ConfigError` for the first with another value.

    Whole numbers, which are no bools and have 32 bits, may stand for numbers, which are finite; a `Literal` names its choices;
    tuples are checked one by one.

    Args:
      owner: name of the dataclass in messages, such as train; "" for settings without one.
      settings: the dataclass.
      tables: registries by field, for fields whose values are names in a registry.
    """
    kinds = hints_of(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{owner}.{field.name}" if owner else field.name
        if field.name in tables:
            is_tuple = typing.get_origin(kinds[field.name]) is tuple
            if is_tuple:
                check_value(name, value, tuple)
            for one in value if is_tuple else (value,):
                lookup(name, one, tables[field.name])
        else:
            check_value(name, value, kinds[field.name])


def check_value(field: str, value: Any, kind: Any) -> None:
    """Checks a value: raises `ConfigError` unless it is of a field's type; types that are no classes are not looked at."""
    if type(value) is kind and (kind not in LARGEST_OF or abs(value) <= LARGEST_OF[kind]):
        return  # as most are: a study checks hundreds of thousands of values
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        known = [str(one) for one in inner]
        among = ", ".join(known[:-1]) + f" or {known[-1]}" if len(known) > 1 else known[0]
        is_known = any(value == one and type(value) is type(one) for one in inner)  # True is not 1
        require(is_known, field, f"'{quoted(value)}' is not known", f"choose {among}")
    elif origin is tuple:
        check_value(field, value, tuple)
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        require(len(value) == len(kinds), field, f"{quoted(value)} has not {len(kinds)} values", "give as many")
        for one, its_kind in zip(value, kinds, strict=True):
            check_value(field, one, its_kind)
    elif origin in (typing.Union, types.UnionType):
        others = [one for one in inner if one is not type(None)]
        if value is not None or len(others) == len(inner):
            check_one_of(field, value, others)
    elif isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        check_class(field, value, kind)


def check_one_of(field: str, value: Any, kinds: list[Any]) -> None:
    """Raises `ConfigError`, that of the last kind, where the value is of none of them."""
    *others, last = kinds
    for kind in others:
        with contextlib.suppress(ConfigError):
            return check_value(field, value, kind)
    return check_value(field, value, last)


def check_class(field: str, value: Any, kind: type) -> None:
    """Raises `ConfigError` for a value that is no instance of `kind`, or a number out of the range of settings."""
    word, example = WORDS.get(kind, (kind.__name__, f"a {kind.__name__}"))
    is_one = isinstance(value, ABSTRACT.get(kind, kind)) and (kind is bool or not isinstance(value, bool))
    if not is_one:  # texts of errors are made for errors only: a study checks hundreds of thousands of values
        raise ConfigError(field, f"{quoted(value)} is not {article(word)} {word}", f"give {example}")
    if kind in LARGEST_OF:
        if value != value or abs(value) == math.inf:
            raise ConfigError(field, f"{quoted(value)} is not finite", "give a finite number")
        if abs(value) > LARGEST_OF[kind]:
            raise ConfigError(field, f"{quoted(value)} is too large", f"give at most {LARGEST_OF[kind]:,}")


def article(word: str) -> str:
    """The indefinite article in front of a word."""
    return "an" if word[:1].lower() in "aeiou" else "a"


def quoted(value: Any) -> str:
    """A value as short text; Python writes no numbers of thousands of digits."""
    try:
        text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


LONGEST_NAME = 180  # bytes; file systems take 255, and files beside a run's folder have its name and more
OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)  # devices, whatever the extension


def require_file_name(field: str, name: str) -> None:
    """Checks a name: raises `ConfigError` where it could not be a file's name on every system, or reads as an option."""
    check_value(field, name, str)
    is_name = name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    require(is_name, field, f"{name!r:.60} is not a file name", "use letters, digits, '-', '_' and '.'")
    size = len(name.encode())
    require(size <= LONGEST_NAME, field, f"a name of {size} bytes is too long", f"give at most {LONGEST_NAME}")
    is_open = name[0] not in "-." and name[-1] != "."
    require(is_open, field, f"'{name}' reads as an option or a hidden file, or loses its end", "begin and end with a letter")
    require(not OF_WINDOWS.fullmatch(name), field, f"'{name}' is a device of Windows", "give another name")


CONTROL = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories: controls, lone halves of characters, ends of lines and paragraphs


def require_one_line(field: str, text: str) -> None:
    """Checks a text that goes into a script, a table or a file's name.

    Raises `ConfigError` for characters that end lines or control a terminal, such as newline, NUL and ESC.
    """
    wrong = next((one for one in text if unicodedata.category(one) in CONTROL), None)
    require(wrong is None, field, f"it holds the control character {wrong!a}", "leave it out")


def require_utf8(field: str, text: str, mend: str) -> None:
    """Checks a text: raises `ConfigError` where it has halves of characters, as Python makes of bytes that are no UTF-8."""
    require(all(unicodedata.category(one) != "Cs" for one in text), field, "it is not UTF-8", mend)


ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # gs://, s3://, hdfs://; a Path has one slash of them left; no C:/


def require_local(field: str, path: os.PathLike[str] | str) -> None:
    """Checks a path: raises `ConfigError` for the address of a bucket, which would become a folder called `gs:`, and for names
    that no file system takes."""
    if ":" not in (text := str(path)) and len(text) < 64:  # at most 252 bytes; most paths of a study are so short
        return
    parts = [len(os.fsencode(part)) for part in text.split("/")]
    require(max(parts) <= 255, field, f"it has a name of {max(parts)} bytes", "give names of at most 255")
    address = ADDRESS.match(str(path))
    if address:
        whole = f"{address[1]}://{str(path)[address.end() :]}"
        raise ConfigError(
            field, f"{whole} is not a folder on this machine", "mount the bucket, or copy it, and give that folder"
        )


PATTERN = re.compile(r"[\[*?\\]")  # orbax looks for its files by patterns, and tensorstore takes a backslash for a slash


def require_no_pattern(field: str, folder: os.PathLike[str]) -> None:
    """Checks a folder that gets checkpoints: raises `ConfigError` for characters with which they would not be found again."""
    found = PATTERN.search(os.path.abspath(folder))
    problem = f"in a folder with {found and found[0]!r} in its path checkpoints are not found again"
    require(found is None, field, problem, "give a path without [, *, ? and backslash")


def required(value: Value | None, field: str, problem: str, mend: str) -> Value:
    """`value` itself. Raises `ConfigError` where it is None."""
    if value is None:
        raise ConfigError(field, problem, mend)
    return value


def present(value: Value | None, why: str) -> Value:
    """`value` itself, which is never None, `why` says by what. Raises `RuntimeError` where it is; no flag takes this away."""
    if value is None:
        raise RuntimeError(f"missing: {why}")
    return value


def instance(value: Any, kind: type[Value], why: str) -> Value:
    """`value` itself, which is always a `kind`, `why` says by what. Raises `TypeError` where it is not."""
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} is no {kind.__name__}: {why}")
    return value


def lookup(field: str, name: str, table: Mapping[str, Value]) -> Value:
    """`table[name]`. Raises `ConfigError` with the nearest name where the table has no such entry."""
    if not isinstance(name, str) or name not in table:  # the nearest name is not looked for in vain
        raise ConfigError(field, f"'{quoted(name)}' is not known", suggestion(quoted(name), table))
    return table[name]


def missing_step(step: int, steps: Sequence[int]) -> tuple[str, str]:
    """(problem, mend) of a checkpoint that a run with checkpoints at `steps` does not have."""
    if not steps:
        return "this run has no checkpoints", "train it first"
    return f"there is no checkpoint of step {step}", f"choose one of {', '.join(map(str, steps))}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """The mend for a misspelled name: the nearest known one, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}"
