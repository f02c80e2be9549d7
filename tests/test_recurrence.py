"""The linear recurrence of matrices and its gradient rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers.recurrence import linear_recurrence


def arrays(steps: int, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(S 2x3x4x5, A Nx2x3x4x4, B Nx2x3x4x5)."""
    random, shapes = np.random.default_rng(0), ((2, 3, 4, 5), (steps, 2, 3, 4, 4), (steps, 2, 3, 4, 5))
    return tuple(jnp.asarray(0.5 * random.normal(size=shape), dtype) for shape in shapes)


def in_python(S, A, B) -> tuple[jax.Array, jax.Array]:
    """The recurrence as it is written, with JAX's own gradient."""
    before = []
    for n in range(len(A)):
        before.append(S)
        S = jnp.einsum("...ij,...jv->...iv", A[n], S) + B[n]
    return jnp.stack(before), S


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_states_and_gradients_are_those_of_a_loop(steps):
    given = arrays(steps, jnp.float32)
    found, expected = (jax.jit(function)(*given) for function in (linear_recurrence, in_python))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # rounding of float32

    def loss(function):
        return lambda *given: sum(jnp.sum(jnp.sin(3 * x)) for x in function(*given))

    both = (linear_recurrence, in_python)
    slopes = [jax.jit(jax.grad(loss(function), argnums=(0, 1, 2)))(*given) for function in both]
    for ours, theirs in zip(*slopes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # sums over products of several steps


def test_only_the_states_that_are_read_have_a_gradient():
    S, A, B = arrays(4, jnp.float32)
    last_only = np.asarray(jax.jit(jax.grad(lambda B: linear_recurrence(S, A, B)[0][-1].sum()))(B))
    assert np.abs(last_only[-1]).max() == 0.0  # the last addition comes behind the last state that is handed out
    assert all(np.abs(one).max() > 0 for one in last_only[:-1])


def test_types_stay_and_runs_are_mapped():
    for dtype in (jnp.bfloat16, jnp.float32):
        before, after = jax.eval_shape(linear_recurrence, *arrays(3, dtype))
        assert before.dtype == after.dtype == dtype
    S, A, B = arrays(3, jnp.float32)
    found = jax.jit(jax.vmap(linear_recurrence, in_axes=(0, 1, 1), out_axes=(1, 0)))(S, A, B)
    for ours, theirs in zip(found, jax.jit(linear_recurrence)(S, A, B), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
