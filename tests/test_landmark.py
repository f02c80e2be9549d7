"""Landmark attention against the public reference's arrays and against loops in float64."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from infini_jax.errors import ConfigError
from infini_jax.memory import landmark
from infini_jax.memory.base import Dims, memory_bytes
from infini_jax.memory.landmark import Landmark, LandmarkConfig, LandmarkMemory
from infini_jax.segment import NO_DOCUMENT, Boundaries, Segment, insert_landmarks, whole
from tests.reference import landmark as reference

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
SOFTMAX_CASES = [
    "aligned_incomplete",
    "aligned_full",
    "misaligned_start",
    "ragged_per_row",
    "no_landmarks",
    "first_token_is_landmark",
    "cached_prefix",
    "single_query_decode",
    "blk64_T256",
    "blk51_T255",
]
INFERENCE_CASES = {
    "per_token_and_head": "token_and_head",
    "max_over_heads": "heads",
    "max_over_tokens": "tokens",
    "eviction_fifo_cap6": "token_and_head",
    "k1": "token_and_head",
    "k4_H4": "token_and_head",
}
DIMS = Dims(d_model=5, heads=2, key_dim=4, value_dim=3, segment=12, compute="float64")
CONFIG = LandmarkConfig(block=3, blocks=4, retrieved=2)


def golden(name, case):
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"{name} is not in {GOLDEN.name}/ beside the repository")
    with np.load(path) as arrays:
        return {key.removeprefix(f"{case}/"): arrays[key] for key in arrays if key.startswith(f"{case}/")}


# --- The grouped softmax ------------------------------------------------------------------------------------------------


def both_ways(form, scores, upstream):
    """The weights and the gradient of sum(weights * upstream)."""
    weights, pull = jax.vjp(form, scores)
    return weights, pull(upstream)[0]


@jax.jit
def weights_and_gradient(scores, is_landmark, allowed, upstream):
    return both_ways(lambda s: landmark.grouped_softmax(s, is_landmark, allowed), scores, upstream)


@pytest.mark.parametrize("case", SOFTMAX_CASES)
def test_grouped_softmax_is_the_public_one(case):
    """Weights and gradients of the authors' code, whole rows lost to empty blocks included; both are float64."""
    arrays = golden("landmark_grouped_softmax.npz", case)
    allowed = np.broadcast_to(arrays["allowed"], (len(arrays["is_landmark"]), *arrays["allowed"].shape))
    with jax.enable_x64(True):
        weights, gradient = weights_and_gradient(arrays["scores"], arrays["is_landmark"], allowed, arrays["upstream"])
    np.testing.assert_allclose(weights, arrays["probs"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient, arrays["dscores"], rtol=0, atol=1e-12)
    if arrays["scores"].size < 4000:  # the loops, too, so that the module tests stand on the same ground
        np.testing.assert_allclose(
            reference.grouped_softmax(arrays["scores"], arrays["is_landmark"], allowed), arrays["probs"], atol=1e-12
        )


def random_scores(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape) * 2


def test_renormalised_rows_sum_to_one_where_a_block_is_empty():
    is_landmark = np.array([[True, False, False, True, True, False, False]])
    allowed = np.tril(np.ones((1, 7, 7), bool))
    scores = random_scores(1, 2, 7, 7)
    with jax.enable_x64(True):
        lossy = jax.jit(landmark.grouped_softmax)(scores, is_landmark, allowed)
        whole_rows = jax.jit(partial(landmark.grouped_softmax, renormalise=True))(scores, is_landmark, allowed)
    assert (np.asarray(lossy)[:, :, 5:].sum(-1) < 1 - 1e-6).all()
    np.testing.assert_allclose(np.asarray(whole_rows)[:, :, 1:].sum(-1), 1.0, atol=1e-12)
    np.testing.assert_array_equal(whole_rows[:, :, 0], 0.0)  # a landmark that closes nothing and sees nothing before it
    np.testing.assert_allclose(
        whole_rows, reference.grouped_softmax(scores, is_landmark, allowed, renormalise=True), atol=1e-12
    )


def test_blockwise_softmax_is_the_grouped_softmax():
    """Two retrieved blocks, one partly of another document and one empty slot, then three blocks with a document cut."""
    batch, heads, tokens, length, retrieved = 2, 2, 12, 4, 2
    documents = np.array([[0] * 12, [0] * 5 + [1] * 7])
    visible = np.tril(np.ones((tokens, tokens), bool)) & (documents[:, :, None] == documents[:, None, :])
    held = np.array([[[False] * 4, [True] * 4], [[False, False, True, True], [True] * 4]])
    reads = np.broadcast_to(held[:, None], (batch, tokens, retrieved, length)) & (documents == 0)[..., None, None]
    scores, upstream = random_scores(batch, heads, tokens, 20), random_scores(batch, heads, tokens, 20, seed=1)
    is_landmark = np.broadcast_to(np.arange(1, 21) % length == 0, (batch, 20))
    allowed = np.concatenate([reads.reshape(batch, tokens, -1), visible], axis=-1)

    def general(scores):
        return landmark.grouped_softmax(scores, is_landmark, allowed, renormalise=True)

    def blockwise(scores):
        in_blocks = scores.reshape(batch, heads, tokens, -1, length)
        own = np.arange(tokens)[:, None] // length == np.arange(3)
        shown = np.broadcast_to(reads[:, None], in_blocks[:, :, :, :2].shape)
        local, read = landmark.blockwise_softmax(
            in_blocks[:, :, :, 2:], visible.reshape(batch, tokens, 3, length), own, in_blocks[:, :, :, :2], shown
        )
        both = jnp.concatenate([read, local], axis=3)
        return jnp.pad(both, [(0, 0)] * 4 + [(0, 1)]).reshape(batch, heads, tokens, -1)

    with jax.enable_x64(True):
        (one, slope_one), (two, slope_two) = (
            jax.jit(partial(both_ways, form))(scores, upstream) for form in (general, blockwise)
        )
    np.testing.assert_allclose(two, one, atol=1e-14)
    np.testing.assert_allclose(slope_two, slope_one, atol=1e-13)


def test_a_landmark_is_invisible_where_all_tokens_of_its_block_are():
    """The landmark alone counted to the later document, which `insert_landmarks` never does: no weight may be lost."""
    visible = np.tril(np.ones((8, 8), bool))[None]
    visible[:, 4:, :3] = False  # the tokens of block 0 belong to another document, its landmark (3) does not
    none_retrieved = np.zeros((1, 1, 8, 1, 4), bool)
    own = np.arange(8)[:, None] // 4 == np.arange(2)
    local, read = landmark.blockwise_softmax(
        random_scores(1, 1, 8, 2, 4), visible.reshape(1, 8, 2, 4), own, random_scores(1, 1, 8, 1, 4), none_retrieved
    )
    np.testing.assert_allclose(local.sum((-1, -2)), 1.0, atol=1e-6)
    np.testing.assert_array_equal(local[:, :, 4:, 0], 0.0)
    np.testing.assert_array_equal(read, 0.0)


# --- The inference of the public code, chunk by chunk -------------------------------------------------------------------


def interleaved(x, positions):
    """Rotary on pairs (0, 1), (2, 3), ... as in the public code; `layers.rotary` pairs (i, i + half)."""
    size = x.shape[-1]
    angles = positions[:, None] * 10_000.0 ** (-np.arange(0, size, 2) / size)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


class PublicLayer:
    """One layer fed ragged chunks: the plain functions, and in between the unfinished block, which the module never has.

    Chunks are padded to one length and the unfinished block to P-1 keys, so that a case compiles once.
    """

    def __init__(self, arrays, selection):
        self.length, self.retrieved, self.blocks, self.heads, size = (int(n) for n in arrays["meta_blk_k_cap_H_hs"])
        self.selection = selection
        self.to_qkv, self.to_y = arrays["c_attn_w"].T, arrays["c_proj_w"].T
        batch = arrays["chunk0/x"].shape[0]
        self.memory = LandmarkMemory(
            keys=jnp.zeros((batch, self.blocks, self.heads, self.length, size)),
            values=jnp.zeros((batch, self.blocks, self.heads, self.length - 1, size)),
            tokens=jnp.zeros((batch,), jnp.int32),
        )
        self.unfinished = np.zeros((2, batch, 0, self.heads, size))
        self.ever = 0
        self.attend = jax.jit(self._attend)

    def _attend(self, memory, q, k, v, unfinished, is_landmark, real):
        """k and v hold P-1 unfinished keys, the last `unfinished` of them real, and then the chunk."""
        batch, tokens = q.shape[:2]
        before = self.length - 1
        places = unfinished + jnp.arange(-before, tokens)
        reads = jnp.broadcast_to(real, (batch, tokens))
        chosen, far = landmark.retrieve(memory, q, places[before:], reads, self.retrieved, self.selection, interleaved)
        first = landmark.first_position(self.retrieved, self.length)
        near = jnp.einsum("bshk,bthk->bhst", interleaved(q, first + places[before:]), interleaved(k, first + places))
        scores = jnp.concatenate([far.reshape(*far.shape[:3], -1), near * q.shape[-1] ** -0.5], axis=-1)
        held = landmark.held_tokens(memory, chosen)[:, 0, :1]  # the same for all: none, or more blocks than are retrieved
        causal = (places[None, :] <= places[before:, None]) & (places >= 0)
        allowed = jnp.concatenate(
            [
                jnp.broadcast_to(held.reshape(batch, 1, -1), (batch, tokens, self.retrieved * self.length)),
                jnp.broadcast_to(causal, (batch, tokens, before + tokens)),
            ],
            axis=-1,
        )
        pattern = jnp.arange(1, self.retrieved * self.length + 1) % self.length == 0
        pattern = jnp.broadcast_to(pattern, (batch, len(pattern)))
        nothing = jnp.zeros((batch, before), bool)
        weights = landmark.grouped_softmax(scores, jnp.concatenate([pattern, nothing, is_landmark], axis=1), allowed)
        far_weights, near_weights = jnp.split(weights, [self.retrieved * self.length], axis=-1)
        y = landmark.read_values(memory, chosen, far_weights.reshape(far.shape)[..., :-1], q.dtype)
        return y + jnp.einsum("bhst,bthv->bshv", near_weights, v), chosen

    def __call__(self, x, is_landmark, padded):
        batch, tokens, width = x.shape
        q, k, v = np.split((x @ self.to_qkv).reshape(batch, tokens, 3 * self.heads, -1), 3, axis=2)
        carried = self.unfinished.shape[2]
        pads = [(0, 0), (self.length - 1 - carried, padded - tokens), (0, 0), (0, 0)]
        keys, values = np.concatenate([self.unfinished, [k, v]], axis=2)
        y, chosen = self.attend(
            self.memory,
            np.pad(q, [(0, 0), (0, padded - tokens), (0, 0), (0, 0)]),
            np.pad(keys, pads),
            np.pad(values, pads),
            jnp.int32(carried),
            np.pad(is_landmark, [(0, 0), (0, padded - tokens)]),
            np.arange(padded) < tokens,
        )
        self._store(keys, values)
        return np.asarray(y)[:, :tokens].reshape(batch, tokens, width) @ self.to_y, np.asarray(chosen)

    def _store(self, keys, values):
        complete = keys.shape[1] // self.length
        edge = complete * self.length
        self.unfinished = np.stack([keys[:, edge:], values[:, edge:]])
        if complete == 0:
            return
        in_blocks = (keys.shape[0], complete, self.length, *keys.shape[2:])
        turned = interleaved(jnp.asarray(keys[:, :edge].reshape(in_blocks)), jnp.arange(self.length))
        self.ever += complete
        self.memory = landmark.append_blocks(
            self.memory,
            jnp.swapaxes(turned, 2, 3),
            jnp.swapaxes(values[:, :edge].reshape(in_blocks)[:, :, :-1], 2, 3),
            jnp.full_like(self.memory.tokens, self.ever * self.length),
        )


@pytest.mark.parametrize("case", INFERENCE_CASES)
def test_chunks_through_the_cache_are_the_public_ones(case):
    """Outputs, selected blocks and rotary positions of one layer over up to nine ragged chunks, in float64."""
    arrays = golden("landmark_inference.npz", case)
    chunks = len([key for key in arrays if key.endswith("/x")])
    padded = max(arrays[f"chunk{n}/x"].shape[1] for n in range(chunks))
    with jax.enable_x64(True):
        layer = PublicLayer(arrays, INFERENCE_CASES[case])
        for n in range(chunks):
            chunk = {key.removeprefix(f"chunk{n}/"): arrays[key] for key in arrays if key.startswith(f"chunk{n}/")}
            ever, carried, tokens = layer.ever, layer.unfinished.shape[2], chunk["x"].shape[1]
            cached = min(ever, layer.blocks)
            y, chosen = layer(chunk["x"], chunk["is_landmark"], padded)
            np.testing.assert_allclose(y, chunk["y"], rtol=0, atol=1e-12, err_msg=f"chunk {n}")

            # The public code starts at min(blocks ever, k+1) blocks, ours at k+1 always: the same distances.
            first = landmark.first_position(layer.retrieved, layer.length)
            shift = first - min(ever, layer.retrieved + 1) * layer.length
            assert first + carried - shift == chunk["start_index"]
            if cached == 0:
                continue
            assert shift == 0
            assert cached == chunk["n_cached_blocks"]
            ages = np.broadcast_to(chosen - (layer.blocks - cached), (*chosen.shape[:2], chosen.shape[2], chosen.shape[3]))
            ages = np.broadcast_to(ages, (*ages.shape[:2], padded, layer.retrieved))[:, :, :tokens]
            np.testing.assert_array_equal(ages, chunk["selected_block_age"])
            slots = landmark.retrieved_slots(ages + layer.blocks - cached, layer.blocks)
            positions = np.asarray(slots)[..., None] * layer.length + np.arange(layer.length)
            np.testing.assert_array_equal(positions.reshape(*ages.shape[:3], -1), chunk["retrieved_key_positions"])
            scored = landmark.scoring_slots(layer.blocks, layer.retrieved)[-cached:] * layer.length + layer.length - 1
            np.testing.assert_array_equal(scored, chunk["landmark_positions"])


# --- Selection ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "retrieved"), [(5, 2), (3, 3), (6, 1)])
def test_slots_never_overlap_and_stand_before_the_segment(blocks, retrieved):
    for chosen in ([*range(blocks - retrieved, blocks)], [*range(retrieved)]):
        slots = np.asarray(landmark.retrieved_slots(jnp.array(chosen), blocks))
        assert len(set(slots)) == retrieved
        assert slots.min() >= 0
        assert slots.max() <= retrieved  # the segment stands in slot k+1


def test_equal_scores_go_to_the_newest_even_where_rounding_splits_them():
    scores = np.full((1, 9), 0.7, np.float32)
    scores[0, [1, 4]] = np.nextafter(scores[0, 0], np.float32(1)), np.nextafter(scores[0, 0], np.float32(0))
    np.testing.assert_array_equal(landmark.best_newest(jnp.array(scores), 3), [[6, 7, 8]])
    scores[0, 2] = 0.8
    np.testing.assert_array_equal(landmark.best_newest(jnp.array(scores), 3), [[2, 7, 8]])


def test_equal_landmarks_give_the_newest_blocks():
    """As in layer 0; random queries, one product a whole segment and one a token."""
    rng = np.random.default_rng(3)
    keys = np.broadcast_to(rng.normal(size=(1, 1, 2, 4, 16)).astype(np.float32), (1, 33, 2, 4, 16))
    scores = jnp.einsum("bshk,bnhk->bhsn", rng.normal(size=(1, 7, 2, 16)).astype(np.float32), keys[..., -1, :])
    every, reads = jnp.ones((1, 33), bool), jnp.ones((1, 7), bool)
    together = landmark.select_blocks(scores, every, reads, 4, "token_and_head")
    np.testing.assert_array_equal(together, np.broadcast_to(np.arange(29, 33), together.shape))


def test_unreadable_blocks_are_chosen_only_where_readable_ones_run_out():
    scores = random_scores(1, 2, 3, 5).astype(np.float32)
    readable = np.array([[False, False, False, True, True]])
    for selection in landmark.SELECTIONS:
        chosen = landmark.select_blocks(jnp.array(scores), readable, jnp.ones((1, 3), bool), 3, selection)
        np.testing.assert_array_equal(chosen, np.broadcast_to([2, 3, 4], chosen.shape))


def test_tokens_that_may_not_read_have_no_say_in_a_shared_choice():
    scores = np.zeros((1, 1, 2, 4), np.float32)
    scores[0, 0, 0, 1], scores[0, 0, 1, 0] = 5.0, 50.0
    chosen = landmark.select_blocks(jnp.array(scores), np.ones((1, 4), bool), jnp.array([[True, False]]), 1, "tokens")
    np.testing.assert_array_equal(chosen, [[[[1]]]])


# --- The module ---------------------------------------------------------------------------------------------------------

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
    """Outputs WxBxTxD and the last memory; a scan, so that a configuration compiles one segment."""

    def step(carry, part):
        memory, open_document = carry
        *qkv, documents_BxT = part
        segment = make_segment(*qkv, whole(documents_BxT, open_document))
        y, metrics = module.apply(params, memory, segment, method="attend")
        memory = module.apply(params, memory, segment, method="write")
        return (memory, documents_BxT[:, -1]), (y, metrics["retrieved_mass"])

    batch = documents.shape[1]
    start = module.init_memory(batch), jnp.full((batch,), NO_DOCUMENT)
    (memory, _), (y, mass) = jax.lax.scan(step, start, (queries, keys, values, documents))
    return y, memory, mass


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
        y, _, mass = jax.jit(lambda *a: run_stream(Landmark(config, DIMS), params, *a))(*arrays)
    np.testing.assert_allclose(y, expected_stream(params, config, *arrays), rtol=0, atol=1e-12)
    assert mass.shape == (5, DIMS.heads)
    np.testing.assert_array_equal(mass[0], 0.0)
    assert (np.asarray(mass[1:]) > 0.01).all()


@pytest.mark.parametrize(("retrieved", "selection"), [(2, "token_and_head"), (4, "heads"), (2, "tokens")])
def test_gradients_through_the_memory_are_the_reference_s_slopes(retrieved, selection):
    """Central differences of the float64 loops along one random direction each of q, k and v: error about 1e-9."""
    config = dataclasses.replace(CONFIG, retrieved=retrieved, selection=selection)
    *qkv, documents = stream_arrays(config, seed=1)
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        params = make_params()
        upstream = rng.normal(size=(*documents.shape, DIMS.d_model))

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
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-6, atol=1e-6)


