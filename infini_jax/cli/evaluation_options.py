"""Settings of evaluations on the command line: one option for every setting that any of them has."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from infini_jax.cli.docstrings import help_of
from infini_jax.errors import ConfigError, check_value, lookup, quoted, require
from infini_jax.evals.base import Evaluation
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.units import whole_number

NOT_GIVEN = "\0"  # no command line can hold it, so that an empty value is told from none


def settings_of(kind: Any) -> dict[str, Any]:
    """The types of an evaluation's settings, by name."""
    types = typing.get_type_hints(kind)
    return {field.name: types[field.name] for field in dataclasses.fields(kind)}


def given_type(kind: Any) -> Any:
    """The type of a setting's value where one is given: of one that may be None, the other type."""
    inner = typing.get_args(kind)
    return next(one for one in inner if one is not types.NoneType) if types.NoneType in inner else kind


def text_fields(table: Mapping[str, type]) -> list[tuple[str, Any, Any]]:
    """A field for every setting of classes by name: text, converted when the class is known; `NOT_GIVEN` or () without one."""
    owners: dict[str, dict[str, type]] = {}
    for owner, kind in table.items():
        for name in settings_of(kind):
            owners.setdefault(name, {})[owner] = kind
    found = []
    for name, kinds in owners.items():
        first = next(iter(kinds.values()))
        is_tuple = typing.get_origin(given_type(settings_of(first)[name])) is tuple
        words = f"{help_of(first, name) or name} ({', '.join(kinds)})"
        argument = tyro.conf.arg(help=words, help_behavior_hint="", metavar="A,B,..." if is_tuple else "VALUE")
        kind, empty = (tuple[str, ...], ()) if is_tuple else (str, NOT_GIVEN)
        found.append((name, Annotated[kind, argument], dataclasses.field(default=empty)))
    return found


if TYPE_CHECKING:  # its fields are made from the registry, which a type checker does not know

    class Options: ...
else:
    Options = dataclasses.make_dataclass("Options", text_fields(EVALUATIONS), frozen=True)
Options.__doc__ = "Settings of the task; what is left out is the task's own default."


def chosen_evaluation(task: str, options: Any) -> Evaluation:
    """The evaluation with the options that were given.

    Raises `ConfigError` for an unknown task, an option that the task does not have, and a value of another type.
    """
    kind = lookup("task", task, EVALUATIONS)
    return kind(**given_settings(options, task, kind))


def given_settings(options: Any, owner: str, kind: type, prefix: str = "") -> dict[str, Any]:
    """The settings of a class that were given as text, by name; `owner` is the name of the class.

    Raises `ConfigError` for a setting that the class does not have, and a value of another type.
    """
    known, given = settings_of(kind), {}
    for field in dataclasses.fields(options):
        if (value := getattr(options, field.name)) in (NOT_GIVEN, ()):
            continue
        mend = f"leave it out: {owner} has {', '.join(known) or 'none'}"
        require(field.name in known, f"{prefix}{field.name}", f"{owner} has no such option", mend)
        given[field.name] = converted(f"{prefix}{field.name}", value, given_type(known[field.name]))
    return given


def converted(name: str, value: str | tuple[str, ...], kind: Any) -> Any:
    """The value of a setting's type that a text gives; lists may be written `4k,64k` or `4k 64k`."""
    if typing.get_origin(kind) is tuple:
        parts = [part for word in value for part in word.split(",") if part]
        return tuple(converted(name, part, typing.get_args(kind)[0]) for part in parts)
    if isinstance(value, tuple):  # another task has a list under this name
        value = " ".join(value)
    if typing.get_origin(kind) is Literal:
        check_value(name, value, kind)
        return value
    try:
        return {int: whole_number, float: float, str: str}[kind](value)
    except ValueError as error:
        mend = "give digits, such as 4096, 4k or 1m" if kind is int else "give a number, such as 0.5"
        raise ConfigError(name, f"'{quoted(value)}' is not a number" if value else "it is empty", mend) from error
