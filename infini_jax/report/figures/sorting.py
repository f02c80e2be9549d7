"""F9, sorting against its ceilings."""

from infini_jax.report.found import Found, by, points, with_most_memory
from infini_jax.report.looks import INK, Series, Style, in_order, label_of
from infini_jax.report.parts import Drawn, Figures, NotMeasured, listed, number
from infini_jax.report.plots import draw_intervals, draw_seeds, key, name_panels, our_look, panels, rule, share_axis

KINDS = (
    ("teacher_forced", "teacher-forced", "accuracy, %"),
    ("free_running", "free-running", "accuracy, %"),
    ("kendall_tau", "order: Kendall τ", "τ"),
)
DASHES, CHANCE = ((8, 2), (4, 2), (2, 1), (8, 2, 1, 2), (4, 1, 1, 1)), (2, 3)


def sorting(found: Found, styles: dict[Series, Style]) -> Figures:
    """F9: sorting by length, against its ceilings."""
    title = "Sorting against its ceilings"
    kinds = [(name, axis, metric, with_most_memory(points(found, "sorting", metric))) for metric, name, axis in KINDS]
    kinds = [kind for kind in kinds if kind[3]]
    if not kinds:
        return [NotMeasured("F9", title, "the evaluation sorting (teacher_forced, free_running, kendall_tau)")]
    of = [point for _, _, _, group in kinds for point in group]
    drawn = in_order((point.series for point in of), styles)
    ceilings = ceilings_of(found)
    entries = [key(styles[series], label_of(series)) for series in drawn]
    used: dict[str, tuple[int, ...]] = {}
    with our_look():
        figure, each = panels(len(kinds), 2.3, len(drawn) + len(ceilings), shared=False)
        for axes, (name, axis, metric, group) in zip(each, kinds, strict=True):
            axes.set_title(name, loc="left")
            axes.set_xscale("log", base=2)
            lengths = sorted({point.label("length") for point in group})
            for series in drawn:
                mine = [point for point in group if point.series == series]
                places = [point.label("length") for point in mine]
                if mine:
                    draw_seeds(axes, places, [point.value for point in mine], styles[series])
                    draw_intervals(axes, places, [p.measure.low for p in mine], [p.measure.high for p in mine], styles[series])
            for n, (label, meant, line) in enumerate(ceilings):
                if metric in meant:
                    used[label] = CHANCE if label == "chance" else DASHES[n % len(DASHES)]
                    ends = line or {length: 0.0 for length in lengths}
                    axes.plot(list(ends), list(ends.values()), color=INK, linewidth=1.0, linestyle=(0, used[label]), zorder=1)
            if metric != "kendall_tau":
                share_axis(axes)
            axes.set_xticks(lengths, [number(length) for length in lengths])
            axes.minorticks_off()
            axes.set_ylabel(axis)
        name_panels(figure, entries + [rule(label, dashes) for label, dashes in used.items()], "length, tokens", "")
    missing = "" if ceilings else " The ceilings were not measured."
    return [
        Drawn(
            "F9",
            title,
            figure,
            "Every marker is one seed, bars are 95 % intervals over its answers, lines join medians. Each mechanism with its "
            "largest memory. A "
            f"window's ceiling is what a perfect reader of its tokens scores.{missing}",
            f"Panels: {listed([name for name, *_ in kinds])}. Lines without markers: {listed(list(used)) or 'none'}.",
            tuple({point.row.run: point.row for point in of}.values()),
        )
    ]


def ceilings_of(found: Found) -> list[tuple[str, tuple[str, ...], dict[float, float]]]:
    """The ceilings measured without a model, the same for all runs: (name, metrics that it bounds, length -> score)."""

    def measured(metric: str) -> list:
        return [p.measure for p in points(found, "sorting", metric)]

    windows = by(measured("ceiling_window"), lambda one: one.labels["window"])
    found_lines: list[tuple[str, tuple[str, ...], dict[float, float]]] = [
        (f"ceiling of a window of {number(window)}", ("teacher_forced",), line_of(group)) for window, group in windows.items()
    ]
    if mean := measured("ceiling_mean"):
        found_lines.append(("ceiling: order of the true means", ("free_running",), line_of(mean)))
    if chance := measured("chance"):
        lengths: list[float] = [point.label("length") for metric, *_ in KINDS for point in points(found, "sorting", metric)]
        everywhere: dict[float, float] = {length: chance[0].value for length in sorted(set(lengths))}
        line = line_of(chance) if "length" in chance[0].labels else everywhere
        found_lines.append(("chance", ("teacher_forced", "free_running"), line))
    return found_lines


def line_of(measures: list) -> dict[float, float]:
    """The values of a metric by length."""
    return dict(sorted({one.labels["length"]: one.value for one in measures}.items()))
