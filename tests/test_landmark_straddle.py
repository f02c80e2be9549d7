"""Landmark attention where segments are no whole blocks, against float64 loops over the stream with its landmarks."""

import dataclasses
from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.devices.sharding import carry_sharding
from infini_jax.layers import attention
from infini_jax.layers.segment import (
    NO_DOCUMENT,
    Segment,
    drop_landmarks,
    insert_landmarks,
    length_with_landmarks,
    whole,
)
from infini_jax.memory import memory_of
from infini_jax.memory.base import Dims, memory_bytes
from infini_jax.memory.landmark import softmax as landmark_softmax
from infini_jax.memory.landmark import straddle
from infini_jax.memory.landmark.mechanism import Landmark, LandmarkConfig
from infini_jax.memory.landmark.straddle import OpenBlock
from infini_jax.model.cost import model_cost, program_flops
from infini_jax.model.stream import forward_segments, init_carry
from infini_jax.training.gradient import joined_carry, split_carry
from tests.reference import landmark as reference
from tests.support import streams
from tests.support.marks import slow_but

TOKENS = 30  # raw, a row
CUTS = [(), (3, 11, 17), (6, 12, 18, 24), (29,)]  # none; inside blocks; at the edges of segments of 6; the last token alone
DIMS = Dims(d_model=5, heads=2, kv_heads=2, key_dim=4, value_dim=3, segment=0, compute="float64")


def dims_of(segment, block, **changes):
    return dataclasses.replace(DIMS, segment=length_with_landmarks(segment, block), **changes)


def inserted(block, seed=0, dims=DIMS):
    """Queries, keys, values and documents BxN... of whole streams with their landmarks, which tokens are landmarks."""
    raw = np.array([np.searchsorted(cuts, np.arange(TOKENS), side="right") for cuts in CUTS])
    documents, is_landmark = [], []
    for t in range(TOKENS):
        documents.append(raw[:, t])
        is_landmark.append(False)
        if (t + 1) % block == 0:
            documents.append(raw[:, t])
            is_landmark.append(True)
    documents = np.stack(documents, axis=1)
    rng = np.random.default_rng(seed)
    sizes = [(dims.heads, dims.key_dim), (dims.kv_heads, dims.key_dim), (dims.kv_heads, dims.value_dim)]
    return *(rng.normal(size=(*documents.shape, *size)) * 1.5 for size in sizes), documents, np.array(is_landmark)


