"""Low-rank factors beside a matrix: x W + (x A) B, in the place of x (W + A B) (LoRA: Hu et al. 2021, arXiv 2106.09685).

The factors are parameters beside the kernel W, under names of their own. No module makes them: where a run trains factors,
they are among the parameters that the model is applied to (`infini_jax.model.parts`), and modules that have matrices add their
product. Each token pays for r (inputs + outputs) products more, and the gradient of W is saved.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

FACTORS = ("lora_a", "lora_b")  # names beside `kernel`; A has its input axes and the rank, B the rank and its output axes
Factors = tuple[jax.Array, jax.Array]


def factors_of(module: nn.Module, dtype: jnp.dtype) -> Factors | None:
    """The factors (A, B) among a module's parameters, in the type of activations; None where it has none."""
    if not module.has_variable("params", FACTORS[0]):
        return None
    a, b = (module.get_variable("params", name).astype(dtype) for name in FACTORS)
    return a, b


def low_rank(x: jax.Array, factors: Factors) -> jax.Array:
    """(x A) B; A sums over as many last axes of x as it has inputs, and the axes of B's outputs stand in their place."""
    a, b = factors
    return jnp.tensordot(jnp.tensordot(x, a, axes=a.ndim - 1), b, axes=1)


class Projection(nn.DenseGeneral):
    """`nn.DenseGeneral` over the last axes of its inputs, which adds (x A) B where its parameters have factors."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """The projection of `inputs`, in the module's type."""
        y, dtype = super().__call__(inputs), jnp.dtype(self.dtype)
        factors = factors_of(self, dtype)
        return y if factors is None else y + low_rank(inputs.astype(dtype), factors)
