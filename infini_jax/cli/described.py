"""Description of all commands and their options in plain values, read from the commands' functions and settings classes.

It is stored in `arguments.json`, so that --help, mistakes and completion need no JAX: `infini_jax.cli.arguments` reads it.
`python -m configs` writes it again, and a test holds it to the functions.
"""

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import tyro

from infini_jax.cli import commands
from infini_jax.cli.docstrings import help_of, opening
from infini_jax.files import json_text

MARKS = ("Positional", "OmitArgPrefixes", "UseAppendAction", "FlagCreatePairsOff")  # of tyro, as far as commands use them
SUBCOMMAND: Any = type(tyro.conf.subcommand("x"))  # what these make is no public class of tyro
ARGUMENT: Any = type(tyro.conf.arg(name="x"))
TYPES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
METAVARS = {
    "FOLDER": ("results", "folders", "origin", "run", "first", "second"),
    "FILE": ("prompt_file", "save_memory", "memory_file", "validation", "test", "model", "config"),
    "NAME": ("name", "task", "project", "corpus", "mechanism"),
    "BYTES": ("memory_bytes",),
    "AXIS": ("memory_axis",),
    "TOKENS": ("segment", "sequence", "tokens", "window", "context"),
    "ROWS": ("batch", "rows"),
    "STEPS": ("log_every", "evaluate_every", "every_steps"),
    "STEP": ("step", "origin_step", "resume"),
    "RATE": ("learning_rate", "gate_learning_rate"),
    "SEGMENTS": ("bptt", "segments_per_step"),
    "WIDTH": ("d_model", "mlp_dim"),
    "SIZE": ("key_dim", "value_dim", "vocab"),
    "FLOPS": ("ceiling",),
    "P": ("top_p",),
}
METAVAR_OF = {name: metavar for metavar, names in METAVARS.items() for name in names}


def described(command: str) -> dict[str, Any]:
    """The description of one command.

    `doc` is what its help begins with, `common` are the options that `--help` shows (all of them where empty), `fields` the
    parameters: each has a `name` and `help`, and is either a value (`type`, `default`, both Python), a `group` of fields, or
    one of several `choices` of groups.
    """
    function = inspect.unwrap(commands.command(command))
    signature, hints = inspect.signature(function), typing.get_type_hints(function, include_extras=True)
    defaults = {name: one.default for name, one in signature.parameters.items()}
    module = inspect.getmodule(function)
    fields = [field(name, hints[name], default, help_of(function, name)) for name, default in defaults.items()]
    return {"doc": opening(function), "common": list(getattr(module, "COMMON", ())), "fields": fields}


def field(name: str, hint: Any, default: Any, text: str) -> dict[str, Any]:
    """The description of a parameter of a function, or of a field of settings."""
    plain, extras = unwrapped(hint)
    found: dict[str, Any] = {"name": name, "help": sentence(text, choices_of(plain))}
    if marks := [mark for mark in MARKS if getattr(tyro.conf, mark) in extras]:
        found["marks"] = marks
    arguments = [one for one in extras if isinstance(one, ARGUMENT)]
    if any(argument.name for argument in arguments):
        found["option"] = next(argument.name for argument in arguments if argument.name)
    if dataclasses.is_dataclass(plain):
        return found | {"group": group(plain, default)}
    options = [unwrapped(one) for one in typing.get_args(plain)]
    if any(dataclasses.is_dataclass(kind) for kind, _ in options):
        return found | {"choices": {name_of(extra): choice(kind) for kind, extra in options}}
    return found | value(name, plain, default, next(iter(arguments), None))


def value(name: str, kind: Any, default: Any, argument: Any) -> dict[str, Any]:
    """Type, default and metavar of a value, and what a command declares of its help."""
    found = {"type": type_text(kind), "metavar": (argument and argument.metavar) or metavar_of(name, kind)}
    if default not in (inspect.Parameter.empty, dataclasses.MISSING):
        found["default"] = f"Path({str(default)!r})" if isinstance(default, Path) else repr(default)
    if argument and argument.help:
        found["help"] = sentence(argument.help, choices_of(kind))
    if argument and argument.help_behavior_hint == "":
        found["silent"] = True  # nothing is said of its default
    return found


def metavar_of(name: str, kind: Any) -> str | None:
    """What stands for a value in help texts; None where the parser's own word will do."""
    inner = [one for one in typing.get_args(kind) if one is not types.NoneType]
    kind = inner[0] if len(inner) == 1 else kind  # that may be None, which nobody has to type
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    if typing.get_origin(kind) is tuple:
        each = [metavar_of(name, one) or "" for one in typing.get_args(kind) if one is not ...]
        return f"[{each[0]} ...]" if ... in typing.get_args(kind) else " ".join(each)
    return METAVAR_OF.get(name, TYPES.get(kind))


def choice(kind: type) -> dict[str, Any]:
    """The description of one of several classes of settings."""
    text = opening(kind)
    words = text if "Example" in text else text.partition("\n\n")[0].removeprefix("Settings of ")
    return {"doc": sentence(words, set())} | group(kind, dataclasses.MISSING)


def group(kind: Any, default: Any) -> dict[str, Any]:
    """The fields of a class of settings, with the values of `default` where there is one."""
    hints, found = typing.get_type_hints(kind, include_extras=True), []
    for one in dataclasses.fields(kind):
        given = getattr(default, one.name, one.default)
        found.append(field(one.name, hints[one.name], given, help_of(kind, one.name)))
    return {"fields": found}


def unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """(type, what stands beside it) of an annotation."""
    return (hint.__origin__, hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())


def name_of(extras: tuple[Any, ...]) -> str:
    """The name of a subcommand."""
    return next(one.name for one in extras if isinstance(one, SUBCOMMAND))


def type_text(kind: Any) -> str:
    """The Python of a type of values."""
    kind, _ = unwrapped(kind)
    origin = typing.get_origin(kind)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, typing.get_args(kind)))}]"
    inner = ", ".join("..." if one is ... else type_text(one) for one in typing.get_args(kind))
    if origin in (typing.Union, types.UnionType):
        return f"Union[{inner}]"
    if origin is tuple:
        return f"tuple[{inner}]"
    return "None" if kind is types.NoneType else kind.__name__


def sentence(text: str, values: set[str]) -> str:
    """A description that begins with a capital, unless it begins with one of its `values` or a name of code."""
    first = re.split(r"[\s,;:]", text, maxsplit=1)[0]
    return (
        text[:1].upper() + text[1:] if first.replace("-", "").isalpha() and first.islower() and first not in values else text
    )


def choices_of(kind: Any) -> set[str]:
    """The texts among which a value is chosen, wherever they stand in its type."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return {one for one in inner if isinstance(one, str)}
    return set().union(*map(choices_of, inner))


def all_described() -> dict[str, Any]:
    """The descriptions of all commands."""
    return {name: described(name) for name in commands.COMMANDS}


def store() -> None:
    """Writes the descriptions into the package."""
    commands.STORED.write_text(json_text(all_described(), indent=1) + "\n")
