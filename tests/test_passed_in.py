"""What is drawn, chosen or normalized in a mechanism can be passed in, so that another code's numbers can run through it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.layers.attention import dense, merged
from infini_jax.layers.segment import Segment, whole
from infini_jax.memory import memorizing
from infini_jax.memory.base import Dims
from infini_jax.memory.infinite_former import signal, sticky
from infini_jax.memory.infinite_former.mechanism import InfiniteFormer, InfiniteFormerConfig
from infini_jax.memory.landmark.mechanism import Landmark, LandmarkConfig
from tests.reference import landmark as reference
from tests.support import ragged

ROWS, TOKENS = 2, 6
DIMS = ragged.DIMS
FORMER = InfiniteFormerConfig(basis=8, samples=5, sampling="sticky", widths=(0.1, 0.3))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@functools.cache
def applied(module, method: str):
    """A method of a module, compiled once."""
    return jax.jit(functools.partial(module.apply, method=method))


def segment_of(seed: int, open_document: int = 0, tokens: int = TOKENS, dims: Dims = DIMS) -> Segment:
    arrays = (normal(seed + place, ROWS, tokens, *shape) for place, shape in enumerate(ragged.shapes(dims)))
    return Segment(*arrays, whole(jnp.zeros((ROWS, tokens), int), jnp.full(ROWS, open_document)))


# ---- the ∞-former: the floor of its variance, the times of its sticky memories


def test_the_least_variance_is_a_setting():
    q, B, w_k = normal(0, ROWS, TOKENS, 4, 4), normal(1, ROWS, 8, 6), normal(2, 6, 2, 4)
    w_mu, w_sigma = normal(3, 8), normal(4, 8)
    z = np.einsum("bsgrk,bnd,dgk->bgrsn", q.reshape(ROWS, TOKENS, 2, 2, 4), B, w_k).reshape(ROWS, 4, TOKENS, 8) / 2
    softplus = np.logaddexp(0, z @ np.asarray(w_sigma))
    for floor in (1e-6, 0.5):
        _, sigma_sq = signal.density_parameters(q, B, w_k, w_mu, w_sigma, floor)
        np.testing.assert_allclose(sigma_sq, np.maximum(softplus, floor), atol=1e-12)
    assert (softplus < 0.5).any()
    with pytest.raises(ConfigError, match=r"^memory.variance_floor: 0.0 is not above zero; give a positive number"):
        InfiniteFormerConfig(variance_floor=0.0).check(DIMS)


@pytest.fixture(scope="module")
def written():
    """(module, parameters, memory after a first segment, the second one)."""
    with jax.enable_x64(True):
        module = InfiniteFormer(FORMER, DIMS)
        params = {"params": ragged.parameters(module)}
        memory = applied(module, "write")(params, module.init_memory(ROWS), segment_of(10, -1))
        return module, params, memory, segment_of(20)


def test_the_former_s_variance_has_the_floor_of_its_settings(written):
    _, params, memory, segment = written
    module = InfiniteFormer(InfiniteFormerConfig(**{**vars(FORMER), "variance_floor": 50.0}), DIMS)
    _, metrics = applied(module, "attend")(params, memory, segment)
    assert metrics["sigma_sq"] == 50.0


def test_times_that_it_would_have_drawn_give_the_same_memory(written):
    module, params, memory, segment = written
    densities = applied(module, "_densities")(params, memory, segment)
    shares = sticky.attention_histogram(*densities, jnp.ones((ROWS, TOKENS), bool))
    keys = sticky.row_keys(FORMER.seed, memory.writes)
    which = jax.vmap(lambda key: jax.random.split(key)[0])(keys)
    bins = jax.vmap(lambda key, row: jax.random.categorical(key, jnp.log(row), shape=(FORMER.samples,)))(which, shares)
    write = applied(module, "write")
    given = write(params, memory, segment, sticky.times_of(bins))
    jax.tree.map(np.testing.assert_array_equal, given, write(params, memory, segment))


def test_the_old_signal_is_sampled_at_the_times_that_are_given(written):
    module, params, memory, segment = written
    rng = np.random.default_rng(1)
    one, other = (np.sort(rng.uniform(size=(ROWS, FORMER.samples)), axis=1) for _ in range(2))
    found = [np.asarray(applied(module, "write")(params, memory, segment, jnp.asarray(times)).B) for times in (one, other)]
    centres, widths = np.repeat(np.linspace(0, 1, 4), 2), np.tile([0.1, 0.3], 4)

    def sampled(times):  # X(t) = B^T psi(t)
        psi = np.exp(-0.5 * ((times[..., None] - centres) / widths) ** 2) / (widths * np.sqrt(2 * np.pi))
        return psi @ np.asarray(memory.B)

    refit = signal.update_matrix(TOKENS, FORMER.basis, FORMER.widths, FORMER.ridge, FORMER.samples, FORMER.tau)
    expected = np.einsum("mn,bmd->bnd", refit[: FORMER.samples], sampled(one) - sampled(other))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found[0] - found[1], expected, atol=1e-12)


# ---- landmark attention: the blocks that are read


class Told(reference.Row):
    """The reference, which reads the blocks that it is told."""

    def selected(self, queries, documents):
        chosen = range(len(self.cache)) if self.told is None else self.told
        return {(i, h): list(chosen) for i in range(queries.shape[0]) for h in range(queries.shape[1])}


@pytest.mark.slow
def test_blocks_are_read_as_they_are_given():
    """Its own choice gives what it gives by itself; two others, of all tokens together, what the reference reads."""
    dims = Dims(**{**vars(DIMS), "segment": 6, "heads": 2, "kv_heads": 2})
    module = Landmark(LandmarkConfig(block=2, blocks=4, retrieved=2), dims)
    kernel = normal(9, 2, dims.value_dim, dims.d_model)
    params, memory = {"params": {"out": {"kernel": kernel}}}, module.init_memory(ROWS)
    segments = [segment_of(30 + 10 * number, 0 if number else -1, dims=dims) for number in range(3)]
    for segment in segments[:2]:  # four blocks
        memory = module.apply(params, memory, segment, method="write")

    attend = jax.jit(lambda *chosen: module.apply(params, memory, segments[2], *chosen, method="attend")[0])
    found = module.apply(params, memory, segments[2], method="retrieved")
    own = jnp.swapaxes(3 - found.ages, 2, 3)  # places, ages count from the newest
    np.testing.assert_array_equal(attend(own), attend())

    for told in ([0, 1], [1, 3]):
        row = Told(block=2, blocks=4, retrieved=2, selection="tokens")
        for number, segment in enumerate(segments):
            arrays = [np.asarray(x[0]) for x in (segment.queries, segment.keys, segment.values)]
            row.told = told if number == 2 else []
            y, _ = row.attend(*arrays, np.zeros(6, int))
            row.write(*arrays[1:], np.zeros(6, int))
        given = jnp.broadcast_to(jnp.asarray(told)[:, None], (ROWS, 2, 2, TOKENS))
        np.testing.assert_allclose(attend(given)[0], np.einsum("thv,hvd->td", y, kernel), atol=1e-12)


# ---- the Memorizing Transformer: local and retrieved keys in one softmax, by their log-sum-exps


def test_values_and_log_sum_exps_of_ring_and_segment_make_one_softmax():
    """Where nothing was written yet, the segment's softmax alone; the published gate is `combine`."""
    q, keys, values = normal(0, 1, 3, 2, 4), normal(1, 1, 2, 5, 4), normal(2, 1, 2, 5, 3)
    near_k, near_v, scale = normal(3, 1, 3, 2, 4), normal(4, 1, 3, 2, 3), jnp.asarray([0.7, 1.9])
    causal = jnp.tril(jnp.ones((1, 3, 3), bool))

    @jax.jit
    def read(held):
        near = dense(q, near_k, near_v, causal, scale=scale)
        ring = memorizing.Ring(keys, values, held)
        slots = memorizing.search(ring, q, 2)
        return slots, *merged(memorizing.retrieve_with_lse(ring, q, scale, slots), near)

    for held in (4, 0):
        slots, y, lse = map(np.asarray, read(np.full(1, held)))
        for t, h in np.ndindex(3, 2):
            some = [int(slot) for slot in slots[0, h, t] if slot >= 0]
            assert len(some) == min(2, held)
            seen = np.concatenate([keys[0, h, jnp.array(some, int)], near_k[0, : t + 1, h]])
            shown = np.concatenate([values[0, h, jnp.array(some, int)], near_v[0, : t + 1, h]])
            logits = float(scale[h]) * seen @ np.asarray(q[0, t, h])
            np.testing.assert_allclose(y[0, t, h], np.exp(logits) @ shown / np.exp(logits).sum(), atol=1e-12)
            np.testing.assert_allclose(lse[0, h, t], np.log(np.exp(logits).sum()), atol=1e-12)
