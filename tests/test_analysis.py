"""Theory against simulation and limits; fits against known curves and an independent optimiser; verdicts."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import optimize, special

from infini_jax.analysis import fits, theory
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row
from infini_jax.report.predictions import predictions


def test_the_top1_law_gives_the_published_prediction_and_simulation():
    """64 x 64 and V = 8192: predicted 247, simulated 254."""
    assert theory.top1_n50(64, 64, 8192, "mean") == pytest.approx(247, abs=2)
    assert theory.top1_n50(64, 64, 8192) == pytest.approx(254, rel=0.02)


def test_the_top1_law_is_what_a_small_sum_memory_does():
    key_dim, value_dim, symbols, pairs, memories = 16, 24, 512, 24, 300
    random = np.random.default_rng(0)
    right = 0
    for _ in range(memories):
        keys, table = (random.standard_normal(shape) for shape in ((pairs, key_dim), (symbols, value_dim)))
        keys, table = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (keys, table))
        written = random.integers(0, symbols, pairs)
        right += np.sum((keys @ (keys.T @ table[written]) @ table.T).argmax(axis=1) == written)
    # the answers of a memory are wrong together: 1 % standard error over memories; 3 sigma
    assert right / (pairs * memories) == pytest.approx(theory.top1_accuracy(pairs, key_dim, value_dim, symbols), abs=0.03)


def test_one_pair_is_always_right_and_large_memories_reach_the_limit():
    assert theory.top1_accuracy(1, 8, 8, 100) == pytest.approx(1.0, abs=1e-9)
    sizes = (1 << 6, 1 << 14, 1 << 28)
    few, more, most = (theory.top1_n50(2048, 2048, v) / theory.top1_n50_large(2048, 2048, v) for v in sizes)
    assert 1 < most < more < few < 1.6
    assert most < 1.15


def test_the_cosine_of_random_vectors_is_distributed_as_the_cdf_says():
    x = np.random.default_rng(0).standard_normal((20000, 5))
    cosine = x[:, 0] / np.linalg.norm(x, axis=1)
    for point in (-0.5, 0.0, 0.3, 0.8):
        assert theory.cosine_cdf(np.array(point), 5) == pytest.approx(np.mean(cosine <= point), abs=0.012)  # 3 sigma


def test_slots_and_the_rank_law_meet_their_definitions():
    np.testing.assert_allclose(theory.rank_nmse(4, [2, 4, 8]), [0, 0, 0.5])
    assert theory.rank_fit(np.array([2, 4, 8]), np.array([0, 0, 0.5]), 4) == 1.0
    assert theory.bits_per_scalar(theory.top1_n50_large(32, 32, 512), 32 * 32, 512) == pytest.approx(1 / (2 * math.log(2)))


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
    found = fits.half_point(pairs, right, asked)
    assert found.n50 == pytest.approx(math.exp(best[0]), rel=1e-4)
    assert found.slope == pytest.approx(best[1], rel=1e-3)


@pytest.mark.parametrize("n50", [3.0, 20.0, 900.0])
@pytest.mark.parametrize("slope", [0.7, 2.0, 9.0])
def test_a_logistic_curve_gives_back_its_half_point(n50, slope):
    pairs = n50 * np.geomspace(0.2, 6, 9)
    found = fits.half_point(pairs, counts(n50, slope, pairs), np.full(9, 1000.0))
    assert (found.n50, found.slope) == (pytest.approx(n50, rel=1e-4), pytest.approx(slope, rel=1e-3))
    assert found.deviance < 1e-3


def test_a_curve_that_never_crosses_one_half_has_no_half_point():
    for right in ([9, 8, 6], [4, 3, 1], [9], [0, 0]):
        assert math.isnan(fits.half_point([1, 2, 4][: len(right)], right, [10] * len(right)).n50)
    step = fits.half_point([1, 2, 4, 8], [10, 10, 0, 0], [10] * 4)
    assert 2 < step.n50 < 4


def test_the_interval_of_the_half_point_covers_it_about_as_often_as_it_says():
    random, pairs, covered = np.random.default_rng(1), np.geomspace(4, 100, 8), 0
    for _ in range(40):
        right = random.binomial(40, counts(20.0, 2.0, pairs, 1.0), (16, 8))
        low, high = fits.half_point_interval(pairs, right, np.full((16, 8), 40))
        covered += low <= 20.0 <= high
    assert covered >= 33  # 95 % of 40 is 38; fewer than 33 has a chance below one in a thousand
    assert fits.half_point_interval(pairs, right[:1], np.full((1, 8), 40)) is None


def test_a_power_law_and_a_floor_are_found_with_intervals_over_seeds():
    random = np.random.default_rng(0)
    x, seeds = np.repeat([1e3, 2e3, 4e3, 8e3, 16e3], 3), np.tile([0, 1, 2], 5)
    law = fits.power_law(x, 0.02 * x**0.9 * np.exp(0.02 * random.standard_normal(15)), seeds)
    assert law.exponent == pytest.approx(0.9, abs=0.03)
    assert law.exponent_interval[0] < law.exponent < law.exponent_interval[1]
    assert (law.points, law.seeds) == (5, 3)
    floor = fits.floor_law(x, 1.5 + 40 * x**-0.5, seeds)
    assert (floor.floor, floor.scale, floor.power) == pytest.approx((1.5, 40.0, 0.5), rel=1e-3)
    alone = fits.power_law(x[::3], x[::3], seeds[::3])
    assert (alone.exponent, alone.exponent_interval, alone.seeds) == (pytest.approx(1.0), None, 1)
    assert math.isnan(fits.power_law([1e3], [5.0], [0]).exponent)
    assert math.isnan(fits.floor_law(x[:9], x[:9], seeds[:9]).floor)


def test_points_that_are_no_number_do_not_enter_and_a_bootstrap_is_deterministic():
    x, y, seeds = [1.0, 2, 4, 1, 2, 4], [1.0, 2, math.nan, 1.1, 2.1, math.nan], [0, 0, 0, 1, 1, 1]
    law = fits.power_law(x, y, seeds)
    assert law.points == 2
    assert law == fits.power_law(x, y, seeds)


def test_a_decay_gives_back_its_constant():
    age = np.arange(0.0, 60, 5)
    found = fits.decay(age, 0.8 * np.exp(-age / 20) + 0.01 * np.cos(9 * age), np.full(12, 100.0))
    assert found.interval[0] < 20 < found.interval[1]
    assert found.r2 > 0.98
    assert math.isnan(fits.decay([0, 1, 2], [1, 1, 1], [1, 1, 1]).constant)


def row(**changes) -> Row:
    kinds = {int: 0, float: 0.0, str: "", float | None: 0.0, int | None: None, str | None: None}
    plain = {field.name: kinds[field.type] for field in dataclasses.fields(Row)}
    return Row(**{**plain, "task": "capacity", "mechanism": "infini", "variant": "unit", **changes})


def grown(exponent: float, seeds: int, mechanism: str = "infini") -> tuple[list[Row], list[tuple[str, Measure]]]:
    rows, measures = [], []
    for size in (1024, 2048, 4096):
        for seed in range(seeds):
            name = f"{mechanism}-{size}-{seed}"
            rows.append(row(run=name, memory_bytes=size, seed=seed, mechanism=mechanism))
            n50 = 0.02 * size**exponent * (1 + 0.01 * seed)
            measures += [
                (name, Measure("capacity", "n50", n50, 100)),
                (name, Measure("capacity", "bits_per_scalar", 0.8, 100)),
            ]
    return rows, measures


def verdicts(*found) -> dict[tuple[str, str], str]:
    return {(line.name, line.subject): line.verdict for line in predictions(*found)}


def test_verdicts_follow_the_interval():
    key = ("P1", "infini unit")
    assert verdicts(*grown(1.0, 2))[key] == "holds"
    assert verdicts(*grown(1.5, 2))[key] == "fails"
    assert verdicts(*grown(1.1, 2))[key] == "not decided"
    assert verdicts(*grown(1.0, 1))[key] == "not decided"
    assert verdicts(*grown(1.0, 2))[("P2", "infini unit")] == "holds"
    assert verdicts(*grown(1.0, 2, "memorizing"))[("P6", "memorizing unit")] == "holds"


def test_every_prediction_has_a_line_without_any_data():
    lines = predictions([], [])
    assert [line.name for line in lines] == [f"P{number}" for number in range(1, 8)]
    assert {line.verdict for line in lines} == {"not decided"}
    assert all(line.reason for line in lines)


@pytest.mark.parametrize(("by", "verdict"), [("novelty", "holds"), ("length", "fails")])
def test_passkey_by_novelty_is_the_delta_rules_claim(by, verdict):
    rows = [row(run=f"r{seed}", task="books", mechanism="gated_delta", seed=seed) for seed in range(3)]
    measures = []
    for seed in range(3):
        for novelty in (10, 1000):
            for length in (1000, 100_000):
                hard = {"novelty": novelty > 100, "length": length > 10_000}[by]
                labels = {"novelty": novelty, "length": length, "depth": 0.5, "format": "infini"}
                value = 0.2 + 0.01 * seed if hard else 1.0
                measures.append((f"r{seed}", Measure("passkey", "token_accuracy", value, 50, labels=labels)))
    assert verdicts(rows, measures)[("P5", "gated_delta unit")] == verdict
