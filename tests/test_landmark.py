"""Landmark attention, the module, against loops in float64 that hold explicit keys at the paper's positions."""

import dataclasses
from functools import cache, partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.layers.segment import NO_DOCUMENT, Boundaries, Segment, insert_landmarks, whole
from infini_jax.memory.base import Dims, memory_bytes
from infini_jax.memory.landmark import retrieval
from infini_jax.memory.landmark.mechanism import Landmark, LandmarkConfig
from infini_jax.model.cost import program_flops
from infini_jax.model.stream import init_carry
from tests.reference import landmark as reference
from tests.support.streams import parameters_of, scorer, tiny, tokens_of

DIMS = Dims(d_model=5, heads=2, kv_heads=2, key_dim=4, value_dim=3, segment=12, compute="float64")
CONFIG = LandmarkConfig(block=3, blocks=4, retrieved=2)


best_newest = jax.jit(retrieval.best_newest, static_argnums=1)
select_blocks = jax.jit(retrieval.select_blocks, static_argnums=(3, 4))


def random_scores(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape) * 2


@pytest.mark.parametrize(("blocks", "retrieved"), [(5, 2), (3, 3), (6, 1)])
def test_slots_never_overlap_and_stand_before_the_segment(blocks, retrieved):
    for chosen in ([*range(blocks - retrieved, blocks)], [*range(retrieved)]):
        slots = np.asarray(retrieval.retrieved_slots(jnp.array(chosen)[:, None], blocks))[:, 0]
        assert len(set(slots)) == retrieved
        assert slots.min() >= 0
        assert slots.max() <= retrieved  # the segment stands in slot k+1


def test_equal_scores_go_to_the_newest_even_where_rounding_splits_them():
    scores = np.full((9, 1), 0.7, np.float32)
    scores[[1, 4], 0] = np.nextafter(scores[0, 0], np.float32(1)), np.nextafter(scores[0, 0], np.float32(0))
    np.testing.assert_array_equal(best_newest(jnp.array(scores), 3), [[6], [7], [8]])
    scores[2] = 0.8
    np.testing.assert_array_equal(best_newest(jnp.array(scores), 3), [[2], [7], [8]])


@pytest.mark.parametrize("count", [1, 5, 12])  # up to eight are ordered by comparisons, more by a sort
def test_the_best_are_those_of_a_sort(count):
    scores = random_scores(2, 15, 6).astype(np.float32)
    best = np.sort(np.argsort(scores, axis=1)[:, -count:], axis=1)
    np.testing.assert_array_equal(best_newest(jnp.array(scores), count), best)


def test_equal_landmarks_give_the_newest_blocks():
    """As in layer 0; random queries, one product a whole segment and one per token."""
    rng = np.random.default_rng(3)
    keys = np.broadcast_to(rng.normal(size=(1, 1, 2, 4, 16)).astype(np.float32), (1, 33, 2, 4, 16))
    queries = rng.normal(size=(1, 7, 2, 16)).astype(np.float32)
    for part in [slice(0, 7), *(slice(token, token + 1) for token in range(7))]:
        scores = jnp.einsum("bnhk,bshk->bhns", keys[..., -1, :], queries[:, part])
        every, reads = jnp.ones((1, 33), bool), jnp.ones((1, scores.shape[3]), bool)
        chosen = select_blocks(scores, every, reads, 4, "token_and_head")
        np.testing.assert_array_equal(chosen, np.broadcast_to(np.arange(29, 33)[:, None], chosen.shape))


def test_unreadable_blocks_are_chosen_only_where_readable_ones_run_out():
    scores = random_scores(1, 2, 5, 3).astype(np.float32)
    readable = np.array([[False, False, False, True, True]])
    for selection in get_args(retrieval.Selection):
        chosen = select_blocks(jnp.array(scores), readable, jnp.ones((1, 3), bool), 3, selection)
        np.testing.assert_array_equal(chosen, np.broadcast_to([[2], [3], [4]], chosen.shape))


def test_tokens_that_may_not_read_have_no_say_in_a_shared_choice():
    scores = np.zeros((1, 1, 4, 2), np.float32)
    scores[0, 0, 1, 0], scores[0, 0, 0, 1] = 5.0, 50.0
    chosen = select_blocks(jnp.array(scores), np.ones((1, 4), bool), jnp.array([[True, False]]), 1, "tokens")
    np.testing.assert_array_equal(chosen, [[[[1]]]])


