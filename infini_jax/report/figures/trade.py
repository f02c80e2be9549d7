"""F8, the best split of a FLOP budget between the local window and memory."""

import math
import statistics

from infini_jax.records.rows import Row
from infini_jax.report.found import Found, at, by, by_task
from infini_jax.report.looks import BASELINE, INK, Series, Style, in_order, label_of, series_of
from infini_jax.report.parts import Drawn, Figures, NotMeasured, listed, number
from infini_jax.report.plots import draw_seeds, key, legend, our_look, panels, share_axis
from infini_jax.report.scores import behind_score, difference, score_for
from infini_jax.report.sections import equality
from infini_jax.study.scores import Score
from infini_jax.units import human_bytes

WindowShare = tuple[int, int]  # tokens of the local window, bytes of memory


def window_of(row: Row, found: Found) -> int | None:
    """Tokens of a run's local window: the sliding window, or the segment beside a memory; None where it is not known."""
    config = found.configs.get(row.run, {})
    return at(config, "model.memory.window") if row.mechanism == BASELINE else at(config, "model.segment")


def splits_of(rows: list[Row], found: Found) -> dict[Series, dict[WindowShare, list[Row]]]:
    """The runs by mechanism and variant, and by split, one per seed; only where both window and memory vary."""
    known = [(row, window) for row in rows if (window := window_of(row, found)) is not None]
    splits = {
        series: by((row for row, _ in group), lambda row: (window_of(row, found), row.memory_bytes))
        for series, group in by(known, lambda pair: series_of(pair[0])).items()
    }
    return {
        series: points
        for series, points in splits.items()
        if len({window for window, _ in points}) > 1 and (series[0] == BASELINE or len({size for _, size in points}) > 1)
    }


def best_split(found: Found, styles: dict[Series, Style]) -> Figures:
    """F8: the best split of a FLOP budget, one figure per task where window was traded against memory."""
    figures: Figures = []
    for task, rows in by_task(found.rows, found.configs).items():
        splits = splits_of(rows, found)
        if any(series[0] != BASELINE for series in splits):
            figures.append(one_trade(task, found, rows, splits, styles))
    title = "Best split of a FLOP budget between window and memory"
    return figures or [NotMeasured("F8", title, "runs that trade the local window against memory at equal training FLOPs")]


def one_trade(
    task: str, found: Found, rows: list[Row], splits: dict[Series, dict[WindowShare, list[Row]]], styles: dict[Series, Style]
) -> Drawn:
    """The figure of one task: the score against the local window, with the memory of each split as a label."""
    score, drawn = score_for(rows, found), in_order(splits, styles)
    used = [row for series in drawn for group in splits[series].values() for row in group]
    is_equal, flops = equality(used)
    with our_look():
        figure, (axes,) = panels(1, 3.0, len(drawn))
        axes.set_xscale("log", base=2)
        for series in drawn:
            points = [(window, score.of(row), size) for (window, size), group in splits[series].items() for row in group]
            draw_seeds(axes, [p[0] for p in points], [p[1] for p in points], styles[series])
            for (window, size), group in splits[series].items() if series[0] != BASELINE else ():
                place = (window, max(map(score.of, group)))
                axes.annotate(human_bytes(size), place, (0, 7), textcoords="offset points", ha="center", size=6.5, color=INK)
        if not score.unit:
            share_axis(axes)
        windows = sorted({window for points in splits.values() for window, _ in points})
        axes.set_xticks(windows[:: math.ceil(len(windows) / 8)], [number(w) for w in windows[:: math.ceil(len(windows) / 8)]])
        axes.minorticks_off()
        axes.set_xlabel("local window, tokens")
        axes.set_ylabel(score.axis)
        legend(figure, [key(styles[s], label_of(s)) for s in drawn])
    said = [verdict(series, splits[series], score) for series in drawn if series[0] != BASELINE]
    return Drawn(
        f"F8-{task}",
        f"Window against memory{' at equal training FLOPs' if is_equal else ''}: {task}",
        figure,
        f"Every marker is one seed, with the memory's bytes above; lines join medians. {' '.join(said)} "
        f"{behind_score(used, score)} {flops}",
        f"Mechanisms: {listed([label_of(series) for series in drawn])}. {' '.join(said)}",
        tuple(used),
    )


def verdict(series: Series, points: dict[WindowShare, list[Row]], score: Score) -> str:
    """The sentence on the best split by the median, and its difference from the next best over the seeds that both have."""
    medians = {split: statistics.median(map(score.of, group)) for split, group in points.items()}
    best, *others = sorted(medians, key=medians.__getitem__, reverse=score.higher_is_better)
    text = f"{label_of(series)} has its best median with a window of {number(best[0])} and {human_bytes(best[1])} of memory"
    if not others:
        return f"{text}."
    unit = score.unit or "points of a hundred"
    return f"{text}; minus the next best, seed by seed, in {unit}: {difference(points[best], points[others[0]], score)}."
