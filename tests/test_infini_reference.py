"""Infini-attention with every feature map against slow float64 loops, and the properties of the maps themselves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import ModelConfig
from infini_jax.cost import model_cost, program_flops
from infini_jax.errors import ConfigError
from infini_jax.memory import feature_maps
from infini_jax.memory.base import memory_bytes
from infini_jax.memory.infini import Infini, InfiniConfig, InfiniMemory, retrieve
from infini_jax.segment import Segment, whole
from infini_jax.stream import forward_segments, init_carry, init_params
from infini_jax.stream import logits_of as head_of
from tests import row_references as ragged
from tests.reference import infini as reference
from tests.row_references import CUTS, DIMS, LENGTHS
from tests.streams import MODEL

MAPS = (("elu_plus_one", 1), ("unit", 1), ("dpfp", 3), ("taylor2", 1))
CASES = [(rule, name, nu) for rule in ("linear", "delta") for name, nu in MAPS if (rule, name) != ("delta", "unit")]
MAPS_ONCE = [("linear" if name == "unit" else "delta", name, nu) for name, nu in MAPS]
BETA = np.array([0.4, -1.1])
KERNEL = np.random.default_rng(3).normal(size=(DIMS.heads, DIMS.value_dim, DIMS.d_model))


def config_of(rule, name, nu):
    return InfiniConfig(update=rule, feature_map=name, dpfp_order=nu)


def layer(rule, name, nu, dtype="float64"):
    return Infini(config_of(rule, name, nu), dataclasses.replace(DIMS, compute=dtype))


def params_of(dtype="float64", beta=BETA, kernel=KERNEL):
    return {"params": {"gate": jnp.asarray(beta, dtype), "out": {"kernel": jnp.asarray(kernel, dtype)}}}


def rows_of(rule, name, nu, beta=BETA):
    settings = {"rule": rule, "feature_map": name, "nu": nu, "normalise": name != "unit"}
    return functools.partial(reference.row, lengths=LENGTHS, beta=beta, **settings)


def assert_close(ours, theirs, tolerance):
    (y, memory), (expected_y, expected_memory) = ours, theirs
    np.testing.assert_allclose(y, expected_y, rtol=tolerance, atol=tolerance)
    for field, array in expected_memory.items():
        np.testing.assert_allclose(getattr(memory, field), array, rtol=tolerance, atol=tolerance * np.abs(array).max())


@pytest.mark.parametrize("case", CASES)
def test_ragged_segments_with_cut_documents_are_the_reference_s(case):
    """1e-11: sums of a few dozen float64 products."""
    arrays = ragged.arrays()
    with jax.enable_x64(True):
        ours = ragged.compiled(layer(*case), True)(params_of(), arrays, CUTS)
    assert_close(ours, ragged.expected(rows_of(*case), KERNEL, arrays, CUTS), 1e-11)


@settings(max_examples=25, deadline=None)
@given(
    edges=st.lists(st.lists(st.integers(1, ragged.TOKENS - 1), max_size=4), min_size=2, max_size=2), seed=st.integers(0, 99)
)
def test_documents_cut_anywhere_are_the_reference_s(edges, seed):
    case = CASES[seed % len(CASES)]
    arrays = ragged.arrays(seed)
    documents = np.stack([np.searchsorted(sorted(row), np.arange(ragged.TOKENS), side="right") for row in edges])
    with jax.enable_x64(True):
        ours = ragged.compiled(layer(*case), True)(params_of(), arrays, documents)
    assert_close(ours, ragged.expected(rows_of(*case), KERNEL, arrays, documents), 1e-11)


@pytest.mark.parametrize("case", [("linear", "elu_plus_one", 1), *MAPS_ONCE])
def test_gradients_through_the_memory_are_the_reference_s_slopes(case):
    """Of outputs and final memory, by queries, keys, values, gates and the output kernel."""
    inputs, *qkv = ragged.arrays(1)
    rng = np.random.default_rng(2)
    upstream = rng.normal(size=(ragged.BATCH, ragged.TOKENS, DIMS.d_model))

    def ours(q, k, v, beta, kernel):
        y, memory = ragged.run(layer(*case), params_of(beta=beta, kernel=kernel), (inputs, q, k, v), jnp.asarray(CUTS))
        return (y * upstream).sum() + sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(memory))

    def theirs(q, k, v, beta, kernel):
        y, memory = ragged.expected(rows_of(*case, beta=beta), kernel, (inputs, q, k, v), CUTS)
        return (y * upstream).sum() + sum(np.sin(leaf).sum() for leaf in memory.values())

    with jax.enable_x64(True):
        ragged.assert_gradients_are_slopes(ours, theirs, (*qkv, BETA, KERNEL))


def test_float32_and_bf16_compute_stay_near_the_reference():
    """float32: its rounding. bf16: the memory is as exact, given the rounded keys; outputs carry bf16's eight bits."""
    case = ("delta", "taylor2", 1)
    arrays = ragged.arrays()
    single = [np.asarray(array, np.float32) for array in arrays]
    ours = ragged.compiled(layer(*case, "float32"), False)(params_of("float32"), single, CUTS)
    assert_close(ours, ragged.expected(rows_of(*case), KERNEL, arrays, CUTS), 1e-5)

    half = [jnp.asarray(array, jnp.bfloat16) for array in arrays]
    y, memory = ragged.compiled(layer(*case, "bfloat16"), False)(params_of("float32"), half, CUTS)
    expected_y, expected_memory = ragged.expected(
        rows_of(*case), KERNEL, [np.asarray(array, np.float64) for array in half], CUTS
    )
    assert y.dtype == jnp.bfloat16
    assert np.abs(np.asarray(y, np.float64) - expected_y).max() < 0.03 * np.abs(expected_y).max()
    for field, array in expected_memory.items():
        stored = getattr(memory, field)
        assert stored.dtype == jnp.float32
        np.testing.assert_allclose(stored, array, rtol=1e-5, atol=1e-5 * np.abs(array).max())


