"""Gradients of the ∞-former against differences of the reference, and where they end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.memory.base import AUXILIARY
from infini_jax.memory.infinite_former.mechanism import InfiniteFormer
from tests.reference import infinite_former as reference
from tests.support.former import CONFIG, DIMS, DOCUMENTS, compiled, parameters_of, plain, segments_of, setting


def directional(function, point, direction, step=1e-5):
    """Central difference of a scalar NumPy function along a dict of arrays."""
    ahead = {name: point[name] + step * direction[name] for name in point}
    behind = {name: point[name] - step * direction[name] for name in point}
    return (function(ahead) - function(behind)) / (2 * step)


def test_gradient_of_attend_equals_differences_of_the_reference():
    """Relative tolerance 1e-7: the error of a central difference with a step of 1e-5 in float64."""
    with jax.enable_x64(True):
        module, variables, segments = setting(DOCUMENTS[1:2])
        segment = segments[1]
        memory = compiled()[1](variables, module.init_memory(1), segments[0])
        upstream = np.random.default_rng(1).standard_normal((8, DIMS.d_model))

        def ours(variables, B, queries):
            y, metrics = module.apply(variables, memory.replace(B=B), segment.replace(queries=queries), method="attend")
            return (y[0] * upstream).sum() + metrics[AUXILIARY + "kl"]

        grads = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(variables, memory.B, segment.queries)
        point = plain(variables) | {"B": np.asarray(memory.B[0]), "queries": np.asarray(segment.queries[0])}
        slopes = plain(grads[0]) | {"B": np.asarray(grads[1][0]), "queries": np.asarray(grads[2][0])}
        keys, values = np.asarray(segment.keys[0]), np.asarray(segment.values[0])

        def theirs(point):
            y, divergence = reference.attend_row(point["B"], point["queries"], keys, values, DOCUMENTS[1, 1], 0, point, CONFIG)
            return (y * upstream).sum() + CONFIG.kl_weight * divergence.mean()

        rng = np.random.default_rng(2)
        for name in ("w_mu", "w_sigma", "w_k", "w_v", "long_out", "B", "queries"):
            direction = {key: np.zeros_like(value) for key, value in point.items()}
            direction[name] = rng.standard_normal(point[name].shape)
            expected = directional(theirs, point, direction)
            np.testing.assert_allclose((slopes[name] * direction[name]).sum(), expected, rtol=1e-7, err_msg=name)


@pytest.mark.parametrize("row", [0, 1])
def test_gradient_of_write_equals_differences_of_the_reference(row):
    """Row 0 continues a signal, row 1 begins one in the middle of the segment."""
    with jax.enable_x64(True):
        module, variables, segments = setting(DOCUMENTS[row : row + 1])
        segment = segments[1]
        memory = compiled()[1](variables, module.init_memory(1), segments[0])
        upstream = np.random.default_rng(1).standard_normal((CONFIG.basis, DIMS.d_model))

        def ours(variables, inputs):
            written = module.apply(variables, memory, segment.replace(inputs=inputs), method="write")
            return (written.B[0] * upstream).sum()

        grads = jax.jit(jax.grad(ours, argnums=(0, 1)))(variables, segment.inputs)
        point = plain(variables) | {"inputs": np.asarray(segment.inputs[0])}
        slopes = plain(grads[0]) | {"inputs": np.asarray(grads[1][0])}

        def theirs(point):
            B = reference.write_row(np.asarray(memory.B[0]), point["inputs"], DOCUMENTS[row, 1], 0, point, CONFIG)
            return (B * upstream).sum()

        rng = np.random.default_rng(2)
        for name in ("gate_kernel", "gate_bias", "inputs"):
            direction = {key: np.zeros_like(value) for key, value in point.items()}
            direction[name] = rng.standard_normal(point[name].shape)
            expected = directional(theirs, point, direction)
            np.testing.assert_allclose((slopes[name] * direction[name]).sum(), expected, rtol=1e-7, err_msg=name)


def test_gradient_reaches_the_segment_before_and_no_further():
    with jax.enable_x64(True):
        module, variables, segments = setting(DOCUMENTS[:1])
        attend, write = compiled()

        def last_output(variables, inputs):
            memory = module.init_memory(1)
            for segment, x in zip(segments[:2], inputs, strict=True):
                memory = write(variables, memory, segment.replace(inputs=x))
            return (attend(variables, memory, segments[2])[0] ** 2).sum()

        inputs = [segment.inputs for segment in segments[:2]]
        value, (grads, (two_back, one_back)) = jax.jit(jax.value_and_grad(last_output, argnums=(0, 1)))(variables, inputs)
        assert np.abs(grads["params"]["gate_kernel"]).max() > 1e-4
        assert np.abs(grads["params"]["gate_bias"]).max() > 1e-4
        assert np.abs(one_back).max() > 1e-4
        np.testing.assert_array_equal(two_back, 0.0)
        assert abs(last_output(variables, [2 * inputs[0], inputs[1]]) - value) > 1e-4  # it is read all the same


def test_scan_over_segments_with_remat_differentiates():
    """The memory, its flag included, is a carry of a rematerialised scan."""
    dims = dataclasses.replace(DIMS, compute="float32")
    module = InfiniteFormer(CONFIG, dims)
    rng = np.random.default_rng(0)
    segments = segments_of(rng, DOCUMENTS, dims)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *segments)
    variables = parameters_of(rng, module, segments[0])

    def loss(variables):
        @jax.checkpoint
        def step(memory, segment):
            y, metrics = module.apply(variables, memory, segment, method="attend")
            return module.apply(variables, memory, segment, method="write"), (y**2).sum() + metrics[AUXILIARY + "kl"]

        return jax.lax.scan(step, module.init_memory(3), stacked)[1].sum()

    grads = jax.jit(jax.grad(loss))(variables)["params"]
    for name in ("w_mu", "w_sigma", "w_k", "w_v", "gate_kernel", "gate_bias"):
        assert 0 < np.abs(grads[name]).max() < np.inf, name
