"""Theory against simulation and limits; fits against known laws and scipy's tests; verdicts."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import linalg, stats

from infini_jax.analysis import fits, theory
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row
from infini_jax.report.behind import rungs
from infini_jax.report.claims import Prediction
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


def test_a_power_law_and_a_floor_are_found_with_intervals_over_seeds():
    random = np.random.default_rng(0)
    x, seeds = np.repeat([1e3, 2e3, 4e3, 8e3, 16e3], 3), np.tile([0, 1, 2], 5)
    law = fits.power_law(x, 0.02 * x**0.9 * np.exp(0.02 * random.standard_normal(15)), seeds)
    assert law.exponent.value == pytest.approx(0.9, abs=0.03)
    assert law.exponent.interval[0] < law.exponent.value < law.exponent.interval[1]
    assert (law.sizes, law.exponent.seeds) == (5, (0, 1, 2))
    floor = fits.floor_law(x, 1.5 + 0.6 * (x / 4e3) ** -0.5, seeds)
    assert (floor.floor.value, floor.scale.value, floor.power.value) == pytest.approx((1.5, 0.6, 0.5), rel=1e-3)
    assert floor.unit == pytest.approx(4e3)
    assert floor(x[0]) == pytest.approx(1.5 + 0.6 * 0.25**-0.5, rel=1e-3)


def test_laws_that_cannot_be_fitted_say_why():
    x = np.repeat([1e3, 2e3, 4e3, 8e3], 3)
    alone = fits.power_law(x[::3], x[::3], np.zeros(4, int))
    assert (alone.exponent.value, alone.exponent.interval) == (pytest.approx(1.0), None)
    assert alone.exponent.why == "no interval from 1 seed (0)"
    assert math.isnan(fits.power_law([1e3], [5.0], [0]).exponent.value)
    few = fits.floor_law(x[:9], x[:9], np.tile([0, 1, 2], 3))
    assert math.isnan(few.floor.value)
    assert few.power.why == "fewer than four sizes"


def test_the_exponent_of_seeds_is_the_t_interval_of_their_own_exponents():
    random = np.random.default_rng(3)
    x_N = np.array([512.0, 1024, 4096, 8192])
    y_SxN = 3 * x_N**0.8 * np.exp(0.1 * random.standard_normal((4, 4)))
    own = [stats.linregress(np.log(x_N), np.log(y_N)) for y_N in y_SxN]
    law = fits.power_law(np.tile(x_N, 4), y_SxN.ravel(), np.repeat([0, 1, 2, 3], 4))
    slopes, constants = [one.slope for one in own], [one.intercept for one in own]
    assert law.exponent.value == pytest.approx(np.mean(slopes))
    assert law.exponent.interval == pytest.approx(stats.t.interval(0.95, 3, np.mean(slopes), stats.sem(slopes)))
    ends = np.exp(stats.t.interval(0.95, 3, np.mean(constants), stats.sem(constants)))
    assert law.prefactor.interval == pytest.approx(tuple(ends))


def test_points_that_are_no_number_do_not_enter_and_are_named():
    x, y, seeds = [1.0, 2, 4, 1, 2, 4], [1.0, 2, math.nan, 1.1, 2.1, math.nan], [0, 0, 0, 1, 1, 1]
    law = fits.power_law(x, y, seeds)
    assert law.sizes == 2
    assert law.exponent.dropped == ("size 4 (no seed has it)",)


def test_the_interval_of_a_power_holds_what_no_t_test_of_the_seeds_refutes():
    """With two of its three parameters free a law of four sizes leaves one direction; the t test is scipy's."""
    random = np.random.default_rng(5)
    log_N = np.log(np.array([1.0, 4, 16, 64]) / 8)
    y_SxN = 1.0 + 0.5 * np.exp(-0.4 * log_N) + 0.01 * random.standard_normal((5, 4))
    found = fits.floor_law(np.tile([1.0, 4, 16, 64], 5), y_SxN.ravel(), np.repeat(range(5), 4)).power
    for power, stands in ((found.interval[0] * 1.001, True), (found.interval[0] * 0.99, False), (found.value, True)):
        curve_N = np.exp(-power * log_N)
        null_NxK = linalg.null_space(np.stack([np.ones(4), curve_N]))
        direction_N = null_NxK @ (null_NxK.T @ (log_N * curve_N))
        assert (stats.ttest_1samp(y_SxN @ direction_N, 0.0).pvalue >= 0.05) == stands