def test_a_key_of_the_first_segment_moves_the_outputs_of_a_later_one():
    *qkv, documents = stream_arrays()

    def last_output(values):
        return run_stream(Landmark(CONFIG, DIMS), params, *qkv[:2], values, documents)[0][1, 0].sum()

    with jax.enable_x64(True):
        params = make_params()
        gradient = jax.jit(jax.grad(last_output))(qkv[2])
    assert np.abs(gradient[0, 0]).max() > 1e-3
    np.testing.assert_array_equal(gradient[:, 1:], 0.0)  # rows do not mix


@pytest.mark.parametrize("selection", ["token_and_head", "heads"])
def test_decoding_token_by_token_is_the_whole_segment(selection):
    """The third segment, cut by documents: one query at a time against a buffer whose later keys are not yet written."""
    config = dataclasses.replace(CONFIG, selection=selection)
    module = Landmark(config, DIMS)
    queries, keys, values, documents = stream_arrays(config)
    with jax.enable_x64(True):
        params = make_params()
        _, memory, _ = jax.jit(lambda *a: run_stream(module, params, *a))(*(x[:2] for x in (queries, keys, values, documents)))
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


def test_memory_depends_on_the_open_document_only():
    """Row 2's third document fills one segment and a part: the memory equals that of a stream which held nothing else."""
    module = Landmark(dataclasses.replace(CONFIG, blocks=20), DIMS)
    queries, keys, values, documents = stream_arrays()
    with jax.enable_x64(True):
        params = make_params()
        run = jax.jit(lambda *a: run_stream(module, params, *a)[1])
        late = run(*(x[2:4, 2:] for x in (queries, keys, values, documents)))
        alone = run(*(x[3:4, 2:] for x in (queries, keys, values, documents)))
    jax.tree.map(np.testing.assert_array_equal, late, alone)
    np.testing.assert_array_equal(late.tokens, [12])


