"""The log of a run: `metrics.jsonl`, one JSON object per line, written while it trains and read by those who watch it."""

import contextlib
import math
from pathlib import Path

import pyarrow as pa

from infini_jax.errors import ConfigError
from infini_jax.files import json_object, with_nan

CURVES = pa.schema([("step", pa.int64()), ("tokens", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])
LARGEST = 2**63  # above all numbers of CURVES


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The lines of a log in their order, none where there is no log. A last line that is still being written is left out.

    Raises `ConfigError` for any other line that is no JSON object.
    """
    return metrics_of(log_text(file), file)


def metrics_of(text: bytes, file: Path) -> list[dict[str, float]]:
    """`read_metrics` of the text of a log; `file` is its name in errors."""
    found = []
    for number, line in enumerate(whole_lines(text), start=1):
        try:
            found.append(metrics_in(line))
        except ValueError as error:
            raise damaged_line(file, number) from error
    return found


def metrics_in(line: bytes) -> dict[str, float]:
    """The metrics of a line, its step among them, NaN in place of null. Raises `ValueError` where it is damaged."""
    found = with_nan(json_object(line))
    counts = (found.get("step"), found.get("tokens", 0))
    if not all(isinstance(one, int) for one in counts) or not all(map(is_metric, found.values())):
        raise ValueError("no metrics of a step")
    return found


def is_metric(value: object) -> bool:
    """Whether a value of a line is a number that a table of curves can hold."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST)


def curves_in(text: bytes, file: Path) -> pa.Table:
    """The log with this text as a table of `CURVES`: one row per line and metric, in the order of the lines, metrics by name.

    Raises `ConfigError` as `read_metrics`; `file` is the log's name in errors.
    """
    rows = [
        (line["step"], line.get("tokens"), name, value)
        for line in metrics_of(text, file)
        for name, value in sorted(line.items())
        if name not in ("step", "tokens")
    ]
    columns = zip(*rows, strict=True) if rows else ((),) * len(CURVES)
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, CURVES, strict=True)], schema=CURVES)


def newest_line(file: Path) -> dict[str, float]:
    """The last whole line of a log, read without the others; empty where there is none that can be read."""
    return newest_of(log_text(file))


def newest_of(text: bytes) -> dict[str, float]:
    """`newest_line` of the text of a log."""
    with contextlib.suppress(ValueError):
        return metrics_in(last_line(text).removesuffix(b"\n"))
    return {}


def last_line(text: bytes) -> bytes:
    """The last whole line of the text of a log with its end, b"" where there is none."""
    end = text.rfind(b"\n")
    return text[text.rfind(b"\n", 0, max(end, 0)) + 1 : end + 1]


def best_step(file: Path) -> int | None:
    """The step with the lowest loss of the validation documents, the first of equal ones; None without a reading of them.

    Raises `ConfigError` for a damaged line.
    """
    read = [line for line in read_metrics(file) if line.get("validation_loss", math.nan) < math.inf]
    return int(min(read, key=lambda line: line["validation_loss"])["step"]) if read else None


def log_text(file: Path) -> bytes:
    """The text of a log, b"" where there is none."""
    return file.read_bytes() if file.exists() else b""


def whole_lines(text: bytes) -> list[bytes]:
    """The lines of a log that are written to their end; what stands behind the last line end is left out."""
    return text.split(b"\n")[:-1]


def damaged_line(file: str | Path, number: int) -> ConfigError:
    """The error for line `number` of a log that is no JSON object."""
    return ConfigError("metrics", f"line {number} of {file} is damaged", "take the line out, or train the run again")