def test_a_decay_gives_back_its_constant():
    age = np.arange(0.0, 60, 5)
    found = fits.decay(age, 0.8 * np.exp(-age / 20) + 0.01 * np.cos(9 * age), np.full(12, 100.0))
    assert found.constant == pytest.approx(20, rel=0.05)
    assert found.r2 > 0.98
    assert math.isnan(fits.decay([0, 1, 2], [1, 1, 1], [1, 1, 1]).constant)


def row(**changes) -> Row:
    kinds = {int: 0, float: 0.0, str: "", float | None: 0.0, int | None: None, str | None: None, bool | None: None}
    plain = {field.name: kinds[field.type] for field in dataclasses.fields(Row)}
    return Row(**{**plain, "task": "capacity", "mechanism": "infini", "variant": "unit", **changes})


def grown(exponent: float, seeds: int, mechanism: str = "infini") -> tuple[list[Row], list[tuple[str, Measure]]]:
    rows, measures = [], []
    for size in (1024, 2048, 4096):
        for seed in range(seeds):
            name = f"{mechanism}-{size}-{seed}"
            rows.append(row(run=name, memory_bytes=size, seed=seed, mechanism=mechanism))
            noise = 1 + 0.01 * math.sin(7 * seed + size)
            measures += [
                (name, Measure("capacity", "n50", 0.02 * size**exponent * noise, 100)),
                (name, Measure("capacity", "bits_per_scalar", 0.8 * noise, 100)),
            ]
    return rows, measures


def lines(*found) -> dict[tuple[str, str], Prediction]:
    return {(line.name, line.subject): line for line in predictions(*found)}


def test_verdicts_follow_the_interval():
    key = ("P1", "infini unit")
    assert lines(*grown(1.0, 3))[key].verdict == "agrees"
    assert lines(*grown(1.5, 3))[key].verdict == "contradicts"
    crossing = lines(*grown(1.102, 3))[key]
    assert (crossing.verdict, crossing.reason) == ("not settled", "the interval crosses the edge of the claim; 3 sizes")
    assert lines(*grown(1.0, 3))[("P2", "infini unit")].verdict == "agrees"
    assert lines(*grown(1.0, 3, "memorizing"))[("P6", "memorizing unit")].verdict == "agrees"


def test_two_seeds_settle_nothing_whatever_they_are():
    for exponent in (1.0, 1.5):
        line = lines(*grown(exponent, 2))[("P1", "infini unit")]
        assert (line.verdict, line.measured.interval) == ("not settled", None)
        assert line.reason == "no interval from 2 seeds (0, 1); 3 sizes"


def test_a_number_stands_beside_its_split_answers_seeds_rung_and_rate():
    rows, measures = grown(1.0, 3)
    rows = [dataclasses.replace(row, budget_unit="steps", budget_amount=1200.0, learning_rate=0.01) for row in rows]
    line = lines(rows, measures)[("P1", "infini unit")]
    assert str(line.behind) == "evaluation; 900 answers; seeds 0, 1, 2; 1,200 steps; rate 0.01"


