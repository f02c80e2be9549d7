"""The command line: `infini-jax COMMAND`; `--help` describes each command.

Only the called command is imported, so that `doctor` works where JAX does not.
"""

import io
import os
import shlex
import sys

from infini_jax import __version__
from infini_jax.cli.arguments import parse
from infini_jax.cli.commands import COMMANDS, command
from infini_jax.cli.output import REQUEUE
from infini_jax.errors import (
    Announced,
    CheckpointError,
    ConfigError,
    EvaluationFailed,
    Stopped,
    TrainingDiverged,
    disk_fault,
)

INTERRUPTED = 130  # the shell's code for Ctrl-C
GOES_ON = ("study", "train", "finetune", "babylm")  # given again, they do what is missing
WHAT_NEXT = """infini-jax: what models recall, per byte of memory. Next:

  infini-jax doctor                      check the installation
  infini-jax study quick                 compare all mechanisms in minutes
  infini-jax train infini python_stdlib  train one run in results/runs/run
  infini-jax watch results/runs          show the progress of runs
  infini-jax evaluate results/runs/run   measure what its memory contributes

`infini-jax --help` lists all commands. The --help of each has examples."""


def show_all_text() -> None:
    """Has text that a terminal's encoding lacks written as escapes, where Python would stop in the middle of it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or "utf" not in stream.encoding.lower()):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command, or prints the next steps without one. Invalid settings are reported in one line, with exit code 2."""
    show_all_text()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(WHAT_NEXT)
        return
    if arguments[0] in ("-V", "--version"):
        print(f"infini-jax {__version__}")
        return
    try:
        parsed = parse(arguments, list(COMMANDS))
        function = command(parsed.command)
        function(**parsed.options(function))
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
        print(f"infini-jax: stopped; finished and saved work is kept{how_to_go_on(arguments)}", file=sys.stderr)
        sys.exit(REQUEUE)
    except KeyboardInterrupt as error:
        what = str(error) or "stopped; finished and saved work is kept"
        print(f"infini-jax: {what}{how_to_go_on(arguments)}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def how_to_go_on(arguments: list[str]) -> str:
    """The command that does what is missing, as the end of a line; "" where there is none."""
    return f"; continue with: infini-jax {shlex.join(arguments)}" if arguments[0] in GOES_ON else ""
