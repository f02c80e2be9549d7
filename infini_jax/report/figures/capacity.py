"""F1, top-1 accuracy against n 2 ln V / (d_k d_v), and F2, n50 against bytes."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from infini_jax.analysis.fits import power_law
from infini_jax.analysis.theory import top1_accuracy
from infini_jax.report.behind import rungs
from infini_jax.report.found import Found, Point, at, by, points
from infini_jax.report.looks import INK, Series, Style, in_order, label_of, numbered
from infini_jax.report.parts import Drawn, Figures, NotMeasured, Table, estimate, listed, number
from infini_jax.report.plots import (
    draw_intervals,
    draw_seeds,
    key,
    legend,
    name_panels,
    octave_axis,
    our_look,
    panels,
    rule,
    share_axis,
)
from infini_jax.units import human_bytes

SCALAR_BYTES = 4  # memories are float32 whatever the compute type


def load(pairs: float, scalars: float, symbols: float) -> float:
    """The load of a memory, n 2 ln V / (d_k d_v): 1 is where theory recalls half."""
    return pairs * 2.0 * math.log(symbols) / scalars


def symbols_of(point: Point) -> float:
    """V of a figure's run, the candidates for a value."""
    return point.label("symbols", 0.0) or at(point.config, "symbols")


def collapse(found: Found, styles: dict[Series, Style]) -> Figures:
    """F1: top-1 accuracy against the load n 2 ln V / (d_k d_v), one panel per mechanism."""
    title = "Top-1 accuracy against n · 2 ln V / (dₖ dᵥ)"
    trained = [point for point in points(found, "capacity", "accuracy") if point.row.memory_bytes and symbols_of(point)]
    random = points(found, "random_codes", "accuracy")
    if not trained and not random:
        return [NotMeasured("F1", title, "the evaluations capacity (accuracy by pairs) and random_codes")]
    groups = [(f"random codes: {label_of(rule)}", of_rule) for rule, of_rule in by(random, lambda point: point.series).items()]
    groups += [(label_of(series), of_series) for series, of_series in by(trained, lambda point: point.series).items()]
    sizes = sorted({size_of(one) for _, group in groups for one in group})
    octaves = sorted({octave_of(size) for size in sizes})
    shades = {octave: numbered(n) for n, octave in enumerate(octaves)}
    with our_look():
        figure, each = panels(len(groups), 1.6, len(octaves) + 1)
        for axes, (name, group) in zip(each, groups, strict=True):
            axes.set_title(name, loc="left")
            octave_axis(axes)
            share_axis(axes)
            for size, of_size in by(group, size_of).items():
                look = shades[octave_of(size)]
                draw_seeds(axes, [place_of(one) for one in of_size], [one.value for one in of_size], look)
        low, high = each[0].get_xlim()
        for axes in each:
            draw_theory(axes, random, low, high)
            axes.set_xlim(low, high)
        entries = [key(shades[octave], f"about {number(2.0**octave)} scalars") for octave in octaves]
        entries.append(rule("theory, finite size", (3, 2)))
        name_panels(figure, entries, "n · 2 ln V / state scalars (dₖ dᵥ of a matrix)", "top-1 accuracy, %")
    rows = tuple({point.row.run: point.row for point in [*random, *trained]}.values())
    curve = theory_note(random)
    return [
        Drawn(
            "F1",
            title,
            figure,
            "Every marker is one seed, a line joins the medians of one size of memory. Where the law holds, all sizes lie on "
            f"one curve that crosses 50 % at 1. {curve} "
            "Random codes are not trained; trained memories "
            "count all scalars that they carry.",
            f"Panels: {listed([name for name, _ in groups])}. Sizes: {number(sizes[0])} to {number(sizes[-1])} scalars.",
            rows,
        )
    ]


def size_of(point: Point) -> float:
    """Scalars of the memory: of the matrix where its shape is known, of all that it carries elsewhere."""
    shape = point.label("key_dim") * point.label("value_dim")
    return shape or point.row.memory_bytes / SCALAR_BYTES


def octave_of(scalars: float) -> int:
    """The power of two nearest to a size.

    Sizes that share it are drawn alike, as mechanisms with the same bytes differ by a few scalars.
    """
    return round(math.log2(scalars))


def place_of(point: Point) -> float:
    """The load at which a figure was measured."""
    return load(point.label("pairs"), size_of(point), symbols_of(point))


def shapes_of(random: Sequence[Point]) -> list[tuple[int, int, int]]:
    """(key_dim, value_dim, symbols) of the smallest and the largest memory of random codes; 64, 64, 8192 without any."""
    shapes = {(int(one.label("key_dim")), int(one.label("value_dim")), int(one.label("symbols"))) for one in random}
    ordered = sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)) or [(64, 64, 8192)]
    return list(dict.fromkeys((ordered[0], ordered[-1])))


def theory_note(random: Sequence[Point]) -> str:
    """The caption's sentence about the lines of theory."""
    shapes = [f"dₖ {d_k}, dᵥ {d_v}, V {symbols:,}" for d_k, d_v, symbols in shapes_of(random)]
    return f"Dashed: theory of the sum rule at finite size, for {' and for '.join(shapes)}."


