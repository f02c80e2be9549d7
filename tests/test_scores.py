"""Shares and their intervals against other ways to find them."""

import numpy as np
import pytest
from scipy import stats

from infini_jax.analysis.intervals import wilson
from infini_jax.evals.scores import effective_trials, first_number, mean_measure, share_measure


def test_wilson_is_the_interval_of_the_textbook_and_of_scipy():
    """81 of 263 is the example of Newcombe 1998, table I: 0.2553 to 0.3662."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    for right, count in ((0, 50), (45, 50), (50, 50), (1, 1)):
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_answers_of_one_example_count_as_much_as_they_tell():
    random = np.random.default_rng(0)
    together = np.repeat(random.random(400) < 0.7, 10).reshape(400, 10)  # all right or all wrong
    apart = random.random((400, 10)) < 0.7
    asked = np.full(400, 10.0)
    assert effective_trials(together.sum(1).astype(float), asked) == pytest.approx(400, rel=0.01)
    assert effective_trials(apart.sum(1).astype(float), asked) == pytest.approx(4000, rel=0.15)
    assert effective_trials(asked, asked) == 400
    assert effective_trials(np.array([3.0]), np.array([10.0])) == 1


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Beta-binomial answers, 5 an example: 95 % of 400 intervals, within three standard errors."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(400):
        share_E = random.beta(1.4, 0.6, 60)
        hits = [random.random(5) < share for share in share_E]
        found = share_measure("any", "accuracy", hits, {})
        covered += found.low <= 0.7 <= found.high
    assert covered / 400 == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 400))


def test_a_share_weighs_answers_and_a_mean_weighs_examples():
    found = share_measure("any", "accuracy", [np.array([True, False, False]), np.array([True])], {"length": 4})
    assert (found.value, found.count, found.labels) == (0.5, 4, {"length": 4})
    assert found.low < 0.5 < found.high
    values = [0.1, 0.4, 0.5, 0.9]
    mean = mean_measure("any", "tau", values, {})
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean.value, mean.count) == (pytest.approx(0.475), 4)
    assert (mean.low, mean.high) == pytest.approx((expected.low, expected.high))
    assert np.isnan(mean_measure("any", "tau", [0.5], {}).low)


@pytest.mark.parametrize(
    ("text", "number"),
    [(" 4711. Remember it. 12", "4711"), ("It is 007", "007"), ("no digits", None), ("", None), ("x12y3", "12"), ("٣ 5", "5")],
)
def test_the_first_number_of_a_text(text, number):
    assert first_number(text) == number
