"""Exact attention over explicit masks; the softmax is float32 whatever the compute type.

Returns the log-sum-exp beside the values, so that a mechanism can merge parts of one softmax.
"""

import jax
import jax.numpy as jnp

from infini_jax.layers import rotary
from infini_jax.segment import Segment

MASKED = -1e30  # finite, so that gradients of fully masked rows stay finite


def masked_softmax(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax over the last axis where `mask`: (weights, log-sum-exp). A row without any True is all zero."""
    logits = jnp.where(mask, logits, MASKED)
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    safe = jnp.where(total > 0, total, 1.0)
    return weights / safe, (top + jnp.log(safe))[..., 0]


def attend(
    q_BxSxHxK: jax.Array,
    k_BxTxHxK: jax.Array,
    v_BxTxHxV: jax.Array,
    mask_BxSxT: jax.Array,
    *,
    scale: jax.Array | float | None = None,
    bias_HxSxT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T + bias) v where `mask`: (BxSxHxV, log-sum-exp BxHxS).

    `scale` is one number or one a head; by default 1/sqrt(K). Rows that may see nothing give zero.
    """
    wide = jnp.promote_types(q_BxSxHxK.dtype, jnp.float32)
    scale = q_BxSxHxK.shape[-1] ** -0.5 if scale is None else jnp.reshape(scale, (-1, 1, 1))
    logits_BxHxSxT = jnp.einsum("bshk,bthk->bhst", q_BxSxHxK, k_BxTxHxK, preferred_element_type=wide) * scale
    if bias_HxSxT is not None:
        logits_BxHxSxT = logits_BxHxSxT + bias_HxSxT
    weights_BxHxSxT, lse_BxHxS = masked_softmax(logits_BxHxSxT, mask_BxSxT[:, None])
    y_BxSxHxV = jnp.einsum("bhst,bthv->bshv", weights_BxHxSxT.astype(v_BxTxHxV.dtype), v_BxTxHxV)
    return y_BxSxHxV, lse_BxHxS


def attend_segment(segment: Segment) -> jax.Array:
    """Causal rotary attention inside the segment and the document: BxSxHxV. Infini-attention eq. 6, ∞-former's short term."""
    key_positions_T = jnp.arange(segment.keys.shape[1])
    q_BxSxHxK = rotary(segment.queries, segment.query_positions_S)
    k_BxTxHxK = rotary(segment.keys, key_positions_T)
    return attend(q_BxSxHxK, k_BxTxHxK, segment.values, segment.bounds.local_BxSxT)[0]


def attention_flops(keys: int, heads: int, key_dim: int, value_dim: int) -> float:
    """FLOPs of one query against `keys` keys: scores and weighted sum, masked ones included as they are computed."""
    return 2.0 * keys * heads * (key_dim + value_dim)
