"""Optimizers, schedules and averages do what their names say, from the first update to the last."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infini_jax.codes.capacity import CapacityRun
from infini_jax.codes.learning import rates
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.optimisers import each_layer_alone
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import ROWS_ALONE
from infini_jax.devices.side_by_side import OneModel
from infini_jax.training.held_out import HeldOut
from infini_jax.training.loop import train
from infini_jax.training.optimiser import averaged, make_optimiser, schedule
from infini_jax.training.program import Training
from tests.support.asking import answered
from tests.support.marks import slow_but
from tests.support.streams import initial

MODEL = ModelConfig(vocab=32, layers=2, d_model=16, heads=1, mlp_dim=32, segment=8, key_taps=2)
RUN = RunConfig(
    name="tiny",
    model=MODEL,
    data=MqarConfig(pairs=2, symbols=32),
    train=TrainConfig(batch=4, sequence=24, evaluation_steps=2),
    budget=Budget("steps", 1),
)
SCHEDULES = ("cosine", "constant", "rsqrt")


# ---- the rate of each update


def share(name: str, steps: int, warmup: float, update: int) -> float:
    """The share by the words of the module's docstring, in float64: the independent reference."""
    warm = max(1, round(warmup * steps))
    rising = min(1.0, update / warm)
    if name == "constant":
        return rising
    if name == "rsqrt":
        return rising / max(update, warm) ** 0.5
    fallen = 0.0 if update <= warm else (update - warm) / (steps - warm)
    return rising * (0.1 + 0.9 * (1 + np.cos(np.pi * fallen)) / 2)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_update_has_the_rate_that_its_schedule_names(name, steps, warmup):
    found = np.asarray(schedule(TrainConfig(schedule=name, warmup=warmup), steps)(jnp.arange(steps)))
    expected = [share(name, steps, warmup, update) for update in range(1, steps + 1)]
    np.testing.assert_allclose(found, expected, rtol=2e-5)  # cosines of float32, near their end
    assert found[0] > 0


@pytest.mark.parametrize(
    ("steps", "warmup", "first", "peak_at", "last"),
    [
        (1, 0.0, 1.0, 1, 1.0),
        (2, 0.0, 1.0, 1, 0.1),
        (10, 0.0, 1.0, 1, 0.1),
        (10, 0.2, 0.5, 2, 0.1),
        (1000, 0.1, 0.01, 100, 0.1),
    ],
)
def test_cosine_begins_above_zero_peaks_with_the_warm_up_and_ends_at_a_tenth(steps, warmup, first, peak_at, last):
    found = np.asarray(schedule(TrainConfig(warmup=warmup), steps)(jnp.arange(steps)))
    assert found[0] == pytest.approx(first)
    assert found.argmax() == peak_at - 1
    assert found[peak_at - 1] == pytest.approx(1.0)
    assert found[-1] == pytest.approx(last)


def test_the_rates_of_learned_codes_are_those_of_runs():
    run = CapacityRun(learning_rate=3e-3)
    np.testing.assert_allclose(rates(run, 100), [3e-3 * share("cosine", 100, 0.05, n) for n in range(1, 101)], rtol=2e-5)


@pytest.mark.parametrize("optimiser", slow_but(["adamw"], ["adamw", "adafactor"]))
def test_a_run_of_one_step_changes_its_parameters(optimiser):
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, optimiser=optimiser, warmup=0.0))
    before = initial(MODEL, run.seed)
    after = train(run, lambda line: None).learned
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert moved["groups_0"]["query"]["kernel"]
    assert moved["groups_0"]["memory"]["gate"]
    assert moved["embedding"]["embedding"]


# ---- stacked layers


def stacked_and_alone(layers: int, *shape: int, sizes: np.ndarray):
    random = np.random.default_rng(0)
    size = sizes.reshape(-1, *(1 for _ in shape))
    params = np.float32(random.normal(size=(layers, *shape)) * size)
    gradients = [np.float32(random.normal(size=(layers, *shape))) for _ in range(3)]
    return params, gradients


@functools.partial(jax.jit, static_argnums=0)
def moves(transformation, params, gradients):
    state, moved = transformation.init(params), None
    for gradient in gradients:
        moved, state = transformation.update(gradient, state, params)
    return moved


