"""The chunkwise gated delta rule against the rule itself, token by token in float64 loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import ModelConfig
from infini_jax.errors import ConfigError
from infini_jax.layers.segment import Segment, whole
from infini_jax.memory import gated_delta
from infini_jax.memory.gated_delta import GatedDelta, GatedDeltaConfig, unit_lower_inverse, write_tokens
from infini_jax.model.cost import program_flops
from tests.reference import gated_delta as reference
from tests.support import ragged
from tests.support.ragged import DIMS

LEARNED = GatedDelta(GatedDeltaConfig(), DIMS)


def row(params, arrays, documents):
    """The reference with the layer's parameters."""
    plain = {"gate": params["gate"], "strength": params["strength"]["kernel"]}
    if "forget" in params:
        bias, rate = params["forget"]["bias"], params["forget_rate"]
        plain |= {"forget": params["forget"]["kernel"], "forget_bias": bias, "forget_rate": rate}
    return reference.row(arrays, documents, lengths=ragged.LENGTHS, params=plain)


@pytest.mark.parametrize("decay", ["learned", "none"])
def test_outputs_memory_and_gradients_are_the_reference_s(decay):
    ragged.assert_is_the_reference(GatedDelta(GatedDeltaConfig(decay=decay), DIMS), row, idle=())


@settings(max_examples=15, deadline=None)
@given(documents=ragged.documents_cut_anywhere(), seed=st.integers(0, 99))
def test_documents_cut_anywhere_are_the_reference_s(documents, seed):
    ragged.assert_follows_documents(LEARNED, row, documents, seed)


def test_float32_and_bf16_compute_stay_near_the_reference():
    ragged.assert_narrow_types_stay_near(LEARNED, row)


# ---- the chunkwise form --------------------------------------------------------------------------------------------------


def token_arrays(tokens, correlated):
    """k of unit length, v, beta, g for a batch of one and two heads; `correlated` keys are nearly all the same."""
    rng = np.random.default_rng(tokens)
    k = rng.normal(size=(1, tokens, 2, 4)) + 20.0 * correlated
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta, g = rng.uniform(0.0, 1.0, (1, tokens, 2)), -rng.exponential(0.1, (1, tokens, 2))
    return k, rng.normal(size=(1, tokens, 2, 3)), beta, g


def token_by_token(S, k, v, beta, g):
    S = S.copy()
    for t in range(k.shape[1]):
        for h in range(k.shape[2]):
            S[0, h] = reference.write(S[0, h], k[0, t, h], v[0, t, h], beta[0, t, h], g[0, t, h])
    return S