# ---- feature maps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "nu", "size"), [("elu_plus_one", 1, 4), ("unit", 1, 4), ("dpfp", 3, 24), ("taylor2", 1, 15)])
def test_bytes_count_the_features(name, nu, size):
    z = 0 if name == "unit" else 1
    module = layer("linear", name, nu, "float32")
    assert memory_bytes(module) == 4 * DIMS.heads * size * (DIMS.value_dim + z)
    assert jax.tree.map(len, module.logical_axes(), is_leaf=lambda node: isinstance(node, tuple)) == jax.tree.map(
        jnp.ndim, module.init_memory(1)
    )


@pytest.mark.parametrize("case", [("linear", "unit", 1), ("delta", "dpfp", 2), ("delta", "taylor2", 1)])
def test_counted_flops_of_every_map_equal_those_of_the_program(case):
    model = dataclasses.replace(MODEL, memory=config_of(*case), key_dim=4)
    tokens = jax.ShapeDtypeStruct((2, model.segment), jnp.int32)

    def forward(params, carry, tokens):
        carry, x, _ = forward_segments(model, params, carry, tokens, tokens)
        return carry, head_of(model, params, x)

    shapes = jax.eval_shape(lambda: (init_params(model, jax.random.key(0)), init_carry(model, 2)))
    assert program_flops(forward, *shapes, tokens) / (2 * model.segment) == pytest.approx(model_cost(model).flops, rel=1e-6)


def test_taylor_s_kernel_is_the_exponential_to_second_order():
    q, k = np.random.default_rng(0).normal(size=(2, 50, 6))
    s = (q * k).sum(-1) / np.sqrt(6)
    with jax.enable_x64(True):
        kernel = np.asarray(feature_maps.taylor2(jnp.asarray(q)) * feature_maps.taylor2(jnp.asarray(k))).sum(-1)
    np.testing.assert_allclose(kernel, 1 + s + s**2 / 2, atol=1e-12)
    assert kernel.min() >= 0.5


def test_dpfp_gives_keys_of_different_signs_no_overlap():
    """Schlag et al.: in two dimensions the four quadrants are orthogonal."""
    corners = jnp.array([[1.0, 2.0], [1.0, -2.0], [-1.0, -2.0], [-1.0, 2.0]])
    features = feature_maps.dpfp(corners, 1)
    np.testing.assert_array_equal(features @ features.T, 4.0 * np.eye(4))


def test_keys_without_features_read_and_write_nothing_and_keep_gradients_finite():
    """Alternating signs have no DPFP-1 features: the normaliser is zero."""
    alternating = jnp.array([1.0, -1.0, 1.0])
    features = feature_maps.dpfp(alternating, 1)
    assert not np.any(features)
    memory = InfiniMemory(jnp.ones((1, 1, 6, 2)), jnp.ones((1, 1, 6)))
    value, gradient = jax.value_and_grad(lambda x: retrieve(memory, feature_maps.dpfp(x, 1)[None, None, None]).sum())(
        alternating
    )
    assert value == 0
    assert np.all(np.isfinite(gradient))


def test_unit_keys_recall_exactly_without_a_normaliser():
    """Four orthogonal keys, four values: each is read back as it is, whatever the lengths of key and query; 2e-6 is the
    feature map's 1e-6 under the root. With the sum over keys z the value of key 0 would be divided by (e_0 . z)."""
    dims = dataclasses.replace(DIMS, heads=1, kv_heads=1)
    module = Infini(config_of("linear", "unit", 1), dims)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    keys, values = 3.0 * turn[None, :, None], np.arange(12.0).reshape(1, 4, 1, 3)
    keys[:, 1] *= -1.0  # a sum of such keys may vanish or change its sign
    documents = np.zeros((1, 4), int)
    segment = Segment(np.zeros((1, 4, 5)), keys, jnp.asarray(keys), jnp.asarray(values), whole(documents, jnp.zeros(1, int)))
    memory = module.apply(params_of("float32", np.zeros(1)), module.init_memory(1), segment, method="write")
    assert memory.z is None
    np.testing.assert_allclose(retrieve(memory, feature_maps.unit(jnp.asarray(0.5 * keys))), values, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"update": "delta", "feature_map": "unit"}, "memory.update"),
        ({"feature_map": "relu"}, "memory.feature_map"),
        ({"feature_map": "dpfp", "dpfp_order": 0}, "memory.dpfp_order"),
        ({"feature_map": "dpfp", "dpfp_order": 16}, "memory.dpfp_order"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, field):
    with pytest.raises(ConfigError, match=field):
        ModelConfig(memory=InfiniConfig(**changes), key_dim=8)


@pytest.mark.parametrize(("name", "nu"), MAPS)
def test_memories_of_a_size_grow_by_the_key_dimension(name, nu):
    model = ModelConfig(memory=config_of("linear", name, nu))
    budget = 4 * model.memory_bytes
    fitted = model.at_bytes(budget)
    assert fitted.dims.key_dim > model.dims.key_dim
    assert budget / 2 < fitted.memory_bytes <= budget
