"""The continuous signal of the ∞-former: its matrices, contraction, expectation and regulariser."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.memory.infinite_former import expectation, signal
from tests.reference import infinite_former as reference
from tests.support.former import CONFIG, relative


@pytest.mark.parametrize(("length", "samples"), [(1, 3), (5, 4), (7, 8), (8, 7), (16, 16)])
def test_matrices_of_odd_and_even_lengths_equal_the_reference(length, samples):
    functions = reference.basis(CONFIG.basis, CONFIG.widths)
    ours = signal.first_write_matrix(length, CONFIG.basis, CONFIG.widths, CONFIG.ridge)
    np.testing.assert_allclose(ours, reference.first_matrix(length, functions, CONFIG.ridge), atol=1e-12)
    ours = signal.update_matrix(length, CONFIG.basis, CONFIG.widths, CONFIG.ridge, samples, CONFIG.tau)
    theirs = reference.second_matrix(length, functions, CONFIG.ridge, samples, CONFIG.tau)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_matrices_are_computed_once():
    arguments = (16, CONFIG.basis, CONFIG.widths, CONFIG.ridge)
    assert signal.first_write_matrix(*arguments) is signal.first_write_matrix(*arguments)


def test_a_smooth_signal_survives_writes_in_float32_as_in_float64():
    """The cast of the matrices costs rounding only: after four writes the signal differs by less than 1e-5."""
    count, length, samples = 64, 64, 64
    settings = (length, count, (0.01, 0.05), 1.0)
    exact = (
        signal.contraction_matrix(*settings, samples, 0.75),
        signal.first_write_matrix(*settings),
        signal.update_matrix(*settings, samples, 0.75)[samples:],
    )
    t = np.linspace(0, 1, length, endpoint=False)
    waves = np.stack([np.cos(2 * np.pi * (t + phase)) for phase in (0, 0.2, 0.5, 0.7)])[:, None, :, None]
    signals = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(True):
            contraction, *matrices = (jnp.asarray(matrix, dtype) for matrix in exact)
            B = jnp.zeros((1, count, 1), dtype)
            for i, wave in enumerate(waves):
                B = signal.write_signal(contraction @ B, jnp.asarray(wave, dtype), jnp.array([i > 0]), *matrices)
            assert B.dtype == dtype
            signals[dtype] = signal.psi(t, *signal.basis(count, (0.01, 0.05))) @ np.asarray(B, np.float64)[0]
    assert relative(signals["float32"], signals["float64"]) < 1e-5
    # The newest wave fills the last quarter; regression shrinks it (lambda) but keeps its shape.
    newest = signals["float64"][48:, 0]
    assert np.corrcoef(newest, waves[-1, 0, 3::4, 0])[0, 1] > 0.9


def test_kl_is_that_of_two_gaussians_with_one_mean():
    """Against the integral of p log(p / p0) on a fine grid."""
    t = np.linspace(-4, 4, 400_001)
    for variance in (0.0025, 0.01, 0.25):
        p = reference.normal(t, 0.0, math.sqrt(variance))
        log_ratio = math.log(0.05 / math.sqrt(variance)) - t**2 / 2 * (1 / variance - 1 / 0.05**2)
        np.testing.assert_allclose(signal.kl(np.float32(variance), 0.05), np.trapezoid(p * log_ratio, t), rtol=2e-6, atol=1e-7)


def with_slopes(form, weights, *arrays):
    """The value of a function, and the gradients of what it gives times the weights."""
    value, pull = jax.vjp(form, *arrays)
    return value, *pull(weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fewer_functions_read_what_the_whole_basis_reads(dtype):
    """The widest and the narrowest densities, at the ends and in the middle, values and gradients."""
    count, widths = 1024, (0.01, 0.05)
    rng = np.random.default_rng(0)
    mu, sigma_sq = (
        x.ravel()[None, None] for x in np.meshgrid(np.linspace(1e-3, 0.999, 25), [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.7, 2.0])
    )
    B, w_v = rng.standard_normal((1, count, 8)), rng.standard_normal((8, 1, 8))
    plan = expectation.order_of(mu.size, count, widths, 8, 1, 1, 8, dtype)
    with jax.enable_x64(True):

        def read(mu, sigma_sq, B, w_v):
            return expectation.context(mu, sigma_sq, B, w_v, widths)

        def whole(mu, sigma_sq, B, w_v):
            r = expectation.expected_basis(mu, sigma_sq, *map(jnp.asarray, signal.basis(count, widths)))
            return jnp.einsum("bhsn,bnd,dhv->bshv", r, B, w_v)

        weights = rng.standard_normal((1, mu.size, 1, 8))
        results = []
        for form, kind in ((read, dtype), (whole, "float64")):
            arrays = [jnp.asarray(x, kind) for x in (mu, sigma_sq, B, w_v)]
            results.append(jax.jit(functools.partial(with_slopes, form))(jnp.asarray(weights, kind), *arrays))
    # thousands of random coefficients cancel: sums of this size carry some hundred roundings
    for ours, theirs in zip(*results, strict=True):
        assert relative(ours, np.asarray(theirs)) < 300 * np.finfo(dtype).eps
    assert any(some.merges for some in plan.functions)
    assert sum(some.count for some in plan.functions) < count
