"""The types that the precision policy promises, in a whole training step of every mechanism.

Types are read from the step's abstract values, so nothing is compiled; that bfloat16 numbers are near those of float32 is
tested with the mechanisms (test_contract.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infini_jax.config import RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.layers.precision import policy_of
from infini_jax.memory import MECHANISMS
from infini_jax.model.stream import forward_segments, init_carry, init_params, logits_of
from infini_jax.training.optimiser import make_optimiser
from infini_jax.training.program import Training
from tests.support.streams import MODEL, tiny


def floats(tree) -> set[str]:
    """Names of the floating types in a tree of arrays or shapes."""
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


def run_of(name: str, optimiser: str = "adamw") -> RunConfig:
    model = dataclasses.replace(tiny(name), compute="bfloat16")
    train = TrainConfig(batch=2, sequence=2 * model.segment, optimiser=optimiser, average=0.9)
    return RunConfig(model=model, data=MqarConfig(pairs=2, symbols=32), train=train)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_bfloat16_step_keeps_parameters_moments_memory_and_loss_in_float32(name):
    run = run_of(name)
    training = Training(run)
    state = training.shapes
    after, measured = jax.eval_shape(training.step, state, training.batch)
    for one in (state, after):
        assert floats(one.params) == floats(one.optimiser) == floats(one.average) == {"float32"}
        assert floats(one.carry.memory) <= {"float32"}  # `local` carries none
    assert floats(measured) == {"float32"}
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)


@pytest.mark.parametrize("name", MECHANISMS)
def test_activations_are_bfloat16_and_logits_float32(name):
    model = run_of(name).model
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    carry = jax.eval_shape(lambda: init_carry(model, 2))
    tokens = jax.ShapeDtypeStruct((2, model.segment), jnp.int32)
    _, features, _ = jax.eval_shape(lambda *args: forward_segments(model, *args), params, carry, tokens, tokens)
    assert features.dtype == jnp.bfloat16
    assert jax.eval_shape(lambda *args: logits_of(model, *args), params, features).dtype == jnp.float32


def test_updates_that_bfloat16_would_round_away_arrive():
    """A rate of 1e-4 is 0.1 % of a parameter of 0.1; half of bfloat16's spacing there is 0.24 % (0.1 lies in [2^-4, 2^-3))."""
    run = run_of("local")
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, learning_rate=1e-4, weight_decay=0.0, clip=1e9))
    optimiser, params = make_optimiser(run.train, 100, run.model), {"kernel": jnp.full((2, 3, 3), 0.1)}
    state, before = optimiser.init(params), params
    for _ in range(11):  # the first ten warm up
        updates, state = optimiser.update(jax.tree.map(jnp.ones_like, params), state, params)
        before, params = params, optax.apply_updates(params, updates)
    assert np.all(params["kernel"] < before["kernel"])
    narrow = before["kernel"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(narrow + updates["kernel"].astype(jnp.bfloat16), narrow)


@pytest.mark.parametrize(("compute", "memory"), [("float32", "float32"), ("bfloat16", "float32"), ("float64", "float64")])
def test_a_policy_follows_from_its_compute_type(compute, memory):
    policy = policy_of(compute)
    assert (policy.parameters, policy.compute, policy.memory, policy.output) == ("float32", compute, memory, memory)
    dims = dataclasses.replace(MODEL.dims, compute=compute)
    assert (dims.dtype, dims.memory_dtype) == (policy.compute, policy.memory)