RAW_DOCUMENTS = [  # rows of segments of nine raw tokens, blocks of three
    ["000000000", "000000000", "000000000", "000000000", "000000000"],  # one document: fewer than k, exactly k, eviction
    ["000000001", "111111111", "111122222", "222222222", "222223333"],  # cuts inside blocks
    ["000000000", "000111111", "111111111", "222222222", "222222333"],  # cuts at block and segment edges
]


def stream_arrays(config=CONFIG, dims=DIMS, seed=0):
    """Queries, keys, values WxBxTxHxK and documents WxBxT of a stream of five segments."""
    raw = np.array([[list(map(int, part)) for part in row] for row in RAW_DOCUMENTS]).swapaxes(0, 1)
    documents = np.stack([np.asarray(insert_landmarks(jnp.asarray(part), config.block)) for part in raw])
    rng = np.random.default_rng(seed)
    shape = (*documents.shape, dims.heads)
    return *(rng.normal(size=(*shape, size)) * 1.5 for size in (dims.key_dim, dims.key_dim, dims.value_dim)), documents


def make_segment(queries, keys, values, bounds):
    return Segment(jnp.zeros((*keys.shape[:2], DIMS.d_model), keys.dtype), queries, keys, values, bounds)


def run_stream(module, params, queries, keys, values, documents):
    """Outputs WxBxTxD, the memory after each segment, and the mass on retrieved blocks WxH."""

    def step(carry, part):
        memory, open_document = carry
        *qkv, documents_BxT = part
        segment = make_segment(*qkv, whole(documents_BxT, open_document))
        y, metrics = module.apply(params, memory, segment, method="attend")
        memory = module.apply(params, memory, segment, method="write")
        return (memory, documents_BxT[:, -1]), (y, memory, metrics["retrieved_mass"])

    batch = documents.shape[1]
    start = module.init_memory(batch), jnp.full((batch,), NO_DOCUMENT)
    return jax.lax.scan(step, start, (queries, keys, values, documents))[1]


@cache
def compiled_stream(config, dims=DIMS):
    """`run_stream`, compiled once for all tests of a configuration."""
    return jax.jit(partial(run_stream, Landmark(config, dims)))


def make_params(dims=DIMS):
    kernel = np.random.default_rng(9).normal(size=(dims.heads, dims.value_dim, dims.d_model))
    return {"params": {"out": {"kernel": jnp.asarray(kernel, dims.dtype)}}}


def expected_stream(params, config, *arrays):
    settings = {name: getattr(config, name) for name in ("block", "blocks", "retrieved", "selection")}
    y = reference.stream(*arrays, **settings)
    return np.einsum("wbshv,hvd->wbsd", y, np.asarray(params["params"]["out"]["kernel"]))


@pytest.mark.parametrize(
    ("blocks", "retrieved", "selection"),
    [
        (4, 2, "token_and_head"),  # evicts
        (20, 4, "token_and_head"),  # fewer than k after the first segment
        (20, 3, "token_and_head"),  # exactly k after the first segment
        (3, 3, "heads"),  # the whole cache is retrieved
        (5, 2, "heads"),
        (5, 2, "tokens"),
        (2, 1, "tokens"),  # fewer blocks are kept than one segment has
    ],
)
def test_stream_is_the_reference(blocks, retrieved, selection):
    """Documents cut anywhere, in float64 against loops that hold explicit lists of keys at the paper's positions."""
    config = dataclasses.replace(CONFIG, blocks=blocks, retrieved=retrieved, selection=selection)
    arrays = stream_arrays(config)
    with jax.enable_x64(True):
        params = make_params()
        y, _, mass = compiled_stream(config)(params, *arrays)
    np.testing.assert_allclose(y, expected_stream(params, config, *arrays), rtol=0, atol=1e-12)
    assert mass.shape == (5, DIMS.heads)
    np.testing.assert_array_equal(mass[0], 0.0)
    assert (np.asarray(mass[1:]) > 0.01).all()


