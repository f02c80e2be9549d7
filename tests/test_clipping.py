"""The clip of a gradient and the steps that are skipped: right for every finite gradient, told and counted for others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infini_jax.errors import Stopped, TrainingDiverged
from infini_jax.training.checkpoint import Checkpoints
from infini_jax.training.clipping import clip_by_global_norm, global_norm, largest
from infini_jax.training.gradient import gradient_function
from infini_jax.training.loop import train
from infini_jax.training.program import Training
from infini_jax.training.skips import MOST, Skips
from tests.test_train import RUN, Clock

SIZES = (1e-30, 1e-3, 1.0, 37.3, 1e19, 1e20, 1e37, 3e38)


def gradient_of_size(size: float) -> dict:
    random = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(random.uniform(-1, 1, (100, 33)) * size, jnp.float32),
        "bias": jnp.asarray(random.uniform(-1, 1, 7) * size, jnp.float32),
    }


def as_vector(tree: dict) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def clipped(gradient: dict, maximum: float, by=clip_by_global_norm) -> dict:
    transformation = by(maximum)
    return jax.jit(lambda gradient: transformation.update(gradient, transformation.init(gradient))[0])(gradient)


@pytest.mark.parametrize("size", SIZES)
def test_a_finite_gradient_keeps_its_direction_and_gets_the_norm_that_is_asked_for(size):
    """In float64 there is no overflow; float32 rounds by 6e-8 an operation."""
    gradient = gradient_of_size(size)
    exact = as_vector(gradient)
    expected = exact * min(1.0, 0.5 / np.linalg.norm(exact))
    np.testing.assert_allclose(as_vector(clipped(gradient, 0.5)), expected, rtol=2e-6, atol=0)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(global_norm(gradient), np.float32(np.linalg.norm(exact)), rtol=1e-6)


def test_a_gradient_of_1e20_is_no_update_of_zero():
    """What optax's clip makes of it, whose norm is infinite."""
    gradient = {"w": jnp.full(10, 1e20)}
    assert as_vector(clipped(gradient, 1.0, optax.clip_by_global_norm)) == pytest.approx(0.0, abs=0)
    assert as_vector(clipped(gradient, 1.0)) == pytest.approx(10**-0.5, rel=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1.0, 37.3, 1e15])
def test_where_nothing_overflows_the_clip_is_that_of_optax_bit_for_bit(size):
    gradient = gradient_of_size(size)
    ours, theirs = clipped(gradient, 1.0), clipped(gradient, 1.0, optax.clip_by_global_norm)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert float(jax.jit(global_norm)(gradient)) == float(jax.jit(optax.tree.norm)(gradient))
    assert clip_by_global_norm(1.0).init(gradient) == optax.clip_by_global_norm(1.0).init(gradient)  # in old checkpoints


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e38])
def test_half_precision_is_scaled_exactly_too(size):
    gradient = {"w": jnp.asarray([size, -size / 2, 0], jnp.bfloat16)}
    found = clipped(gradient, 1e-3 if size == 1.0 else 1.0)["w"]
    assert found.dtype == jnp.bfloat16
    assert float(found[0]) == pytest.approx(-2 * float(found[1]), rel=0.01)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_one_entry_that_is_not_finite_is_seen(wrong):
    gradient = gradient_of_size(1.0)
    gradient["kernel"] = gradient["kernel"].at[3, 4].set(wrong)
    assert not np.isfinite(largest(gradient))
    assert np.isfinite(largest(gradient_of_size(3e38)))


