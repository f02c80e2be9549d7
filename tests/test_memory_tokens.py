"""Mechanisms with memory tokens, RMT and ARMT, against a whole transformer in float64; and attention of memory tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.layers.attention import attend, dense
from infini_jax.layers.segment import Sight
from infini_jax.memory.armt import ARMTConfig, Associations, associate, recall
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.feature_maps import dpfp
from infini_jax.memory.rmt import RMTConfig
from infini_jax.model.stream import init_carry
from tests.reference import associations, memory_tokens
from tests.reference.memory_tokens import FromLastToFirst
from tests.support import ragged, streams
from tests.support.streams import BATCH, MODEL
from tests.test_seam import numbers_of

MEMORIES: dict[str, MemoryConfig] = {"rmt": RMTConfig(tokens=3), "armt": ARMTConfig(tokens=2, key_size=4)}
REFERENCES = {"rmt": functools.partial(FromLastToFirst, 3), "armt": functools.partial(associations.Associations, 2)}
NAMES = pytest.mark.parametrize("name", MEMORIES)


def model_of(name: str, **changes):
    return dataclasses.replace(MODEL, memory=MEMORIES[name], segment=8, heads=4, kv_heads=2, key_dim=4, **changes)


def documents_with(edges, tokens) -> np.ndarray:
    return np.broadcast_to(np.searchsorted(edges, np.arange(tokens.shape[1]), side="right"), tokens.shape).astype(np.int32)


def expected(name: str, params, tokens, documents, mechanism=None) -> np.ndarray:
    """Logits of one row by the reference."""
    memory, model = MEMORIES[name], model_of(name)
    given = {"segment": 8, "count": memory.memory_tokens, "mutual": memory.mutual_tokens}
    return memory_tokens.logits(*numbers_of(model, params), tokens, documents, mechanism or REFERENCES[name](), **given)


@NAMES
@pytest.mark.parametrize("edges", [(), (8,), (3, 19), (5, 6, 16)])
def test_three_segments_are_those_of_the_reference(name, edges):
    """Of one document, and of documents that end at the edges of segments, within them, and several in one."""
    model = model_of(name)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    documents = documents_with(edges, tokens)
    _, ours = streams.scorer(model)(params, init_carry(model, BATCH), tokens, documents)
    theirs = expected(name, params, tokens[1], documents[1])
    np.testing.assert_allclose(ours[1], theirs, atol=5e-5)  # float32 rounding, which a quotient of sums may enlarge


@NAMES
def test_gradients_through_the_memory_are_those_of_the_reference(name):
    """Of a loss of the last segment alone, by all parameters along one direction."""
    model, edges = model_of(name), (5,)
    params, tokens = streams.parameters_of(model), streams.tokens_of(model)
    documents, weights = documents_with(edges, tokens), np.random.default_rng(1).normal(size=(8, model.vocab))
    direction = ragged.like(params, seed=2)

    def loss(params):
        _, logits = streams.scorer(model)(params, init_carry(model, BATCH), tokens, documents)
        return jnp.sum(logits[0, -8:] * weights)

    found = jax.jit(jax.grad(loss))(params)
    ours = sum(jax.tree.leaves(jax.tree.map(lambda slope, along: float(np.sum(np.asarray(slope) * along)), found, direction)))
    base = REFERENCES[name]()
    expected(name, params, tokens[0], documents[0], base)  # gammas have no gradient
    held = {"gammas": base.gammas} if isinstance(base, associations.Associations) else {}

    def along(params):
        return float(np.sum(expected(name, params, tokens[0], documents[0], REFERENCES[name](**held))[-8:] * weights))

    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    theirs = ragged.slope(along, exact, direction, step=1e-6)
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)  # float32 sums of thousands of terms


def test_associations_are_those_of_the_paper_key_by_key():
    """Three times: with nothing held, and with more held than one segment wrote; float64."""
    rng = np.random.default_rng(0)
    p = {
        name: {"kernel": rng.normal(size=(6, size))} for name, size in (("ask", 4), ("key", 4), ("value", 6), ("strength", 1))
    }
    p["strength"]["bias"] = rng.normal(size=1)
    reference = associations.Associations(2)
    with jax.enable_x64(True):
        held = Associations(jnp.zeros((1, 24, 6)), jnp.zeros((1, 24)))
        for number in range(3):
            x = rng.normal(size=(5, 6))
            read, _ = recall(held, dpfp(jnp.asarray(x @ p["ask"]["kernel"]), 3)[None])
            theirs = reference.enter(0, p, x, [0] * 5, 0 if number else None)
            np.testing.assert_allclose(x + read[0], theirs, rtol=ragged.EXACT)
            m = x[-2:]
            beta = jax.nn.sigmoid(m @ p["strength"]["kernel"] + p["strength"]["bias"])[:, 0]
            key, value = (jnp.asarray(m @ p[name]["kernel"]) for name in ("key", "value"))
            held = associate(held, dpfp(key, 3)[None], value[None], beta[None])
            reference.leave(0, p, x, [0] * 5, 0 if number else None)
            for ours, wanted in zip((held.matrix, held.normalizer), reference.held[0], strict=True):
                np.testing.assert_allclose(ours[0], wanted, rtol=ragged.EXACT, atol=1e-13)
    assert reference.gammas[0] > 0.99  # nothing of the first key was known
    assert min(reference.gammas[2:]) < 0.9


@pytest.mark.parametrize(("prefix", "window", "biased"), [(0, None, False), (7, 40, False), (0, None, True)])
def test_memory_tokens_see_all_of_their_group_where_the_others_attend_in_tiles(prefix, window, biased):
    """The parts of which a whole segment is put together are one attention over one mask."""
    rng, tokens, mutual = np.random.default_rng(0), 300, (4, 6)
    q, k, v = (jnp.asarray(rng.normal(size=(2, tokens + more, 2, 4)), jnp.float32) for more in (0, prefix, prefix))
    documents = np.broadcast_to(np.arange(tokens) >= 120, (2, tokens)).astype(np.int32)
    carried = np.concatenate([np.zeros((2, prefix), np.int32), documents], axis=1)
    sight = Sight(jnp.asarray(documents), jnp.asarray(carried), jnp.int32(0), prefix, window, mutual)
    bias = jnp.asarray(rng.normal(size=(2, tokens + prefix)), jnp.float32) if biased else None
    per_pair = None if bias is None else bias[:, np.clip(np.asarray(sight.distance_SxJ), 0, tokens + prefix - 1)]
    mask = np.array(sight.mask_BxSxJ)
    causal = np.asarray(dataclasses.replace(sight, mutual=(0, 0)).mask_BxSxJ)
    assert mask[:, :4, prefix : prefix + 4].all()
    assert mask[:, -6:, -6:].all()
    np.testing.assert_array_equal(mask[:, 4:-6], causal[:, 4:-6])
    wanted, _ = dense(q, k, v, jnp.asarray(mask), bias_HxSxT=per_pair)
    np.testing.assert_allclose(attend(q, k, v, sight, distance_bias_HxJ=bias), wanted, atol=2e-6)  # float32, other sums


def test_the_bytes_of_rmt_are_those_of_its_tokens_at_the_one_layer_where_they_enter():
    model = model_of("rmt", layers=4)
    assert model.memory_bytes == 3 * model.d_model * 4
    grown = model.at_bytes(10 * model.d_model * 4 + 3)
    assert (grown.memory, grown.memory_bytes) == (RMTConfig(tokens=10), 10 * model.d_model * 4)
    assert (model.ids, model.dims.segment) == (model.vocab + 3, 8 + 6)


def test_the_bytes_of_armt_are_those_of_matrix_and_normalizer_at_every_layer():
    model = model_of("armt", layers=4)
    assert model.memory_bytes == 4 * 4 * (6 * 4) * (model.d_model + 1)
    assert (model.ids, model.dims.segment) == (model.vocab + 2, 8 + 2)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (RMTConfig(tokens=0), "memory.tokens: 0 tokens remember nothing; give at least 1"),
        (RMTConfig(layers=None), "memory.layers: the memory enters the model at one layer; name one, 0 is the paper's"),
        (RMTConfig(layers=(0, 1)), "memory.layers: the memory enters the model at one layer; name one, 0 is the paper's"),
        (
            RMTConfig(positions="relative"),
            "memory.positions: relative positions know no later token, and memory tokens see them; choose rotary, t5 or none",
        ),
        (ARMTConfig(key_size=0), "memory.key_size: 0 is not positive; give at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, line):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(MODEL, memory=settings)
    assert str(error.value) == line
