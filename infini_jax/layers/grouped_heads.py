"""Query heads that share key heads (Ainslie et al. 2023, arXiv 2305.13245): the only place that knows which shares which."""

import jax
import jax.numpy as jnp


def by_key_head(q_BxSxHxK: jax.Array, kv_heads: int) -> jax.Array:
    """Query heads by the key head that they share: BxSxGxRxK. Query head h reads key head h // R, as in `repeat_heads`."""
    *rows, heads, size = q_BxSxHxK.shape
    return q_BxSxHxK.reshape(*rows, kv_heads, heads // kv_heads, size)


def repeat_heads(k_xGxK: jax.Array, heads: int) -> jax.Array:
    """Key heads, each repeated for the H / G query heads that share it: ...xHxK (Ainslie et al. 2023, arXiv 2305.13245)."""
    repeats = heads // k_xGxK.shape[-2]
    return k_xGxK if repeats == 1 else jnp.repeat(k_xGxK, repeats, axis=-2)
