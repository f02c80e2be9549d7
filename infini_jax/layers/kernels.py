"""The vendors' attention kernels behind `attention.attend`: cuDNN on CUDA, splash attention on TPU.

Neither has a gradient of the log-sum-exp or of a bias that we could use, so they serve `attend` without bias only.
A scale per head is multiplied into the queries, in float32 before they are rounded to the compute type again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from infini_jax.layers.segment import Sight

LANES = 128  # splash attention works in tiles of this many keys


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A vendor's attention kernel.

    Attributes:
      platform: name of the platform that the kernel runs on.
      attend: function (q, k, v BxSxHxK, sight, scale_H) -> BxSxHxV.
      refuses: function (q, k, v, sight) -> reason why it cannot do this, or None.
    """

    platform: str
    attend: Callable[..., jax.Array]
    refuses: Callable[..., str | None]

    def problem(self, q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, biased: bool) -> str | None:
        """Reason why this kernel cannot do what is asked, or None."""
        if biased:
            return "has no bias by distance"
        return self.refuses(q, k, v, sight)


def _scaled(q_BxSxHxK: jax.Array, scale_H: jax.Array) -> jax.Array:
    return (q_BxSxHxK.astype(scale_H.dtype) * scale_H[:, None]).astype(q_BxSxHxK.dtype)


def _whole(q: jax.Array, k: jax.Array, sight: Sight) -> bool:
    """Whether the queries are a whole segment, which begins at place 0."""
    return q.shape[1] == k.shape[1] - sight.prefix


def cudnn(q_BxSxHxK: jax.Array, k_BxJxHxK: jax.Array, v_BxJxHxV: jax.Array, sight: Sight, scale_H: jax.Array) -> jax.Array:
    """`jax.nn.dot_product_attention` by cuDNN: BxSxHxV. Documents take a mask of BxSxJ, which all heads share."""
    causal = _whole(q_BxSxHxK, k_BxJxHxK, sight) and not sight.prefix  # lets the kernel skip tiles above the diagonal
    return jax.nn.dot_product_attention(
        _scaled(q_BxSxHxK, scale_H),
        k_BxJxHxK,
        v_BxJxHxV,
        mask=sight.mask_BxSxJ[:, None],
        scale=1.0,
        is_causal=causal,
        implementation="cudnn",
    )


def _cudnn_refuses(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight) -> str | None:
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        return f"computes in bfloat16 or float16, not {q.dtype}"
    if q.shape[-1] != v.shape[-1] or q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"takes equal key and value dims of at most 128, multiples of 8, not {q.shape[-1]} and {v.shape[-1]}"
    if q.shape[1] % 2 or k.shape[1] % 2:
        return f"takes even lengths with a mask, not {q.shape[1]} and {k.shape[1]}"
    return None


def splash(
    q_BxSxHxK: jax.Array,
    k_BxJxHxK: jax.Array,
    v_BxJxHxV: jax.Array,
    sight: Sight,
    scale_H: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention: BxSxHxV. Tiles outside the causal or windowed mask are skipped; documents are its segment ids.

    `interpret` runs the kernel's own program without a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    heads, queries, keys = q_BxSxHxK.shape[2], q_BxSxHxK.shape[1], k_BxJxHxK.shape[1]
    run = _splash_kernel(heads, queries, keys, sight.prefix, sight.window, interpret)

    def row(q_SxHxK, k_JxHxK, v_JxHxV, documents_S, key_documents_J) -> jax.Array:
        heads_first = (x.swapaxes(0, 1) for x in (q_SxHxK, k_JxHxK, v_JxHxV))
        y_HxSxV: Any = run(*heads_first, segment_ids=kernel.SegmentIds(documents_S, key_documents_J))  # no residuals: an array
        return y_HxSxV.swapaxes(0, 1)

    q_BxSxHxK = _scaled(q_BxSxHxK, scale_H)
    return jax.vmap(row)(q_BxSxHxK, k_BxJxHxK, v_BxJxHxV, sight.query_documents, sight.key_documents)


def _splash_kernel(heads: int, queries: int, keys: int, prefix: int, window: int | None, interpret: bool):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (queries, keys)
    mask = masks.CausalMask(shape, prefix) if window is None else masks.LocalMask(shape, (window - 1, 0), prefix)
    # the mask's tables must be constants of the program that is being traced, not tracers of an outer one
    with jax.ensure_compile_time_eval():
        return kernel.make_splash_mha(masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, interpret=interpret)


def _splash_refuses(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight) -> str | None:
    if not _whole(q, k, sight):
        return "needs to know where the queries begin, so whole segments only"
    if q.shape[1] % LANES or k.shape[1] % LANES:
        return f"takes lengths that {LANES} divides, not {q.shape[1]} and {k.shape[1]}"
    return None


KERNELS = {
    "cudnn": Kernel("cuda", cudnn, _cudnn_refuses),
    "splash": Kernel("tpu", splash, _splash_refuses),
}
