"""F4, recall by age and by number of compressions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from infini_jax.analysis.theory import delta_survival
from infini_jax.report.found import Found, Point, by, points, with_most_memory
from infini_jax.report.looks import INK, Series, Style, in_order, label_of, numbered
from infini_jax.report.parts import Drawn, Figures, NotMeasured, number
from infini_jax.report.plots import draw_seeds, key, legend, our_look, panels, share_axis
from infini_jax.units import human_bytes


def forgetting(found: Found, styles: dict[Series, Style]) -> Figures:
    """F4: recall by age and by number of compressions, and what random codes keep."""
    title = "Recall by age and by number of compressions"
    kinds = [
        (name, said, axis, with_most_memory(points(found, "capacity", metric)))
        for name, said, axis, metric in (
            ("by age", "pairs written since", "age", "accuracy_by_age"),
            ("by compressions", "segments written since", "writes", "accuracy_by_writes"),
        )
    ]
    kinds = [(name, said, axis, hardest(of)) for name, said, axis, of in kinds if of]
    random = points(found, "random_codes", "survival_by_age")
    if not kinds and not random:
        return [NotMeasured("F4", title, "the evaluation capacity (accuracy_by_age, accuracy_by_writes) or random_codes")]
    drawn = in_order((point.series for *_, of in kinds for point in of), styles)
    with our_look():
        figure, each = panels(len(kinds) + bool(random), 2.3, len(drawn), shared=False)
        for axes, (name, said, axis, of) in zip(each, kinds, strict=False):
            axes.set_title(name, loc="left")
            for series in drawn:
                for run in by((point for point in of if point.series == series), lambda point: point.row.run).values():
                    draw_seeds(axes, [point.label(axis) for point in run], [point.value for point in run], styles[series])
            share_axis(axes)
            axes.set_xlabel(said)
            axes.set_ylabel("top-1 accuracy, %")
        if random:
            draw_survival(each[-1], random)
        legend(figure, [key(styles[s], label_of(s)) for s in drawn])
    of = [point for *_, group in kinds for point in group]
    return [
        Drawn(
            "F4",
            title,
            figure,
            "Every line is one seed. " + (f"{behind(of)} " if of else "") + survival_note(random),
            f"Panels: {', '.join([name for name, *_ in kinds] + ['random codes'] * bool(random))}.",
            tuple({point.row.run: point.row for point in [*of, *random]}.values()),
        )
    ]


def hardest(of: list[Point]) -> list[Point]:
    """The figures of the largest number of pairs that all mechanisms share, or of each one's own largest without any."""
    asked = [{point.label("pairs") for point in group} for group in by(of, lambda point: point.series).values()]
    shared = set.intersection(*asked)
    if shared:
        return [point for point in of if point.label("pairs") == max(shared)]
    most = {series: max(p.label("pairs") for p in group) for series, group in by(of, lambda point: point.series).items()}
    return [point for point in of if point.label("pairs") == most[point.series]]


def behind(of: Sequence[Point]) -> str:
    """The caption's sentence about the memory and the number of pairs behind each mechanism."""
    each = [
        f"{label_of(series)} {human_bytes(group[0].row.memory_bytes)}, "
        f"{' and '.join(dict.fromkeys(number(point.label('pairs')) for point in group))} pairs"
        for series, group in by(of, lambda point: point.series).items()
    ]
    return f"Each mechanism with its largest memory: {'; '.join(each)}."


def draw_survival(axes: Axes, random: Sequence[Point]) -> None:
    """Draws what random codes keep of an item, by rule, with theory for the delta rule where the key dimension is noted."""
    axes.set_title("random codes, untrained", loc="left")
    rules = by(random, lambda point: (label_of(point.series), point.label("key_dim")))
    for n, ((name, key_dim), of_rule) in enumerate(rules.items()):
        look = numbered(n)
        ages = [one.label("age") for one in of_rule]
        draw_seeds(axes, ages, [one.value for one in of_rule], look, joined=False)
        axes.plot([], [], color=look.colour, marker=look.marker, linestyle="none", label=f"{name}, dₖ {number(key_dim)}")
        if name == "delta" and key_dim:
            line = sorted(set(ages))
            axes.plot(line, delta_survival(np.array(line), key_dim), color=INK, linestyle=(0, (3, 2)), linewidth=1.0)
    axes.set_xlabel("pairs written since")
    axes.set_ylabel("share that survives")
    axes.legend(fontsize=6.5, framealpha=0.0, loc="best")


def survival_note(random: Sequence[Point]) -> str:
    """The caption's sentence about random codes, "" without any."""
    return "Random codes: what an untrained memory keeps of an item; dashed, e^(-age/dₖ) of the delta rule." if random else ""
