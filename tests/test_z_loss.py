"""The z-loss: the gradient of its formula, a metric of its own, no part of the loss that is reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.model.stream import forward_segments, init_carry, logits_of
from infini_jax.training.gradient import gradient_function
from infini_jax.training.loop import metric_line
from infini_jax.training.program import Training
from tests.support.saved import drawn

MODEL = ModelConfig(memory=LocalConfig(window=8), vocab=48, layers=1, d_model=16, segment=8)
TRAIN = TrainConfig(batch=2, sequence=16)
RUN = RunConfig(model=MODEL, data=MqarConfig(pairs=4, symbols=32, repeats=2), train=TRAIN, budget=Budget("steps", 2))
WEIGHT = 0.3  # far more than the paper's, so that its gradient is no rounding error beside the other's


def with_weight(weight, **changes):
    return dataclasses.replace(RUN, train=dataclasses.replace(TRAIN, z_loss=weight, **changes))


@pytest.fixture(scope="module")
def case():
    """(parameters, carry, batch): large parameters, so that log(Z) is far from the logarithm of the vocabulary."""
    training = Training(RUN)
    params = jax.tree.map(lambda leaf: 5 * leaf, drawn(training.shapes.params, 0))
    return params, init_carry(MODEL, 2), training.source.batch(0)


def reference(params, carry, batch):
    """Mean over scored tokens of log(sum(exp(logits)))^2, segment by segment, without the scan and the scores of training."""
    total = 0.0
    for at in (0, 8):
        part = slice(at, at + 8)
        carry, x_BxSxD, _ = forward_segments(MODEL, params, carry, batch.tokens[:, part], batch.documents[:, part])
        z_BxS = jnp.exp(logits_of(MODEL, params, x_BxSxD)).sum(-1)
        total += (jnp.log(z_BxS) ** 2 * batch.weights[:, part]).sum()
    return total / batch.weights.sum()


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_its_gradient_is_that_of_the_formula_whatever_the_turns(case, accumulate):
    params, carry, batch = case
    plain, _, (scores, _) = jax.jit(gradient_function(with_weight(0.0, accumulate=accumulate)))(params, carry, batch)
    found, _, (with_z, _) = jax.jit(gradient_function(with_weight(WEIGHT, accumulate=accumulate)))(params, carry, batch)
    value, expected = jax.jit(jax.value_and_grad(reference))(params, carry, batch)
    difference = jax.tree.map(lambda new, old: (new - old) / WEIGHT, found, plain)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert scale > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), difference, expected)  # sums in float32
    np.testing.assert_allclose(with_z.squares / with_z.tokens, value, rtol=1e-5)
    np.testing.assert_allclose(with_z.loss, scores.loss, rtol=1e-6)  # reported without it
    assert scores.squares is None


def test_it_is_logged_where_there_is_one():
    values = {"loss": 1.0, "accuracy": 0.5, "gradient_norm": 2.0, "gates": np.zeros(0)}
    assert "z_loss" not in metric_line(RUN, 1, values, {})
    assert metric_line(RUN, 1, {**values, "z_loss": 0.25}, {})["z_loss"] == 0.25


def test_a_weight_of_zero_leaves_program_and_fingerprint_alone():
    step = {weight: Training(with_weight(weight)) for weight in (0.0, WEIGHT)}
    measured = {weight: jax.eval_shape(one.step, one.shapes, one.batch)[1] for weight, one in step.items()}
    assert set(measured[WEIGHT]) - set(measured[0.0]) == {"z_loss"}
    assert with_weight(0.0).fingerprint() == RUN.fingerprint() != with_weight(WEIGHT).fingerprint()