def draw_theory(axes: Axes, random: Sequence[Point], low: float, high: float) -> None:
    """Draws the accuracy that theory gives the sum rule at finite size, between two loads."""
    place = np.geomspace(low, high, 60)
    for key_dim, value_dim, symbols in shapes_of(random):
        pairs = place * key_dim * value_dim / (2.0 * math.log(symbols))
        shown = pairs >= 1.0
        accuracy = top1_accuracy(pairs[shown], key_dim, value_dim, symbols)
        axes.plot(place[shown], accuracy, color=INK, linewidth=1.0, linestyle=(0, (3, 2)), zorder=4)


def n50(found: Found, styles: dict[Series, Style]) -> Figures:
    """F2: half-recall capacity n50 against bytes of memory, with a power law for each mechanism."""
    title = "Half-recall capacity n50 against memory bytes"
    both = [*points(found, "capacity", "n50"), *points(found, "random_codes", "n50")]
    known = [point for point in both if point.row.memory_bytes]
    measured = [point for point in known if point.value > 0]
    if not measured:
        return [NotMeasured("F2", title, "the evaluation capacity (n50) of runs with several memory sizes")]
    groups = by(measured, lambda point: point.series)
    drawn = in_order(groups, styles)
    lines, names = [], {}
    crossing = [point for point in measured if point.label("by", "") == "crossing"]
    with our_look():
        figure, (axes,) = panels(1, 3.0, len(drawn))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        for series in drawn:
            group, look = groups[series], styles[series]
            sizes = [point.row.memory_bytes for point in group]
            draw_seeds(axes, sizes, [point.value for point in group], look, joined=False)
            draw_intervals(axes, sizes, [p.measure.low for p in group], [p.measure.high for p in group], look)
            name = label_of(series) if group[0].measure.eval == "capacity" else f"random codes: {label_of(series)}"
            names[series] = name
            lines += draw_laws(axes, name, [point for point in known if point.series == series], look)
        axes.plot(*places_of(crossing), "x", color=INK, markersize=4, markeredgewidth=1.0, zorder=4, clip_on=False)
        ticks = sorted({2.0 ** round(math.log2(point.row.memory_bytes)) for point in measured})
        axes.set_xticks(ticks[:: math.ceil(len(ticks) / 7)], [human_bytes(t) for t in ticks[:: math.ceil(len(ticks) / 7)]])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("memory per sequence")
        axes.set_ylabel("n50, pairs")
        legend(figure, [key(styles[s], names[s]) for s in drawn])
    table = Table(
        "n50 = prefactor · bytesᵃ, fitted to each seed's curve: mean over seeds and its 95 % interval by Student's t, none "
        "from fewer than three seeds. Empty: fewer than two sizes.",
        ("Mechanism", "Budget", "Sizes", "Seeds", "Exponent a", "Prefactor", "n50 by crossing", "Answers", "Left out"),
        tuple(lines),
    )
    return [
        Drawn(
            "F2",
            title,
            figure,
            "Every marker is the n50 of one seed on pairs that no training saw, by a logistic fit in log n, or where no "
            "logistic describes the curve by the crossing of one half, marked ×. Its bar is the 95 % interval over the "
            "memories of that run, not over seeds; lines are power laws of a mechanism's seeds.",
            "; ".join(f"{line[0]}: exponent {line[4] or 'not fitted'}" for line in lines) + ".",
            tuple(point.row for point in measured),
            table=table,
        )
    ]


def places_of(of: Sequence[Point]) -> tuple[list[float], list[float]]:
    """The bytes of memory and the values of figures."""
    return [point.row.memory_bytes for point in of], [point.value for point in of]


def draw_laws(axes: Axes, name: str, of: Sequence[Point], look: Style) -> list[tuple[str, ...]]:
    """Draws a mechanism's power law at each budget and returns their lines of the table; a run without n50 is named there."""
    lines = []
    for rung, rows in rungs([point.row for point in of]).items():
        runs = {row.run for row in rows}
        mine = [point for point in of if point.row.run in runs]
        law = power_law(*places_of(mine), [point.row.seed for point in mine])
        if law.sizes > 1:
            ends = np.array([min(places_of(mine)[0]), max(places_of(mine)[0])], float)
            axes.plot(ends, law(ends), color=look.colour, linestyle=look.line, linewidth=1.4)
        found_by = [str(point.label("by", "")) for point in mine if point.value > 0]
        crossings = f"{found_by.count('crossing')} of {len(found_by)}" if any(found_by) else "not said"
        seeds = ", ".join(map(str, law.exponent.seeds)) or "–"
        answers, dropped = f"{sum(point.measure.count for point in mine):,}", listed(law.exponent.dropped) or "–"
        fitted = estimate(law.exponent), estimate(law.prefactor)
        lines.append((name, rung or "–", str(law.sizes), seeds, *fitted, crossings, answers, dropped))
    return lines
