"""Figures from answers: shares with their 95 % intervals, and the number in a text."""

import math
import re
from collections.abc import Sequence

import numpy as np

from infini_jax.analysis.intervals import wilson
from infini_jax.records.measures import Label, Measure
from infini_jax.units import ratio


def ratio_variance(sums_E: np.ndarray, counts_E: np.ndarray) -> float:
    """The variance of a ratio of sums over E > 1 groups, from how groups differ (Kish 1965, section 6.3)."""
    groups, count = len(counts_E), float(counts_E.sum())
    strays_E = sums_E - sums_E.sum() / count * counts_E
    return groups / (groups - 1) * float((strays_E**2).sum()) / count**2


def effective_trials(right_E: np.ndarray, asked_E: np.ndarray) -> float:
    """The number of independent trials that tell as much as the answers of E examples, as those of one example go together.

    Share (1 - share) over the variance of the share, at least the number of examples and at most that of answers; where all
    answers are right, or none, nothing tells that those of one example are independent, and each example counts once.
    """
    examples, asked = len(asked_E), float(asked_E.sum())
    share = ratio(float(right_E.sum()), asked)
    if examples <= 1 or share in (0.0, 1.0):
        return float(examples)
    variance = ratio_variance(right_E, asked_E)
    return min(asked, max(float(examples), share * (1 - share) / variance)) if variance else asked


def share_measure(evaluation: str, metric: str, hits: Sequence[np.ndarray | bool], labels: dict[str, Label]) -> Measure:
    """The share of right answers as a figure with its 95 % interval (Wilson's, over `effective_trials`).

    `hits` has for each example whether each of its answers was right.
    """
    right_E = np.array([np.sum(one) for one in hits], float)
    asked_E = np.array([np.size(one) for one in hits], float)
    share = ratio(float(right_E.sum()), float(asked_E.sum()))
    trials = effective_trials(right_E, asked_E)
    low, high = wilson(share * trials, trials) or (math.nan, math.nan)
    return Measure(evaluation, metric, share, int(asked_E.sum()), low, high, labels)


def mean_measure(evaluation: str, metric: str, values: Sequence[float], labels: dict[str, Label]) -> Measure:
    """The mean over examples as a figure with its 95 % interval by Student's t; no interval for a single example."""
    from scipy import stats  # takes a second to load

    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Measure(evaluation, metric, mean, count, labels=labels)
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Measure(evaluation, metric, mean, count, mean - half, mean + half, labels)


def first_number(text: str) -> str | None:
    """The first run of ASCII digits in a text, None without one."""
    found = re.search("[0-9]+", text)
    return found and found.group()
