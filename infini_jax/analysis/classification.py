"""Scores of classifiers, and their intervals over items: accuracy, F1 and the Matthews correlation coefficient.

All follow from the table of counts `counts_CxC`: items of class i that were taken for class j. Letters: N items, C classes,
Z resampled tables.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from infini_jax.analysis.intervals import wilson

DRAWS, SEED = 10_000, 0  # of the bootstrap
Metric = Callable[[np.ndarray], np.ndarray]


def counts_of(right: ArrayLike, said: ArrayLike, classes: int) -> np.ndarray:
    """The table CxC of how many items of each class (N right answers) were taken for each class (N answers said)."""
    cells = np.asarray(right, int) * classes + np.asarray(said, int)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Share of right answers, of tables of counts ...xCxC."""
    return ratio_or_zero(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of class 1 of two, 2 hits / (2 hits + both errors), of tables ...x2x2; 0 where class 1 is neither there nor said."""
    hits = counts[..., 1, 1]
    return ratio_or_zero(2.0 * hits, 2.0 * hits + counts[..., 0, 1] + counts[..., 1, 0])


def matthews(counts: np.ndarray) -> np.ndarray:
    """The Matthews correlation coefficient of tables ...xCxC (Gorodkin 2004, equation 8, for C classes).

    It is 0 where all items are of one class, or all are taken for one.
    """
    table = counts.astype(float)
    of, said, items = table.sum(-1), table.sum(-2), table.sum((-2, -1))
    covariance = np.trace(table, axis1=-2, axis2=-1) * items - (of * said).sum(-1)
    spread = (items**2 - (of**2).sum(-1)) * (items**2 - (said**2).sum(-1))
    return ratio_or_zero(covariance, np.sqrt(spread))


METRICS: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
"""Registry of metrics: name in figures -> function of tables of counts ...xCxC."""


def ratio_or_zero(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, and 0 where `below` is 0."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=np.asarray(below) != 0)


def metric_interval(metric: str, counts: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a metric over items, from their table CxC: Wilson's of the accuracy, a bootstrap of others.

    The bootstrap draws as many items again, `DRAWS` times, and takes percentiles. Every cell has half an item more to be drawn
    from, so that a table without errors has an interval, too: without it the draws are all alike. The value itself is inside.
    """
    items = int(counts.sum())
    found = wilson(float(np.trace(counts)), items) if metric == "accuracy" else None
    if found is not None:
        return found
    shares = (counts + 0.5).ravel()
    drawn_ZxCxC = np.random.default_rng(SEED).multinomial(items, shares / shares.sum(), DRAWS).reshape(-1, *counts.shape)
    value, ends = float(METRICS[metric](counts)), np.percentile(METRICS[metric](drawn_ZxCxC), [2.5, 97.5])
    return min(value, float(ends[0])), max(value, float(ends[1]))


def mean_interval(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """(mean, low, high) of independent scores with their 95 % intervals, each (value, low, high).

    Errors add up in squares on either side: an approximation for scores whose errors are about normal. It tells nothing of
    other tasks than these.
    """
    values = np.asarray(parts, float)
    mean, count = float(values[:, 0].mean()), len(parts)
    down, up = (float(np.sqrt(((values[:, 0] - values[:, side]) ** 2).sum())) / count for side in (1, 2))
    return mean, mean - down, mean + up
