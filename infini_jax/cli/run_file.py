"""Settings of a run in a file, YAML or JSON: what config.json holds, or some of it. Options behind it take precedence."""

import dataclasses
import itertools
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from infini_jax.cli.meanings import near
from infini_jax.errors import ConfigError, check_value, lookup, one_line, require, required
from infini_jax.files import open_regular

OPTION = "--config"
ELSEWHERE = ("version", "variant", "origin"), ("elsewhere", "rotary_elsewhere")  # of a run and its model: no options
MEND = "give a file with what a run's config.json holds, as YAML or JSON"
Plain = dict[str, Any]


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in JSON and Python."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def read_run_file(file: Path) -> Plain:
    """The settings in a file. Raises `ConfigError` where it cannot be read, or holds no settings."""
    try:
        with open_regular(file) as opened:
            found = yaml.load(opened.read(), Loader)
    except (OSError, yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        raise ConfigError("config", f"{file}: {one_line(error)}", MEND) from error
    require(isinstance(found, dict), "config", f"{file} holds no settings", MEND)
    return found


def run_file_text(settings: Plain) -> str:
    """Settings as the text of a file."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def named_file(arguments: list[str]) -> Path:
    """The file that --config names, the last one."""
    found = [value for option, value in itertools.pairwise(arguments) if option == OPTION]
    found += [one.partition("=")[2] for one in arguments if one.startswith(f"{OPTION}=")]
    return Path(required(found[-1] if found else None, "config", "no file is named", MEND))


def with_run_file(described: Plain, arguments: list[str]) -> tuple[Plain, list[str]]:
    """A command's description with the settings of a file as defaults, and its arguments with the choices of the file.

    Raises `ConfigError` for a setting that there is not.
    """
    plain = read_run_file(named_file(arguments))
    model = section(plain, "model")
    is_named = bool(arguments) and not arguments[0].startswith("-")
    values = {name: value for name, value in plain.items() if name not in (*ELSEWHERE[0], "data")}
    values["model"] = {name: value for name, value in model.items() if name not in (*ELSEWHERE[1], "memory")}
    chosen, words = {"memory": section(model, "memory", "model.memory"), "data": section(plain, "data")}, []
    fields = overlaid([one for one in described["fields"] if "choices" not in one], values, "")
    for one in [one for one in described["fields"] if "choices" in one]:
        settings = dict(chosen[one["name"]])
        kind = settings.pop("kind", "")
        if kind or not is_named:
            require(
                kind != "",
                f"{named(one['name'])}.kind",
                "the file does not say",
                f"add it, or name one of {', '.join(one['choices'])}",
            )
            group = lookup(f"{named(one['name'])}.kind", kind, one["choices"])
            inner = {**group, "fields": overlaid(group["fields"], settings, named(one["name"]))}
            one = {**one, "choices": {**one["choices"], kind: inner}}
            words.append(kind)
        fields.append(one)
    return {**described, "fields": fields}, arguments if is_named else [*words, *arguments]


def named(choice: str) -> str:
    """The place in a file of what is chosen by name."""
    return "model.memory" if choice == "memory" else choice


def section(plain: Plain, name: str, where: str = "") -> Plain:
    """Settings in settings, none where they are left out."""
    found = plain.get(name, {})
    check_value(where or name, found, dict)
    return found


def overlaid(fields: list[Plain], values: Plain, where: str) -> list[Plain]:
    """Fields with other defaults. Raises `ConfigError` for a value that is no field's, or of another type."""
    known, found = {one["name"]: one for one in fields}, []
    for name in values:
        path = f"{where}.{name}" if where else str(name)
        require(name in known, path, "there is no such setting", near(str(name), known))
    for one in fields:
        path = f"{where}.{one['name']}" if where else one["name"]
        if one["name"] not in values:
            found.append(one)
        elif "group" in one:
            inner = section(values, one["name"], path)
            found.append({**one, "group": {**one["group"], "fields": overlaid(one["group"]["fields"], inner, path)}})
        else:
            found.append({**one, "default": default_of(one, values[one["name"]], path)})
    return found


def default_of(one: Plain, value: Any, path: str) -> str:
    """A value as the Python of a default. Raises `ConfigError` where it is of another type."""
    kind = eval(one["type"], {"Literal": typing.Literal, "Union": typing.Union, "Path": Path})
    value = tuple(value) if isinstance(value, list) else value
    if kind is Path:
        check_value(path, value, str)
        return f"Path({value!r})"
    check_value(path, value, kind)
    return repr(value)


@dataclasses.dataclass(frozen=True)
class WithoutOptions:
    """Settings of a file that no option has, by name.

    Attributes:
      run: settings of the run.
      model: settings of its model.
    """

    run: Plain
    model: Plain


def without_options(file: Path | None) -> WithoutOptions:
    """The settings in a file that no option has; none without a file. Raises `ConfigError` where they cannot work."""
    from infini_jax.config import ModelConfig, RunConfig
    from infini_jax.config.plain import from_plain

    def found(kind: type, plain: Plain, names: tuple[str, ...], where: str) -> Plain:
        hints = typing.get_type_hints(kind)
        return {name: from_plain(hints[name], plain[name], f"{where}{name}") for name in names if name in plain}

    plain = read_run_file(file) if file else {}
    return WithoutOptions(
        found(RunConfig, plain, ELSEWHERE[0], ""), found(ModelConfig, section(plain, "model"), ELSEWHERE[1], "model.")
    )
