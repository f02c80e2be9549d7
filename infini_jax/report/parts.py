"""Parts of the page: figures that could be drawn, figures that could not, and tables."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure

from infini_jax.analysis.intervals import Estimate
from infini_jax.records.rows import Row
from infini_jax.report.found import by
from infini_jax.report.looks import series_of


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
      caption: caption that says what the table shows.
      heads: heads of the columns.
      lines: cells, each line beginning with its name.
      words: whether cells are prose.
    """

    caption: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: bool = False


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure whose data exist.

    Attributes:
      identity: F1 to F10, with what sets it apart where there are several; a file name.
      title: title of the figure.
      figure: the drawn figure.
      caption: sentences on what is drawn and what may be said of it.
      alternative: text for readers who cannot see the figure.
      rows: rows of the runs behind the figure.
      table: table beside the figure, or None.
    """

    identity: str
    title: str
    figure: Figure
    caption: str
    alternative: str
    rows: tuple[Row, ...]
    table: Table | None = None


@dataclasses.dataclass(frozen=True)
class NotMeasured:
    """A figure or table whose data do not exist.

    Attributes:
      identity: name of the figure or table, such as F1.
      title: title of the figure or table.
      needs: sentence on what would measure it.
    """

    identity: str
    title: str
    needs: str


Figures = list[Drawn | Table | NotMeasured]


def seeds_of(rows: Sequence[Row]) -> str:
    """The number of seeds behind each point, in words; a point is a task, mechanism, variant and memory."""
    groups = by(rows, lambda row: (row.task, series_of(row), row.memory_bytes))
    counts = sorted({len({row.seed for row in group}) for group in groups.values()})
    return (
        f"{counts[0]} seed{'s' if counts[0] != 1 else ''} per point"
        if len(counts) == 1
        else (f"{counts[0]} to {counts[-1]} seeds per point")
    )


def middle(values: Iterable[float], text: Callable[[float], str]) -> str:
    """The median as text, and behind it the smallest and the largest value where there are several."""
    ordered = sorted(values)
    ends = "–".join(dict.fromkeys((text(ordered[0]), text(ordered[-1]))))
    return text(statistics.median(ordered)) + (f" ({ends})" if len(ordered) > 1 else "")


def percent(value: float) -> str:
    """A share in percent, with one digit."""
    return f"{100 * value:.1f}"


def number(value: Any) -> str:
    """A label or figure as text, at most four digits."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e7 else f"{value:.4g}"


def estimate(found: Estimate) -> str:
    """A number with its 95 % interval, as text; "" without a number, and a remark where it has no interval."""
    if not math.isfinite(found.value):
        return ""
    ends = found.interval
    return f"{found.value:.3g}" + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if ends else " (no interval)")


def reasoned(found: Estimate) -> str:
    """A number with its interval as text, or the reason why it has none, and what was left out."""
    why = f" ({found.why})" if found.why else ""
    dropped = f", without {listed(found.dropped)}" if found.dropped else ""
    return (estimate(found).removesuffix(" (no interval)") or "–") + why + dropped


def flops_text(flops: float) -> str:
    """FLOPs with three digits and an exponent."""
    mantissa, exponent = f"{flops:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def spread(values: Iterable[float], text: Callable[[float], str]) -> str:
    """A value as text, or the smallest and the largest where values differ."""
    ordered = sorted(values)
    return "–".join(dict.fromkeys((text(ordered[0]), text(ordered[-1]))))


def listed(words: Sequence[str]) -> str:
    """Words as a list in prose: a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