def test_rungs_of_a_ladder_are_judged_apart():
    rows, measures = grown(1.0, 3)
    longer = [dataclasses.replace(row, run=f"{row.run}-long", budget_unit="steps", budget_amount=4800.0) for row in rows]
    short = [dataclasses.replace(row, budget_unit="steps", budget_amount=1200.0) for row in rows]
    more = [(f"{run}-long", dataclasses.replace(one, value=one.value**1.5)) for run, one in measures]
    found = lines([*short, *longer], [*measures, *more])
    assert found[("P1", "infini unit, 1,200 steps")].verdict == "agrees"
    assert found[("P1", "infini unit, 4,800 steps")].verdict == "contradicts"


def test_how_much_was_asked_where_nothing_is_trained_is_no_rung():
    untrained = [row(run=f"r{n}", budget_unit="tokens", budget_amount=1000.0 * n, learning_rate=None) for n in (1, 2)]
    assert rungs(untrained) == {"": untrained}


def test_a_seed_without_a_half_way_point_at_some_size_is_named():
    rows, measures = grown(1.0, 4)
    measures = [(run, one) for run, one in measures if run != "infini-2048-3"]
    line = lines(rows, measures)[("P1", "infini unit")]
    assert line.measured.seeds == (0, 1, 2)
    assert line.reason.endswith("without seed 3 (not measured at 512)")  # 2048 bytes are 512 scalars


def test_how_many_half_way_points_are_crossings_is_said():
    rows, measures = grown(1.0, 3)
    marked = [(run, dataclasses.replace(one, labels={"by": "crossing" if "1024" in run else "fit"})) for run, one in measures]
    assert "3 of 9 n50 by crossing" in lines(rows, marked)[("P1", "infini unit")].reason


def test_elu_is_judged_by_its_ratio_to_unit_keys_of_the_same_seeds():
    rows, measures = [], []
    for seed in range(5):
        for variant, bits in (("unit", 0.8), ("elu", 0.4)):
            name, luck = f"{variant}-{seed}", 1 + 0.3 * math.sin(3 * seed)  # of a seed's data, which both share
            rows.append(row(run=name, memory_bytes=1024, seed=seed, variant=variant))
            measures.append((name, Measure("capacity", "bits_per_scalar", bits * luck * (1 + 0.001 * len(rows)), 100)))
    line = lines(rows, measures)[("P2", "infini elu")]
    assert line.measured.value == pytest.approx(0.5, rel=0.01)
    assert line.verdict == "agrees"


def test_every_prediction_has_a_line_without_any_data():
    found = predictions([], [])
    assert [line.name for line in found] == [f"P{number}" for number in range(1, 8)]
    assert {line.verdict for line in found} == {"not settled"}
    assert all(line.reason == "no run measures it" for line in found)


def passkeys(value_of, seeds: int = 3):
    rows = [row(run=f"r{seed}", task="books", mechanism="gated_delta", seed=seed) for seed in range(seeds)]
    measures = []
    for seed in range(seeds):
        for novelty in (10, 1000):
            for length in (1000, 100_000):
                labels = {"novelty": novelty, "length": length, "depth": 0.5, "format": "infini"}
                value = value_of(seed, novelty, length)
                measures.append((f"r{seed}", Measure("passkey", "token_accuracy", value, 50, labels=labels)))
    return lines(rows, measures)[("P5", "gated_delta unit")]


@pytest.mark.parametrize(("by", "verdict"), [("novelty", "agrees"), ("length", "contradicts")])
def test_passkey_by_novelty_is_the_delta_rules_claim(by, verdict):
    def value(seed, novelty, length):
        hard = {"novelty": novelty > 100, "length": length > 10_000}[by]
        return 0.2 + 0.01 * seed if hard else 1.0

    assert passkeys(value).verdict == verdict


def test_seeds_that_are_all_right_everywhere_leave_what_their_questions_allow():
    line = passkeys(lambda seed, novelty, length: 1.0, seeds=5)
    low, high = line.measured.interval
    assert line.measured.value == pytest.approx(0.0, abs=1e-12)
    assert low < -0.01 < 0.01 < high
    assert line.verdict == "not settled"