def edges_of(is_landmark, segment):
    """Where segments begin and end in the stream with landmarks; a landmark belongs to the segment of the token before it."""
    number = (np.cumsum(~is_landmark) - 1) // segment
    return [int(place) for place in np.searchsorted(number, np.arange(TOKENS // segment + 1))]


def expected_rows(config, segment, queries, keys, values, documents, is_landmark, **rules):
    y = np.zeros((*queries.shape[:-1], values.shape[-1]))
    settings = {name: getattr(config, name) for name in ("block", "blocks", "retrieved", "selection")}
    edges = edges_of(is_landmark, segment)
    for b in range(len(queries)):
        row = reference.Row(**settings, **rules)
        for begin, end in pairwise(edges):
            part = slice(begin, end)
            y[b, part], _ = row.attend(queries[b, part], keys[b, part], values[b, part], documents[b, part])
            row.write(keys[b, part], values[b, part], documents[b, part])
    return y


def kernel_of(dims=DIMS):
    return np.random.default_rng(9).normal(size=(dims.heads, dims.value_dim, dims.d_model))


def run_stream(config, dims, segment, is_landmark, documents, queries, keys, values, learned=None):
    """BxNxD, one segment after the other; a dead place gets numbers that would be seen if they were read."""
    module, memory = memory_of(config, dims), memory_of(config, dims).init_memory(len(queries))
    params = {"params": {"out": {"kernel": jnp.asarray(kernel_of(dims), dims.dtype)}, **(learned or {})}}
    edges, outputs = edges_of(is_landmark, segment), []
    open_document = np.full(len(queries), NO_DOCUMENT)

    def step(memory, open_document, phase, *arrays):
        *qkv, documents_BxT = arrays
        inputs = jnp.zeros((*documents_BxT.shape, dims.d_model), dims.dtype)
        part = Segment(inputs, *qkv, whole(documents_BxT, open_document, phase))
        y, _ = module.apply(params, memory, part, method="attend")
        return y, module.apply(params, memory, part, method="write")

    step = jax.jit(step)
    for number, (begin, end) in enumerate(pairwise(edges)):
        dead = dims.segment - (end - begin)

        def cut(x, fill=50.0, begin=begin, end=end, dead=dead):
            numbers = jnp if isinstance(x, jax.Array) else np  # a cut of a JAX array is a program; gradients need one
            filling = x[:, end - 1 : end] if fill is None else numbers.full_like(x[:, :1], fill)
            return numbers.concatenate([x[:, begin:end], *[filling] * dead], axis=1)

        parts = (cut(queries), cut(keys), cut(values), cut(documents, None))
        phase = np.full(len(queries), number * segment % config.block, np.int32)
        y, memory = step(memory, open_document, phase, *parts)
        outputs.append((y if isinstance(queries, jax.Array) else np.asarray(y))[:, : end - begin])
        open_document = parts[3][:, -1]
    return (jnp if isinstance(queries, jax.Array) else np).concatenate(outputs, axis=1)


@pytest.mark.parametrize(
    ("block", "segment", "blocks", "retrieved", "selection"),
    [
        (4, 6, 4, 2, "token_and_head"),
        (4, 5, 2, 1, "heads"),
        (4, 5, 3, 3, "tokens"),  # the dead place has no say
        (5, 3, 3, 2, "token_and_head"),  # segments shorter than a block
        (7, 2, 2, 1, "tokens"),
        (4, 6, 0, 2, "token_and_head"),  # nothing but the unfinished block
    ],
)
def test_stream_is_the_reference(block, segment, blocks, retrieved, selection):
    config, dims = (
        LandmarkConfig(block=block, blocks=blocks, retrieved=retrieved, selection=selection),
        dims_of(segment, block),
    )
    config.check(dims)
    *qkv, documents, is_landmark = inserted(block)
    assert len(set(np.diff(edges_of(is_landmark, segment)))) == 2  # with a dead place and without
    with jax.enable_x64(True):
        y = run_stream(config, dims, segment, is_landmark, documents, *qkv)
    expected = expected_rows(config, segment, *qkv, documents, is_landmark)
    np.testing.assert_allclose(y, np.einsum("bnhv,hvd->bnd", expected, kernel_of()), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_gradients_are_the_reference_s_slopes():
    """Through cache and unfinished block: central differences of the loops along a random direction each of q, k and v."""
    block, segment = 4, 6
    config, dims = LandmarkConfig(block=block, blocks=3, retrieved=2), dims_of(segment, block)
    *qkv, documents, is_landmark = inserted(block, seed=1)
    rng = np.random.default_rng(5)
    upstream = rng.normal(size=(*documents.shape, DIMS.d_model))
    with jax.enable_x64(True):

        def loss(*qkv):
            return (run_stream(config, dims, segment, is_landmark, documents, *qkv) * upstream).sum()

        gradients = jax.grad(loss, argnums=(0, 1, 2))(*map(jnp.asarray, qkv))
    back = np.einsum("bnd,hvd->bnhv", upstream, kernel_of())
    step = 1e-5
    for place, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)

        def moved(by, place=place, direction=direction):
            changed = [x + by * direction if i == place else x for i, x in enumerate(qkv)]
            return (expected_rows(config, segment, *changed, documents, is_landmark) * back).sum()

        slope = (moved(step) - moved(-step)) / (2 * step)
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("phase", [1, 3])
def test_tiles_are_the_dense_form(phase):
    """Of a span, whose queries are padded on both sides: outputs and gradients in float64, with a dead place and without."""
    block, places, held = 4, length_with_landmarks(6, 4), 1
    rng = np.random.default_rng(0)
    shapes = [(2, places, *shape) for shape in ((2, 4), (1, 4), (1, 3))] + [(2, block, 1, 4), (2, block, 1, 3)]
    with jax.enable_x64(True):
        arrays = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        documents = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 2], [1] * 8])
        bounds = whole(documents, jnp.array([1, 1]), jnp.array([phase, phase]))
        live_S = straddle.live_S(bounds, block + 1)
        assert live_S.all() == (phase == 3)

        def loss(form, *arrays):
            *qkv, keys, values = arrays
            with attention.form(form):
                segment = Segment(qkv[0][..., 0], *qkv, bounds)
                y, lse = straddle.attend_span(segment, OpenBlock(keys, values, jnp.array([held, held])), block + 1)
            y, lse = jnp.where(live_S[:, None, None], y, 0), jnp.where(live_S, lse, 0)
            return jnp.sin(y).sum() + jnp.cos(lse).sum(), (y, lse)

        found = [
            jax.jit(jax.value_and_grad(partial(loss, form), argnums=(0, 1, 2, 3, 4), has_aux=True))(*arrays)
            for form in ("dense", "blockwise")
        ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), *found)


@pytest.mark.parametrize(("every", "tokens", "phase"), [(4, 6, 0), (4, 6, 2), (5, 3, 1), (5, 3, 4), (1, 3, 0), (7, 5, 6)])
def test_landmarks_follow_the_stream_and_can_be_dropped(every, tokens, phase):
    stream = np.arange(phase + tokens)
    expected = []
    for t in stream:
        expected += [t] if t >= phase else []
        expected += [-1] if (t + 1) % every == 0 and t >= phase else []
    row, phases = jnp.asarray(stream[None, phase:]), jnp.array([phase])
    ours = jax.jit(insert_landmarks, static_argnums=(1, 2))(row, every, -1, phases)
    places = length_with_landmarks(tokens, every)
    assert ours.shape == (1, places)
    assert places - len(expected) in (0, 1)
    np.testing.assert_array_equal(np.asarray(ours)[0, : len(expected)], expected)
    documents = np.asarray(jax.jit(insert_landmarks, static_argnums=(1, 2))(row, every, None, phases))
    assert documents[0, -1] == stream[-1]  # also where the last place is dead
    left = jax.jit(drop_landmarks, static_argnums=1)(documents[..., None], every, phases)
    np.testing.assert_array_equal(np.asarray(left)[..., 0], row)


