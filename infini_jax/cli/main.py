"""The command line: `infini-jax COMMAND`; `--help` describes each command.

Only the called command is imported, so that `doctor` works where JAX does not.
"""

import dataclasses
import functools
import importlib
import io
import keyword
import os
import shlex
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from infini_jax.cli.output import REQUEUE
from infini_jax.errors import (
    Announced,
    CheckpointError,
    ConfigError,
    EvaluationFailed,
    Stopped,
    TrainingDiverged,
    disk_fault,
    one_line,
    require_local,
)

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
INTERRUPTED = 130  # the shell's code for Ctrl-C
GOES_ON = ("study", "train", "finetune", "babylm")  # given again, they do what is missing
WHAT_NEXT = """infini-jax: what models recall, by the bytes that they may remember in. Next:

  infini-jax doctor                      what is here, and what to install
  infini-jax study quick                 every mechanism, some minutes, a report
  infini-jax train infini python_stdlib  one run, into results/runs/run
  infini-jax watch results/runs          how far runs are, while they go on
  infini-jax evaluate results/runs/run   what its memory is worth to it

`infini-jax --help` lists all commands; every one has examples in its --help."""


def command(name: str) -> Callable[..., Any]:
    """The function of a command, imported with what it needs. Raises `ConfigError` where that is not installed."""
    try:
        module = importlib.import_module(f"infini_jax.cli.{COMMANDS[name]}")
    except ImportError as error:
        raise ConfigError("installation", one_line(error), "say infini-jax doctor to see what is missing or broken") from error
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
    """Raises `ConfigError` for a path, alone or in settings or a tuple, that is no folder of this machine."""
    if isinstance(value, Path):
        require_local(name, value)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            check_paths(field.name, getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            check_paths(name, one)


def show_all_text() -> None:
    """Has text that a terminal's encoding lacks written as escapes, where Python would stop in the middle of it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or "utf" not in stream.encoding.lower()):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command, or says what to do next without one; a mistake in the settings ends with one line and code 2."""
    show_all_text()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(WHAT_NEXT)
        return
    try:
        called = {name: command(name) for name in (arguments[:1] if arguments[0] in COMMANDS else COMMANDS)}
        tyro.extras.subcommand_cli_from_dict(
            called, prog="infini-jax", args=arguments, config=(tyro.conf.CascadeSubcommandArgs,)
        )
    except (ConfigError, TrainingDiverged, CheckpointError, EvaluationFailed) as error:
        print(f"infini-jax: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except Stopped as error:
        print(f"infini-jax: {error} and saved{how_to_go_on(arguments)}", file=sys.stderr)
        sys.exit(REQUEUE)
    except BrokenPipeError:  # who read the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is written at the end
        sys.exit(1)
    except (OSError, RuntimeError) as error:
        if (line := disk_fault(error)) is None:
            raise
        print(f"infini-jax: {line}", file=sys.stderr)
        sys.exit(1)
    except Announced:
        print(f"infini-jax: stopped; what was finished or saved is kept{how_to_go_on(arguments)}", file=sys.stderr)
        sys.exit(REQUEUE)
    except KeyboardInterrupt as error:
        what = str(error) or "stopped; what was finished or saved is kept"
        print(f"infini-jax: {what}{how_to_go_on(arguments)}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def how_to_go_on(arguments: list[str]) -> str:
    """The command that does what is missing, as the end of a line; "" where there is none."""
    return f"; go on with: infini-jax {shlex.join(arguments)}" if arguments[0] in GOES_ON else ""