@pytest.mark.parametrize("tokens", [1, 2, 37, 64, 65, 150])
def test_chunks_of_any_length_are_the_rule_token_by_token(tokens):
    """Less than one chunk, whole chunks and a rest."""
    S = np.random.default_rng(0).normal(size=(1, 2, 4, 3))
    arrays = token_arrays(tokens, correlated=False)
    with jax.enable_x64(True):
        ours = jax.jit(write_tokens)(S, *arrays)
    np.testing.assert_allclose(ours, token_by_token(S, *arrays), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_float32_chunks_are_exact_where_all_keys_point_the_same_way(strength):
    """The inverse of a chunk then has powers with entries up to 1e18; its own entries stay below one."""
    k, v, _, g = token_arrays(128, correlated=True)
    beta = np.full(g.shape, strength)
    S = np.zeros((1, 2, 4, 3))
    ours = jax.jit(write_tokens)(*(jnp.asarray(array, jnp.float32) for array in (S, k, v, beta, 0 * g)))
    np.testing.assert_allclose(ours, token_by_token(S, k, v, beta, 0 * g), atol=2e-5)


def test_a_strong_decay_forgets_without_overflow():
    k, v, beta, _ = token_arrays(70, correlated=False)
    g = np.full(beta.shape, -60.0)  # e^{60 * 64} is no float
    value, gradient = jax.jit(jax.value_and_grad(lambda g: write_tokens(jnp.ones((1, 2, 4, 3)), k, v, beta, g).sum()))(g)
    last = sum((beta[0, -1, h] * np.outer(k[0, -1, h], v[0, -1, h])).sum() for h in range(2))
    np.testing.assert_allclose(value, last, rtol=1e-5)
    assert np.all(np.isfinite(gradient))


def test_the_delta_rule_recalls_the_last_value_of_a_key():
    """beta = 1, no decay: writing a key again replaces what it held, whatever else points elsewhere."""
    keys = jnp.eye(3)[jnp.array([0, 1, 0, 2, 0])][None, :, None]
    values = jnp.arange(10.0).reshape(1, 5, 1, 2)
    S = jax.jit(write_tokens)(jnp.zeros((1, 1, 3, 2)), keys, values, jnp.ones((1, 5, 1)), jnp.zeros((1, 5, 1)))
    recalled = gated_delta.retrieve(S, np.sqrt(3.0) * jnp.eye(3)[None, :, None])
    np.testing.assert_allclose(recalled[0, :, 0], values[0, jnp.array([4, 1, 3]), 0], atol=1e-6)


@pytest.mark.parametrize("key_dim", [4, 24])
def test_segments_at_once_have_the_states_of_segments_in_turn_in_both_forms_of_a_chunk(key_dim):
    """Chunks of 8 tokens: written as one product of 4 x 4, and as two with 24; documents begin in the second and the last."""
    (rows, count, length), rng = (2, 4, 8), np.random.default_rng(0)
    keeps = np.array([[True, False, True, True], [True, True, True, False]])
    k, v = (rng.normal(size=(rows, count, length, 3, size)) for size in (key_dim, 5))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta, g = rng.uniform(size=(rows, count, length, 3)), -rng.uniform(size=(rows, count, length, 3))
    S, parts = rng.normal(size=(rows, 3, key_dim, 5)), (k, v, beta, g)
    with jax.enable_x64(True):
        solved = jax.jit(gated_delta.solve_chunks)(*(x.reshape(rows * count, length, *x.shape[3:]) for x in parts))
        before, after = jax.jit(gated_delta.parallel)(S, solved, keeps)
        before, write = np.reshape(before, (rows, count, *S.shape[1:])), jax.jit(write_tokens)
        for number in range(count):
            np.testing.assert_allclose(before[:, number], S, atol=1e-12)
            S = np.where(keeps[:, number, None, None, None], S, 0.0)
            S = write(S, *(x[:, number] for x in parts))
        np.testing.assert_allclose(after, S, atol=1e-12)  # rounding of float64


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_inverse_by_halves_is_the_inverse(size):
    A = np.tril(np.random.default_rng(size).normal(size=(3, size, size)), -1) * 0.3
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(unit_lower_inverse)(A), np.linalg.inv(np.eye(size) + A), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("segment", [1, 16, 150])
def test_counted_flops_of_a_write_equal_those_of_the_program(segment):
    """One token, one chunk, and two chunks with a rest that is padded."""
    dims = dataclasses.replace(DIMS, segment=segment, compute="float32")
    module = GatedDelta(GatedDeltaConfig(), dims)
    params, arrays = ragged.parameters(module), [jnp.zeros((1, segment, *shape)) for shape in ragged.shapes(dims)]
    bounds = whole(jnp.zeros((1, segment), int), jnp.zeros(1, int))

    def both(*arrays):
        segment = Segment(*arrays, bounds)
        memory = module.init_memory(1)
        return module.apply({"params": params}, memory, segment, method=ragged.both)

    output = 2 * dims.heads * dims.value_dim * dims.d_model  # the output projection is counted by the model
    assert program_flops(both, *arrays).executed / segment == pytest.approx(module.cost(segment).flops + output)


def test_heads_first_remember_for_one_to_sixty_four_segments():
    dims = dataclasses.replace(DIMS, heads=4, segment=128)
    module = GatedDelta(GatedDeltaConfig(), dims)
    bias = module._spread(jax.random.key(0), (4,), jnp.float32)
    np.testing.assert_allclose(1 / jax.nn.softplus(bias), 128 * np.array([1, 4, 16, 64]), rtol=1e-4)


@pytest.mark.parametrize(
    ("horizons", "heads", "segments"),
    [((1.0, 64.0), 1, [64]), ((1.0, 64.0), 2, [1, 64]), ((8.0, 8.0), 2, [8, 8]), ((4.0, 1.0), 3, [4, 2, 1])],
)
def test_heads_first_remember_for_the_horizons_asked_for_and_one_alone_for_the_last(horizons, heads, segments):
    """Of what was written as long ago as a head's horizon 1/e is left, where the inputs say nothing."""
    dims = dataclasses.replace(DIMS, heads=heads, kv_heads=heads, segment=16, compute="float32")
    module = GatedDelta(GatedDeltaConfig(horizons=horizons), dims)
    arrays = [jnp.zeros((1, 16, *shape)) for shape in ragged.shapes(dims)]
    segment = Segment(*arrays, whole(jnp.zeros((1, 16), int), jnp.zeros(1, int)))
    memory = jnp.ones((1, heads, dims.key_dim, dims.value_dim))
    params = module.init(jax.random.key(0), memory, segment, method=ragged.both)
    left = module.apply(params, memory, segment, method="write")[0, :, 0, 0]
    np.testing.assert_allclose(left, np.exp(-1 / np.array(segments)), rtol=1e-5)


@pytest.mark.parametrize(
    ("horizons", "said"), [((1e-3, 64.0), "segments are less than a token"), ((1.0, 1e9), "segments are too many")]
)
def test_horizons_that_cannot_be_are_refused(horizons, said):
    with pytest.raises(ConfigError, match=rf"^memory\.horizons: .*{said}"):
        ModelConfig(memory=GatedDeltaConfig(horizons=horizons))


def test_a_decay_that_is_none_of_both_is_refused():
    with pytest.raises(ConfigError, match=r"memory\.decay"):
        ModelConfig(memory=GatedDeltaConfig(decay="linear"))
