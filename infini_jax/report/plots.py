"""Figures of a study, as matplotlib figures and as SVG that belongs in a page. No global state: no pyplot, no rcParams set.

Black is drawn in the page's own text color, so that figures are readable on light and on dark paper.
"""

import html
import io
import itertools
import math
import re
import statistics
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from infini_jax.records.rows import Row
from infini_jax.report.curves import NO_CURVE, Curves
from infini_jax.report.found import alike, sizes_text
from infini_jax.report.looks import INK, Series, Style, in_order, label_of, series_of, styles_of
from infini_jax.study.scores import Score
from infini_jax.units import human_bytes

Where = Literal["outside lower center", "outside upper left"]  # of a legend

LETTERS = 9.0  # points
NAME_LETTERS = 7.5  # points, of names at the ends of lines
MOST_NAMED = 14  # lines that have their names at their ends
LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "infini_jax",
    "pdf.fonttype": 42,
    "font.size": LETTERS,
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
COLUMNS = {"": 3.35, "-wide": 6.9}
"""Widths of figures for papers in inches, of one column and of two, by the ending of their files' names."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_POINTS = 300  # of one drawn curve


def by_series(rows: Sequence[Row]) -> dict[Series, list[Row]]:
    """The rows by mechanism and variant, in the order of the figures."""
    return {series: [row for row in rows if series_of(row) == series] for series in styles_of(rows)}


def points_of(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The runs by bytes of memory, one per seed, from small to large."""
    ordered = sorted(rows, key=lambda row: (row.memory_bytes, row.seed, row.run))
    return {size: list(runs) for size, runs in itertools.groupby(ordered, key=lambda row: row.memory_bytes)}


def medians_of(rows: Sequence[Row], score: Score) -> dict[int, float]:
    """The median score over seeds by bytes of memory, from small to large."""
    return {size: statistics.median(map(score.of, runs)) for size, runs in points_of(rows).items()}


@contextmanager
def our_look() -> Iterator[None]:
    """A context with the settings under which figures are made and saved: no text is read as mathematics, whoever wrote it."""
    with style.context(["default", LOOK, {"text.parse_math": False}]):
        yield


def marks(look: Style) -> dict:
    """Matplotlib's settings of a seed's marker; where markers lie on one another, all can be seen."""
    return {
        "color": look.colour,
        "marker": look.marker,
        "markersize": 5.5,
        "markerfacecolor": (look.colour, 0.6),
        "markeredgecolor": INK,
        "markeredgewidth": 0.5,
    }


def hollow(look: Style) -> dict:
    """Matplotlib's settings of the marker of a seed that was not trained to the end of its gains."""
    return marks(look) | {"markerfacecolor": "none", "markeredgecolor": look.colour, "markeredgewidth": 1.0}


def draw_seeds(axes: Axes, places: Sequence[float], values: Sequence[float], look: Style, joined: bool = True) -> None:
    """Draws a marker for every seed, and where `joined` a line through the medians of the values at each place."""
    if joined:
        draw_medians(axes, places, values, look)
    axes.plot(places, values, **marks(look), linestyle="none", clip_on=False, zorder=3)


def draw_medians(axes: Axes, places: Sequence[float], values: Sequence[float], look: Style) -> None:
    """Draws a line through the medians of the values at each place."""
    at: dict[float, list[float]] = {}
    for place, value in sorted(zip(places, values, strict=True), key=lambda pair: pair[0]):
        at.setdefault(place, []).append(value)
    medians = [statistics.median(group) for group in at.values()]
    axes.plot(list(at), medians, color=look.colour, linestyle=look.line, linewidth=1.4, zorder=2)


def draw_intervals(axes: Axes, places: Sequence[float], lows: Sequence[float], highs: Sequence[float], look: Style) -> None:
    """Draws a thin bar for each interval that is known."""
    known = [bar for bar in zip(places, lows, highs, strict=True) if not any(map(math.isnan, bar))]
    if known:
        axes.vlines(*zip(*known, strict=True), color=look.colour, linewidth=0.8, alpha=0.6, zorder=1)


def key(look: Style, label: str) -> Line2D:
    """A legend's entry for a mechanism."""
    return Line2D([], [], **marks(look), linestyle=look.line, linewidth=1.4, label=label)


def rule(label: str, dashes: tuple[int, ...] = (2, 3)) -> Line2D:
    """A legend's entry for a line that is no mechanism: chance, theory, a ceiling."""
    return Line2D([], [], color=INK, linestyle=(0, dashes), linewidth=1.0, label=label)


