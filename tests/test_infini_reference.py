"""Infini-attention with every feature map against slow float64 loops, and the properties of the maps themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import ModelConfig
from infini_jax.errors import ConfigError
from infini_jax.layers.platforms import target
from infini_jax.layers.segment import Segment, whole
from infini_jax.memory import feature_maps
from infini_jax.memory.base import memory_bytes
from infini_jax.memory.infini import Infini, InfiniConfig, InfiniMemory, retrieve
from infini_jax.model.cost import model_cost
from tests.reference import infini as reference
from tests.support import ragged
from tests.support.ragged import DIMS
from tests.support.streams import MODEL, walked_flops

MAPS = (("elu_plus_one", 1), ("unit", 1), ("dpfp", 3), ("taylor2", 1))
POSITIVE = tuple((name, nu) for name, nu in MAPS if name != "unit")
CASES = [
    *(("linear", name, nu, "normalised") for name, nu in MAPS),
    *(("linear", name, nu, "plain") for name, nu in POSITIVE),
    *(("delta", name, nu, "normalised") for name, nu in POSITIVE),
]


def config_of(rule, name, nu, reads="normalised"):
    return InfiniConfig(update=rule, feature_map=name, dpfp_order=nu, reads=reads)


def layer(case, dtype="float64"):
    return Infini(config_of(*case), dataclasses.replace(DIMS, compute=dtype))


def row_of(rule, name, nu, reads):
    """The reference of a case with the layer's parameters."""
    settings = {"rule": rule, "feature_map": name, "nu": nu, "normalise": name != "unit" and reads == "normalised"}

    def row(params, arrays, documents):
        return reference.row(arrays, documents, lengths=ragged.LENGTHS, beta=params["gate"], **settings)

    return row


@pytest.mark.parametrize("case", CASES)
def test_outputs_memory_and_gradients_are_the_reference_s(case):
    ragged.assert_is_the_reference(layer(case), row_of(*case))


def test_features_that_a_tpu_s_gradient_finds_again_are_the_reference_s():
    """Where they are wider than queries and keys: in bfloat16."""
    case = ("delta", "elu_plus_one", 1, "normalised")
    with target("tpu"):
        ragged.assert_narrow_types_stay_near(layer(case), row_of(*case))


@settings(max_examples=15, deadline=None)
@given(documents=ragged.documents_cut_anywhere(), seed=st.integers(0, 99))
def test_documents_cut_anywhere_are_the_reference_s(documents, seed):
    """With z and without."""
    case = [("delta", "elu_plus_one", 1, "normalised"), ("linear", "unit", 1, "normalised")][seed % 2]
    ragged.assert_follows_documents(layer(case), row_of(*case), documents, seed)


def test_float32_and_bf16_compute_stay_near_the_reference():
    case = ("delta", "taylor2", 1, "normalised")
    ragged.assert_narrow_types_stay_near(layer(case), row_of(*case))


# ---- feature maps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "nu", "size"), [("elu_plus_one", 1, 4), ("unit", 1, 4), ("dpfp", 3, 24), ("taylor2", 1, 15)])
@pytest.mark.parametrize("reads", ["normalised", "plain"])
def test_bytes_count_the_features_of_key_heads_and_z_where_it_is_kept(name, nu, size, reads):
    z = 0 if name == "unit" or reads == "plain" else 1
    module = layer(("linear", name, nu, reads), "float32")
    assert memory_bytes(module) == 4 * DIMS.kv_heads * size * (DIMS.value_dim + z)
    assert jax.tree.map(len, module.logical_axes(), is_leaf=lambda node: isinstance(node, tuple)) == jax.tree.map(
        jnp.ndim, module.init_memory(1)
    )


@pytest.mark.parametrize("case", [("linear", "unit", 1), ("linear", "dpfp", 2, "plain"), ("delta", "taylor2", 1)])
def test_counted_flops_of_every_map_equal_those_of_the_program(case):
    model = dataclasses.replace(MODEL, memory=config_of(*case), key_dim=4, heads=4, kv_heads=2)
    assert walked_flops(model) == pytest.approx(model_cost(model).flops, rel=1e-6)


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
    dims = dataclasses.replace(DIMS, heads=1, kv_heads=1, compute="float32")
    module = Infini(config_of("linear", "unit", 1), dims)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    keys, values = 3.0 * turn[None, :, None], np.arange(12.0).reshape(1, 4, 1, 3)
    keys[:, 1] *= -1.0  # a sum of such keys may vanish or change its sign
    bounds = whole(np.zeros((1, 4), int), jnp.zeros(1, int))
    segment = Segment(np.zeros((1, 4, dims.d_model)), keys, jnp.asarray(keys), jnp.asarray(values), bounds)
    memory = module.apply({"params": ragged.parameters(module)}, module.init_memory(1), segment, method="write")
    assert memory.z is None
    np.testing.assert_allclose(retrieve(memory, feature_maps.unit(jnp.asarray(0.5 * keys))), values, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"update": "delta", "feature_map": "unit"}, "memory.update"),
        ({"update": "delta", "reads": "plain"}, "memory.update"),
        ({"reads": "scaled"}, "memory.reads"),
        ({"feature_map": "relu"}, "memory.feature_map"),
        ({"feature_map": "dpfp", "dpfp_order": 0}, "memory.dpfp_order"),
        ({"feature_map": "dpfp", "dpfp_order": 16}, "memory.dpfp_order"),
        ({"feature_scale": 0.0}, "memory.feature_scale"),
        ({"feature_scale": 2.0, "feature_map": "unit"}, "memory.feature_scale: the unit map"),
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
