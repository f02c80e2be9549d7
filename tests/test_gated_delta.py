"""The chunkwise gated delta rule against the rule itself, token by token in float64 loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import ModelConfig
from infini_jax.cost import program_flops
from infini_jax.errors import ConfigError
from infini_jax.memory import gated_delta
from infini_jax.memory.gated_delta import GatedDelta, GatedDeltaConfig, unit_lower_inverse, write_tokens
from infini_jax.segment import Segment, whole
from tests import row_references as ragged
from tests.reference import gated_delta as reference
from tests.row_references import CUTS, DIMS, LENGTHS

RNG = np.random.default_rng(3)
PARAMS = {
    "gate": np.array([0.4, -1.1]),
    "out": RNG.normal(size=(DIMS.heads, DIMS.value_dim, DIMS.d_model)),
    "strength": RNG.normal(size=(DIMS.d_model, DIMS.heads)),
    "forget": RNG.normal(size=(DIMS.d_model, DIMS.heads)),
    "forget_bias": np.array([-2.0, 0.5]),
    "forget_rate": np.array([0.3, -0.4]),
}
NAMES = {"learned": tuple(PARAMS), "none": ("gate", "out", "strength")}


def layer(decay, dtype="float64"):
    return GatedDelta(GatedDeltaConfig(decay=decay), dataclasses.replace(DIMS, compute=dtype))


def linen(params, dtype="float64"):
    """The module's parameters of the plain ones."""
    arrays = {name: jnp.asarray(array, dtype) for name, array in params.items()}
    tree = {"gate": arrays["gate"], "out": {"kernel": arrays["out"]}, "strength": {"kernel": arrays["strength"]}}
    if "forget" in arrays:
        tree |= {"forget": {"kernel": arrays["forget"], "bias": arrays["forget_bias"]}, "forget_rate": arrays["forget_rate"]}
    return {"params": tree}


def params_of(decay):
    return {name: PARAMS[name] for name in NAMES[decay]}


def expected(params, arrays, documents):
    y, memory = ragged.expected(
        functools.partial(reference.row, lengths=LENGTHS, params=params), params["out"], arrays, documents
    )
    return y, memory["S"]


@pytest.mark.parametrize("decay", NAMES)
def test_ragged_segments_with_cut_documents_are_the_reference_s(decay):
    arrays = ragged.arrays()
    with jax.enable_x64(True):
        y, S = ragged.compiled(layer(decay), True)(linen(params_of(decay)), arrays, CUTS)
    expected_y, expected_S = expected(params_of(decay), arrays, CUTS)
    np.testing.assert_allclose(y, expected_y, rtol=1e-11, atol=1e-11)  # float64 sums of a few dozen terms
    np.testing.assert_allclose(S, expected_S, rtol=1e-11, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(
    edges=st.lists(st.lists(st.integers(1, ragged.TOKENS - 1), max_size=4), min_size=2, max_size=2), seed=st.integers(0, 99)
)
def test_documents_cut_anywhere_are_the_reference_s(edges, seed):
    arrays = ragged.arrays(seed)
    documents = np.stack([np.searchsorted(sorted(row), np.arange(ragged.TOKENS), side="right") for row in edges])
    with jax.enable_x64(True):
        y, S = ragged.compiled(layer("learned"), True)(linen(PARAMS), arrays, documents)
    expected_y, expected_S = expected(PARAMS, arrays, documents)
    np.testing.assert_allclose(y, expected_y, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(S, expected_S, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("decay", NAMES)
def test_gradients_through_the_memory_are_the_reference_s_slopes(decay):
    """Of outputs and final memory, by inputs, queries, keys, values and every parameter."""
    names = NAMES[decay]
    upstream = np.random.default_rng(2).normal(size=(ragged.BATCH, ragged.TOKENS, DIMS.d_model))

    def ours(*arguments):
        y, S = ragged.run(layer(decay), linen(dict(zip(names, arguments[4:], strict=True))), arguments[:4], jnp.asarray(CUTS))
        return (y * upstream).sum() + jnp.sin(S).sum()

    def theirs(*arguments):
        y, S = expected(dict(zip(names, arguments[4:], strict=True)), arguments[:4], CUTS)
        return (y * upstream).sum() + np.sin(S).sum()

    with jax.enable_x64(True):
        ragged.assert_gradients_are_slopes(ours, theirs, (*ragged.arrays(1), *params_of(decay).values()))


def test_float32_and_bf16_compute_stay_near_the_reference():
    """float32: its rounding. bf16: the memory is as exact, given the rounded inputs; outputs carry bf16's eight bits."""
    arrays = ragged.arrays()
    y, S = ragged.compiled(layer("learned", "float32"), False)(linen(PARAMS, "float32"), arrays, CUTS)
    expected_y, expected_S = expected(PARAMS, arrays, CUTS)
    np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(S, expected_S, rtol=1e-5, atol=1e-5)

    half = [jnp.asarray(array, jnp.bfloat16) for array in arrays]
    y, S = ragged.compiled(layer("learned", "bfloat16"), False)(linen(PARAMS, "float32"), half, CUTS)
    expected_y, expected_S = expected(PARAMS, [np.asarray(array, np.float64) for array in half], CUTS)
    assert (y.dtype, S.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(S, expected_S, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(y, np.float64) - expected_y).max() < 0.03 * np.abs(expected_y).max()


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


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_inverse_by_halves_is_the_inverse(size):
    A = np.tril(np.random.default_rng(size).normal(size=(3, size, size)), -1) * 0.3
    with jax.enable_x64(True):
        np.testing.assert_allclose(unit_lower_inverse(jnp.asarray(A)), np.linalg.inv(np.eye(size) + A), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("segment", [1, 16, 150])
def test_counted_flops_of_a_write_equal_those_of_the_program(segment):
    """One token, one chunk, and two chunks with a rest that is padded."""
    dims = dataclasses.replace(DIMS, segment=segment)
    module = GatedDelta(GatedDeltaConfig(), dims)
    shapes = [(dims.d_model,), (dims.heads, dims.key_dim), (dims.heads, dims.key_dim), (dims.heads, dims.value_dim)]
    arrays = [jnp.zeros((1, segment, *shape)) for shape in shapes]
    bounds = whole(jnp.zeros((1, segment), int), jnp.zeros(1, int))

    def both(*arrays):
        segment = Segment(*arrays, bounds)
        memory = module.init_memory(1)
        return [module.apply(linen(PARAMS, "float32"), memory, segment, method=name) for name in ("attend", "write")]

    output = 2 * dims.heads * dims.value_dim * dims.d_model  # the output projection is counted by the model
    assert program_flops(both, *arrays) / segment == pytest.approx(module.cost(segment).flops + output)


def test_heads_first_remember_for_one_to_sixty_four_segments():
    dims = dataclasses.replace(DIMS, heads=4, segment=128)
    module = GatedDelta(GatedDeltaConfig(), dims)
    bias = module._spread(jax.random.key(0), (4,), jnp.float32)
    np.testing.assert_allclose(1 / jax.nn.softplus(bias), 128 * np.array([1, 4, 16, 64]), rtol=1e-4)


def test_a_decay_that_is_none_of_both_is_refused():
    with pytest.raises(ConfigError, match=r"memory\.decay"):
        ModelConfig(memory=GatedDeltaConfig(decay="linear"))
