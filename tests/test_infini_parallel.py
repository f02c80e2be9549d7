"""Many segments at once against the same segments in turn, and both over very long streams."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers.segment import NO_DOCUMENT, Segment, reset_where_new, whole
from infini_jax.memory import infini
from infini_jax.memory.feature_maps import feature_map
from infini_jax.memory.gated_delta import GatedDelta, GatedDeltaConfig
from infini_jax.memory.infini import Infini, InfiniConfig, InfiniMemory
from tests.support import ragged

W, S, H, G, K, V = 5, 4, 4, 2, 4, 3
EDGES = [(), (4,), (2, 9, 11), (8, 17)]  # where documents begin: nowhere, between segments, inside them, both
CASES = [("linear", "elu_plus_one"), ("linear", "unit"), ("delta", "elu_plus_one"), ("delta", "taylor2")]


def segment_masks(documents_BxT: np.ndarray, opened_B: np.ndarray):
    """(reads BxWxS, writes BxWxS, keeps BxW) of a stream cut into W segments."""
    parts = [documents_BxT[:, begin : begin + S] for begin in range(0, W * S, S)]
    before = [opened_B, *(part[:, -1] for part in parts[:-1])]
    bounds = [whole(part, opened) for part, opened in zip(parts, before, strict=True)]
    return tuple(np.stack([getattr(bound, name) for bound in bounds], 1) for name in ("reads_BxS", "writes_BxT", "keeps_B"))


def in_turn(rule, memory, q, k, v, keeps):
    """The streamed form, in the order of `Infini.attend` and `Infini.write`."""
    read = []
    for s in range(W):
        read.append(infini.retrieve(memory, q[:, s]))
        memory = infini.update(reset_where_new(keeps[:, s], memory), k[:, s], v[:, s], rule)
    return jnp.stack(read, axis=1), memory


def at_once(rule, *arguments):
    """The form under test."""
    return {"linear": infini.parallel_linear, "delta": infini.parallel_delta}[rule](*arguments)


@functools.cache
def measured(form, rule, name):
    """Compiled: ((loss, (outputs, final memory)), gradients by the memory before, queries, keys and values)."""
    phi = feature_map(name, 1)

    def loss(memory, q, k, v, upstream, reads, writes, keeps):
        a_mem, after = form(rule, memory, phi(q), phi(k) * writes[..., None, None], v, keeps)
        a_mem = jnp.where(reads[..., None, None], a_mem, 0.0)
        return (a_mem * upstream).sum() + sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(after)), (a_mem, after)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


@pytest.mark.parametrize(("rule", "name"), CASES)
def test_segments_at_once_equal_segments_in_turn(rule, name):
    """Outputs, final memory and gradients by the memory before, queries, keys and values; float64, so 1e-11 is rounding.

    Rows are cut by documents and go on with the one that was open; the last begins a new stream.
    """
    tokens = np.arange(W * S)
    documents = np.stack([*(np.searchsorted(edges, tokens, side="right") for edges in EDGES), tokens // 7])
    rows = len(documents)
    masks = segment_masks(documents, np.array([0] * len(EDGES) + [NO_DOCUMENT]))
    rng = np.random.default_rng(0)
    q, k, v, upstream = (rng.normal(size=(rows, W, S, *sizes)) for sizes in ((H, K), (G, K), (G, V), (H, V)))
    with jax.enable_x64(True):
        features = feature_map(name, 1)(jnp.zeros(K)).size
        z = None if name == "unit" else rng.uniform(1, 2, (rows, G, features))
        arguments = (InfiniMemory(rng.normal(size=(rows, G, features, V)), z), q, k, v, upstream, *masks)
        pair = [measured(form, rule, name)(*arguments) for form in (at_once, in_turn)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), *pair)


# ---- long streams --------------------------------------------------------------------------------------------------------

LONG, SEGMENT = 2**20, 2**12
LONG_DIMS = dataclasses.replace(ragged.DIMS, heads=2, kv_heads=1, segment=SEGMENT, compute="float32")
LAYERS = {
    "linear": (Infini, InfiniConfig()),
    "delta": (Infini, InfiniConfig(update="delta")),
    "dpfp": (Infini, InfiniConfig(feature_map="dpfp", dpfp_order=2)),
    "taylor2": (Infini, InfiniConfig(update="delta", feature_map="taylor2")),
    "unit": (Infini, InfiniConfig(feature_map="unit")),
    "gated_delta": (GatedDelta, GatedDeltaConfig()),
}


def long_stream(mechanism, config, dtype, params):
    """(what the last segment reads and attends to, final memory) of 2^20 tokens, drawn as the stream goes."""
    module = mechanism(config, dataclasses.replace(LONG_DIMS, compute=dtype))

    def drawn(number, tokens):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 4)
        arrays = [
            jax.random.normal(key, (1, tokens, *shape), "float32").astype(dtype)
            for key, shape in zip(keys, ragged.shapes(LONG_DIMS), strict=True)
        ]
        documents = jnp.zeros((1, tokens), int)
        return Segment(*arrays, whole(documents, jnp.zeros(1, int)))

    def step(memory, number):
        return module.apply(params, memory, drawn(number, SEGMENT), method="write"), None

    memory, _ = jax.lax.scan(step, module.init_memory(1), jnp.arange(LONG // SEGMENT))
    return module.apply(params, memory, drawn(LONG, 16), method="attend")[0], memory


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_float32_over_a_million_tokens_agrees_with_float64(name):
    mechanism, config = LAYERS[name]
    module = mechanism(config, LONG_DIMS)
    bounds = whole(jnp.zeros((1, 2), int), jnp.zeros(1, int))
    segment = Segment(*(jnp.zeros((1, 2, *shape)) for shape in ragged.shapes(LONG_DIMS)), bounds)
    params = module.init(jax.random.key(1), module.init_memory(1), segment, method=ragged.both)
    single = jax.jit(functools.partial(long_stream, mechanism, config, "float32"))(params)
    with jax.enable_x64(True):
        double = jax.jit(functools.partial(long_stream, mechanism, config, "float64"))(params)
    for ours, exact in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        assert (ours.dtype, exact.dtype) == (jnp.float32, jnp.float64)
        exact = np.asarray(exact)
        assert np.abs(np.asarray(ours) - exact).max() < 1e-4 * np.abs(exact).max()
