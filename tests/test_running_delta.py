"""Delta rules with gates of each channel against the rules themselves, token by token in float64 loops."""

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
from infini_jax.memory.base import Dims
from infini_jax.memory.gated_delta import write_tokens
from infini_jax.memory.gated_delta2 import GatedDelta2, GatedDelta2Config
from infini_jax.memory.kimi_delta import KimiDelta, KimiDeltaConfig
from infini_jax.memory.running_delta import Edits, carried_through, chunked, read_running
from infini_jax.model.cost import program_flops
from tests.reference import running_delta as reference
from tests.support import ragged
from tests.support.ragged import DIMS

CHANNELS = GatedDelta2(GatedDelta2Config(), DIMS)
CHANNELS_SIGNED = GatedDelta2(GatedDelta2Config(eigenvalues="signed"), DIMS)
KIMI = KimiDelta(KimiDeltaConfig(), DIMS)
SIGNED = KimiDelta(KimiDeltaConfig(eigenvalues="signed"), DIMS)


def row_of(module):
    """The reference of a mechanism with the layer's parameters."""

    def row(params, arrays, documents):
        def gates(x, g):
            if isinstance(module, GatedDelta2):
                erased = module.most_erased * reference.sigmoid(x @ params["erase"]["kernel"][:, g])
                return erased, reference.sigmoid(x @ params["strength"]["kernel"][:, g])
            strength = module.most_erased * reference.sigmoid(x @ params["strength"]["kernel"][:, g])
            return strength, strength

        return reference.row(arrays, documents, lengths=ragged.LENGTHS, params=params, gates=gates)

    return row


@pytest.mark.parametrize(
    "module",
    [KIMI, pytest.param(SIGNED, marks=pytest.mark.slow), CHANNELS, pytest.param(CHANNELS_SIGNED, marks=pytest.mark.slow)],
    ids=["kimi_delta", "kimi_delta signed", "gated_delta2", "gated_delta2 signed"],
)
def test_outputs_memory_and_gradients_are_the_reference_s(module):
    ragged.assert_is_the_reference(module, row_of(module), idle=())


@settings(max_examples=10, deadline=None)
@given(documents=ragged.documents_cut_anywhere(), seed=st.integers(0, 99))
def test_documents_cut_anywhere_are_the_reference_s(documents, seed):
    ragged.assert_follows_documents(KIMI, row_of(KIMI), documents, seed)


def test_float32_and_bf16_compute_stay_near_the_reference():
    ragged.assert_narrow_types_stay_near(CHANNELS, row_of(CHANNELS))


# ---- chunks --------------------------------------------------------------------------------------------------------------


def drawn_edits(tokens: int, key_dim: int, decay: float) -> tuple[Edits, np.ndarray]:
    """(edits of two rows and heads, with erased keys and values of their own; queries)."""
    rng = np.random.default_rng(tokens)
    k = rng.normal(size=(2, tokens, 2, key_dim))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    g = -rng.exponential(decay, size=k.shape)
    e, v = k * rng.uniform(0, 2, size=k.shape), rng.normal(size=(2, tokens, 2, 3))
    return Edits(k, e, v, g), rng.normal(size=(2, tokens, 4, key_dim))


