"""Exact local attention: one call, the form chosen here by platform and length.

Forms. `dense` holds all scores and is the readable reference; `blockwise` works in tiles with its own gradient rule, on any
platform; `cudnn` and `splash` (`infini_jax.layers.kernels`) are the vendors' kernels on CUDA and TPU. `with form("dense"):`
asks for one where `auto` would choose another; programs that were compiled under another choice are not reused.
The softmax is float32 at least whatever the compute type.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from infini_jax.errors import require
from infini_jax.layers import kernels, precision
from infini_jax.layers.blockwise import MASKED, TILE, blockwise, tiling_of
from infini_jax.layers.distances import ROTARY, Turn
from infini_jax.layers.grouped_heads import repeat_heads
from infini_jax.layers.heads import by_heads, can_split
from infini_jax.layers.platforms import platform
from infini_jax.layers.segment import Segment, Sight

FORMS = ("auto", "dense", "blockwise", "cudnn", "splash")
form = jax.make_user_context("auto")  # a part of jit's cache key, unlike a global


def masked_softmax(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax over the last axis where `mask` is true: (weights, log-sum-exp). A row without any True is all zero."""
    logits = jnp.where(mask, logits, MASKED)
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    safe = jnp.where(total > 0, total, 1.0)
    return weights / safe, (top + jnp.log(safe))[..., 0]


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """cap tanh(x / cap): bounded by `cap`, the identity near zero (Gemma Team 2024, arXiv 2408.00118); `x` where it is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def dense(
    q_BxSxHxK: jax.Array,
    k_BxTxGxK: jax.Array,
    v_BxTxGxV: jax.Array,
    mask_BxSxT: jax.Array,
    *,
    scale: jax.Array | float | None = None,
    bias_HxSxT: jax.Array | None = None,
    cap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T + bias) v where `mask` is true, with all scores in memory: (BxSxHxV, log-sum-exp BxHxS).

    `scale` is one number or one per head, by default 1/sqrt(K); `cap` bounds scores with their bias as `soft_cap` does. Query
    head h reads key head h // (H / G). Rows that may see nothing give zero.
    """
    wide = precision.wide(q_BxSxHxK.dtype)
    factor = q_BxSxHxK.shape[-1] ** -0.5 if scale is None else jnp.reshape(scale, (-1, 1, 1))
    k_BxTxHxK, v_BxTxHxV = (repeat_heads(x, q_BxSxHxK.shape[2]) for x in (k_BxTxGxK, v_BxTxGxV))
    logits_BxHxSxT = jnp.einsum("bshk,bthk->bhst", q_BxSxHxK, k_BxTxHxK, preferred_element_type=wide) * factor
    if bias_HxSxT is not None:
        logits_BxHxSxT = logits_BxHxSxT + bias_HxSxT
    logits_BxHxSxT = soft_cap(logits_BxHxSxT, cap)
    weights_BxHxSxT, lse_BxHxS = masked_softmax(logits_BxHxSxT, mask_BxSxT[:, None])
    y_BxSxHxV = jnp.einsum("bhst,bthv->bshv", weights_BxHxSxT.astype(v_BxTxHxV.dtype), v_BxTxHxV)
    return y_BxSxHxV, lse_BxHxS


