"""The log of a run: `metrics.jsonl`, one JSON object per line, written while it trains and read by those who watch it."""

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
    """The last whole line of a log, read without the others; empty where there is none that can be read."""
    with contextlib.suppress(ValueError, TypeError, IndexError):
        return dict(json.loads(whole_lines(file)[-1]))
    return {}


def whole_lines(file: Path) -> list[str]:
    """The lines of a log that are written to their end; the text behind the last line end is left out."""
    return file.read_text().split("\n")[:-1] if file.exists() else []


def damaged_line(file: str | Path, number: int) -> ConfigError:
    """The error for line `number` of a log that is no JSON object."""
    return ConfigError("metrics", f"line {number} of {file} is damaged", "take the line out, or train the run again")
