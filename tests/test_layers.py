"""MLPs and norms: formulas in float64, and the MLP's written-out gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.layers.mlp import ACTIVATIONS, MLP, activated, mlp
from infini_jax.layers.norms import norm_of
from tests.reference.block import ACTIVATIONS as REFERENCE


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_the_gradient_of_the_mlp_is_that_of_its_products(shape, kind, biased):
    """Values against NumPy, the gradient against automatic differentiation of the same formula, in float64."""
    with jax.enable_x64(True):
        rng, count = np.random.default_rng(0), 2 if kind in ("swiglu", "geglu") else 1
        part = lambda rows, columns: (rng.normal(size=(rows, columns)), rng.normal(size=columns) if biased else None)  # noqa: E731
        x, first, last = rng.normal(size=(*shape, 5)), tuple(part(5, 7) for _ in range(count)), part(7, 5)
        upstream = rng.normal(size=(*shape, 5))

        def product(x, part):
            return x @ part[0] + (0 if part[1] is None else part[1])

        def plain(x, first, last):
            return jnp.sum(upstream * product(activated(kind, *(product(x, one) for one in first)), last))

        arguments = jax.tree.map(jnp.asarray, (x, first, last))
        ours = jax.value_and_grad(lambda *a: jnp.sum(upstream * jnp.asarray(mlp(kind, *a))), argnums=(0, 1, 2))(*arguments)
        theirs = jax.value_and_grad(plain, argnums=(0, 1, 2))(*arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, theirs)
    *gate, up = [product(x, one) for one in first[::-1]]
    hidden = REFERENCE[kind](gate[0]) * up if gate else REFERENCE[kind](up)
    np.testing.assert_allclose(ours[0], np.sum(upstream * product(hidden, last)), rtol=1e-12)


@pytest.mark.parametrize(("kind", "biased"), [("rms", False), ("layer", False), ("layer", True)])
def test_norms_are_their_formulas_where_the_mean_is_large_too(kind, biased):
    """In float32 to its rounding: a mean of 100 takes two of seven digits away."""
    rng, epsilon = np.random.default_rng(1), 1e-3
    x, scale, bias = 100 + rng.normal(size=(3, 8)), rng.normal(size=8), rng.normal(size=8)
    centred = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * scale + (bias if biased else 0)
    params = {"scale": scale} | ({"bias": bias} if biased else {})
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    norm = norm_of(kind, epsilon, biased, jnp.dtype("float32"))
    assert jax.eval_shape(norm.init, jax.random.key(0), jnp.asarray(x, jnp.float32))["params"].keys() == params.keys()
    found: Any = norm.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_mlp_computes_in_its_type_with_float32_parameters():
    x = jnp.ones((1, 2, 4), jnp.bfloat16)
    y, variables = MLP(4, 8, jnp.bfloat16).init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    shapes = {name: (leaf["kernel"].shape, leaf["kernel"].dtype) for name, leaf in variables["params"].items()}
    assert shapes == {"up": ((4, 8), jnp.float32), "down": ((8, 4), jnp.float32)}