def merged(*parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(values BxSxHxV, log-sum-exp BxHxS) of one softmax over several sets of keys, from those of each set.

    Where a set shows a query nothing its log-sum-exp is hugely negative, as `masked_softmax` gives it, and it weighs nothing.
    """
    lse_NxBxHxS = jnp.stack([lse for _, lse in parts])
    shares_NxBxHxS = jax.nn.softmax(lse_NxBxHxS, axis=0)
    y_BxSxHxV = sum(share.swapaxes(1, 2)[..., None] * y for share, (y, _) in zip(shares_NxBxHxS, parts, strict=True))
    return jnp.asarray(y_BxSxHxV), jax.nn.logsumexp(lse_NxBxHxS, axis=0)


def attend(
    q_BxSxHxK: jax.Array,
    k_BxJxGxK: jax.Array,
    v_BxJxGxV: jax.Array,
    sight: Sight,
    *,
    scale: jax.Array | float | None = None,
    distance_bias_HxJ: jax.Array | None = None,
    cap: float = 0.0,
) -> jax.Array:
    """softmax(scale q k^T + bias) v over the keys that `sight` shows: BxSxHxV.

    Args:
      q_BxSxHxK: queries of the segment.
      k_BxJxGxK, v_BxJxGxV: carried keys and values first, then those of the segment; query head h reads head h // (H / G).
      sight: the keys that each query sees.
      scale: one number or one per head; by default 1/sqrt(K).
      distance_bias_HxJ: bias of a key 0, 1, .. J-1 places before the query.
      cap: bound of the scores with their bias, as by `soft_cap`, for which all are held in memory; 0 is none.

    Rows that may see nothing give zero. Raises `ConfigError` where the form asked for cannot do this.
    """
    if any(sight.mutual):
        return _attend_mutually(q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight, scale, distance_bias_HxJ, cap)
    chosen = chosen_form(q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight, biased=distance_bias_HxJ is not None, cap=cap)
    if chosen in kernels.KERNELS:
        scale_H = _scale_of_heads(scale, q_BxSxHxK)
        kernel = by_heads(kernels.KERNELS[chosen].attend, (2, 2, 2, None, 0), 2, *_heads_of(q_BxSxHxK, k_BxJxGxK))
        return kernel(q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight, scale_H)
    return _run(chosen, q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight, scale, distance_bias_HxJ, cap)[0]


def _attend_mutually(q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight: Sight, scale, distance_bias_HxJ, cap) -> jax.Array:
    """`attend` where the first and last tokens of a segment see all of their group.

    All scores of these few queries are held; the tokens between them see no later key and attend as ever.
    """
    (before, after), queries, keys = sight.mutual, q_BxSxHxK.shape[1], k_BxJxGxK.shape[1]
    if queries < keys - sight.prefix:  # of a segment that is being decoded
        return _run("dense", q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight, scale, distance_bias_HxJ, cap)[0]

    def part(attention: Callable, first: int, end: int, last_key: int, mutual: tuple[int, int]) -> jax.Array:
        shown = dataclasses.replace(
            sight,
            query_documents=sight.query_documents[:, first:end],
            key_documents=sight.key_documents[:, :last_key],
            start=sight.start + first,
            mutual=mutual,
        )
        bias = None if distance_bias_HxJ is None else distance_bias_HxJ[:, :last_key]
        return attention(q_BxSxHxK[:, first:end], k_BxJxGxK[:, :last_key], v_BxJxGxV[:, :last_key], shown, scale, bias, cap)

    def held(*operands: Any) -> jax.Array:
        return _run("dense", *operands)[0]

    def as_ever(q, k, v, shown: Sight, scale, bias, cap) -> jax.Array:
        return attend(q, k, v, shown, scale=scale, distance_bias_HxJ=bias, cap=cap)

    parts = [part(as_ever, 0, queries - after, keys - after, (0, 0))[:, before:]]
    if before:
        parts.insert(0, part(held, 0, before, sight.prefix + before, (before, 0)))
    if after:
        parts.append(part(held, queries - after, queries, keys, (0, after)))
    return jnp.concatenate(parts, axis=1)


def attend_segment(segment: Segment, turn: Turn = ROTARY) -> jax.Array:
    """Causal rotary attention inside the segment and the document: BxSxHxV. Infini-attention eq. 6, ∞-former's short term."""
    key_positions_T = jnp.arange(segment.keys.shape[1])
    q_BxSxHxK = turn(segment.queries, segment.query_positions_S)
    k_BxTxGxK = turn(segment.keys, key_positions_T)
    return attend(q_BxSxHxK, k_BxTxGxK, segment.values, segment.bounds.sight())


def chosen_form(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, *, biased: bool = False, cap: float = 0.0) -> str:
    """Name of the form that runs: the one asked for by `form`, or else by platform and length.

    Raises `ConfigError` where the form asked for does not exist or cannot do this.
    """
    asked = form.value
    require(asked in FORMS, "attention", f"'{asked}' is not a form", f"choose one of {', '.join(FORMS)}")
    if cap:
        require(asked in ("auto", "dense"), "attention", f"{asked} has no soft cap of scores", "choose auto or dense")
        return "dense"
    if asked in ("dense", "blockwise"):
        return asked
    if asked != "auto":
        problem = kernels.KERNELS[asked].problem(q, k, v, sight, biased)
        require(problem is None, "attention", f"{asked} {problem}", "choose auto, dense or blockwise")
        return asked
    if not tiles_pay(q.shape[1], k.shape[1]):
        return "dense"
    splits = can_split(*_heads_of(q, k))
    for name, kernel in kernels.KERNELS.items():
        if splits and kernel.platform == platform() and kernel.problem(q, k, v, sight, biased) is None:
            return name
    return "blockwise"


def tiles_pay(queries: int, keys: int) -> bool:
    """Whether tiles are faster than the dense form: on CPU, forward and backward, not at 128 x 128, from 256 x 256 on."""
    return queries >= TILE and queries * keys >= 4 * TILE**2


def attention_flops(keys: float, heads: int, key_dim: int, value_dim: int) -> float:
    """FLOPs of one query against `keys` keys: scores and weighted sum. Masked keys count, as they are computed."""
    return 2.0 * keys * heads * (key_dim + value_dim)


def attend_flops(
    segment_length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    *,
    prefix: int = 0,
    window: int | None = None,
    cap: float = 0.0,
    mutual: tuple[int, int] = (0, 0),
) -> float:
    """FLOPs per token of `attend` over a whole segment and `prefix` carried keys, as `auto` computes it on a CPU.

    The count is the same on every platform, so that a budget buys the same steps; the kernels skip about the same tiles. It
    depends on no data: blocks of keys that are skipped when the program runs, as nothing was written there yet or by another
    document, are counted as if they were computed.
    """
    if any(mutual):
        before, after = mutual
        as_ever = segment_length - after
        each = attend_flops(as_ever, heads, key_dim, value_dim, prefix=prefix, window=window, cap=cap)
        pairs = before * (prefix + before) + after * (prefix + segment_length)
        return (as_ever * each + attention_flops(pairs, heads, key_dim, value_dim)) / segment_length
    keys = prefix + segment_length
    in_tiles = not cap and tiles_pay(segment_length, keys)
    computed = tiling_of(segment_length, keys, prefix, window).pairs / segment_length if in_tiles else keys
    return attention_flops(computed, heads, key_dim, value_dim)


def _scale_of_heads(scale: jax.Array | float | None, q_BxSxHxK: jax.Array) -> jax.Array:
    wide = precision.wide(q_BxSxHxK.dtype)
    scale = 1 / math.sqrt(q_BxSxHxK.shape[-1]) if scale is None else scale
    return jnp.broadcast_to(jnp.asarray(scale, wide), q_BxSxHxK.shape[2:3])


def _heads_of(q_BxSxHxK: jax.Array, k_BxJxGxK: jax.Array) -> tuple[int, int]:
    return q_BxSxHxK.shape[2], k_BxJxGxK.shape[2]


def _in_tiles(q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight: Sight, scale_H, distance_bias_HxJ) -> tuple[jax.Array, jax.Array]:
    k_BxJxHxK, v_BxJxHxV = (repeat_heads(x, q_BxSxHxK.shape[2]) for x in (k_BxJxGxK, v_BxJxGxV))
    return blockwise(q_BxSxHxK, k_BxJxHxK, v_BxJxHxV, sight, scale=scale_H, distance_bias_HxJ=distance_bias_HxJ)


def _run(
    chosen: str, q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight: Sight, scale, distance_bias_HxJ, cap
) -> tuple[jax.Array, jax.Array]:
    heads, keys = q_BxSxHxK.shape[2], k_BxJxGxK.shape[1]
    if distance_bias_HxJ is not None and distance_bias_HxJ.shape != (heads, keys):
        problem = f"bias of shape {distance_bias_HxJ.shape} for {heads} heads and {keys} keys"
        require(False, "attention", problem, f"give ({heads}, {keys}): a number for each distance")
    if chosen == "blockwise":
        tiles = by_heads(_in_tiles, (2, 2, 2, None, 0, 0), (2, 1), *_heads_of(q_BxSxHxK, k_BxJxGxK))
        return tiles(q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight, _scale_of_heads(scale, q_BxSxHxK), distance_bias_HxJ)
    bias_HxSxJ = None
    if distance_bias_HxJ is not None:
        bias_HxSxJ = distance_bias_HxJ[:, jnp.clip(sight.distance_SxJ, 0, keys - 1)]
    return dense(q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, sight.mask_BxSxJ, scale=scale, bias_HxSxT=bias_HxSxJ, cap=cap)
