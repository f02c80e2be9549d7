"""Figures of a study, as matplotlib figures and as SVG that belongs in a page. No global state: no pyplot, no rcParams set.

Colours are those of Okabe and Ito (2008), told apart with every common form of colour blindness; each mechanism has its own
marker too. Black is drawn in the page's own text colour, so that figures are readable on light and on dark paper.
"""

import dataclasses
import html
import io
import itertools
import math
import re
import statistics
from collections.abc import Sequence
from typing import Literal

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from infini_jax.results import Row
from infini_jax.units import human_bytes

Series = tuple[str, str]  # mechanism, variant
Metrics = list[dict[str, float]]  # the lines of one run's log

INK = "#010203"  # stands for the text colour: `svg` writes currentColor; pure black would be left out of the SVG altogether
COLOURS = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # yellow left out: too pale on white paper
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*")  # 7 and 11 have no common factor: 77 pairs, all distinct
BASELINE = "local"  # the sliding window: the floor that memory has to beat, drawn first
LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "infini_jax",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK),
}
WIDTH = 4.8  # inches: text stays readable when a phone shrinks the figure to its width
MOST_POINTS = 300  # of one drawn curve


@dataclasses.dataclass(frozen=True)
class Score:
    """How a task is scored. Attributes: column of the table; name; unit, "" for a share; higher_is_better."""

    column: Literal["accuracy", "loss"]
    name: str
    unit: str
    higher_is_better: bool

    def of(self, row: Row) -> float:
        return getattr(row, self.column)

    def number(self, value: float) -> str:
        """The value as it stands in a table whose head names the unit: percent for a share."""
        return f"{value:.4f}" if self.unit else f"{100 * value:.1f}"

    def text(self, value: float) -> str:
        """The value with its unit."""
        return f"{self.number(value)} {self.unit or '%'}"

    @property
    def axis(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit or '%'}"


SCORES = {
    "mqar": Score("accuracy", "accuracy", "", True),
    "python_stdlib": Score("loss", "held-out loss", "nats a byte", False),
}


def score_of(task: str) -> Score:
    """How a task is scored: tasks that are not listed, by held-out nats a token."""
    return SCORES.get(task, Score("loss", "held-out loss", "nats a token", False))


@dataclasses.dataclass(frozen=True)
class Style:
    """How a mechanism is drawn, the same in all figures of a study."""

    colour: str
    marker: str


def series_of(row: Row) -> Series:
    return row.mechanism, row.variant


def label_of(series: Series) -> str:
    return " ".join(filter(None, series))


def styles_of(rows: Sequence[Row]) -> dict[Series, Style]:
    """A colour and a marker for each mechanism and variant, no pair twice; the sliding window comes first, then by name."""
    order = sorted({series_of(row) for row in rows}, key=lambda series: (series[0] != BASELINE, series))
    return {
        series: Style(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]) for number, series in enumerate(order)
    }