def test_a_step_whose_gradient_is_not_finite_changes_nothing_that_is_learned(monkeypatch):
    """The real step; its gradient has an infinity where the batch's first token is even."""
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, average=0.9))

    def sometimes_infinite(run, layout=None):
        gradient_of = gradient_function(run, layout)

        def found(params, carry, batch, dropout, frozen):
            gradient, carry, measured = gradient_of(params, carry, batch, dropout, frozen)
            bad = jnp.where(batch.tokens[0, 0] % 2 == 0, jnp.inf, 1.0)
            return jax.tree.map(lambda leaf: leaf * bad, gradient), carry, measured

        return found

    monkeypatch.setattr("infini_jax.training.program.gradient_function", sometimes_infinite)
    training = Training(run)
    state, seen = training.fresh(), set()
    for number in range(8):
        before, batch = jax.device_get(state), training.source.batch(number)
        state, measured = training.step(state, batch)
        is_bad = bool(batch.tokens[0, 0] % 2 == 0)
        assert bool(measured["skipped"]) == is_bad
        assert int(state.step) == number + 1
        assert np.isfinite(as_vector(state.params)).all()
        same = [
            np.array_equal(new, old)
            for part in ("params", "optimiser", "average")
            for new, old in zip(jax.tree.leaves(getattr(state, part)), jax.tree.leaves(getattr(before, part)), strict=True)
        ]
        assert all(same) == is_bad
        seen.add(is_bad)
    assert seen == {True, False}


class Skipping(Clock):
    """Steps by hand, of which some are skipped."""

    def __init__(self, monkeypatch, skipped):
        super().__init__(monkeypatch)
        self.skipped, self.step = skipped, super().compiled_steps(None, 1)

    def compiled_steps(self, program, most):
        def run_step(state, batches):
            number = int(state.step) + 1
            state, measured = self.step(state, batches)
            norm = np.float32(np.inf if number in self.skipped else 1.0)
            return state, measured | {"skipped": np.bool_(number in self.skipped), "gradient_norm": norm}

        return run_step


def test_skipped_steps_are_counted_over_restarts(tmp_path, monkeypatch):
    steps, lines = Skipping(monkeypatch, {3, 4, 17, 19, 25, 40}), []
    with Checkpoints(RUN, tmp_path) as checkpoints, pytest.raises(Stopped):
        train(RUN, lines.append, checkpoints, stop=lambda: steps.now >= 110.0 + 17.0)
    with Checkpoints(RUN, tmp_path) as checkpoints:
        finished = train(RUN, lines.append, checkpoints)
    assert [line["skipped_steps"] for line in lines] == [2, 4, 5, 6]
    assert finished.skipped == 6


def test_skips_in_a_row_go_on_over_a_restart(tmp_path, monkeypatch):
    steps = Skipping(monkeypatch, {16, 17, 18})
    with Checkpoints(RUN, tmp_path) as checkpoints, pytest.raises(Stopped):
        train(RUN, lambda line: None, checkpoints, stop=lambda: steps.now >= 110.0 + 17.0)
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, log_every=1))
    with (
        Checkpoints(RUN, tmp_path) as checkpoints,
        pytest.raises(TrainingDiverged, match=r"^gradient: not finite at step 18;"),
    ):
        train(run, lambda line: None, checkpoints)


def test_a_run_without_a_skipped_step_does_not_speak_of_them(monkeypatch):
    Skipping(monkeypatch, set())
    lines = []
    assert train(RUN, lines.append).skipped == 0
    assert not any("skipped_steps" in line for line in lines)


def test_a_run_that_skips_step_after_step_is_stopped(monkeypatch):
    Skipping(monkeypatch, set(range(15, 15 + MOST)))  # counted at step 20, and those since the 18th are good
    train(RUN, lambda line: None)
    Skipping(monkeypatch, set(range(21 - MOST, 21)))
    with pytest.raises(
        TrainingDiverged, match=r"^gradient: not finite at step 20; lower train.learning_rate, now 0.01, under"
    ):
        train(RUN, lambda line: None)


def test_skips_in_a_row_are_those_one_after_the_other():
    skips = Skips(7, 0)
    for skipped in [True] * (MOST - 1) + [False] + [True]:
        skips.add(jnp.bool_(skipped))
    skips.count()
    assert (skips.total, skips.in_row, skips.are_all) == (7 + MOST, 1, False)
    for _ in range(MOST - 1):
        skips.add(jnp.bool_(True))
    skips.count()
    assert (skips.total, skips.in_row, skips.are_all) == (7 + 2 * MOST - 1, MOST, True)
    again = Skips(9, MOST - 1)  # behind a restart
    again.add(jnp.bool_(True))
    again.count()
    assert again.are_all
