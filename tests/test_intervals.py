"""Intervals over seeds against scipy's, and what they do with seeds that are missing or do not differ."""

import math

import numpy as np
import pytest
from scipy import stats

from infini_jax.analysis.intervals import (
    curves_of,
    mean_of_seeds,
    mean_over_seeds,
    paired_difference,
    share_over_seeds,
    wilson,
)


def test_a_mean_has_the_t_interval_of_scipy():
    values = {0: 0.31, 1: 0.42, 2: 0.35, 3: 0.51, 4: 0.44}
    found = mean_of_seeds(values)
    expected = stats.ttest_1samp(list(values.values()), 0).confidence_interval(0.95)
    assert found.interval == pytest.approx(tuple(expected))
    assert (found.value, found.seeds, found.why) == (pytest.approx(0.406), (0, 1, 2, 3, 4), "")


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_seeds_have_no_interval_and_are_named(count):
    found = mean_of_seeds({seed: 0.1 * seed for seed in range(count)})
    assert found.interval is None
    assert found.why == {1: "no interval from 1 seed (0)", 2: "no interval from 2 seeds (0, 1)"}[count]


def test_seeds_without_spread_are_no_certainty():
    found = mean_of_seeds({0: 0.8, 1: 0.8, 2: 0.8 + 1e-16})
    assert (found.value, found.interval, found.why) == (pytest.approx(0.8), None, "no spread over 3 seeds (0, 1, 2)")


def test_a_known_deviation_is_the_least_that_seeds_may_have():
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert mean_of_seeds({0: 0.8, 1: 0.8, 2: 0.8}, 0.1).interval == pytest.approx((0.8 - half, 0.8 + half))
    wide = {0: 0.1, 1: 0.8, 2: 0.5}
    assert mean_of_seeds(wide, 0.1) == mean_of_seeds(wide)


def test_a_seed_that_lacks_a_size_is_left_out_and_named():
    x, y = [1, 2, 4] * 4, [1.0, 2, 3, 1, 2, 5, 1, 2, math.nan, 2, 2, 2]
    found = mean_over_seeds(x, y, np.repeat([0, 1, 2, 3], 3))
    assert found.seeds == (0, 1, 3)
    assert found.dropped == ("seed 2 (not measured at 4)",)
    assert found.value == pytest.approx(np.mean([2, 8 / 3, 2]))
    assert mean_over_seeds([1, 1, 2], [1.0, 2.0, 3.0], [0, 1, 0]).dropped == (
        "seed 1 (not measured at 2)",
    )  # without a NaN, too


def test_a_size_that_nobody_has_is_named_and_costs_no_seed():
    x, y = [1, 2, 4] * 3, [1.0, 2, math.nan] * 3
    curves = curves_of(x, y, np.repeat([0, 1, 2], 3))
    assert (curves.seeds, curves.dropped, list(curves.x_N)) == ((0, 1, 2), ("size 4 (no seed has it)",), [1, 2])


def test_where_nothing_is_measured_nothing_is_said():
    for found in (mean_over_seeds([1, 2], [math.nan, math.nan], [0, 1]), mean_over_seeds([], [], [])):
        assert math.isnan(found.value)
        assert (found.interval, found.why) == (None, "nothing measures it")


def test_a_paired_difference_is_scipy_s_paired_test_over_common_seeds():
    a, b = {0: 0.9, 1: 0.5, 2: 0.7, 3: 0.8, 5: 0.3}, {3: 0.72, 0: 0.85, 1: 0.46, 2: 0.61, 4: 0.9}
    found = paired_difference(a, b)
    common = [0, 1, 2, 3]
    expected = stats.ttest_rel([a[s] for s in common], [b[s] for s in common]).confidence_interval(0.95)
    assert found.interval == pytest.approx(tuple(expected))
    assert found.seeds == (0, 1, 2, 3)
    assert found.dropped == ("seed 5 (not in both)", "seed 4 (not in both)")


def test_a_paired_difference_leaves_out_what_is_no_number_and_needs_three_seeds():
    found = paired_difference({0: 1.0, 1: math.nan, 2: 3.0}, {0: 0.5, 1: 1.0, 2: 1.0})
    assert (found.value, found.interval) == (1.25, None)
    assert found.why == "no interval from 2 seeds (0, 2)"
    assert found.dropped == ("seed 1 (not in both)",)


def test_five_seeds_that_are_all_right_have_the_interval_of_their_questions():
    found = share_over_seeds(dict.fromkeys(range(5), 64), dict.fromkeys(range(5), 64))
    low, high = found.interval
    assert (found.value, high) == (1.0, 1.0)
    assert low <= wilson(320, 320)[0] < 1
    assert low < share_over_seeds(dict.fromkeys(range(5), 640), dict.fromkeys(range(5), 640)).interval[0] < 1
    none = share_over_seeds(dict.fromkeys(range(5), 0), dict.fromkeys(range(5), 64)).interval
    assert none == pytest.approx((0.0, 1 - low))


def test_shares_of_seeds_that_differ_have_the_t_interval():
    right = {0: 20, 1: 60, 2: 35, 3: 50, 4: 44}
    found = share_over_seeds(right, dict.fromkeys(right, 64))
    expected = stats.ttest_1samp([k / 64 for k in right.values()], 0).confidence_interval(0.95)
    assert found.interval == pytest.approx(tuple(expected))
    assert share_over_seeds({0: 3, 1: 4}, {0: 5, 1: 5}).interval is None
    assert share_over_seeds({0: 3, 1: 0}, {0: 5, 1: 0}).dropped == ("seed 1 (not asked)",)