def points_of(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Memory bytes -> the runs with that memory, one a seed; from small to large."""
    ordered = sorted(rows, key=lambda row: (row.memory_bytes, row.seed, row.run))
    return {size: list(runs) for size, runs in itertools.groupby(ordered, key=lambda row: row.memory_bytes)}


def medians_of(rows: Sequence[Row], score: Score) -> dict[int, float]:
    """Memory bytes -> median score over seeds, from small to large."""
    return {size: statistics.median(map(score.of, runs)) for size, runs in points_of(rows).items()}


def score_against_bytes(rows: Sequence[Row], score: Score, styles: dict[Series, Style], chance: float | None = None) -> Figure:
    """Every seed a marker, a line through the medians over seeds; memory on a logarithmic axis; the legend below the axes.

    Args:
      rows: the runs of one task; chance: score of a guess, drawn as a line where it is known.
    """
    drawn = [series for series in styles if any(series_of(row) == series for row in rows)]
    with style.context(["default", LOOK]):
        figure = Figure(figsize=(WIDTH, 3.2 + 0.17 * math.ceil((len(drawn) + 1) / 2)), layout="constrained")
        axes = figure.add_subplot()
        place = byte_axis(axes, [row.memory_bytes for row in rows])
        for series in drawn:
            look, of_series = styles[series], [row for row in rows if series_of(row) == series]
            medians = medians_of(of_series, score)
            axes.plot([place(size) for size in medians], medians.values(), color=look.colour, linewidth=1.4, zorder=2)
            marks = {
                "color": look.colour,
                "marker": look.marker,
                "markersize": 5.5,
                "markerfacecolor": (look.colour, 0.6),  # where markers lie on one another, all can be seen
                "markeredgecolor": INK,
                "markeredgewidth": 0.5,
            }
            axes.plot(
                [place(row.memory_bytes) for row in of_series],
                [score.of(row) for row in of_series],
                **marks,
                linestyle="none",
                clip_on=False,
                zorder=3,
            )
            axes.plot([], [], **marks, linewidth=1.4, label=label_of(series))
        if chance is not None:
            axes.axhline(
                chance, color=INK, linestyle=(0, (2, 3)), linewidth=1.0, zorder=1, label=f"chance, {score.text(chance)}"
            )
        if not score.unit:
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))
        axes.set_ylabel(score.axis)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def byte_axis(axes: Axes, sizes: Sequence[int]):
    """Makes x a logarithmic axis of bytes, at most eight labels, and returns bytes -> position.

    No memory at all stands two octaves left of the smallest memory, labelled 0: a logarithm has no place for it.
    """
    positive = [size for size in sizes if size] or [1]
    low, high = math.log2(min(positive)), math.log2(max(positive))
    zero = low - 2
    first, last = round(low), round(high)
    ticks = range(first, last + 1, math.ceil((last - first + 1) / 7))
    none = [zero] if 0 in sizes else []
    axes.set_xticks([*none, *ticks], [*("0" for _ in none), *(human_bytes(2.0**tick) for tick in ticks)])
    axes.set_xlim((zero if none else min(low, first)) - 0.3, max(high, last) + 0.3)
    axes.set_xlabel("memory a sequence, all layers")
    return lambda size: math.log2(size) if size else zero


def training_curves(
    rows: Sequence[Row], metrics: dict[str, Metrics], column: str, name: str, styles: dict[Series, Style]
) -> Figure:
    """Small multiples: `column` of the metric lines against tokens, one panel a mechanism, one line a run.

    A smaller memory has a thinner, paler line. Runs whose metrics are missing are left out.

    Args:
      rows: the runs of one task; metrics: run name -> its lines; name: of the y axis.
    """
    drawn = [series for series in styles if any(series_of(row) == series for row in rows)]
    columns = min(2, len(drawn))
    high = math.ceil(len(drawn) / columns)
    with style.context(["default", LOOK]):
        figure = Figure(figsize=(WIDTH, 0.5 + 1.35 * high), layout="constrained")
        panels = figure.subplots(high, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axes, series in zip(panels, drawn, strict=False):
            points = points_of([row for row in rows if series_of(row) == series])
            for rank, runs in enumerate(points.values(), start=1):
                weight = rank / len(points)
                for row in runs:
                    lines = thinned([line for line in metrics.get(row.run, []) if column in line])
                    axes.plot(
                        [line["tokens"] for line in lines],
                        [line[column] for line in lines],
                        color=styles[series].colour,
                        alpha=0.35 + 0.65 * weight,
                        linewidth=0.6 + 0.9 * weight,
                    )
            axes.set_title(label_of(series), loc="left")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(4))
        for axes in panels[len(drawn) :]:
            axes.set_axis_off()
        for axes in panels[max(len(drawn) - columns, 0) : len(drawn)]:
            axes.tick_params(labelbottom=True)  # the panel above an empty place carries its own labels
        figure.supxlabel("tokens trained on", fontsize=9)
        figure.supylabel(name, fontsize=9)
    return figure


def thinned(lines: Metrics) -> Metrics:
    """At most `MOST_POINTS` lines, evenly spaced, the last one always among them."""
    stride = math.ceil(len(lines) / MOST_POINTS) or 1
    return lines[::-1][::stride][::-1]


def svg(figure: Figure, identity: str, title: str, description: str) -> str:
    """An `<svg>` element that stands in a page: with alternative text, and with ids that start with `identity`.

    The same figure gives the same text: no date, no random ids.
    """
    file = io.StringIO()
    with style.context(["default", LOOK]):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{identity}-", text)
    named = f' role="img" aria-labelledby="{identity}-title" aria-describedby="{identity}-description">\n '
    said = f'<title id="{identity}-title">{html.escape(title)}</title>\n <desc id="{identity}-description">'
    head, rest = text.split(">", 1)
    return f"{head}{named}{said}{html.escape(description)}</desc>{rest}"
