"""A linear recurrence of matrices whose loop body is one product, forward and backward.

S_n = A_n S_{n-1} + B_n. All that does not depend on S stands outside the loop: on a GPU each operation in a loop is a kernel
to be launched at every turn. With D_n = dL/dS_n and E_n = dL/dS_{n-1} as far as S_{n-1} itself is read:
  D_{n-1} = A_n^T D_n + E_n,  dA_n = D_n S_{n-1}^T,  dB_n = D_n
"""

import jax
import jax.numpy as jnp

Gradients = tuple[jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def linear_recurrence(S_xKxV: jax.Array, A_NxKxK: jax.Array, B_NxKxV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(S_0 to S_{N-1} N...xKxV, S_N ...xKxV) of S_n = A_n S_{n-1} + B_n; `...` are axes that all share, such as batch, heads.

    Args:
      S_xKxV: S_0, ...xKxV.
      A_NxKxK: transitions, N...xKxK.
      B_NxKxV: additions, N...xKxV.
    """

    def step(S_xKxV: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        A_xKxK, B_xKxV = item
        return A_xKxK @ S_xKxV + B_xKxV, S_xKxV

    after, before = jax.lax.scan(step, S_xKxV, (A_NxKxK, B_NxKxV))
    return before, after


def _forward(S_xKxV: jax.Array, A_NxKxK: jax.Array, B_NxKxV: jax.Array):
    before_NxKxV, after_xKxV = linear_recurrence(S_xKxV, A_NxKxK, B_NxKxV)
    return (before_NxKxV, after_xKxV), (A_NxKxK, before_NxKxV)


def _backward(saved: tuple[jax.Array, jax.Array], gradients: tuple[jax.Array, jax.Array]) -> Gradients:
    (A_NxKxK, before_NxKxV), (E_NxKxV, last_xKxV) = saved, gradients

    def step(D_xKxV: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        AT_xKxK, E_xKxV = item
        return AT_xKxK @ D_xKxV + E_xKxV, D_xKxV

    first_xKxV, D_NxKxV = jax.lax.scan(step, last_xKxV, (jnp.swapaxes(A_NxKxK, -1, -2), E_NxKxV), reverse=True)
    return first_xKxV, D_NxKxV @ jnp.swapaxes(before_NxKxV, -1, -2), D_NxKxV


linear_recurrence.defvjp(_forward, _backward)
