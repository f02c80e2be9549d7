"""The MLP of a block, whose gradient keeps fewer arrays than JAX would."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from infini_jax.layers.low_rank import Factors, factors_of, low_rank
from infini_jax.layers.precision import PARAMETERS

Affine = tuple[jax.Array, jax.Array | None]  # (kernel, bias or None) of x kernel + bias
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": nn.gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "swiglu": nn.silu,
    "geglu": nn.gelu,
}
"""Activation by the name of the MLP; of gated ones that of the gate."""
GATED = ("swiglu", "geglu")  # which have a second hidden layer


def activated(kind: str, up: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """The hidden layer from its products with the inputs: f(up), or f(gate) up where there is a gate."""
    return ACTIVATIONS[kind](up) if gate is None else ACTIVATIONS[kind](gate) * up


def affine(x: jax.Array, part: Affine) -> jax.Array:
    """x kernel + bias."""
    kernel, bias = part
    return x @ kernel if bias is None else x @ kernel + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def mlp(kind: str, x_BxSxD: jax.Array, first: tuple[Affine, ...], last: Affine) -> jax.Array:
    """The hidden layer of `kind`, from one product with the inputs or two (up, gate), times the last matrix: BxSxD.

    Its gradient is written out: the same products, but in XLA's own order the gradient of the hidden layer is written a second
    time, transposed, which took a fifth of a training step on a CPU. Parameters have one where any of them is asked for one.
    """
    return affine(activated(kind, *(affine(x_BxSxD, part) for part in first)), last)


def _mlp_forward(kind, x_BxSxD, first, last):
    is_trained = any(leaf.perturbed for leaf in jax.tree.leaves((first, last)))
    x_BxSxD, first, last = jax.tree.map(lambda leaf: leaf.value, (x_BxSxD, first, last))
    products = tuple(affine(x_BxSxD, part) for part in first)
    inputs_BxSxD = x_BxSxD if is_trained else None  # only the gradient of parameters needs them
    return affine(activated(kind, *products), last), (inputs_BxSxD, products, first, last)


def _mlp_backward(kind, saved, dy_BxSxD):
    x_BxSxD, products, first, last = saved
    dy_RxD, *products = (x.reshape(-1, x.shape[-1]) for x in (dy_BxSxD, *products))
    hidden_RxF, through = jax.vjp(functools.partial(activated, kind), *products)
    slopes = jax.lax.optimization_barrier(through(dy_RxD @ last[0].T))

    def of_parameters(part: Affine, inputs: jax.Array, slope: jax.Array) -> Affine:
        return inputs.T @ slope, None if part[1] is None else slope.sum(axis=0)

    dx_RxD = functools.reduce(jnp.add, [slope @ part[0].T for slope, part in zip(slopes, first, strict=True)])
    dx_BxSxD = dx_RxD.reshape(*dy_BxSxD.shape[:-1], -1)
    if x_BxSxD is None:
        return dx_BxSxD, None, None
    x_RxD = x_BxSxD.reshape(-1, x_BxSxD.shape[-1])
    to_first = tuple(of_parameters(part, x_RxD, slope) for part, slope in zip(first, slopes, strict=True))
    return dx_BxSxD, to_first, of_parameters(last, hidden_RxF, dy_RxD)


mlp.defvjp(_mlp_forward, _mlp_backward, symbolic_zeros=True)


class Matrix(nn.Module):
    """A matrix of parameters, perhaps with a bias and low-rank factors, under the names that `nn.Dense` gives them.

    Attributes:
      rows, columns: shape of the matrix.
      dtype: type in which the parameters are used.
      biased: whether there is a bias.
    """

    rows: int
    columns: int
    dtype: jnp.dtype
    biased: bool = False

    @nn.compact
    def __call__(self) -> tuple[Affine, Factors | None]:
        factors = factors_of(self, self.dtype)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.rows, self.columns), PARAMETERS).astype(self.dtype)
        if not self.biased:
            return (kernel, None), factors
        bias = self.param("bias", nn.initializers.zeros, (self.columns,), PARAMETERS).astype(self.dtype)
        return (kernel, bias), factors


class MLP(nn.Module):
    """A feed-forward layer, D -> F -> D.

    Attributes:
      d_model: D, width of inputs and outputs.
      mlp_dim: F, width of the hidden layer.
      dtype: type of activations.
      kind: name of the activation.
      biased: whether each product has a bias.
    """

    d_model: int
    mlp_dim: int
    dtype: jnp.dtype
    kind: str = "gelu_tanh"
    biased: bool = False

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        names = ("up", "gate") if self.kind in GATED else ("up",)
        first = [Matrix(self.d_model, self.mlp_dim, self.dtype, self.biased, name=name)() for name in names]
        last = Matrix(self.mlp_dim, self.d_model, self.dtype, self.biased, name="down")()
        if last[1] is None:
            return mlp(self.kind, x_BxSxD, tuple(part for part, _ in first), last[0])
        return with_factors(activated(self.kind, *(with_factors(x_BxSxD, *one) for one in first)), *last)


def with_factors(x: jax.Array, part: Affine, factors: Factors | None) -> jax.Array:
    """x kernel + bias + (x A) B, with JAX's own gradient, as a kernel beside factors has none that would be written twice."""
    return affine(x, part) if factors is None else affine(x, part) + low_rank(x, factors)
