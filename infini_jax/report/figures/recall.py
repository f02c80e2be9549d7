"""F3, recall against memory at fixed FLOPs."""

import dataclasses
from collections.abc import Sequence

from matplotlib.axes import Axes

from infini_jax.analysis.intervals import share_over_seeds
from infini_jax.report.behind import behind, rungs
from infini_jax.report.found import Found, Point, by, points
from infini_jax.report.looks import INK, Series, Style, in_order, label_of
from infini_jax.report.parts import Drawn, Figures, NotMeasured, Table, estimate, listed, number
from infini_jax.report.plots import byte_axis, draw_intervals, draw_seeds, key, name_panels, our_look, panels, rule, share_axis
from infini_jax.report.sections import equality
from infini_jax.report.tasks import chance_at, example_evaluations, is_as_trained, only, title_of
from infini_jax.study.scores import FRESH
from infini_jax.units import human_bytes

MOST_PANELS = 6


def pareto(found: Found, styles: dict[Series, Style]) -> Figures:
    """F3: recall against bytes of memory, one figure for each evaluation that declares a grid, a panel for each difficulty."""
    figures: Figures = []
    for name, evaluation in example_evaluations().items():
        if evaluation.grid:
            identity, title = f"F3-{name}", f"Recall against memory: {title_of(evaluation)}"
            of, needs = points(found, name, evaluation.grid_metric), f"the evaluation {name} at several memory sizes"
            drawn = one_pareto(identity, title, of, found, styles) if of else NotMeasured(identity, title, needs)
            figures.append(drawn)
    return figures


def one_pareto(identity: str, title: str, of: list[Point], found: Found, styles: dict[Series, Style]) -> Drawn | Table:
    """The figure of one evaluation: recall against bytes, one panel per setting of its grid.

    Where all was asked as it was trained it is the table alone, as the figure of the task's score draws the same runs.
    """
    axis = example_evaluations()[of[0].measure.eval].grid
    settings = by(of, lambda point: tuple(point.label(name) for name in axis))
    chosen = spread_out(list(settings), MOST_PANELS)
    drawn = in_order((point.series for point in of), styles)
    chances = {setting: chance for setting in chosen if (chance := guess(settings[setting], found)) is not None}
    with our_look():
        figure, each = panels(len(chosen), 1.75, len(drawn) + bool(chances))
        for axes, setting in zip(each, chosen, strict=True):
            axes.set_title(setting_text(axis, setting, settings), loc="left")
            place = byte_axis(axes, [point.row.memory_bytes for point in of], most=4)
            axes.set_xlabel("")
            share_axis(axes)
            for series in drawn:
                draw_runs(axes, [p for p in settings[setting] if p.series == series], place, styles[series])
            if setting in chances:
                axes.axhline(chances[setting], color=INK, linestyle=(0, (2, 3)), linewidth=1.0, zorder=1)
        entries = [key(styles[series], label_of(series)) for series in drawn] + [rule("chance")] * bool(chances)
        score = of[0].measure.metric.replace("_", " ")
        name_panels(figure, entries, "memory per sequence, all layers", f"{score}, %")
    rows = tuple({point.row.run: point.row for point in of}.values())
    table = table_of(of, {setting_text(axis, setting, settings): settings[setting] for setting in chosen}, drawn)
    if len(settings) == 1 and all(is_as_trained(point, found) for point in of):
        return dataclasses.replace(table, caption=f"{title}. {table.caption}")  # the score against memory draws these runs
    is_equal, flops = equality(rows)
    left = len(settings) - len(chosen)
    over = [name for name, value in sorted(of[0].measure.labels.items()) if name not in axis and not isinstance(value, str)]
    mean = f"; mean over {listed(over)} of a run" if over else ""
    return Drawn(
        identity,
        f"{title}{' at equal training FLOPs' if is_equal else ''}",
        figure,
        f"Every marker is one seed{mean}, bars are 95 % intervals over the answers of a run, not over seeds; lines join the "
        f"medians over seeds. {flops}"
        + (f" {left} more setting{'s' if left > 1 else ''} measured and not drawn." if left else ""),
        f"{len(chosen)} panels: {'; '.join(setting_text(axis, setting, settings) for setting in chosen)}.",
        rows,
        table=table,
    )


def table_of(of: Sequence[Point], panels: dict[str, list[Point]], drawn: Sequence[Series]) -> Table:
    """The means over seeds with their intervals: a line per mechanism, memory and budget, a column per panel."""
    lines = []
    for series in drawn:
        mine = [point for point in of if point.series == series]
        for size, of_size in by(mine, lambda point: point.row.memory_bytes).items():
            for rows in rungs([point.row for point in of_size]).values():
                runs = {row.run for row in rows}
                here = {name: [point for point in group if point.row.run in runs] for name, group in panels.items()}
                measures = [point.measure for group in here.values() for point in group]
                shares = (over_seeds(group) if group else "–" for group in here.values())
                lines.append((label_of(series), human_bytes(size), *shares, str(behind(FRESH, rows, measures))))
    score = of[0].measure.metric.replace("_", " ").capitalize()
    said = f"{score}, %: mean over seeds and its 95 % interval, of the seeds' and the questions' spread; none from two seeds."
    return Table(said, ("Mechanism", "Memory", *panels, "From"), tuple(lines))


def over_seeds(of: Sequence[Point]) -> str:
    """The mean share of figures over their seeds, in percent with its interval, as text."""
    seeds = by(of, lambda point: point.row.seed)
    right = {seed: sum(point.value * point.measure.count for point in group) for seed, group in seeds.items()}
    asked = {seed: sum(point.measure.count for point in group) for seed, group in seeds.items()}
    return estimate(share_over_seeds(right, asked).mapped(lambda share: 100 * share))


def guess(of: Sequence[Point], found: Found) -> float | None:
    """The chance of the figures, where it is known and the same for all."""
    return only({chance_at(point, found) for point in of})


def draw_runs(axes: Axes, of: list[Point], place, look: Style) -> None:
    """Draws a marker for each run, the mean of its figures, and a bar where there is one figure with an interval."""
    runs = list(by(of, lambda point: point.row.run).values())
    places = [place(group[0].row.memory_bytes) for group in runs]
    draw_seeds(axes, places, [sum(point.value for point in group) / len(group) for group in runs], look)
    single = [(x, group[0].measure) for x, group in zip(places, runs, strict=True) if len(group) == 1]
    draw_intervals(axes, [x for x, _ in single], [m.low for _, m in single], [m.high for _, m in single], look)


def setting_text(axis: Sequence[str], setting: tuple, settings: dict[tuple, list]) -> str:
    """The labels of a panel that differ between panels; the first one where there is one panel."""
    varied = [n for n in range(len(axis)) if len({other[n] for other in settings}) > 1] or [0]
    return ", ".join(f"{axis[n]} {number(setting[n])}" for n in varied)


def spread_out(items: list, most: int) -> list:
    """At most `most` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]
