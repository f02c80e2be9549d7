"""Budgets in seconds: timed once on the device, and the same number of steps ever after."""

import dataclasses
import json

import pytest

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.errors import ConfigError
from infini_jax.model.cost import budget_steps, planned_flops
from infini_jax.records.folder import CONFIG_FILE
from infini_jax.training import timed_budget as pace
from infini_jax.training.execute import execute
from tests.test_study import GOOD

SECONDS = 0.3
RUN = dataclasses.replace(
    GOOD, budget=Budget("seconds", SECONDS), train=TrainConfig(batch=2, sequence=16, log_every=1000, evaluation_steps=1)
)


@pytest.mark.slow
def test_seconds_are_measured_into_steps_that_the_folder_and_the_row_tell(tmp_path):
    row, folder = execute(RUN, tmp_path, study=""), tmp_path
    kept = RunConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text()))
    assert (row.budget_unit, row.budget_amount, row.steps) == ("seconds", SECONDS, kept.budget.steps)
    assert row.steps > 1
    assert row.fingerprint == kept.fingerprint() == RUN.fingerprint()
    # a machine with other work may be busier while it trains than while it was timed; another unit would be off by 1000
    assert SECONDS / 100 < row.seconds < 100 * SECONDS
    assert pace.with_steps(RUN, folder) == kept


def test_a_run_that_goes_on_keeps_the_number_whatever_the_device_says_now(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "seconds_per_step", lambda *_: SECONDS / 40.5)
    first = pace.with_steps(RUN, tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(first.to_dict()))
    monkeypatch.setattr(pace, "seconds_per_step", lambda *_: SECONDS / 2.5)
    assert first.budget.steps == pace.with_steps(RUN, tmp_path).budget.steps == 40
    other = dataclasses.replace(RUN, seed=5)
    assert pace.with_steps(other, tmp_path).budget.steps == 2
    (tmp_path / CONFIG_FILE).write_text("{")
    assert pace.with_steps(RUN, tmp_path).budget.steps == 2


def test_seconds_that_pay_for_no_step_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "seconds_per_step", lambda *_: 2.5)
    with pytest.raises(ConfigError, match=r"^budget.amount: 0.3 seconds do not pay for one step of 2.5 s on this device; .+$"):
        pace.with_steps(RUN, tmp_path)
    long = dataclasses.replace(RUN, budget=Budget("seconds", 10.1))
    assert pace.with_steps(long, tmp_path).budget.steps == 4


def test_nobody_knows_the_steps_before_they_are_measured():
    assert planned_flops(RUN) is None
    with pytest.raises(ConfigError, match=r"^budget.steps: nobody measured"):
        budget_steps(RUN)
    with pytest.raises(ConfigError, match=r"^budget.steps: 3 steps are found for seconds only"):
        Budget("flops", 1e9, steps=3)


def test_other_budgets_are_left_as_they_are(tmp_path):
    assert pace.with_steps(GOOD, tmp_path) == GOOD
