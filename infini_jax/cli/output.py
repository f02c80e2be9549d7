"""Output of commands for scripts: exit codes, and JSON instead of tables."""

import json
from typing import Annotated, Any

import tyro

REQUEUE = 75  # EX_TEMPFAIL: try again later; what a scheduler can requeue on
AsJson = Annotated[bool, tyro.conf.arg(name="json")]  # the option --json of commands whose tables a script would read


def print_json(value: Any) -> None:
    """Prints a value as indented JSON, and nothing else."""
    print(json.dumps(value, indent=2))
