"""Learning rates: every trial is a run, the best of each point is chosen on validation, all are counted."""

import dataclasses

import pytest

from infini_jax.config import RunConfig
from infini_jax.errors import ConfigError
from infini_jax.study.trials import chosen, trials, tried
from tests.test_report import row_of

POINT = dataclasses.replace(row_of("mqar", "infini", "delta", 4096, 0), flops_actual=10.0)


def trial(rate: float, seed: int, loss: float, **changes):
    return dataclasses.replace(POINT, run=f"{rate}-{seed}", learning_rate=rate, seed=seed, loss=loss, **changes)


def test_a_run_is_tried_at_each_rate_under_its_own_name():
    found = trials(RunConfig(name="infini"), (3e-3, 1e-2, 0.0125))
    assert [run.name for run in found] == ["infini-lr3e-3", "infini-lr1e-2", "infini-lr1.25e-2"]
    assert [run.train.learning_rate for run in found] == [3e-3, 1e-2, 0.0125]
    assert len({run.fingerprint() for run in found}) == 3


@pytest.mark.parametrize(
    ("rates", "said"), [((), "there is none"), ((1e-3, 1.0001e-3), "two are called 1e-3"), ((0.0,), "0e0")]
)
def test_rates_that_cannot_be_told_apart_or_used_are_refused(rates, said):
    with pytest.raises(ConfigError, match=f"^rates.*{said}"):
        trials(RunConfig(), rates)


def test_the_rate_with_the_lowest_median_over_seeds_is_chosen_not_the_luckiest_run():
    steady = [trial(1e-3, seed, loss) for seed, loss in enumerate((2.0, 2.1, 2.2))]
    lucky = [trial(1e-2, seed, loss) for seed, loss in enumerate((0.1, 2.5, 2.6))]
    assert chosen([*lucky, *steady]) == steady


def test_seeds_that_ran_at_the_chosen_rate_alone_have_no_say():
    """They would turn the choice by which they got their rate."""
    tried = [trial(rate, seed, loss) for rate, loss in ((1e-3, 2.0), (1e-2, 2.1)) for seed in (0, 1)]
    followed = [trial(1e-3, seed, 9.0) for seed in (2, 3, 4)]
    assert chosen([*tried, *followed]) == [*tried[:2], *followed]


def test_of_equal_medians_the_lower_rate_is_chosen():
    assert [row.learning_rate for row in chosen([trial(1e-2, 0, 2.0), trial(1e-3, 0, 2.0)])] == [1e-3]


def test_the_test_split_has_no_part_in_the_choice():
    rows = [trial(1e-3, 0, 2.0, test_loss=9.0, accuracy=0.1), trial(1e-2, 0, 2.1, test_loss=1.0, accuracy=0.9)]
    assert chosen(rows) == rows[:1]


@pytest.mark.parametrize(
    "change",
    [
        {"memory_bytes": 8192},
        {"variant": "linear"},
        {"task": "code"},
        {"budget_amount": 1.0},
        {"mechanism": "x"},
        {"study": "y"},
    ],
)
def test_each_point_has_a_rate_of_its_own(change):
    one, other = [trial(1e-3, 0, 2.0), trial(1e-2, 0, 3.0)], [trial(1e-3, 0, 3.0, **change), trial(1e-2, 0, 2.0, **change)]
    assert chosen([*one, *other]) == [one[0], other[1]]


def test_all_trials_are_counted():
    rows = [trial(rate, seed, rate) for rate in (1e-3, 3e-3, 1e-2) for seed in (0, 1)]
    counted = tried([*rows, trial(1e-3, 0, 1.0, memory_bytes=8192)])
    assert (counted.points, counted.trials, counted.flops, counted.chosen_flops) == (2, 7, 70.0, 30.0)


def test_rows_without_a_rate_are_a_point_of_their_own():
    rows = [trial(1e-3, seed, 2.0) for seed in (0, 1)]
    rows = [dataclasses.replace(row, learning_rate=None) for row in rows]
    assert chosen(rows) == rows
