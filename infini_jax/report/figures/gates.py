"""F10, gates: the weight of the memory against local attention, by layer and head or over all of them."""

import textwrap
from collections.abc import Sequence

from infini_jax.records.rows import Row
from infini_jax.report.found import Found, Point, by, by_task, points, with_most_memory
from infini_jax.report.looks import Series, Style, in_order, label_of, series_of
from infini_jax.report.parts import Drawn, Figures, NotMeasured, listed
from infini_jax.report.plots import byte_axis, draw_seeds, key, marks, name_panels, our_look, panels, training_curves
from infini_jax.units import human_bytes

TITLE = 26  # letters that fit above a panel
MEANING = "0 ignores the memory, 1 sees nothing else."


def gates(found: Found, styles: dict[Series, Style]) -> Figures:
    """F10: gates by layer and head where the evaluation gates was made; their mean after and during training."""
    of = with_most_memory(points(found, "gates", "gate"))
    gated = [row for row in found.rows if row.gate_mean is not None]
    figures: Figures = [by_layer(of, styles)] if of else []
    if not of:
        figures.append(NotMeasured("F10-layers", "Gates by layer and head", "the evaluation gates"))
    if not gated:
        return [*figures, NotMeasured("F10", "Mean gate after training", "runs of a mechanism with gates")]
    tasks = by_task(gated, found.configs)
    figures.append(after_training(tasks, styles))
    for task, rows in tasks.items():
        if any("gate_mean" in found.curves.get(row.run, {}) for row in rows):
            figures.append(while_training(task, rows, found, styles))
    return figures


def by_layer(of: Sequence[Point], styles: dict[Series, Style]) -> Drawn:
    """The gate of every head by layer, one panel per mechanism."""
    drawn = in_order((point.series for point in of), styles)
    with our_look():
        figure, each = panels(len(drawn), 1.6, 0)
        for axes, series in zip(each, drawn, strict=True):
            mine = [point for point in of if point.series == series]
            axes.plot(
                [point.label("layer") for point in mine],
                [point.value for point in mine],
                **marks(styles[series]),
                linestyle="none",
                clip_on=False,
            )
            title = f"{label_of(series)}, {human_bytes(mine[0].row.memory_bytes)}"
            axes.set_title(textwrap.fill(title, TITLE), loc="left")
            axes.set_ylim(0, 1)
            axes.set_xticks(sorted({point.label("layer") for point in of}))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        name_panels(figure, [], "layer", "gate")
    ends = [
        f"{label_of(series)}: {min(p.value for p in group):.2f} to {max(p.value for p in group):.2f}"
        for series, group in by(of, lambda point: point.series).items()
    ]
    return Drawn(
        "F10-layers",
        "Gates by layer and head",
        figure,
        f"Every marker is one head of one seed, after training. {MEANING} Each mechanism with its largest memory.",
        f"Smallest to largest gate. {'; '.join(ends)}.",
        tuple({point.row.run: point.row for point in of}.values()),
    )


def after_training(tasks: dict[str, list[Row]], styles: dict[Series, Style]) -> Drawn:
    """The mean gate of every run against bytes of memory, one panel per task."""
    rows = [row for of_task in tasks.values() for row in of_task]
    drawn = in_order(map(series_of, rows), styles)
    with our_look():
        figure, each = panels(len(tasks), 1.9, len(drawn), columns=min(2, len(tasks)))
        for axes, (task, of_task) in zip(each, tasks.items(), strict=True):
            place = byte_axis(axes, [row.memory_bytes for row in rows], most=4 if len(tasks) > 1 else 7)
            axes.set_xlabel("")
            axes.set_title(task, loc="left")
            axes.set_ylim(0, 1)
            for series in drawn:
                mine = [row for row in of_task if series_of(row) == series]
                if mine:
                    gates = [row.gate_mean for row in mine if row.gate_mean is not None]
                    draw_seeds(axes, [place(row.memory_bytes) for row in mine], gates, styles[series])
        entries = [key(styles[series], label_of(series)) for series in drawn]
        name_panels(figure, entries, "memory per sequence, all layers", "mean gate")
    return Drawn(
        "F10",
        "Mean gate after training",
        figure,
        f"Every marker is one seed, the mean over heads and layers; lines join medians. {MEANING} The table of gates has how "
        "far heads and layers lie apart.",
        f"Panels: {listed(list(tasks))}.",
        tuple(rows),
    )


def while_training(task: str, rows: list[Row], found: Found, styles: dict[Series, Style]) -> Drawn:
    """The mean gate of a task's runs against tokens trained on."""
    return Drawn(
        f"F10-training-{task}",
        f"Mean gate during training: {task}",
        training_curves(rows, found.curves, "gate_mean", "mean gate", styles),
        f"Mean gate over heads and layers of every run, one line per seed. {MEANING} The thinner and paler a line, the "
        "smaller the memory.",
        f"Mean gate of every run of {task} against tokens trained on, one panel per mechanism.",
        tuple(rows),
    )
