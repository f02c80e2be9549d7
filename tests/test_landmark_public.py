"""The grouped softmax and the cached inference of landmark attention against arrays of the authors' code, in float64."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers.attention import MASKED
from infini_jax.memory.landmark import retrieval
from infini_jax.memory.landmark import softmax as landmark_softmax
from infini_jax.memory.landmark.mechanism import LandmarkMemory, append_blocks, join
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


def golden(name, case):
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"{name} is not in {GOLDEN.name}/ beside the repository")
    with np.load(path) as arrays:
        return {key.removeprefix(f"{case}/"): arrays[key] for key in arrays if key.startswith(f"{case}/")}


def both_ways(form, scores, upstream):
    """The weights and the gradient of sum(weights * upstream)."""
    weights, pull = jax.vjp(form, scores)
    return weights, pull(upstream)[0]


@jax.jit
def weights_and_gradient(scores, is_landmark, allowed, upstream):
    return both_ways(lambda s: landmark_softmax.grouped_softmax(s, is_landmark, allowed), scores, upstream)


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
        lossy = jax.jit(landmark_softmax.grouped_softmax)(scores, is_landmark, allowed)
        whole_rows = jax.jit(partial(landmark_softmax.grouped_softmax, renormalise=True))(scores, is_landmark, allowed)
    assert (np.asarray(lossy)[:, :, 5:].sum(-1) < 1 - 1e-6).all()
    np.testing.assert_allclose(np.asarray(whole_rows)[:, :, 1:].sum(-1), 1.0, atol=1e-12)
    np.testing.assert_array_equal(whole_rows[:, :, 0], 0.0)  # a landmark that closes nothing and sees nothing before it
    np.testing.assert_allclose(
        whole_rows, reference.grouped_softmax(scores, is_landmark, allowed, renormalise=True), atol=1e-12
    )


def test_whole_blocks_and_retrieved_ones_join_to_the_grouped_softmax():
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
        return landmark_softmax.grouped_softmax(scores, is_landmark, allowed, renormalise=True)

    def in_parts(scores):
        in_blocks = scores.reshape(batch, heads, tokens, -1, length)
        own = np.arange(tokens)[:, None] // length == np.arange(3)
        near, near_lse = landmark_softmax.blocks_softmax(
            in_blocks[:, :, :, 2:], visible.reshape(batch, tokens, 3, length), own
        )
        far, far_scores = retrieval.inner(in_blocks[:, :, :, :2, :, None], reads[:, None, ..., None])
        far, far_scores = far[..., 0], far_scores[..., 0].swapaxes(2, 3)
        nothing = jnp.zeros((batch, tokens, heads, 1))
        _, shares = join(nothing, near_lse, jnp.zeros((batch, heads, retrieved, tokens, 1)), far_scores)
        shares = shares.swapaxes(2, 3)
        rest = 1.0 - shares.sum(axis=-1)[..., None, None]
        both = jnp.concatenate([far * shares[..., None], near * rest], axis=3)
        return jnp.pad(both, [(0, 0)] * 4 + [(0, 1)]).reshape(batch, heads, tokens, -1)

    with jax.enable_x64(True):
        (one, slope_one), (two, slope_two) = (
            jax.jit(partial(both_ways, form))(scores, upstream) for form in (general, in_parts)
        )
    np.testing.assert_allclose(two, one, atol=1e-14)
    np.testing.assert_allclose(slope_two, slope_one, atol=1e-13)


def test_a_landmark_is_invisible_where_all_tokens_of_its_block_are():
    """The landmark alone counted to the later document, which `insert_landmarks` never does: no weight may be lost."""
    visible = np.tril(np.ones((8, 8), bool))[None]
    visible[:, 4:, :3] = False  # the tokens of block 0 belong to another document, its landmark (3) does not
    own = np.arange(8)[:, None] // 4 == np.arange(2)
    weights, _ = jax.jit(landmark_softmax.blocks_softmax)(random_scores(1, 1, 8, 2, 4), visible.reshape(1, 8, 2, 4), own)
    np.testing.assert_allclose(weights.sum((-1, -2)), 1.0, atol=1e-6)
    np.testing.assert_array_equal(weights[:, :, 4:, 0], 0.0)


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
            keys=jnp.zeros((batch, self.heads, self.blocks, self.length, size)),
            values=jnp.zeros((batch, self.heads, self.blocks, self.length - 1, size)),
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
        turned = retrieval.turned_queries(q, places[before:], self.retrieved, self.length, interleaved)
        choice = retrieval.choose(memory, turned, reads, self.retrieved, self.selection, interleaved)
        far_values, far_scores = retrieval.read(memory, turned, choice, reads)
        first = retrieval.first_position(self.retrieved, self.length)
        near = jnp.einsum("bshk,bthk->bhst", interleaved(q, first + places[before:]), interleaved(k, first + places))
        far_values, far_scores, chosen = (jnp.swapaxes(x, 2, 3) for x in (far_values, far_scores, choice))
        # a retrieved block acts on the outer softmax as a block of one token does: any score, and its landmark's
        far = jnp.stack([jnp.zeros_like(far_scores), far_scores], axis=-1).reshape(*far_scores.shape[:3], -1)
        scores = jnp.concatenate([far, near * q.shape[-1] ** -0.5], axis=-1)
        held = jnp.repeat(far_scores[:, 0] > MASKED, 2, axis=-1)  # the same for all: none, or all that are retrieved
        causal = (places[None, :] <= places[before:, None]) & (places >= 0)
        allowed = jnp.concatenate([held, jnp.broadcast_to(causal, (batch, tokens, before + tokens))], axis=-1)
        pattern = jnp.broadcast_to(jnp.arange(2 * self.retrieved) % 2 == 1, (batch, 2 * self.retrieved))
        nothing = jnp.zeros((batch, before), bool)
        weights = landmark_softmax.grouped_softmax(scores, jnp.concatenate([pattern, nothing, is_landmark], axis=1), allowed)
        far_weights, near_weights = jnp.split(weights, [2 * self.retrieved], axis=-1)
        y = jnp.einsum("bhsr,bhsrv->bshv", far_weights[..., ::2], far_values)
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
        self.memory = append_blocks(
            self.memory,
            jnp.moveaxis(turned, 3, 1),
            jnp.moveaxis(values[:, :edge].reshape(in_blocks)[:, :, :-1], 3, 1),
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
            first = retrieval.first_position(layer.retrieved, layer.length)
            shift = first - min(ever, layer.retrieved + 1) * layer.length
            assert first + carried - shift == chunk["start_index"]
            if cached == 0:
                continue
            assert shift == 0
            assert cached == chunk["n_cached_blocks"]
            ages = np.broadcast_to(chosen - (layer.blocks - cached), (*chosen.shape[:2], chosen.shape[2], chosen.shape[3]))
            ages = np.broadcast_to(ages, (*ages.shape[:2], padded, layer.retrieved))[:, :, :tokens]
            np.testing.assert_array_equal(ages, chunk["selected_block_age"])
            slots = np.moveaxis(ages + layer.blocks - cached, -1, -2)
            slots = np.moveaxis(retrieval.retrieved_slots(slots, layer.blocks), -2, -1)
            positions = np.asarray(slots)[..., None] * layer.length + np.arange(layer.length)
            np.testing.assert_array_equal(positions.reshape(*ages.shape[:3], -1), chunk["retrieved_key_positions"])
            scored = retrieval.scoring_slots(layer.blocks, layer.retrieved)[-cached:] * layer.length + layer.length - 1
            np.testing.assert_array_equal(scored, chunk["landmark_positions"])
