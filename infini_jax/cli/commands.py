"""The commands by name. Only the called one is imported, so that `doctor` works where JAX does not."""

import dataclasses
import functools
import importlib
import keyword
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infini_jax.errors import ConfigError, one_line, require_local

COMMANDS = {  # name -> module of this folder
    "study": "study",
    "report": "report",
    "train": "train",
    "evaluate": "read_run",
    "finetune": "finetune",
    "babylm": "babylm",
    "generate": "generate",
    "plan": "plan",
    "watch": "watch",
    "compare": "compare",
    "doctor": "doctor",
    "corpus": "corpus",
    "import": "import_model",
    "export": "export",
    "mechanisms": "mechanisms",
}
STORED = Path(__file__).with_name("arguments.json")  # the descriptions of all commands, see `infini_jax.cli.described`


def command(name: str) -> Callable[..., Any]:
    """The function of a command, imported with what it needs. Raises `ConfigError` where that is not installed."""
    try:
        module = importlib.import_module(f"infini_jax.cli.{COMMANDS[name]}")
    except ImportError as error:
        raise ConfigError("installation", one_line(error), "run infini-jax doctor to see what is missing or broken") from error
    return with_local_paths(getattr(module, COMMANDS[name] if keyword.iskeyword(name) else name))


def with_local_paths(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a command, which refuses addresses of buckets in its paths before it does anything."""

    @functools.wraps(function)
    def checked(**options: Any) -> Any:
        for name, value in options.items():
            check_paths(typed(function, name), value)
        return function(**options)

    return checked


def typed(function: Callable[..., Any], parameter: str) -> str:
    """The name that a user types for a parameter of a command's function."""
    hint = typing.get_type_hints(function, include_extras=True)[parameter]
    return next((name for one in getattr(hint, "__metadata__", ()) if (name := getattr(one, "name", None))), parameter)


def check_paths(name: str, value: Any) -> None:
    """Raises `ConfigError` for a path, alone or in settings or a tuple, that is not a folder on this machine."""
    if isinstance(value, Path):
        require_local(name, value)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            check_paths(field.name, getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            check_paths(name, one)
