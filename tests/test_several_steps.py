"""Several training steps in one call of the program: the numbers, lines and saves of one step after the other."""

import dataclasses

import jax
import numpy as np
import pytest

from infini_jax.config import Budget
from infini_jax.devices import chosen_form
from infini_jax.devices.sharding import ROWS_ALONE, layout_of
from infini_jax.errors import Stopped
from infini_jax.training import loop
from infini_jax.training.checkpoint import Checkpoints, Saving
from infini_jax.training.loop import Alone, train, training_steps
from infini_jax.training.program import Training, compiled_steps
from infini_jax.training.skips import Skips
from infini_jax.training.timed_budget import FEW, MANY, seconds_per_step
from tests.support.asking import noted_by
from tests.test_resume import timeless
from tests.test_train import RUN

SHORT = dataclasses.replace(RUN, budget=Budget("steps", 23), train=dataclasses.replace(RUN.train, log_every=10))


@pytest.fixture(autouse=True)
def steps_are_short_however_slow_the_machine_is(monkeypatch):
    monkeypatch.setattr(loop, "CALL", 1e9)


def equal(ours, theirs) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def close(ours, theirs) -> None:
    """To rounding: another program may fuse other operations, and Adam divides by what is small at first."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_state_is_that_of_single_steps_to_the_bit_however_calls_are_filled():
    training = Training(SHORT, layout_of(SHORT))
    batches, several = list(training.read(range(3))), compiled_steps(training.program, 8)
    apart, together = training.fresh(), training.fresh()
    for batch in batches:
        apart, measured = several(apart, [batch])
    together, found = several(together, batches)
    equal(together, apart)
    equal(found | {"skipped": found["skipped"][2]}, measured | {"skipped": measured["skipped"][0]})
    assert found["skipped"].shape == (8,)
    alone, one = training.fresh(), compiled_steps(training.program, 1)
    for batch in batches:
        alone, measured = one(alone, [batch])
    close(together, alone)
    close(found | {"skipped": found["skipped"][2]}, measured)


def noted_calls(monkeypatch) -> list[int]:
    """Steps in each call from now on."""
    calls, take = [], Alone._advance

    def noted(seat, batches):
        calls.append(len(batches))
        return take(seat, batches)

    monkeypatch.setattr(Alone, "_advance", noted)
    return calls


def lengths_of_calls(monkeypatch, run, checkpoints=None, stop=lambda: False) -> tuple[list[int], list[int]]:
    """Steps in each call, and the steps that were examined."""
    calls, examined, seat = noted_calls(monkeypatch), [], Alone(run)
    seat.drive(training_steps(seat, lambda line: None, checkpoints, stop, noted_by(examined.append)))
    return calls, examined


def test_a_call_ends_where_something_is_logged_saved_or_examined(tmp_path, monkeypatch):
    run = dataclasses.replace(SHORT, train=dataclasses.replace(SHORT.train, evaluate_every=9))
    with Checkpoints(run, tmp_path, Saving(every_steps=7)) as checkpoints:
        calls, examined = lengths_of_calls(monkeypatch, run, checkpoints)
        checkpoints.wait()
        assert checkpoints.steps()[-2:] == [21, 23]
    assert examined == [9, 18, 23]
    assert np.cumsum(calls).tolist() == [1, 2, 3, 7, 9, 10, 14, 18, 20, 21, 23]


def test_no_call_has_more_steps_than_the_program_has_room_for(monkeypatch):
    run = dataclasses.replace(SHORT, train=dataclasses.replace(SHORT.train, log_every=1000))
    monkeypatch.setattr(chosen_form, "MOST_STEPS", 4)
    assert lengths_of_calls(monkeypatch, run)[0] == [1, 1, 1, 4, 4, 4, 4, 4]


def test_seconds_are_timed_as_a_run_takes_its_steps(monkeypatch):
    calls = noted_calls(monkeypatch)
    assert seconds_per_step(dataclasses.replace(SHORT, budget=Budget("seconds", 1e9)), ROWS_ALONE) > 0
    assert calls == [1, 1, 1, FEW, *[16] * (MANY // 16)]


def test_long_steps_are_taken_one_by_one(monkeypatch):
    monkeypatch.setattr(loop, "CALL", 1e-9)
    assert lengths_of_calls(monkeypatch, SHORT)[0] == [1] * 23


def test_lines_and_parameters_are_those_of_single_steps(monkeypatch):
    several, alone = [], []
    ours = train(SHORT, several.append)
    monkeypatch.setattr(chosen_form, "MOST_STEPS", 1)
    theirs = train(SHORT, alone.append)
    for line, other in zip(several, alone, strict=True):
        assert timeless(line) == pytest.approx(timeless(other), rel=1e-4, abs=1e-5)
    close(ours.state, theirs.state)


def test_a_run_that_is_stopped_between_calls_goes_on_to_the_same_numbers(tmp_path):
    asked = iter(range(1, 99))
    with Checkpoints(SHORT, tmp_path) as checkpoints, pytest.raises(Stopped, match="stopped after step 10 of 23"):
        train(SHORT, lambda line: None, checkpoints, stop=lambda: next(asked) == 4)
    with Checkpoints(SHORT, tmp_path) as checkpoints:
        finished = train(SHORT, lambda line: None, checkpoints)
    equal(finished.state.params, train(SHORT, lambda line: None).state.params)


def test_skipped_steps_of_a_call_are_counted_without_what_fills_it():
    skips = Skips(0, 0)
    skips.add(np.array([True, False, True, True, False, False]), 4)
    skips.count()
    assert (skips.total, skips.in_row) == (3, 2)
    skips.add(np.array([True, False]), 1)
    skips.count()
    assert (skips.total, skips.in_row) == (4, 3)
    assert skips.are_all
