"""Output of commands for people and scripts: a terminal to which text is text, exit codes, and JSON instead of tables."""

from typing import Annotated, Any

import tyro
from rich.console import Console

from infini_jax.files import json_text

REQUEUE = 75  # EX_TEMPFAIL: try again later; what a scheduler can requeue on
AsJson = Annotated[bool, tyro.conf.arg(name="json")]  # the option --json of commands whose tables a script would read


def terminal(**settings: Any) -> Console:
    """A console that prints names, settings and errors as they are: brackets are no markup, and `:name:` is no emoji."""
    return Console(markup=False, emoji=False, **settings)


def print_json(value: Any) -> None:
    """Prints a value as indented JSON, and nothing else."""
    print(json_text(value, indent=2))
