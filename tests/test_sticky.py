"""Sticky memories: the histogram against scipy, the draws against the histogram, the fit against a plain computation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from infini_jax.errors import ConfigError
from infini_jax.layers.segment import Segment, whole
from infini_jax.memory.infinite_former import sticky
from infini_jax.memory.infinite_former.mechanism import InfiniteFormer, InfiniteFormerConfig
from infini_jax.memory.infinite_former.signal import stored_fit
from tests.support.streams import MODEL

CONFIG = InfiniteFormerConfig(basis=16, samples=24, sampling="sticky")
RNG = np.random.default_rng(0)


def test_histogram_is_the_mass_of_all_counted_gaussians():
    with jax.enable_x64(True):
        mu, sigma_sq = RNG.uniform(0, 1, (2, 3, 5)), RNG.uniform(1e-4, 0.3, (2, 3, 5))
        counted = RNG.random((2, 5)) < 0.7
        found = jax.jit(sticky.attention_histogram)(mu, sigma_sq, counted)
        edges = np.linspace(0, 1, 129)
        edges[0], edges[-1] = -1e-6, 1 + 1e-6
        for row in range(2):
            mass = np.zeros(128)
            for head in range(3):
                for query in np.flatnonzero(counted[row]):
                    normal = scipy.stats.norm(mu[row, head, query], np.sqrt(sigma_sq[row, head, query]))
                    mass += np.diff(normal.cdf(edges))
            np.testing.assert_allclose(found[row], mass / mass.sum(), atol=1e-12)


def test_a_row_without_counted_queries_draws_from_everywhere():
    shares = jax.jit(sticky.attention_histogram)(np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.zeros((1, 2), bool))
    np.testing.assert_allclose(shares, 1 / 128)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def drawn(seed: int, writes_B, shares_BxG, count: int, inside: str = "edge"):
    return sticky.draw_times(sticky.row_keys(seed, writes_B), shares_BxG, count, inside)


@pytest.mark.parametrize("inside", ["edge", "uniform"])
def test_times_are_sorted_and_follow_the_histogram(inside):
    shares = jnp.asarray([[0.5, 0.0, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0]])
    times = np.asarray(drawn(0, jnp.array([1, 1]), shares, 4000, inside))
    assert (np.diff(times, axis=1) >= 0).all()
    for row in range(2):
        found = np.bincount((times[row] * 4).astype(int), minlength=4) / 4000
        np.testing.assert_allclose(found, shares[row], atol=0.03)  # four standard deviations of 4000 draws
    on_edges = np.isin(times, np.arange(4) / 4)
    assert on_edges.all() if inside == "edge" else on_edges.mean() < 0.01


def test_draws_depend_on_the_seed_the_row_and_the_write():
    shares = jnp.full((2, 128), 1 / 128)
    draw = lambda seed, count: np.asarray(drawn(seed, jnp.array([count] * 2), shares, 16))  # noqa: E731
    np.testing.assert_array_equal(draw(0, 1), draw(0, 1))
    assert not np.array_equal(draw(0, 1)[0], draw(0, 1)[1])
    assert not np.array_equal(draw(0, 1), draw(0, 2))
    assert not np.array_equal(draw(0, 1), draw(1, 1))


def segment_of(seed: int, before: int) -> Segment:
    d = MODEL.dims
    random = np.random.default_rng(seed)
    shapes = [(d.d_model,), (d.heads, d.key_dim), (d.heads, d.key_dim), (d.heads, d.value_dim)]
    arrays = [jnp.asarray(random.normal(size=(2, 16, *shape)), jnp.float32) for shape in shapes]
    return Segment(*arrays, whole(jnp.zeros((2, 16), jnp.int32), jnp.full(2, before)))


def both(module, memory, segment):
    return module.attend(memory, segment), module.write(memory, segment)


@functools.cache
def step_of(config: InfiniteFormerConfig):
    module = InfiniteFormer(config, MODEL.dims)
    return module, jax.jit(functools.partial(module.apply, method="write"))


def written_by(config: InfiniteFormerConfig):
    """The memory after three segments, every parameter a tenth."""
    module, write = step_of(config)
    segments = [segment_of(number, 0 if number else -1) for number in range(3)]
    memory = module.init_memory(2)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(1), memory, segments[0], method=both))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)
    for segment in segments:
        memory = write(params, memory, segment)
    return memory


def test_sticky_sampling_changes_the_signal_and_repeats_itself():
    sticky_memory, again = written_by(CONFIG), written_by(CONFIG)
    even = written_by(dataclasses.replace(CONFIG, sampling="even"))
    inside = written_by(dataclasses.replace(CONFIG, sampling="sticky_uniform"))
    np.testing.assert_array_equal(sticky_memory.B, again.B)
    assert np.abs(sticky_memory.B - even.B).max() > 1e-4
    assert np.abs(sticky_memory.B - inside.B).max() > 1e-6
    np.testing.assert_array_equal(sticky_memory.writes, [3, 3])


def test_an_unknown_way_to_sample_is_refused():
    with pytest.raises(ConfigError, match=r"^memory.sampling: 'random' is not known; choose even, sticky or sticky_uniform"):
        dataclasses.replace(CONFIG, sampling="random").check(MODEL.dims)


def test_fit_is_the_share_of_variance_that_the_signal_holds():
    with jax.enable_x64(True):
        B, x, psi = RNG.normal(size=(1, 4, 3)), RNG.normal(size=(1, 6, 3)), RNG.normal(size=(1, 6, 4))
        counted = np.array([[False, False, True, True, True, True]])
        found = stored_fit(*(jnp.asarray(array) for array in (B, x, counted, psi)))
        kept, rebuilt = x[0, 2:], (psi @ B)[0, 2:]
        expected = 1 - ((kept - rebuilt) ** 2).sum() / ((kept - kept.mean(axis=0)) ** 2).sum()
        np.testing.assert_allclose(found, [expected], rtol=1e-12)
        perfect = stored_fit(jnp.asarray(B), jnp.asarray(psi @ B), jnp.asarray(counted), jnp.asarray(psi))
        np.testing.assert_allclose(perfect, [1.0])


def test_white_noise_is_stored_badly_and_a_smooth_signal_well():
    """The capacity of the ∞-former is that of smooth signals: R^2 of noise is low at the first write already."""
    module = InfiniteFormer(InfiniteFormerConfig(basis=64, ridge=0.5), MODEL.dims)
    noise = segment_of(0, -1)
    times = jnp.linspace(0, 3, 16)[None, :, None]
    smooth = noise.replace(inputs=jnp.sin(times + jnp.arange(16.0)) * jnp.ones((2, 16, 16)))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(1), module.init_memory(2), noise, method=both))
    opened = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)  # a gate of sigmoid(0) scales both alike
    write = jax.jit(functools.partial(module.apply, method="write"))
    fits = [write(opened, module.init_memory(2), segment).fit[0] for segment in (noise, smooth)]
    assert fits[0] < fits[1]
