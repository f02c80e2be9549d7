"""F6, loss against memory bytes, and F7, which tokens gain."""

import math

import numpy as np
from matplotlib.ticker import MaxNLocator

from infini_jax.analysis.fits import floor_law
from infini_jax.records.rows import Row
from infini_jax.report.behind import rungs
from infini_jax.report.found import Found, Point, by, by_task, points, with_most_memory
from infini_jax.report.looks import INK, Series, Style, in_order, label_of
from infini_jax.report.parts import Drawn, Figures, NotMeasured, Table, estimate, listed
from infini_jax.report.plots import byte_axis, draw_seeds, key, legend, name_panels, our_look, panels, rule
from infini_jax.study.scores import score_of
from infini_jax.units import human_bytes

FIT = (
    "Loss = L + A (m / m₀)⁻ᵍ in the memory's bytes m, m₀ the geometric mean of the sizes, with the 95 % intervals over "
    "seeds of what they do not refute: none from fewer than three seeds."
)
FITTED = ("Budget", "Seeds", "m₀", "L", "A", "g", "Left out")  # of a law in its table
Measured = tuple[Row, float, float | None]  # a run, its loss with the memory carried, and with an empty memory


def losses_of(found: Found) -> dict[str, list[Measured]]:
    """The losses of the runs by corpus: of the evaluation perplexity, or of the row where it was not evaluated."""
    carried, reset = (
        {point.row.run: point.value for point in points(found, "perplexity", "loss", condition=condition)}
        for condition in ("carried", "reset")
    )
    return {
        task: [(row, carried.get(row.run, row.loss), reset.get(row.run)) for row in rows]
        for task, rows in by_task(found.rows, found.configs).items()
        if score_of(rows[0].task).column == "loss"
    }


def loss_against_bytes(found: Found, styles: dict[Series, Style]) -> Figures:
    """F6: held-out loss against bytes of memory, one panel per corpus."""
    title, corpora = "Loss on held-out text against memory bytes", losses_of(found)
    if not corpora:
        return [NotMeasured("F6", title, "runs of a corpus with several memory sizes, and the evaluation perplexity")]
    of_series = {series: True for _, runs in corpora.items() for series in styles if any(is_of(run, series) for run in runs)}
    drawn = in_order(of_series, styles)
    controls = any(reset is not None for runs in corpora.values() for _, _, reset in runs)
    asked = {run for run, measure in found.measures if measure.eval == "perplexity"}
    lines = []
    with our_look():
        figure, each = panels(len(corpora), 2.4, len(drawn) + controls, shared=False, columns=1 if len(corpora) == 1 else 2)
        for axes, (task, runs) in zip(each, corpora.items(), strict=True):
            axes.set_title(task, loc="left")
            place = byte_axis(axes, [row.memory_bytes for row, _, _ in runs], most=4 if len(corpora) > 1 else 7)
            axes.set_ylabel(score_of(runs[0][0].task).unit)
            for series in drawn:
                mine = [run for run in runs if is_of(run, series)]
                if not mine:
                    continue
                draw_emptied(axes, mine, place, styles[series])
                lines += [(label_of(series), task, *fitted) for fitted in draw_law(axes, mine, place, styles[series])]
        entries = [key(styles[series], label_of(series)) for series in drawn]
        legend(figure, [*entries, *([rule("memory emptied (×)", (1, 1))] if controls else [])])
    if not lines and not any(row.run in asked for runs in corpora.values() for row, _, _ in runs):
        return [NotMeasured("F6", title, "the evaluation perplexity, or four sizes of memory: the rest is the score above")]
    control = " Crosses on dotted lines: the same run with its memory emptied at every segment." if controls else ""
    return [
        Drawn(
            "F6",
            title,
            figure,
            f"Every marker is one seed, {split_of(found)}; a line is the fit of L + A (m / m₀)⁻ᵍ to the seeds' mean, "
            f"or joins the medians where there are fewer than four sizes.{control}",
            f"Panels: {listed(list(corpora))}.",
            tuple(row for runs in corpora.values() for row, _, _ in runs),
            table=Table(FIT, ("Mechanism", "Corpus", *FITTED), tuple(lines)) if lines else None,
        )
    ]


def is_of(run: Measured, series: Series) -> bool:
    """Whether a run is of this mechanism and variant."""
    return (run[0].mechanism, run[0].variant) == series


def draw_law(axes, runs: list[Measured], place, look: Style) -> list[tuple[str, ...]]:
    """Draws L + A (m / m0)^-g at each budget and returns what of it goes into the table, see `FITTED`.

    Where it could not be fitted it is a line through the medians, and nothing is returned.
    """
    laws = []
    for rung, rows in rungs([row for row, _, _ in runs if row.memory_bytes]).items():
        sized = [(row.memory_bytes, loss, row.seed) for row, loss, _ in runs if row in rows]
        law = floor_law(*zip(*sized, strict=True))
        if math.isfinite(law.unit):
            laws.append((rung, law))
            sizes = np.geomspace(min(sized)[0], max(sized)[0], 40)
            axes.plot([place(size) for size in sizes], law(sizes), color=look.colour, linestyle=look.line, linewidth=1.4)
    draw_seeds(axes, [place(row.memory_bytes) for row, _, _ in runs], [loss for _, loss, _ in runs], look, joined=not laws)
    return [
        (
            rung or "–",
            ", ".join(map(str, law.floor.seeds)),
            human_bytes(law.unit),
            *(estimate(parameter) for parameter in (law.floor, law.scale, law.power)),
            listed(law.floor.dropped) or "–",
        )
        for rung, law in laws
    ]