@pytest.mark.parametrize(("retrieved", "selection"), [(2, "token_and_head"), (3, "tokens")])
def test_gradients_through_the_memory_are_the_reference_s_slopes(retrieved, selection):
    """Central differences of the float64 loops along a random direction each of q, k and v, over five segments."""
    config = dataclasses.replace(CONFIG, retrieved=retrieved, selection=selection)
    *qkv, documents = stream_arrays(config, seed=1)
    rng = np.random.default_rng(5)
    upstream = rng.normal(size=(*documents.shape, DIMS.d_model))
    with jax.enable_x64(True):
        params = make_params()

        def loss(*qkv):
            return (run_stream(Landmark(config, DIMS), params, *qkv, documents)[0] * upstream).sum()

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*qkv)
    step = 1e-5
    for place, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)

        def moved(by, place=place, direction=direction):
            changed = [x + by * direction if i == place else x for i, x in enumerate(qkv)]
            return (expected_stream(params, config, *changed, documents) * upstream).sum()

        slope = (moved(step) - moved(-step)) / (2 * step)
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("blocks", "selection"), [(4, "token_and_head"), (5, "heads")])
def test_decoding_token_by_token_is_the_whole_segment(blocks, selection):
    """The third segment, cut by documents: one query at a time against a buffer whose later keys are not yet written."""
    config = dataclasses.replace(CONFIG, blocks=blocks, selection=selection)
    module = Landmark(config, DIMS)
    queries, keys, values, documents = stream_arrays(config)
    with jax.enable_x64(True):
        params = make_params()
        _, memories, _ = compiled_stream(config)(params, queries, keys, values, documents)
        memory = jax.tree.map(lambda leaf: leaf[1], memories)
        open_document = jnp.asarray(documents[1, :, -1])
        queries, keys, values, documents = (jnp.asarray(x[2]) for x in (queries, keys, values, documents))

        @jax.jit
        def attend(queries, keys, values, bounds):
            return module.apply(params, memory, make_segment(queries, keys, values, bounds), method="attend")[0]

        def decode(start):
            written = np.arange(DIMS.segment) <= start
            keys_now, values_now = (np.where(written[:, None, None], x, 7.0) for x in (keys, values))
            now = slice(start, start + 1)
            bounds = Boundaries(documents[:, now], np.where(written, documents, 0), open_document, jnp.int32(start))
            return np.asarray(attend(queries[:, now], keys_now, values_now, bounds))

        together = attend(queries, keys, values, whole(documents, open_document))
        one_by_one = np.concatenate([decode(start) for start in range(DIMS.segment)], axis=1)
    np.testing.assert_allclose(one_by_one, together, rtol=0, atol=1e-12)


def test_an_older_document_reaches_neither_outputs_nor_memory():
    """All that belongs to other documents than one is replaced; its outputs and its tokens in the memory stay bit for bit.

    What is left of an older document is masked, not erased: gradients find the memory before from the one after.
    """
    queries, keys, values, documents = stream_arrays()
    row, document, last = 2, 2, 3  # it fills segment 3, where it is still open at the end
    other = [np.where((documents == document)[..., None, None], x, 50.0) for x in (keys, values)]
    with jax.enable_x64(True):
        params = make_params()
        y, memories, _ = compiled_stream(CONFIG)(params, queries, keys, values, documents)
        y_other, memories_other, _ = compiled_stream(CONFIG)(params, queries, *other, documents)
    same = documents[:, row] == document
    assert same.sum() > DIMS.segment
    np.testing.assert_array_equal(y[:, row][same], y_other[:, row][same])
    assert not np.allclose(y[:, row][~same], y_other[:, row][~same])
    memory, memory_other = (jax.tree.map(lambda leaf: leaf[last, row], m) for m in (memories, memories_other))
    assert memory.tokens == memory_other.tokens == DIMS.segment
    np.testing.assert_array_equal(memory.keys[:, 1:], memory_other.keys[:, 1:])  # it has filled three of the four blocks
    np.testing.assert_array_equal(memory.values[:, 1:], memory_other.values[:, 1:])


