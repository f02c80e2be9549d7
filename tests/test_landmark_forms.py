"""Landmark attention's fast forms against its readable ones, in float64: outputs and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers import attention
from infini_jax.layers.segment import whole
from infini_jax.memory.landmark import layouts, retrieval
from infini_jax.memory.landmark import softmax as landmark_softmax
from infini_jax.memory.landmark.retrieval import LandmarkMemory

MASKED = attention.MASKED


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape))


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), ours, theirs)


@pytest.mark.parametrize(
    ("blocks", "length", "cuts"),
    [
        (5, 4, ()),  # one tile
        (43, 4, (30, 90)),  # several, the last one filled up; documents end inside blocks
        (9, 32, (64,)),  # at a block's edge
        (2, 200, (199,)),  # a block is more than a tile; a document of one token and its landmark
        (300, 5, (700,)),  # more tiles than bands
    ],
)
def test_local_tiles_are_the_dense_form(blocks, length, cuts):
    """With gradients of values and log-sum-exp, as `join` takes both."""
    rng, tokens, heads = np.random.default_rng(0), blocks * length, 4 if blocks < 100 else 2
    raw = np.arange(tokens) - (np.arange(tokens) % length == length - 1)  # a landmark is of the document it follows
    documents = jnp.asarray(np.searchsorted(cuts, raw, side="right")[None])
    with jax.enable_x64(True):
        arrays = tuple(normal(rng, 1, tokens, count, size) for count, size in ((heads, 6), (2, 6), (2, 3)))
        up_y, up_lse = normal(rng, 1, tokens, heads, 3), normal(rng, 1, heads, tokens)
        bounds = whole(documents, documents[:, 0])

        def run(form):
            def attend(*arrays):
                with attention.form(form):
                    y, lse = landmark_softmax.attend_blocks(*arrays, bounds, length)
                return (y * up_y).sum() + (lse * up_lse).sum(), (y, lse)

            return jax.jit(jax.value_and_grad(attend, argnums=(0, 1, 2), has_aux=True))(*arrays)

        assert_close(run("blockwise"), run("dense"))
    assert landmark_softmax.block_tiling(blocks, length).padded >= tokens


def cache(rng, tokens, blocks=6, heads=2, length=4):
    shapes = ((2, heads, blocks, length, 6), (2, heads, blocks, length - 1, 3))
    return LandmarkMemory(*(normal(rng, *shape) for shape in shapes), jnp.asarray(tokens))


@pytest.mark.parametrize("size", [1, 2, 8, 32])
@pytest.mark.parametrize("tokens", [(24, 0), (14, 5)])  # full, empty; blocks that belong in part to an older document
def test_reading_in_tiles_is_a_copy_for_each_pair(size, tokens):
    """Two query heads per key head, some tokens that may not read, choices that crowd on one block and leave others out."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        memory, q = cache(rng, tokens), normal(rng, 2, 7, 4, 6)
        blocks = np.sort(np.stack([rng.permutation(6)[:3] for _ in range(56)]).reshape(2, 4, 7, 3), axis=-1).swapaxes(2, 3)
        blocks[0, :2] = [[0], [4], [5]]
        reads = jnp.asarray(rng.random((2, 7)) > 0.3)
        assert_close(*(read_with_gradients(memory, q, jnp.asarray(blocks), reads, f, size) for f in ("tiles", "gather")))


def read_with_gradients(memory, q, blocks, reads, form, size=1):
    return reader(form, size)(q, memory.keys, memory.values, memory.tokens, blocks, reads)


@functools.cache
def reader(form, size):
    """Compiled once for all that is read in a form."""

    def read(q, keys, values, tokens, blocks, reads):
        rng = np.random.default_rng(2)
        turned = retrieval.turned_queries(q, jnp.arange(q.shape[1]), blocks.shape[2], 4)
        y, scores = retrieval.read(LandmarkMemory(keys, values, tokens), turned, blocks, reads, form, size)
        seen = scores > MASKED
        y, shown = jnp.where(seen[..., None], y, 0.0), jnp.where(seen, scores, 0.0)
        return (y * normal(rng, *y.shape)).sum() + (shown * normal(rng, *shown.shape)).sum(), (y, shown)

    return jax.jit(jax.value_and_grad(read, argnums=(0, 1, 2), has_aux=True))


def test_a_shared_choice_is_the_same_choice_of_every_token():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        memory, q, reads = cache(rng, (24, 14)), normal(rng, 2, 7, 4, 6), jnp.ones((2, 7), bool)
        shared = jnp.asarray(np.sort(rng.permuted(np.tile(np.arange(6), (8, 1)), axis=1)[:, :3]).reshape(2, 4, 3, 1))
        repeated = jnp.broadcast_to(shared, (2, 4, 3, 7))
        assert_close(
            read_with_gradients(memory, q, shared, reads, "shared"), read_with_gradients(memory, q, repeated, reads, "gather")
        )


@pytest.mark.parametrize("size", [1, 4, 16])
def test_tiles_suffice_for_every_choice(size):
    """Worst case: each block but one is chosen once. Every pair has a place of its own in a tile of its block."""
    cached, pairs = 9, 40
    for blocks in (np.r_[np.arange(8), np.full(32, 8)], np.zeros(pairs, int), np.arange(pairs) % cached):
        layout = jax.jit(layouts.tiles_layout, static_argnums=(1, 2))(jnp.asarray(blocks, jnp.int32), cached, size)
        layout = jax.tree.map(np.asarray, layout)
        assert len(layout.block) == layouts.tiles_of(pairs, cached, size)
        np.testing.assert_array_equal(layout.pair.reshape(-1)[layout.place], np.arange(pairs))
        np.testing.assert_array_equal(layout.block[layout.place // size], blocks)
        assert (layout.pair >= 0).sum() == pairs


@pytest.mark.parametrize(
    ("pairs", "blocks", "shared", "form"),
    [(1088, 64, False, "tiles"), (1088, 64, True, "shared"), (4, 64, False, "gather"), (1088, 100_000, False, "gather")],
)
def test_the_form_follows_the_sizes(pairs, blocks, shared, form):
    assert layouts.form_of(pairs, blocks, 17, shared)[0] == form


@pytest.mark.parametrize(("tokens", "choosers", "form"), [(40, 1, "shared"), (1, 1, "gather"), (40, 40, "tiles")])
def test_what_is_laid_out_is_what_costs_are_counted_by(tokens, choosers, form):
    repeats, retrieved, cached, length = 2, 3, 8, 17
    pairs, shared = repeats * retrieved * tokens, choosers < tokens
    chosen, size = layouts.form_of(pairs, cached, length, shared)
    blocks = jnp.zeros((1, 1, repeats * retrieved, choosers), jnp.int32)
    layout = layouts.pair_layout(chosen, size, blocks, tokens, cached)
    tiles, places = layouts.tiling(tokens, repeats, retrieved, cached, length, shared)
    of_key_head = jax.tree.map(lambda x: x[0, 0], layout)
    assert (chosen, of_key_head.to_tiles(jnp.zeros((pairs, 5))).shape) == (form, (tiles, places, 5))