def panels(count: int, high: float, legend: int, shared: bool = True, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `high` inches each, with room for a legend of so many entries.

    Args:
      count: number of panels.
      high: height of a panel in inches.
      legend: entries of the legend.
      shared: whether the panels share their axes.
      columns: most panels side by side.
    """
    across = min(columns, count)
    down = math.ceil(count / across)
    figure = Figure(figsize=(WIDTH, 0.5 + high * down + 0.17 * math.ceil(legend / 2)), layout="constrained")
    axes = figure.subplots(down, across, sharex=shared, sharey=shared, squeeze=False).flatten()
    for empty in axes[count:]:
        empty.set_axis_off()
    for last in axes[max(count - across, 0) : count]:
        last.tick_params(labelbottom=True)  # the panel above an empty place carries its own labels
    return figure, list(axes[:count])


def name_panels(figure: Figure, handles: Sequence[Line2D], x: str, y: str) -> None:
    """Names the axes that panels share, and puts the legend above them: below, it would lie on the name of x."""
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    if handles:
        legend(figure, handles, "outside upper left")


def legend(figure: Figure, handles: Sequence[Artist], where: Where = "outside lower center") -> None:
    """Draws the legend of all panels in two columns, with letters so small that the longest label fits."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    room = 72 * WIDTH / 2 - 30  # points of a column beside its marker
    figure.legend(handles=handles, loc=where, ncols=2, handlelength=2.8, fontsize=min(LETTERS, room / (0.55 * longest)))


def octave_axis(axes: Axes) -> None:
    """Makes x a logarithmic axis to base 2, labeled in powers such as 2⁻³."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: power_of_two(value))


def power_of_two(value: float) -> str:
    """A number as a power of two, where it is one; matplotlib writes powers as mathematics, which our texts are not."""
    exponent = math.log2(value) if value > 0 else math.nan
    return f"2{str(int(exponent)).translate(SUPERSCRIPTS)}" if exponent.is_integer() else f"{value:g}"


def share_axis(axes: Axes) -> None:
    """Makes y an axis of shares, labeled in percent."""
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))


def drawing(figure: Figure) -> str:
    """The figure as the text of an SVG file: no date, no random ids. Its layout is found once, here, and kept."""
    file = io.StringIO()
    with our_look():
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        figure.set_layout_engine(None)  # its places stay as they are; "none" would have each file draw everything twice
    return file.getvalue()


def save_pdf(figure: Figure, file: Path, width: float) -> None:
    """Writes the figure for a paper, `width` inches wide: black on nothing; the same figure gives the same bytes.

    A narrower figure is smaller as a whole, its letters too; a wider one has more room for the same letters.
    """
    scale, size = min(1.0, width / WIDTH), tuple(figure.get_size_inches())
    texts = {text: float(text.get_fontsize()) for text in figure.findobj(Text)}
    places = {axes: axes.get_position() for axes in figure.axes}
    with our_look():
        for text, letters in texts.items():
            text.set_fontsize(scale * letters)
        figure.set_size_inches(width, scale * size[1])
        figure.set_layout_engine("constrained")
        figure.savefig(file, format="pdf", metadata=dict.fromkeys(("CreationDate", "Creator", "Producer")))
        figure.set_layout_engine(None)
    figure.set_size_inches(*size)
    for text, letters in texts.items():
        text.set_fontsize(letters)
    for axes, place in places.items():
        axes.set_position(place)


def score_against_bytes(
    rows: Sequence[Row],
    score: Score,
    styles: dict[Series, Style],
    chance: float | None = None,
    unsettled: Collection[str] = (),
) -> Figure:
    """The scores of one task against bytes of memory: a marker for every seed, a line through the medians over seeds.

    Memory is on a logarithmic axis. Each line has its name at its end; with more than `MOST_NAMED` a legend has them.

    Args:
      rows: the runs of one task.
      score: how they are scored.
      styles: the look of each mechanism and variant.
      chance: score of a guess, drawn as a line where it is known.
      unsettled: names of runs whose markers are hollow, as their score still changes with the budget.
    """
    drawn = in_order(map(series_of, rows), styles)
    is_named = len(drawn) <= MOST_NAMED
    high = max(3.4, 0.6 + 0.19 * len(drawn)) if is_named else 3.2 + 0.17 * math.ceil((len(drawn) + 1) / 2)
    with our_look():
        figure = Figure(figsize=(WIDTH, high), layout="constrained")
        axes = figure.add_subplot()
        place, ends = byte_axis(axes, [row.memory_bytes for row in rows], most=5 if is_named else 7), []
        for series in drawn:
            look, of_series = styles[series], [row for row in rows if series_of(row) == series]
            draw_medians(axes, [place(row.memory_bytes) for row in of_series], [score.of(row) for row in of_series], look)
            for of, settings in ((True, hollow(look)), (False, marks(look))):
                shown = [row for row in of_series if (row.run in unsettled) == of]
                where = [place(row.memory_bytes) for row in shown], [score.of(row) for row in shown]
                axes.plot(*where, **settings, linestyle="none", clip_on=False, zorder=3)
            size, value = list(medians_of(of_series, score).items())[-1]
            ends.append((place(size), value, label_of(series), look))
        if chance is not None:
            axes.axhline(chance, color=INK, linestyle=(0, (2, 3)), linewidth=1.0, zorder=1)
            ends.append((axes.get_xlim()[1], chance, f"chance, {score.text(chance)}", Style(INK, "")))
        if not score.unit:
            share_axis(axes)
        axes.set_ylabel(score.axis)
        if is_named:
            name_lines(axes, ends)
        else:
            legend(figure, [key(look, name) if look.marker else rule(name) for _, _, name, look in ends])
    return figure


def name_lines(axes: Axes, ends: Sequence[tuple[float, float, str, Style]]) -> None:
    """Writes the name of each line right of the axes, as near to its end as the other names allow.

    Args:
      axes: axes with their limits set.
      ends: (x, y) of each line's last point, its name and its look.
    """
    low, high = axes.get_ylim()
    inches = axes.bbox.height / axes.figure.dpi
    step = 1.15 * NAME_LETTERS / 72 / inches
    ordered = sorted(ends, key=lambda end: end[1])
    heights = apart([(y - low) / (high - low) for _, y, *_ in ordered], step)
    for (x, y, name, look), height in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.09, height),
            "data",
            "axes fraction",
            {"arrowstyle": "-", "color": look.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)},
            annotation_clip=False,
            va="center",
            size=NAME_LETTERS,
        )


def apart(places: Sequence[float], step: float) -> list[float]:
    """Ascending places moved as little as possible (least squares) so that neighbors are at least `step` apart."""
    from scipy.optimize import isotonic_regression  # takes a second to load

    fitted = isotonic_regression([place - number * step for number, place in enumerate(places)]).x
    return [float(place) + number * step for number, place in enumerate(fitted)]


def byte_axis(axes: Axes, sizes: Sequence[int], most: int = 7):
    """Makes x a logarithmic axis of bytes and returns the function bytes -> position.

    No memory at all stands two octaves left of the smallest memory, labeled 0: a logarithm has no place for it. There are at
    most `most` labels besides.
    """
    positive = [size for size in sizes if size] or [1]
    low, high = math.log2(min(positive)), math.log2(max(positive))
    zero = low - 2
    first, last = round(low), round(high)
    ticks = range(first, last + 1, math.ceil((last - first + 1) / most))
    none = [zero] if 0 in sizes else []
    axes.set_xticks([*none, *ticks], [*("0" for _ in none), *(human_bytes(2.0**tick) for tick in ticks)])
    axes.set_xlim((zero if none else min(low, first)) - 0.3, max(high, last) + 0.3)
    axes.set_xlabel("memory per sequence, all layers")
    return lambda size: math.log2(size) if size else zero


def training_curves(
    rows: Sequence[Row], curves: dict[str, Curves], column: str, name: str, styles: dict[Series, Style]
) -> Figure:
    """Small multiples of a metric against tokens: one panel per mechanism, one line per run.

    A smaller memory has a thinner, paler line, and a legend has the sizes. Runs whose curves are missing are left out.

    Args:
      rows: the runs of one task.
      curves: run name -> its curves.
      column: the metric.
      name: name of the y axis.
      styles: the look of each mechanism and variant.
    """
    drawn = in_order(map(series_of, rows), styles)
    sizes = alike(rows)
    lines = [{"alpha": 0.3 + 0.7 * share, "linewidth": 0.6 + share} for share in np.linspace(0, 1, len(sizes))]
    of_run = {row.run: line for of, line in zip(sizes, lines, strict=True) for row in of}
    with our_look():
        figure, each = panels(len(drawn), 1.35, len(sizes))
        for axes, series in zip(each, drawn, strict=True):
            for row in (row for row in rows if series_of(row) == series):
                curve = map(thinned, curves.get(row.run, {}).get(column, NO_CURVE))
                axes.plot(*curve, color=styles[series].colour, **of_run[row.run])
            axes.set_title(label_of(series), loc="left")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(4))
        entries = [Line2D([], [], color=INK, label=sizes_text(of), **line) for of, line in zip(sizes, lines, strict=True)]
        name_panels(figure, entries, "tokens trained on", name)
    return figure


def thinned(curve_P: np.ndarray) -> np.ndarray:
    """At most `MOST_POINTS` of the values of a curve, evenly spaced, the last one always among them."""
    stride = math.ceil(len(curve_P) / MOST_POINTS) or 1
    return curve_P[::-1][::stride][::-1]


def svg(text: str, identity: str, title: str, description: str) -> str:
    """An SVG file from `drawing` as an element of a page, with alternative text, and with ids that start with `identity`."""

    def in_page(tag: re.Match[str]) -> str:  # what lies between tags is anybody's text
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{identity}-", tag[0].replace(INK, "currentColor"))

    text = re.sub(r"<[^>]*>", in_page, text[text.index("<svg") :])
    named = f' role="img" aria-labelledby="{identity}-title" aria-describedby="{identity}-description">\n '
    said = f'<title id="{identity}-title">{html.escape(title)}</title>\n <desc id="{identity}-description">'
    head, rest = text.split(">", 1)
    return f"{head}{named}{said}{html.escape(description)}</desc>{rest}"
