"""The MLP's written-out gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from infini_jax.layers.mlp import MLP, gelu_mlp


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_the_gradient_of_the_mlp_is_that_of_its_products(shape):
    """Against automatic differentiation of the same formula, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, up, down = (jnp.asarray(rng.normal(size=size)) for size in ((*shape, 5), (5, 7), (7, 5)))
        upstream = rng.normal(size=(*shape, 5))

        def plain(x, up, down):
            return jnp.sum(upstream * (nn.gelu(x @ up) @ down))

        def written_out(x, up, down):
            return jnp.sum(upstream * gelu_mlp(x, up, down))

        ours, theirs = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(x, up, down) for f in (written_out, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, theirs)


def test_the_mlp_computes_in_its_type_with_float32_parameters():
    x = jnp.ones((1, 2, 4), jnp.bfloat16)
    y, variables = jax.jit(MLP(4, 8, jnp.bfloat16).init_with_output)(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    shapes = {name: (leaf["kernel"].shape, leaf["kernel"].dtype) for name, leaf in variables["params"].items()}
    assert shapes == {"up": ((4, 8), jnp.float32), "down": ((8, 4), jnp.float32)}
