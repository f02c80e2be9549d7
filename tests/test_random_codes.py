"""Update rules on random codes, against loops over tokens and the layer's own functions."""

import numpy as np
import pytest

from infini_jax.analysis import theory
from infini_jax.codes.random_codes import RULES, RandomCodesRun, age_bins, measure, unit_rows
from infini_jax.errors import ConfigError
from infini_jax.memory import infini

KEYS, VALUES = (unit_rows(np.random.default_rng(seed), 11, dim).astype(np.float64) for seed, dim in ((0, 6), (1, 5)))


def test_the_delta_rule_is_its_loop_over_tokens():
    read = RULES["delta"](KEYS, VALUES, 4)
    S = np.zeros((6, 5))
    for n, (key, value) in enumerate(zip(KEYS, VALUES, strict=True), start=1):
        S += np.outer(key, value - key @ S)
        np.testing.assert_allclose(read(n), KEYS[:n] @ S, atol=1e-12)  # float64 rounding


@pytest.mark.parametrize(("rule", "update"), [("elu_sum", "linear"), ("elu_delta", "delta")])
def test_the_elu_rules_are_the_layers_own(rule, update):
    keys = (KEYS * 6**0.5).astype(np.float32)[None, :, None]
    features, values = infini.elu_plus_one(keys), VALUES.astype(np.float32)[None, :, None]
    memory = infini.InfiniMemory(M=np.zeros((1, 1, 6, 5), np.float32), z=np.zeros((1, 1, 6), np.float32))
    for start in range(0, 11, 4):
        memory = infini.update(memory, features[:, start : start + 4], values[:, start : start + 4], update)
    expected = infini.retrieve(memory, features)[0, :, 0]
    np.testing.assert_allclose(RULES[rule](KEYS, VALUES, 4)(11), expected, rtol=1e-4, atol=1e-4)  # the layer's are float32


def test_least_squares_is_exact_up_to_its_rank_and_the_newest_pair_of_delta_always():
    np.testing.assert_allclose(RULES["least_squares"](KEYS, VALUES, 4)(6), VALUES[:6], atol=1e-9)
    np.testing.assert_allclose(RULES["delta"](KEYS, VALUES, 4)(11)[-1], VALUES[10], atol=1e-6)  # keys are unit in float32
    error = RULES["least_squares"](KEYS, VALUES, 4)(11) - VALUES
    assert np.abs(KEYS.T @ error).max() < 1e-9  # the normal equations: nothing linear is left to gain


@pytest.fixture(scope="module")
def figures():
    """n50 and survival of rules at d = 32, V = 1024."""
    found = {}
    for rule, middle in {"least_squares": 115, "sum": 83, "delta": 58, "elu_sum": 5}.items():
        pairs = tuple(round(middle * x) for x in (0.75, 1.0, 1.35))
        found[rule] = measure(RandomCodesRun(rule=rule, key_dim=32, value_dim=32, symbols=1024, pairs=pairs, questions=1024))
    return found


def n50(found) -> float:
    return next(one.value for one in found if one.metric == "n50")


def test_rules_recall_in_the_order_of_theory_and_the_sum_as_many_as_it_says(figures):
    assert n50(figures["least_squares"]) > n50(figures["sum"]) > n50(figures["delta"]) > 2 * n50(figures["elu_sum"])
    assert n50(figures["sum"]) == pytest.approx(theory.top1_n50(32, 32, 1024), rel=0.06)


def test_what_survives_of_a_pair_falls_with_age_under_delta_only(figures):
    def survival(rule):
        points = [one for one in figures[rule] if one.metric == "survival_by_age"]
        return np.array([one.labels["age"] for one in points]), np.array([one.value for one in points])

    age, left = survival("delta")
    np.testing.assert_allclose(left, theory.delta_survival(age, 32), atol=0.2)  # 16 memories of the same noise
    assert left[0] == pytest.approx(1.0, abs=1e-5)
    _, left = survival("sum")  # each the mean of at least 16 memories, whose interference has a standard deviation of 0.4
    np.testing.assert_allclose(left, 1.0, atol=0.35)
    assert np.mean(left) == pytest.approx(1.0, abs=0.1)


def test_the_probe_of_least_squares_follows_the_rank_law(figures):
    """And is above it by what its own fit costs: 33 weights from 512 questions are 6 % of the error."""
    for one in figures["least_squares"]:
        if one.metric == "nmse":
            assert one.value == pytest.approx(theory.rank_nmse(32, one.labels["pairs"]), abs=0.09)


def test_figures_are_the_same_for_the_same_seed():
    run = RandomCodesRun(key_dim=8, value_dim=8, symbols=32, pairs=(4, 16), questions=64)
    assert repr(measure(run)) == repr(measure(run))
    assert RandomCodesRun.from_dict(run.to_dict()) == run


def test_ages_fall_into_one_bin_each():
    assert [age for low, high in age_bins(23) for age in range(low, high)] == list(range(23))


WRONG = ({"rule": "summ"}, {"pairs": ()}, {"pairs": (0,)}, {"symbols": 1}, {"questions": 3}, {"key_dim": 0})


@pytest.mark.parametrize("wrong", WRONG)
def test_settings_that_cannot_work_are_one_line(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))) as error:
        RandomCodesRun(**wrong)
    assert "\n" not in str(error.value)
