"""A linear recurrence of matrices whose loop body is one product, forward and backward.

S_n = A_n S_{n-1} + B_n. All that does not depend on S stands outside the loop: on a GPU each operation in a loop is a kernel
to be launched at every turn. With D_n = dL/dS_n and E_n = dL/dS_{n-1} as far as S_{n-1} itself is read:
  D_{n-1} = A_n^T D_n + E_n,  dA_n = D_n S_{n-1}^T,  dB_n = D_n
"""

import jax
import jax.numpy as jnp

from infini_jax.layers.platforms import unrolled

Gradients = tuple[jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def linear_recurrence(S_BxGxKxV: jax.Array, A_NxBxGxKxK: jax.Array, B_NxBxGxKxV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(S_0 to S_{N-1} NxBxGxKxV, S_N BxGxKxV) of S_n = A_n S_{n-1} + B_n.

    Args:
      S_BxGxKxV: S_0, BxGxKxV.
      A_NxBxGxKxK: transitions, NxBxGxKxK.
      B_NxBxGxKxV: additions, NxBxGxKxV.
    """

    def step(S_BxGxKxV: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        A_BxGxKxK, B_BxGxKxV = item
        return A_BxGxKxK @ S_BxGxKxV + B_BxGxKxV, S_BxGxKxV

    after, before = jax.lax.scan(step, S_BxGxKxV, (A_NxBxGxKxK, B_NxBxGxKxV), unroll=unrolled(len(A_NxBxGxKxK)))
    return before, after


def _forward(S_BxGxKxV: jax.Array, A_NxBxGxKxK: jax.Array, B_NxBxGxKxV: jax.Array):
    before_NxBxGxKxV, after_BxGxKxV = linear_recurrence(S_BxGxKxV, A_NxBxGxKxK, B_NxBxGxKxV)
    return (before_NxBxGxKxV, after_BxGxKxV), (A_NxBxGxKxK, before_NxBxGxKxV)


def _backward(saved: tuple[jax.Array, jax.Array], gradients: tuple[jax.Array, jax.Array]) -> Gradients:
    (A_NxBxGxKxK, before_NxBxGxKxV), (E_NxBxGxKxV, last_BxGxKxV) = saved, gradients

    def step(D_BxGxKxV: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        AT_BxGxKxK, E_BxGxKxV = item
        return AT_BxGxKxK @ D_BxGxKxV + E_BxGxKxV, D_BxGxKxV

    AT_NxBxGxKxK = jnp.swapaxes(A_NxBxGxKxK, -1, -2)
    unroll = unrolled(len(AT_NxBxGxKxK))
    first_BxGxKxV, D_NxBxGxKxV = jax.lax.scan(step, last_BxGxKxV, (AT_NxBxGxKxK, E_NxBxGxKxV), reverse=True, unroll=unroll)
    return first_BxGxKxV, D_NxBxGxKxV @ jnp.swapaxes(before_NxBxGxKxV, -1, -2), D_NxBxGxKxV


linear_recurrence.defvjp(_forward, _backward)


def composed(A_NxBxGxKxK: jax.Array, B_NxBxGxKxV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(A BxGxKxK, B BxGxKxV) of N steps S' = A S + B as one, the first one first, in log2(N) rounds of pairs.

    It takes N - 1 products of transitions that the steps in turn do not, and no loop.
    """
    parts = (A_NxBxGxKxK, B_NxBxGxKxV)
    while (count := len(parts[0])) > 1:
        even = count - count % 2
        (A_first, B_first), (A_then, B_then) = ([x[start:even:2] for x in parts] for start in (0, 1))
        pairs = (A_then @ A_first, A_then @ B_first + B_then)
        parts = tuple(jnp.concatenate([pair, x[even:]]) for pair, x in zip(pairs, parts, strict=True))
    return parts[0][0], parts[1][0]