def test_bfloat16_stays_close_to_float32():
    """Products accumulate in float32 and the cache is float32: what is left is the rounding of q, k, v and y (2^-8)."""
    arrays = stream_arrays()
    config = dataclasses.replace(CONFIG, retrieved=4)  # the whole cache, so that rounding cannot choose other blocks
    outputs = []
    for compute in ("float32", "bfloat16"):
        dims = dataclasses.replace(DIMS, compute=compute)
        qkv = [jnp.asarray(x, jnp.bfloat16).astype(dims.dtype) for x in arrays[:3]]
        y, memory, _ = compiled_stream(config, dims)(make_params(dims), *qkv, arrays[3])
        assert memory.keys.dtype == memory.values.dtype == jnp.float32
        outputs.append(np.asarray(y, np.float32))
    assert np.abs(outputs[1] - outputs[0]).max() < 0.02 * np.abs(outputs[0]).max()


@pytest.mark.parametrize("selection", get_args(retrieval.Selection))
@pytest.mark.parametrize(("length", "blocks", "kv_heads"), [(12, 4, 2), (12, 4, 1), (144, 4, 2), (288, 40, 1), (288, 9, 2)])
def test_cost_counts_the_products_that_are_made(selection, length, blocks, kv_heads):
    """Dense and in tiles, locally and from the cache; heads that share keys."""
    dims = dataclasses.replace(DIMS, compute="float32", segment=length, kv_heads=kv_heads)
    module = Landmark(dataclasses.replace(CONFIG, blocks=blocks, selection=selection), dims)
    documents, open_document = jnp.zeros((1, length), int), jnp.zeros((1,), int)
    keys, values = jnp.zeros((1, length, kv_heads, 4)), jnp.zeros((1, length, kv_heads, 3))
    segment = make_segment(jnp.zeros((1, length, dims.heads, 4)), keys, values, whole(documents, open_document))
    params, memory = make_params(dims), module.init_memory(1)
    projection = 2 * dims.heads * dims.value_dim * dims.d_model
    cost = module.cost(length)
    read, write = (partial(module.apply, params, method=method) for method in ("attend", "write"))
    assert program_flops(read, memory, segment).executed == pytest.approx(
        length * (cost.local + cost.read + projection), rel=1e-12
    )
    assert program_flops(write, memory, segment).executed == length * cost.write == 0


def test_memory_has_fixed_shapes_batch_first_and_named_axes():
    module = Landmark(CONFIG, dataclasses.replace(DIMS, compute="bfloat16"))
    memory = module.init_memory(3)
    for leaf, axes in zip(jax.tree.leaves(memory), jax.tree.leaves(module.logical_axes(), is_leaf=is_axes), strict=True):
        assert leaf.shape[0] == 3
        assert axes[0] == "batch"
        assert len(axes) == leaf.ndim
    tokens = 4 * (4 * 4 + 3 * 3) * 2  # blocks x (P keys and P-1 values) x heads
    assert memory_bytes(module) == 4 * tokens + 4


def is_axes(value):
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)


def test_size_is_the_number_of_blocks():
    single = dataclasses.replace(DIMS, compute="float32")
    for size in (1, 2, 7):
        config, dims = Landmark.resized(CONFIG, single, size)
        config.check(dims)
        assert (config.blocks, config.retrieved) == (size, min(2, size))
        assert Landmark.at_bytes(CONFIG, single, memory_bytes(Landmark(config, dims)))[0] == config


