"""The log of a run: `metrics.jsonl`, one JSON object a line, written while it trains and read by who watches it."""

import contextlib
import json
from pathlib import Path

from infini_jax.errors import ConfigError


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The lines of a log in their order, none where there is no log. A last line that is still being written is left out.

    Raises `ConfigError` for any other line that is no JSON object.
    """
    found = []
    for number, line in enumerate(whole_lines(file), start=1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise damaged_line(file, number) from error
    return found


def newest_line(file: Path) -> dict[str, float]:
    """The last whole line of a log, without reading the others; empty where there is none that can be read."""
    with contextlib.suppress(ValueError, TypeError, IndexError):
        return dict(json.loads(whole_lines(file)[-1]))
    return {}


def whole_lines(file: Path) -> list[str]:
    """Behind the end of the last one stands nothing, or the beginning of a line."""
    return file.read_text().split("\n")[:-1] if file.exists() else []


def damaged_line(file: str | Path, number: int) -> ConfigError:
    """What is said of a line that is no JSON object."""
    return ConfigError("metrics", f"line {number} of {file} is damaged", "take the line out, or train the run again")
