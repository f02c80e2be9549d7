"""The MLP of a block, whose gradient keeps fewer arrays than JAX would."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from infini_jax.layers.precision import PARAMETERS


@jax.custom_vjp
def gelu_mlp(x_BxSxD: jax.Array, up_DxF: jax.Array, down_FxD: jax.Array) -> jax.Array:
    """gelu(x up) down: BxSxD.

    Its gradient is written out: the same products, but in XLA's own order the gradient of the hidden layer is written a second
    time, transposed, which took a fifth of a training step on a CPU.
    """
    return nn.gelu(x_BxSxD @ up_DxF) @ down_FxD


def _gelu_mlp_forward(x_BxSxD, up_DxF, down_FxD):
    h_BxSxF = x_BxSxD @ up_DxF
    return nn.gelu(h_BxSxF) @ down_FxD, (x_BxSxD, h_BxSxF, up_DxF, down_FxD)


def _gelu_mlp_backward(saved, dy_BxSxD):
    x_BxSxD, h_BxSxF, up_DxF, down_FxD = saved
    x_RxD, h_RxF, dy_RxD = (x.reshape(-1, x.shape[-1]) for x in (x_BxSxD, h_BxSxF, dy_BxSxD))
    hidden_RxF, through_gelu = jax.vjp(nn.gelu, h_RxF)
    (dh_RxF,) = through_gelu(dy_RxD @ down_FxD.T)
    dh_RxF = jax.lax.optimization_barrier(dh_RxF)
    return (dh_RxF @ up_DxF.T).reshape(x_BxSxD.shape), x_RxD.T @ dh_RxF, hidden_RxF.T @ dy_RxD


gelu_mlp.defvjp(_gelu_mlp_forward, _gelu_mlp_backward)


class Matrix(nn.Module):
    """A matrix of parameters under the name that `nn.Dense` gives it.

    Attributes:
      rows, columns: shape of the matrix.
      dtype: type in which the matrix is used.
    """

    rows: int
    columns: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", nn.initializers.lecun_normal(), (self.rows, self.columns), PARAMETERS).astype(self.dtype)


class MLP(nn.Module):
    """A feed-forward layer, D -> F -> D with GELU, without biases.

    Attributes:
      d_model: D, width of inputs and outputs.
      mlp_dim: F, width of the hidden layer.
      dtype: type of activations.
    """

    d_model: int
    mlp_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        up_DxF = Matrix(self.d_model, self.mlp_dim, self.dtype, name="up")()
        return gelu_mlp(x_BxSxD, up_DxF, Matrix(self.mlp_dim, self.d_model, self.dtype, name="down")())