def test_another_document_never_reaches_the_outputs():
    """Everything of row 1's first document is replaced; later documents' outputs and memory stay as they were."""
    queries, keys, values, documents = stream_arrays()
    other = [np.where((documents == 0)[..., None, None], 50.0, x) for x in (keys, values)]
    with jax.enable_x64(True):
        params = make_params()
        run = jax.jit(lambda *a: run_stream(Landmark(CONFIG, DIMS), params, *a)[:2])
        y, memory = run(queries, keys, values, documents)
        y_other, memory_other = run(queries, *other, documents)
    later = documents[:, 1] != 0
    np.testing.assert_array_equal(y[:, 1][later], y_other[:, 1][later])
    np.testing.assert_array_equal(memory.keys[1], memory_other.keys[1])


def test_bfloat16_stays_close_to_float32():
    """Products accumulate in float32 and the cache is float32: what is left is the rounding of q, k, v and y (2^-8)."""
    arrays = stream_arrays()
    config = dataclasses.replace(CONFIG, retrieved=4)  # the whole cache, so that rounding cannot choose other blocks
    outputs = []
    for compute in ("float32", "bfloat16"):
        dims = dataclasses.replace(DIMS, compute=compute)
        qkv = [jnp.asarray(x, jnp.bfloat16).astype(dims.dtype) for x in arrays[:3]]
        y, memory, _ = jax.jit(lambda *a, dims=dims: run_stream(Landmark(config, dims), make_params(dims), *a))(
            *qkv, arrays[3]
        )
        assert memory.keys.dtype == memory.values.dtype == jnp.float32
        outputs.append(np.asarray(y, np.float32))
    assert np.abs(outputs[1] - outputs[0]).max() < 0.02 * np.abs(outputs[0]).max()


