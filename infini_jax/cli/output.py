"""What commands print for scripts instead of tables."""

import json
from typing import Annotated, Any

import tyro

AsJson = Annotated[bool, tyro.conf.arg(name="json")]  # the option --json of commands whose tables a script would read


def print_json(value: Any) -> None:
    """The value, indented, and nothing else."""
    print(json.dumps(value, indent=2))