def split_of(found: Found) -> str:
    """The words for the split whose losses are drawn: as the evaluation's figures say, validation where they say nothing."""
    splits = sorted({str(point.label("split", "validation")) for point in points(found, "perplexity", "loss")}) or [
        "validation"
    ]
    return f"loss on the {' and '.join(splits)} split"


def draw_emptied(axes, runs: list[Measured], place, look: Style) -> None:
    """Draws the losses with an empty memory, and a dashed line through their medians."""
    emptied = [(place(row.memory_bytes), reset) for row, _, reset in runs if reset is not None]
    for places, values in [tuple(zip(*emptied, strict=True))] if emptied else []:
        axes.plot(places, values, "x", color=look.colour, markersize=4, markeredgewidth=1.0, zorder=2)
        medians = {x: float(np.median([value for _, value in of])) for x, of in by(emptied, lambda pair: pair[0]).items()}
        axes.plot(list(medians), list(medians.values()), color=look.colour, linestyle=(0, (1, 1)), linewidth=1.0, zorder=1)


def gains(found: Found, styles: dict[Series, Style]) -> Figures:
    """F7: which tokens gain from memory, one figure per control."""
    figures: Figures = []
    for control, said in (("reset", "an empty memory"), ("another", "another document's memory")):
        identity, title = f"F7-{control}", f"Which tokens gain from memory, against {said}"
        of = with_most_memory(points(found, "gains", "gain", control=control))
        figures.append(
            one_gain(identity, title, of, styles)
            if of
            else NotMeasured(identity, title, f"the evaluation gains with the control {control}")
        )
    return figures


def one_gain(identity: str, title: str, of: list[Point], styles: dict[Series, Style]) -> Drawn:
    """The figure of one control: the gain of each class of tokens, one panel per way to classify them."""
    drawn = in_order((point.series for point in of), styles)
    kinds = by(of, lambda point: str(point.label("by", "")))
    classes = {kind: list(dict.fromkeys(str(point.label("class", "")) for point in group)) for kind, group in kinds.items()}
    height = max(map(len, classes.values())) * (0.16 + 0.07 * len(drawn)) + 0.45
    with our_look():
        figure, each = panels(len(kinds), height, len(drawn), shared=False, columns=1)
        for axes, (kind, group) in zip(each, kinds.items(), strict=True):
            axes.set_title(f"by {kind}", loc="left")
            axes.set_yticks(range(len(classes[kind])), classes[kind])
            axes.set_ylim(len(classes[kind]) - 0.5, -0.5)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.axvline(0, color=INK, linewidth=0.8)
            for n, series in enumerate(drawn):
                shift = (n - (len(drawn) - 1) / 2) * 0.8 / len(drawn)
                draw_gains(axes, [point for point in group if point.series == series], classes[kind], shift, styles[series])
        name_panels(figure, [key(styles[series], label_of(series)) for series in drawn], "gain, nats per token", "")
    return Drawn(
        identity,
        title,
        figure,
        "Loss with the control minus loss with the document's own memory: right of zero, memory helps. Every marker is one "
        "seed, its bar the 95 % interval over documents, not over seeds. Each mechanism with its largest memory. "
        f"{beyond_zero(of)}",
        f"Classes of tokens by {listed(list(kinds))}.",
        tuple({point.row.run: point.row for point in of}.values()),
    )


def draw_gains(axes, of: list[Point], classes: list[str], shift: float, look: Style) -> None:
    """Draws a mechanism's gains by class with their intervals."""
    places = [classes.index(str(point.label("class", ""))) + shift for point in of]
    axes.plot([point.value for point in of], places, color=look.colour, marker=look.marker, markersize=4, linestyle="none")
    known = [(y, p.measure.low, p.measure.high) for y, p in zip(places, of, strict=True) if p.measure.low == p.measure.low]
    if known:
        axes.hlines(*zip(*known, strict=True), color=look.colour, linewidth=0.9)


def beyond_zero(of: list[Point]) -> str:
    """A sentence that counts the intervals above zero, below it, and those that hold it."""
    known = [point.measure for point in of if point.measure.low == point.measure.low]
    if not known:
        return "No interval is known, so no gain is said to be one."
    above, below = sum(one.low > 0 for one in known), sum(one.high < 0 for one in known)
    return (
        f"Of {len(known)} intervals {above} lie{'s' if above == 1 else ''} above zero, {below} below it and "
        f"{len(known) - above - below} hold{'s' if len(known) - above - below == 1 else ''} it."
    )