# --- Sizes, costs and refusals ------------------------------------------------------------------------------------------


def product_flops(jaxpr):
    """FLOPs of all dot_generals, scan bodies times their length: what `Cost` counts."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contract)
        inner = [p for p in jax.tree.leaves(equation.params, is_leaf=is_jaxpr) if is_jaxpr(p)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(product_flops(getattr(p, "jaxpr", p)) for p in inner)
    return total


def is_jaxpr(value):
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


@pytest.mark.parametrize("selection", landmark.SELECTIONS)
@pytest.mark.parametrize("queries", [1, 12])
def test_cost_counts_the_products_that_are_made(selection, queries):
    dims = dataclasses.replace(DIMS, compute="float32")
    module = Landmark(dataclasses.replace(CONFIG, selection=selection), dims)
    bounds = Boundaries(jnp.zeros((1, queries), int), jnp.zeros((1, 12), int), jnp.zeros((1,), int), jnp.int32(0))
    shape = (1, 12, dims.heads)
    segment = make_segment(jnp.zeros((1, queries, dims.heads, 4)), jnp.zeros((*shape, 4)), jnp.zeros((*shape, 3)), bounds)
    params, memory = make_params(dims), module.init_memory(1)
    read = jax.make_jaxpr(lambda m, s: module.apply(params, m, s, method="attend"))(memory, segment)
    write = jax.make_jaxpr(lambda m, s: module.apply(params, m, s, method="write"))(memory, segment)
    projection = 2 * dims.heads * dims.value_dim * dims.d_model
    cost = module.cost(12)
    assert product_flops(read.jaxpr) == queries * (cost.local + cost.read + projection)
    assert product_flops(write.jaxpr) == 12 * cost.write == 0


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
        ({"blocks": 0}, {}, "memory.blocks"),
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


def test_a_landmark_is_inserted_after_each_block():
    assert CONFIG.landmark_every == CONFIG.block
