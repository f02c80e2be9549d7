"""Arguments of a command, parsed before anything heavy is imported.

Commands declare their options by their functions and by classes of settings, which need JAX. What a parser has to know of
them (`infini_jax.cli.described`) is stored beside this file. From it come classes that hold the same values, which tyro
fills; whatever it refuses, or is asked to show, needs no more. The values that are good become arguments of the function.
Where packages declare mechanisms, or the registries are imported already, the functions themselves are described instead.
"""

import dataclasses
import importlib.metadata
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from infini_jax.cli.commands import STORED
from infini_jax.cli.meanings import near
from infini_jax.errors import ConfigError, quoted, require

REGISTRY = "infini_jax.memory"  # imported, it may have more rows than were stored
NAME_WIDTH, DOC_WIDTH = 13, 58  # characters of a choice that fits on one line of the short help
NAMES = {"Literal": Literal, "Union": Union, "Path": Path}  # in types and defaults that are stored
OPTION = re.compile(r"--[A-Za-z][\w.-]*")
SAY_NOTHING = ("None", "False", "()", "''")  # defaults of which no help says anything
Plain = dict[str, Any]


def descriptions(commands: list[str]) -> dict[str, Plain]:
    """The descriptions of commands: stored ones, or those of the functions where there may be more mechanisms."""
    if REGISTRY in sys.modules or importlib.metadata.entry_points(group="infini_jax.mechanisms"):
        from infini_jax.cli.described import described

        return {name: described(name) for name in commands}
    stored = json.loads(STORED.read_text())
    return {name: stored[name] for name in commands}


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The values of a command's arguments, in light classes."""

    command: str
    values: Any

    def options(self, function: Callable[..., Any]) -> dict[str, Any]:
        """The arguments of the command's function. Raises `ConfigError` as its classes of settings do."""
        hints = typing.get_type_hints(function, include_extras=True)
        return {name: settled(hints[name], value) for name, value in vars(self.values).items()}


def settled(hint: Any, value: Any) -> Any:
    """The value of a type in a function's signature that a light one stands for."""
    if not dataclasses.is_dataclass(value):
        return value
    hint = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
    if not dataclasses.is_dataclass(hint):  # one of several
        hint = next(
            one.__origin__ for one in typing.get_args(hint) if type(value).__name__ in map(subcommand_of, one.__metadata__)
        )
    kind: Any = hint
    hints = typing.get_type_hints(kind, include_extras=True)
    return kind(**{name: settled(hints[name], one) for name, one in vars(value).items()})


def subcommand_of(extra: Any) -> str:
    """The name of a subcommand, by what stands beside its type; "" of anything else."""
    return getattr(extra, "name", "")


def parse(arguments: list[str], commands: list[str]) -> Parsed:
    """The values of `arguments`, the first of which is one of `commands`, unless it is an option.

    `--help` shows the common options of a command, `--help-all` all of them; both end the process, as mistakes do.
    Raises `ConfigError` for an option or a name that is not known, with the nearest one.
    """
    arguments = list(arguments)
    called = [arguments[0]] if arguments[0] in commands else commands
    require(
        len(called) == 1 or arguments[0].startswith("-"),
        "command",
        f"'{arguments[0]}' is not known",
        near(arguments[0], commands),
    )
    known = descriptions(called)
    if len(called) == 1:
        known[called[0]], arguments[1:] = filled(known[called[0]], arguments[1:])
        check_names(known[called[0]], arguments[1:])
    is_short = any(one in ("-h", "--help") for one in arguments)
    arguments = ["--help" if one == "--help-all" else one for one in arguments]
    light = {name: light_class(name, one, is_short) for name, one in known.items()}
    config = (tyro.conf.CascadeSubcommandArgs,)
    if len(called) > 1:
        return Parsed(
            arguments[0], tyro.extras.subcommand_cli_from_dict(light, prog="infini-jax", args=arguments, config=config)
        )
    (name,) = called
    kind, prog = light[name], f"infini-jax {name}"
    return Parsed(name, tyro.cli(kind, prog=prog, description=kind.__doc__, args=arguments[1:], config=config))


def filled(described: Plain, arguments: list[str]) -> tuple[Plain, list[str]]:
    """A command's description and arguments with the settings of the file that `--config` names, where it has this option."""
    has_option = "config" in dict(options_of([one for one in described["fields"] if "choices" not in one], ""))
    if not has_option or not any(one.partition("=")[0] == "--config" for one in arguments):
        return described, arguments
    from infini_jax.cli.run_file import with_run_file

    return with_run_file(described, arguments)


def light_class(name: str, described: Plain, is_short: bool) -> type:
    """The class of a command's arguments; of the common ones only where `is_short`, or of those that `--help-all` shows."""
    common = set(described["common"]) if is_short else set()
    last = f"\n\nThese are the common options; `infini-jax {name} --help-all` shows all of them." if common else ""
    return made(name, described["doc"] + last, described["fields"], common, "")


