"""The half-way point of recall curves: the fit against an independent optimiser, the crossing where there is no logistic."""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from infini_jax.analysis.half_points import dispersion_of, half_point, half_point_interval, is_monotone, labelled


def counts(n50: float, slope: float, pairs: np.ndarray, asked: float = 1000.0) -> np.ndarray:
    return asked * special.expit(-slope * np.log(pairs / n50))


def test_the_half_point_is_that_of_an_independent_optimiser():
    pairs = np.array([6.0, 9, 13, 20, 30, 45])
    right, asked = np.array([92.0, 81, 70, 44, 31, 12]), np.full(6, 100.0)
    inside = (right > 20) & (right < 80)  # none lies at the edge of the middle, so both fits take the same points

    def loss(theta):
        p = special.expit(-theta[1] * (np.log(pairs[inside]) - theta[0]))
        return -np.sum(right[inside] * np.log(p) + (asked - right)[inside] * np.log1p(-p))

    best = optimize.minimize(loss, [3.0, 2.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    found = half_point(pairs, right, asked)
    assert found.n50 == pytest.approx(math.exp(best[0]), rel=1e-4)
    assert found.slope == pytest.approx(best[1], rel=1e-3)


@pytest.mark.parametrize("n50", [3.0, 20.0, 900.0])
@pytest.mark.parametrize("slope", [0.7, 2.0, 9.0])
def test_a_logistic_curve_gives_back_its_half_point(n50, slope):
    pairs = n50 * np.geomspace(0.2, 6, 9)
    found = half_point(pairs, counts(n50, slope, pairs), np.full(9, 1000.0))
    assert (found.n50, found.slope) == (pytest.approx(n50, rel=1e-4), pytest.approx(slope, rel=1e-3))
    assert found.deviance < 1e-3


def test_a_curve_that_never_crosses_one_half_has_no_half_point():
    for right in ([9, 8, 6], [4, 3, 1], [9], [0, 0]):
        assert math.isnan(half_point([1, 2, 4][: len(right)], right, [10] * len(right)).n50)
    step = half_point([1, 2, 4, 8], [10, 10, 0, 0], [10] * 4)
    assert 2 < step.n50 < 4


def test_a_curve_that_is_not_monotone_is_read_at_its_last_crossing():
    """A logistic puts n50 of this curve where nothing happens: too little was learned to bring back few pairs."""
    pairs, asked = np.array([8, 16, 32, 64, 128, 256]), np.full(6, 400.0)
    right = asked * [0.3, 0.45, 0.7, 0.8, 0.6, 0.1]
    found = half_point(pairs, right, asked)
    assert (found.by, found.crossings) == ("crossing", 1)
    assert found.n50 == pytest.approx(128 * 2 ** (0.1 / 0.5))  # a fifth of the way from 0.6 to 0.1, in log n
    assert math.isnan(found.slope)
    assert labelled(found) == {"by": "crossing"}


def test_of_several_crossings_the_last_is_taken_and_all_are_counted():
    found = half_point([1, 2, 4, 8], [90, 20, 80, 10], [100] * 4)
    assert (found.by, found.crossings) == ("crossing", 2)
    assert found.n50 == pytest.approx(4 * 2 ** (0.3 / 0.7))


def test_a_curve_that_has_not_fallen_by_the_largest_n_has_no_half_point():
    for shares in ([0.2, 0.4, 0.9], [0.9, 0.2, 0.8]):
        found = half_point([1, 2, 4], np.array(shares) * 100, [100] * 3)
        assert (math.isnan(found.n50), found.by, labelled(found)) == (True, "", {})


def test_noise_of_few_questions_is_no_reason_to_leave_the_fit():
    random, pairs = np.random.default_rng(0), np.geomspace(4, 100, 8)
    by = [half_point(pairs, random.binomial(40, counts(20.0, 2.0, pairs, 1.0)), np.full(8, 40)).by for _ in range(300)]
    assert by.count("fit") >= 285  # each of two tests leaves it once in a hundred


def test_a_step_in_a_curve_of_many_questions_is_a_deviance_out_of_range():
    pairs, asked = np.geomspace(4, 128, 6), np.full(6, 2000.0)
    right = asked * [0.9, 0.75, 0.7, 0.65, 0.3, 0.25]
    found = half_point(pairs, right, asked)
    assert found.by == "crossing"
    assert found.deviance > stats.chi2.isf(0.01, found.freedom)
    assert half_point(pairs, right, asked, dispersion=200.0).by == "fit"  # if memories differ so much it may be chance


def test_the_test_of_monotony_leaves_as_often_as_it_says():
    """Its level is the worst case of a flat curve; the best monotone curve is that of scipy."""
    random, asked = np.random.default_rng(1), np.full(6, 200.0)
    flat = [is_monotone(random.binomial(200, 0.5, 6).astype(float), asked) for _ in range(1000)]
    assert 0.002 <= 1 - np.mean(flat) <= 0.025  # nominal 0.01, conditional on the blocks
    k = np.array([150.0, 160, 90, 100, 40, 60])
    best = optimize.isotonic_regression(k / asked, weights=asked, increasing=False).x
    gain = 2 * np.sum(special.xlogy(k, k / asked / best) + special.xlogy(asked - k, (1 - k / asked) / (1 - best)))
    blocks = len(np.unique(best))
    assert is_monotone(k, asked) == (gain <= stats.chi2.isf(0.01, 6 - blocks))


def test_dispersion_is_one_for_independent_questions_and_the_excess_for_memories_that_differ():
    random = np.random.default_rng(2)
    asked = np.full((400, 3), 50.0)
    assert dispersion_of(random.binomial(50, [0.2, 0.5, 0.9], (400, 3)), asked) == pytest.approx(1.0, abs=0.13)
    share = random.beta(5, 5, (400, 3))  # variance 1 / 44 of shares: 1 + 49 / 11 times the binomial's
    assert dispersion_of(random.binomial(50, share), asked) == pytest.approx(1 + 49 / 11, rel=0.12)
    assert dispersion_of(np.full((3, 2), 50.0), asked[:3, :2]) == 1.0


def test_too_few_memories_or_none_that_differ_have_no_interval():
    pairs, asked = np.array([1.0, 2, 4, 8]), np.full((5, 4), 10.0)
    step = np.tile([10.0, 10, 0, 0], (5, 1))
    assert half_point_interval(pairs, step, asked) is None
    noisy = step + np.array([[0, -1, 1, 0], [0, 0, 2, 0], [0, -2, 0, 0], [0, -3, 1, 0], [0, -1, 3, 0]])
    low, high = half_point_interval(pairs, noisy, asked)
    assert low < half_point(pairs, noisy.sum(axis=0), asked.sum(axis=0)).n50 < high
    assert half_point_interval(pairs, noisy[:2], asked[:2]) is None


def test_the_interval_over_memories_is_a_jackknife_of_the_logarithm():
    random, pairs, asked = np.random.default_rng(4), np.geomspace(6, 60, 5), np.full((6, 5), 30.0)
    right = random.binomial(30, counts(20.0, 2.0, pairs, 1.0), (6, 5)).astype(float)
    right[:, 0] -= 3  # no point leaves the fit or enters it when a row is left out
    whole = half_point(pairs, right.sum(axis=0), asked.sum(axis=0)).n50
    left = [half_point(pairs, *(np.delete(of, row, axis=0).sum(axis=0) for of in (right, asked))).n50 for row in range(6)]
    error = math.sqrt(5 / 6 * np.sum((np.log(left) - np.mean(np.log(left))) ** 2))
    expected = whole * np.exp(np.array([-1, 1]) * stats.t.ppf(0.975, 5) * error)
    assert half_point_interval(pairs, right, asked) == pytest.approx(tuple(expected), rel=1e-6)