def token_by_token(S, edits, queries, documents, opened):
    S, outputs = S.copy(), np.zeros((*queries.shape[:3], 3))
    for b, t in np.ndindex(*queries.shape[:2]):
        if documents[b, t] != (documents[b, t - 1] if t else opened[b]):
            S[b] = 0.0
        for h in range(2):
            S[b, h] = reference.step(S[b, h], *(x[b, t, h] for x in edits))
        for h in range(4):
            outputs[b, t, h] = S[b, h // 2].T @ queries[b, t, h] / np.sqrt(queries.shape[-1])
    return outputs, S


@jax.jit
def by_chunks(S, edits, queries, documents, opened):
    chunks = chunked(edits, whole(documents, opened))
    before, after = carried_through(S, chunks.solved, 1)
    return read_running(before, chunks, queries), after


@pytest.mark.parametrize(("tokens", "key_dim"), [(1, 4), (16, 4), (37, 4), (37, 24)])
def test_chunks_of_any_length_are_the_rule_token_by_token(tokens, key_dim):
    """Less than one chunk, one, two and a rest; written as one product and as two. A document begins inside a chunk."""
    edits, queries = drawn_edits(tokens, key_dim, decay=0.2)
    S = np.random.default_rng(0).normal(size=(2, 2, key_dim, 3))
    documents, opened = np.stack([np.zeros(tokens, int), np.arange(tokens) >= min(19, tokens - 1)]), np.zeros(2, int)
    with jax.enable_x64(True):
        found = by_chunks(S, edits, queries, documents, opened)
    for ours, theirs in zip(found, token_by_token(S, edits, queries, documents, opened), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_one_decay_and_one_strength_are_the_gated_delta_rule():
    edits, _ = drawn_edits(40, 4, decay=0.2)
    beta, g = np.random.default_rng(1).uniform(size=(2, 40, 2)), edits.decay[..., 0]
    same = Edits(edits.keys, beta[..., None] * edits.keys, beta[..., None] * edits.values, np.stack([g] * 4, axis=-1))
    S = np.random.default_rng(0).normal(size=(2, 2, 4, 3))
    with jax.enable_x64(True):
        _, ours = by_chunks(S, same, np.zeros((2, 40, 4, 4)), np.zeros((2, 40), int), np.zeros(2, int))
        np.testing.assert_allclose(ours, jax.jit(write_tokens)(S, edits.keys, edits.values, beta, g), atol=1e-12)


def test_a_strong_decay_forgets_without_overflow():
    """float32 has no e^{60 * 16}, by which keys would be divided."""
    edits, queries = drawn_edits(40, 4, decay=0.1)
    edits = edits._replace(decay=np.full_like(edits.decay, -60.0))
    edits, queries = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (edits, queries))
    documents = jnp.zeros((2, 40), jnp.int32)

    def total(edits):
        return by_chunks(jnp.ones((2, 2, 4, 3)), edits, queries, documents, documents[:, 0])[1].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(edits)
    last = sum(np.outer(edits.keys[b, -1, h], edits.values[b, -1, h]).sum() for b, h in np.ndindex(2, 2))
    np.testing.assert_allclose(value, last, rtol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_signed_eigenvalues_turn_what_is_held_and_positive_ones_do_not():
    """Strength 2 on a key that holds v, with nothing to write, leaves -v: a reflection."""
    k, held = np.eye(4)[:1], np.ones((1, 1, 4, 3))
    edits = Edits(*(x[None, :, None] for x in (k, 2 * k, np.zeros((1, 3)), np.zeros((1, 4)))))
    _, after = by_chunks(held, edits, np.zeros((1, 1, 1, 4)), np.zeros((1, 1), int), np.zeros(1, int))
    np.testing.assert_allclose(after[0, 0], [[-1.0] * 3] + [[1.0] * 3] * 3, atol=1e-6)


@pytest.mark.parametrize("segment", [1, 16, 37])
@pytest.mark.parametrize("key_dim", [4, 24])
def test_counted_flops_equal_those_of_the_program(segment, key_dim):
    """One token, one chunk, and two chunks with a rest that is padded; as one product and as two."""
    dims = dataclasses.replace(DIMS, segment=segment, key_dim=key_dim, compute="float32")
    module = KimiDelta(KimiDeltaConfig(), dims)
    params, arrays = ragged.parameters(module), [jnp.zeros((1, segment, *shape)) for shape in ragged.shapes(dims)]
    bounds = whole(jnp.zeros((1, segment), int), jnp.zeros(1, int))

    def advanced(*arrays):
        return module.apply({"params": params}, module.init_memory(1), Segment(*arrays, bounds), method="advance")

    output = 2 * dims.heads * dims.value_dim * dims.d_model  # the output projection is counted by the model
    assert program_flops(advanced, *arrays).executed / segment == pytest.approx(module.cost(segment).flops + output)


def test_channels_first_remember_for_the_horizons_asked_for():
    """Of what was written as long ago as a channel's horizon 1/e is left, where the inputs say nothing."""
    dims = Dims(d_model=6, heads=2, kv_heads=2, key_dim=4, value_dim=3, segment=16)
    module = KimiDelta(KimiDeltaConfig(horizons=(1.0, 64.0)), dims)
    bounds = whole(jnp.zeros((1, 16), int), jnp.zeros(1, int))
    segment = Segment(*(jnp.zeros((1, 16, *shape)) for shape in ragged.shapes(dims)), bounds)
    memory = jnp.ones((1, 2, 4, 3))
    params = module.init(jax.random.key(0), memory, segment, method=ragged.both)
    left = module.apply(params, memory, segment, method="write")[0, :, :, 0]
    np.testing.assert_allclose(left, np.exp(-1 / np.array([[1, 4, 16, 64]] * 2)), rtol=1e-5)


def test_horizons_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"^memory\.horizons: .*segments are less than a token"):
        ModelConfig(memory=KimiDeltaConfig(horizons=(1e-3, 64.0)))