MODELS = {  # block and raw segment
    "longer than a block": {"layers": 1, "segment": 10, "memory": LandmarkConfig(block=4, blocks=3, retrieved=2)},
    "shorter than a block": {"layers": 1, "segment": 3, "memory": LandmarkConfig(block=5, blocks=2, retrieved=1)},
    "no cache, in one of two layers": {"segment": 6, "memory": LandmarkConfig(block=4, blocks=0, layers=(1,))},
}


@cache
def model_of(name):
    model = streams.tiny("landmark", **MODELS[name])
    return model, streams.parameters_of(model)


@pytest.mark.parametrize("name", slow_but(["longer than a block"], MODELS))
def test_decoding_token_by_token_is_the_whole_segments(name):
    model, params = model_of(name)
    tokens = streams.tokens_of(model, segments=4)
    together = streams.scorer(model)(params, init_carry(model, streams.BATCH), tokens, np.zeros_like(tokens))[1]
    one_by_one = streams.decoded(model, params, tokens[:, : 3 * model.segment + 2])
    np.testing.assert_allclose(one_by_one, together[:, : one_by_one.shape[1]], atol=5e-5)  # float32 products of other shapes


@pytest.mark.parametrize("name", MODELS)
def test_split_calls_and_several_segments_a_step_are_one_after_the_other(name):
    model, params = model_of(name)
    tokens = streams.tokens_of(model, segments=4)
    documents = np.searchsorted([7, 2 * model.segment], np.arange(tokens.shape[1]), side="right")
    documents = (np.broadcast_to(documents, tokens.shape) * [[0], [1]]).astype(np.int32)
    run = jax.jit(partial(forward_segments, model, params))

    def in_calls(*lengths):
        carry, features, begin = init_carry(model, streams.BATCH), [], 0
        for length in lengths:
            part = slice(begin, begin := begin + length * model.segment)
            carry, x, _ = run(carry, tokens[:, part], documents[:, part])
            features.append(x)
        return carry, jnp.concatenate(features, axis=1)

    one, other = in_calls(1, 1, 1, 1), in_calls(3, 1)
    np.testing.assert_array_equal(one[0].phase, 4 * model.segment % model.memory.block)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), other, one)  # float32, other programs


@pytest.mark.parametrize("name", MODELS)
def test_cost_bytes_and_axes_are_those_of_the_program(name):
    model, _ = model_of(name)
    assert streams.walked_flops(model) == pytest.approx(model_cost(model).flops, rel=1e-6)
    module = Landmark(model.memory, model.dims)
    memory, axes = module.init_memory(3), module.logical_axes()
    named = jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple) and len(node) > 0 and isinstance(node[0], str))
    assert [(names[0], len(names)) for names in named] == [("batch", leaf.ndim) for leaf in jax.tree.leaves(memory)]
    config = dataclasses.replace(model.memory, blocks=3, retrieved=1)
    assert Landmark.at_bytes(config, model.dims, memory_bytes(Landmark(config, model.dims)))[0] == config


def test_cost_counts_tiles_of_the_span():
    dims = dims_of(300, 7, compute="float32")
    module = Landmark(LandmarkConfig(block=7, blocks=4, retrieved=2), dims)
    assert landmark_softmax.in_tiles(dims.segment, dims.segment)
    shapes = [(dims.d_model,), *[(2, size) for size in (4, 4, 3)]]
    arrays = [jnp.zeros((1, dims.segment, *shape)) for shape in shapes]
    documents, zeros = jnp.zeros((1, dims.segment), int), jnp.zeros(1, int)
    segment, memory = Segment(*arrays, whole(documents, zeros, zeros)), module.init_memory(1)
    params = {"params": {"out": {"kernel": jnp.asarray(kernel_of(), jnp.float32)}}}
    walked = program_flops(partial(module.apply, params, method="attend"), memory, segment).executed
    expected = dims.segment * (module.cost(dims.segment).flops + 2 * kernel_of().size)
    assert walked == pytest.approx(expected, rel=1e-12)


def test_rows_of_a_carry_are_split_joined_and_placed_with_their_phase():
    model, _ = model_of("longer than a block")
    carry = init_carry(model, 4)
    carry = carry.replace(phase=carry.phase + 2)
    jax.tree.map(np.testing.assert_array_equal, joined_carry(split_carry(carry, 2)), carry)
    places = carry_sharding(model, jax.make_mesh((1,), ("data",)))
    assert jax.tree.structure(places) == jax.tree.structure(carry)


def test_segments_of_whole_blocks_carry_no_phase_and_no_block():
    model = streams.tiny("landmark")
    carry = init_carry(model, 1)
    assert carry.phase is None
    assert not Landmark(model.memory, model.dims).straddles
    assert len(jax.tree.leaves(carry.memory)) == 3