@pytest.mark.parametrize(
    ("layers", "shape", "sizes"),
    [(2, (48, 40), np.array([0.01, 1.0])), (64, (64, 40), np.ones(64)), (3, (16,), np.array([1.0, 0.1, 10.0]))],
)
def test_adafactor_moves_each_stacked_layer_as_a_model_of_that_layer_alone(layers, shape, sizes):
    """Factored and scaled one layer at a time: optax's own on each layer is the reference."""
    plain = optax.adafactor(learning_rate=None, min_dim_size_to_factor=32)
    params, gradients = stacked_and_alone(layers, *shape, sizes=sizes)
    table = jnp.ones((40, 48))
    ours = moves(
        each_layer_alone(plain),
        {"groups_0": {"kernel": params}, "embedding": table},
        [{"groups_0": {"kernel": gradient}, "embedding": table} for gradient in gradients],
    )
    alone = [moves(plain, params[layer], [gradient[layer] for gradient in gradients]) for layer in range(layers)]
    np.testing.assert_allclose(ours["groups_0"]["kernel"], np.stack(alone), rtol=1e-5, atol=1e-8)  # sums in another order
    np.testing.assert_allclose(ours["embedding"], moves(plain, table, [table] * 3), rtol=1e-6)


def test_a_small_layer_beside_a_large_one_moves_by_its_own_size():
    """Adafactor's first update has the size of the parameter: 0.01 beside 1, whatever stands next to it."""
    params, gradients = stacked_and_alone(2, 48, 40, sizes=np.array([0.01, 1.0]))
    optimiser = make_optimiser(TrainConfig(optimiser="adafactor", warmup=0.0, weight_decay=0.0, learning_rate=1.0), 10, MODEL)
    tree = {"groups_0": {"kernel": params}}
    moved = moves(optimiser, tree, [{"groups_0": {"kernel": gradients[0]}}])
    size_L = np.sqrt(np.mean(np.square(moved["groups_0"]["kernel"]), axis=(1, 2)))
    np.testing.assert_allclose(size_L, [0.01, 1.0], rtol=0.05)  # RMS of the random weights, and of factored moments


# ---- the moving average


def test_the_average_leaves_out_the_initial_parameters_and_reaches_the_decay():
    found = jnp.float32(1e6)
    for step in range(1, 6):
        found = averaged(found, jnp.float32(step), jnp.int32(step), 0.999)
    weights, left = [], 1.0
    for step in range(5, 0, -1):  # by hand: newest first
        newest = min(1.0, 10 / (9 + step))
        weights.insert(0, newest * left)
        left *= 1 - newest
    assert left == 0
    assert found == pytest.approx(sum(weight * step for step, weight in enumerate(weights, 1)), rel=1e-6)
    late = averaged(jnp.float32(0.0), jnp.float32(1.0), jnp.int32(10**7), 0.999)
    assert late == pytest.approx(0.001, rel=1e-4)
    assert averaged(jnp.float32(0.0), jnp.float32(1.0), jnp.int32(40), 0.5) == pytest.approx(0.5)  # a short horizon at once


@pytest.mark.slow
def test_a_short_run_with_an_average_is_no_worse_than_its_raw_weights():
    """Forty steps with a horizon of a thousand, on held-out rows."""

    def held_out(average: float) -> float:
        settings = dataclasses.replace(RUN.train, average=average, learning_rate=1e-2)
        run = dataclasses.replace(RUN, train=settings, budget=Budget("steps", 40))
        scores = HeldOut(run, lambda line: None, ROWS_ALONE).scores()
        return answered(scores, OneModel(train(run, lambda line: None).learned)).loss

    assert held_out(0.999) <= 1.01 * held_out(0.0)  # a hundredth: the average lags where the loss still falls


def test_the_step_keeps_the_average_of_its_parameters():
    training = Training(dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, average=0.9), budget=Budget("steps", 3)))
    state, expected = training.fresh(), None
    for step in range(1, 4):
        state, _ = training.step(state, training.source.batch(step - 1))
        expected = state.params if step == 1 else jax.jit(averaged)(expected, state.params, jnp.int32(step), 0.9)
        expected = jax.tree.map(np.array, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), state.average, expected)