@pytest.mark.parametrize(
    ("changes", "sizes", "field"),
    [
        ({"block": 0}, {}, "memory.block"),
        ({"blocks": -1}, {}, "memory.blocks"),
        ({"retrieved": 0}, {}, "memory.retrieved"),
        ({"retrieved": 5}, {}, "memory.retrieved"),
        ({"selection": "head"}, {}, "memory.selection"),
        ({}, {"segment": 13}, "segment"),
        ({}, {"key_dim": 5}, "key_dim"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(changes, sizes, field):
    CONFIG.check(DIMS)
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(CONFIG, **changes).check(dataclasses.replace(DIMS, **sizes))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("selection", ["token_and_head", "tokens"])
def test_retrieved_tells_ages_scores_and_mass(selection):
    """The reference's lists, a segment after document cuts and one after eviction."""
    config = dataclasses.replace(CONFIG, selection=selection)
    queries, keys, values, documents = stream_arrays(config)
    rows = [reference.Row(config.block, config.blocks, config.retrieved, selection) for _ in range(3)]
    found = []
    for w in range(5):
        found.append([row.attend(queries[w, b], keys[w, b], values[w, b], documents[w, b])[1] for b, row in enumerate(rows)])
        for b, row in enumerate(rows):
            row.write(keys[w, b], values[w, b], documents[w, b])
    with jax.enable_x64(True):
        params = make_params()
        _, memories, _ = compiled_stream(config)(params, queries, keys, values, documents)
        read = jax.jit(partial(Landmark(config, DIMS).apply, params, method="retrieved"))
        for w in (2, 4):
            bounds = whole(jnp.asarray(documents[w]), jnp.asarray(documents[w - 1, :, -1]))
            segment = make_segment(*(jnp.asarray(x[w]) for x in (queries, keys, values)), bounds)
            ours = read(jax.tree.map(lambda leaf, w=w: leaf[w - 1], memories), segment)
            assert ours.ages.shape == ours.scores.shape == ours.mass.shape == (3, DIMS.heads, DIMS.segment, config.retrieved)
            for b, i, h in [(row, *key) for row in range(3) for key in found[w][row]]:
                shown = ours.ages[b, h, i] >= 0
                theirs = [read for read in found[w][b][i, h] if read[2] > 0]  # the loops list invisible blocks, too
                np.testing.assert_array_equal(ours.ages[b, h, i][shown], [age for age, _, _ in theirs])
                np.testing.assert_allclose(ours.scores[b, h, i][shown], [score for _, score, _ in theirs], atol=1e-12)
                np.testing.assert_allclose(ours.mass[b, h, i][shown], [mass for _, _, mass in theirs], atol=1e-12)
                np.testing.assert_array_equal(ours.mass[b, h, i][~shown], 0.0)


def test_without_blocks_each_segment_is_a_window_of_its_own():
    """The paper's training form: the output of an empty cache, no state, no bytes, the same parameters."""
    none = Landmark(dataclasses.replace(CONFIG, blocks=0), DIMS)
    some = Landmark(CONFIG, DIMS)
    none.config.check(DIMS)
    queries, keys, values, documents = stream_arrays()
    with jax.enable_x64(True):
        params = make_params()
        segment = make_segment(*(jnp.asarray(x[3]) for x in (queries, keys, values)), whole(documents[3], documents[2, :, -1]))
        shapes = [
            jax.eval_shape(partial(m.init, method="attend"), jax.random.key(0), m.init_memory(3), segment)
            for m in (none, some)
        ]
        assert shapes[0] == shapes[1]
        attend = [jax.jit(partial(module.apply, params, method="attend")) for module in (none, some)]
        y, metrics = attend[0]((), segment)
        y_empty, _ = attend[1](some.init_memory(3), segment)
        assert none.apply(params, (), segment, method="write") == none.init_memory(3) == none.logical_axes() == ()
    np.testing.assert_allclose(y, y_empty, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(metrics["retrieved_mass"], 0.0)
    assert memory_bytes(none) == none.cost(12).read == none.cost(12).bytes_moved == 0
    with pytest.raises(ConfigError, match=r"memory\.blocks"):
        none.apply(params, (), segment, method="retrieved")


def test_a_model_trained_without_a_cache_reads_with_one():
    """Parameters of the one configuration are those of the other; only the second carries anything from segment to segment."""
    cached = tiny("landmark")
    window = dataclasses.replace(cached, memory=dataclasses.replace(cached.memory, blocks=0))
    params = parameters_of(window)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, parameters_of(cached))
    tokens = tokens_of(window)
    other = np.where(np.arange(tokens.shape[1]) < window.segment, (tokens + 5) % window.vocab, tokens)
    first = []
    for model, carries in ((window, False), (cached, True)):
        logits, changed = (
            scorer(model)(params, init_carry(model, len(tokens)), x, jnp.zeros_like(x))[1] for x in (tokens, other)
        )
        later = np.abs(logits - changed)[:, window.segment :].max()
        assert (later > 1e-3) if carries else (later == 0)
        first.append(logits[:, : window.segment])
    np.testing.assert_allclose(first[0], first[1], atol=2e-5)  # the same numbers in two programs, float32


def test_a_landmark_is_inserted_after_each_block():
    assert CONFIG.landmark_every == CONFIG.block
