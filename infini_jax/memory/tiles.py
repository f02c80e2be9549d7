"""What kernels for TPUs share: tokens lie in memory as rows of whole tiles, the heads of a token side by side.

Letters: B rows, T tokens, G heads, K their dim.
"""

import math

import jax
import jax.numpy as jnp

LANES = 128  # numbers in a row of a tile
DIM_STEP = 32  # of a head, so that few heads make whole tiles
MOST_BYTES = 12 * 2**20  # on the chip; 16 MiB are a kernel's by default


def fewest_heads(heads: int, dims: tuple[int, ...]) -> int:
    """The fewest of so many heads that fill whole tiles in arrays of all these dims, or all heads where no fewer do."""
    fitting = (few for few in range(1, heads) if heads % few == 0 and all(few * dim % LANES == 0 for dim in dims))
    return next(fitting, heads)


def in_rows(x_BxTxGxK: jax.Array) -> jax.Array:
    """All heads of a token side by side, BxTx(GK), which is how a projection leaves them."""
    return x_BxTxGxK.reshape(*x_BxTxGxK.shape[:2], math.prod(x_BxTxGxK.shape[2:]))


def refuses_tokens(given: tuple[jax.Array, ...], chunk: int) -> str | None:
    """Reason why a kernel cannot take arrays BxTxGxK of tokens in chunks of `chunk`, or None."""
    types, tokens, dims = {x.dtype for x in given}, given[0].shape[1], [x.shape[3] for x in given]
    if types - {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}:
        return f"takes float32 and bfloat16, not {' and '.join(str(x.dtype) for x in given)}"
    if tokens % chunk:
        return f"takes segments that {chunk} divides, not {tokens}"
    if any(dim % DIM_STEP for dim in dims):
        return f"takes dims that {DIM_STEP} divides, not {' and '.join(map(str, dims))}"
    return None