def made(name: str, doc: str, fields: list[Plain], common: set[str], prefix: str) -> type:
    """A class with these fields."""
    pairs = []
    for one in fields:
        path = prefix + one.get("option", one["name"])
        if common and is_left_out(one, path, common):
            continue
        pairs.append(light_field(one, common, path))
    kind = dataclasses.make_dataclass(name, sorted(pairs, key=lambda pair: len(pair) == 3), frozen=True)
    kind.__doc__ = doc
    return kind


def is_left_out(one: Plain, path: str, common: set[str]) -> bool:
    """Whether a field is none of the common ones and holds none; positional ones and choices are always there."""
    if "choices" in one or "Positional" in one.get("marks", ()):
        return False
    return not any(name == path or name.startswith(f"{path}.") for name in common)


def light_field(one: Plain, common: set[str], path: str) -> tuple:
    """Name, type and default of a field."""
    marks = [getattr(tyro.conf, mark) for mark in one.get("marks", ())]
    text = first_sentence(one["help"]) if common else one["help"]
    argument = {"help": text, "name": one.get("option"), "metavar": one.get("metavar")}
    if one.get("silent") or one.get("default") in SAY_NOTHING:
        argument["help_behavior_hint"] = ""
    kind, default = light_type(one, common, path)
    for extra in (tyro.conf.arg(**argument), *marks):
        kind = Annotated[kind, extra]
    return (one["name"], kind, *default)


def light_type(one: Plain, common: set[str], path: str) -> tuple[Any, tuple]:
    """(type, (default,) or () where there is none) of a field."""
    if "group" in one:
        kind: Any = made(one["name"], one["help"], one["group"]["fields"], common, f"{path}.")
        required = any("default" not in inner and "group" not in inner for inner in one["group"]["fields"])
        return kind, () if required else (dataclasses.field(default=kind()),)
    if "choices" in one:
        kinds = []
        for name, inner in one["choices"].items():
            doc = inner["doc"] if "Example" in inner["doc"] else first_sentence(inner["doc"])
            shown = doc if not common or (len(name) <= NAME_WIDTH and len(doc) <= DOC_WIDTH) else ""
            extra = tyro.conf.subcommand(name, description=shown, prefix_name=False)
            kinds.append(Annotated[made(name, doc, inner["fields"], set(), ""), extra])
        return Union[tuple(kinds)], ()  # noqa: UP007
    default = (dataclasses.field(default=eval(one["default"], NAMES)),) if "default" in one else ()
    return eval(one["type"], NAMES), default


def first_sentence(text: str) -> str:
    """A text up to the end of its first sentence."""
    return re.split(r"(?<=[.])\s+(?=[A-Z0-9])", text, maxsplit=1)[0]


def check_names(described: Plain, arguments: list[str]) -> None:
    """Raises `ConfigError` for a name of a choice or an option that a command does not have, with the nearest one."""
    words = leading(arguments)
    fields = list(described["fields"])
    for one in [field for field in fields if "choices" in field]:
        if not words:
            fields.extend({"name": one["name"], "help": "", "group": inner} for inner in one["choices"].values())
            continue
        word = words.pop(0)
        require(word in one["choices"], one["name"], f"'{word}' is not known", near(word, one["choices"]))
        fields.append({**one, "group": one["choices"][word]})
    known = {f"--{name}": one for name, one in options_of(fields, "")}
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        option, has_value, value = argument.partition("=")
        option = option.replace("_", "-")
        if option in known:
            check_text(option, value if has_value else following, known[option])
        elif OPTION.fullmatch(option) and option.replace("no-", "", 1) not in known:
            require(option in ("--help", "--help-all"), option, "there is no such option", near(option, known))


def check_text(option: str, text: str, one: Plain) -> None:
    """Raises `ConfigError` where a text stands for no number, or none of the values, that an option takes."""
    inner = typing.get_args(kind := eval(one["type"], NAMES))
    if len(inner) == 2 and type(None) in inner:
        (kind,) = (one for one in inner if one is not type(None))
    if text in ("", "None") or text.startswith("--"):
        return  # none is there, which the parser tells
    if typing.get_origin(kind) is Literal and all(isinstance(known, str) for known in typing.get_args(kind)):
        require(text in typing.get_args(kind), option, f"'{quoted(text)}' is not known", near(text, typing.get_args(kind)))
    elif kind in (int, float):
        example = "give digits, such as 4096" if kind is int else "give a number, such as 0.5"
        try:
            kind(text)
        except ValueError as error:
            word = "a whole number" if kind is int else "a number"
            raise ConfigError(option, f"'{quoted(text)}' is not {word}", example) from error


def leading(arguments: list[str]) -> list[str]:
    """The words in front of the first option."""
    first = next((place for place, one in enumerate(arguments) if one.startswith("-")), len(arguments))
    return arguments[:first]


def options_of(fields: list[Plain], prefix: str) -> Iterator[tuple[str, Plain]]:
    """The options of fields as they are typed, without dashes in front, each with its field."""
    for one in fields:
        if "Positional" in one.get("marks", ()) or ("choices" in one and "group" not in one):
            continue
        name = one.get("option", one["name"]).replace("_", "-")
        if "group" in one:
            yield from options_of(
                one["group"]["fields"], prefix if "OmitArgPrefixes" in one.get("marks", ()) else f"{prefix}{name}."
            )
        else:
            yield f"{prefix}{name}", one
