"""F5, heat maps of what is found again: passkeys by length x novelty and length x depth, needles by length x kind.

One panel per mechanism, with the values in the cells.
"""

import statistics
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from infini_jax.report.found import Found, Point, by, points, with_most_memory
from infini_jax.report.looks import Series, Style, in_order, label_of
from infini_jax.report.parts import Drawn, Figures, NotMeasured, number
from infini_jax.report.plots import name_panels, our_look, panels
from infini_jax.units import human_bytes

COLOURS = colormaps["cividis"]  # even in lightness, and the same with every common form of color blindness
DARK, LIGHT = "#010101", "#ffffff"
SPLIT = 0.179  # relative luminance at which black and white text have the same contrast, 4.6
METRICS = (("exact_match", "exact match"), ("token_accuracy", "token accuracy"))
KINDS = (
    ("haystack", "hit", "F5-kind", "Needles in a haystack: length × kind", "needles found"),
    ("ruler", "score", "F5-ruler", "RULER: length × task", "answers found"),
    ("babilong", "score", "F5-babilong", "BABILong: length × task", "answers found"),
)
NEEDS = "the evaluation passkey at several lengths and"
NAMES = {"novelty": "novelty K", "depth": "depth of the needle, %", "kind": "kind"}
AVERAGED = {"novelty": "mean over depth, ", "depth": "mean over novelty, ", "kind": ""}


def heat_maps(found: Found, styles: dict[Series, Style]) -> Figures:
    """F5: passkeys by length x novelty and by length x depth, in the metric measured; exact match where both were."""
    measured = ((name, with_most_memory(points(found, "passkey", metric))) for metric, name in METRICS)
    name, of = next(((name, of) for name, of in measured if of), ("", []))
    figures: Figures = []
    for axis, said, needs in (("novelty", "novelty", f"{NEEDS} novelties"), ("depth", "depth", f"{NEEDS} depths")):
        title = f"Passkey: length × {said}"
        identity = f"F5-{axis}"
        if len({point.label(axis) for point in of}) < 2:
            figures.append(NotMeasured(identity, title, needs))
            continue
        figures.append(heat_map(identity, title, name, axis, of, styles))
    return figures


def needles(found: Found, styles: dict[Series, Style]) -> Figures:
    """F5 of haystacks and suites: the share of the answers that a model says, by length x kind; suites if asked."""
    figures: Figures = []
    for name, metric, identity, title, said in KINDS:
        if of := with_most_memory(points(found, name, metric)):
            figures.append(heat_map(identity, title, said, "kind", of, styles))
        elif name == "haystack":
            figures.append(NotMeasured(identity, title, "the evaluation haystack"))
    return figures


def heat_map(identity: str, title: str, metric: str, axis: str, of: Sequence[Point], styles: dict[Series, Style]) -> Drawn:
    """One heat map: a panel per mechanism, lengths along x and the other axis along y."""
    drawn = in_order((point.series for point in of), styles)
    lengths, steps = sorted({p.label("length") for p in of}), sorted({p.label(axis) for p in of})
    with our_look():
        figure, each = panels(len(drawn), 0.75 + 0.27 * len(steps), 0, columns=2 if len(lengths) <= 4 else 1)
        for axes, series in zip(each, drawn, strict=True):
            mine = [point for point in of if point.series == series]
            draw_cells(axes, mine, lengths, steps, axis)
            axes.set_title(f"{label_of(series)}, {human_bytes(mine[0].row.memory_bytes)}", loc="left")
        name_panels(figure, [], "length, tokens", NAMES[axis])
    rows = tuple({point.row.run: point.row for point in of}.values())
    return Drawn(
        identity,
        title,
        figure,
        f"{metric.capitalize()} in percent, {AVERAGED[axis]}median over seeds; below it the smallest and the largest seed "
        "where they differ. Each mechanism with its largest memory. An empty cell was not measured."
        + (" Novelty 0 is the papers' own filler." if axis == "novelty" else ""),
        "; ".join(summary(series, [p for p in of if p.series == series], metric, axis) for series in drawn) + ".",
        rows,
    )


def summary(series: Series, of: Sequence[Point], metric: str, axis: str) -> str:
    """The range of a mechanism's cells in percent, as text."""
    cells = [statistics.median(seeds) for seeds in cells_of(of, axis).values()]
    return f"{label_of(series)}: {metric} {100 * min(cells):.0f} to {100 * max(cells):.0f} %"


def cells_of(of: Sequence[Point], axis: str) -> dict[tuple, list[float]]:
    """The values by (length, step of the axis), one per seed: the mean over the other axis."""
    runs = by(of, lambda point: (point.label("length"), point.label(axis), point.row.run))
    cells: dict[tuple, list[float]] = {}
    for (length, step, _), group in runs.items():
        cells.setdefault((length, step), []).append(statistics.fmean(point.value for point in group))
    return cells


def draw_cells(axes: Axes, of: Sequence[Point], lengths: list, steps: list, axis: str) -> None:
    """Draws one panel: colored cells, each with its value in text that stands out from it."""
    cells = cells_of(of, axis)
    axes.set_xlim(0, len(lengths))
    axes.set_ylim(len(steps), 0)
    axes.grid(False)
    for (length, step), seeds in cells.items():
        x, y, value = lengths.index(length), steps.index(step), statistics.median(seeds)
        colour = to_hex(COLOURS(min(max(value, 0.0), 1.0)))
        axes.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], color=colour, linewidth=0.4, edgecolor=LIGHT)
        ink, several = text_on(colour), len({f"{100 * seed:.0f}" for seed in seeds}) > 1
        axes.text(x + 0.5, y + (0.36 if several else 0.5), f"{100 * value:.0f}", color=ink, ha="center", va="center", size=8)
        if several:
            ends = f"{100 * min(seeds):.0f}–{100 * max(seeds):.0f}"
            axes.text(x + 0.5, y + 0.76, ends, color=ink, ha="center", va="center", size=5.5)
    axes.set_xticks([n + 0.5 for n in range(len(lengths))], [length_text(length) for length in lengths])
    names = [f"{100 * step:.0f}" if axis == "depth" else number(step) for step in steps]
    axes.set_yticks([n + 0.5 for n in range(len(steps))], names)
    axes.tick_params(length=0)


def length_text(length: float) -> str:
    """A length as text: 4096 as 4k, 1048576 as 1M."""
    for size, prefix in ((2**20, "M"), (2**10, "k")):
        if length >= size:
            return f"{length / size:.3g}{prefix}"
    return f"{length:.0f}"


def text_on(colour: str) -> str:
    """The color of text on a colored cell: black or white, whichever stands out more (WCAG's relative luminance)."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return DARK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > SPLIT else LIGHT
