"""The vendors' attention kernels behind `attention.attend`: cuDNN on CUDA, splash attention on TPU.

Neither has a gradient of the log-sum-exp or of a bias that we could use, so they serve `attend` without bias only.
A scale per head is multiplied into the queries, in float32 before they are rounded to the compute type again.

Letters: B rows, S queries, J keys, H heads, K and V their dims; L queries and M keys where odd lengths were made even.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
from flax import struct

from infini_jax.layers.segment import Sight

NO_ROWS = -1  # in place of an axis
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
    """`jax.nn.dot_product_attention` by cuDNN: BxSxHxV. Documents take a mask of BxSxJ, which all heads share.

    With a mask cuDNN's gradient takes even lengths only. Odd ones get one place more at their end: a key that nobody sees; a
    query that sees the first key, because the softmax over no key is not a number, and whose result is cut off.
    """
    queries, keys = q_BxSxHxK.shape[1], k_BxJxHxK.shape[1]
    q_BxLxHxK = _even(_scaled(q_BxSxHxK, scale_H))
    k_BxMxHxK, v_BxMxHxV = _even(k_BxJxHxK), _even(v_BxJxHxV)
    mask_BxLxM = jnp.pad(sight.mask_BxSxJ, ((0, 0), (0, queries % 2), (0, keys % 2)))
    if queries % 2:
        mask_BxLxM = mask_BxLxM.at[:, -1, 0].set(True)
    causal = _whole(q_BxSxHxK, k_BxJxHxK, sight) and not sight.prefix  # lets the kernel skip tiles above the diagonal
    y_BxLxHxV: Any = _fused(causal, q_BxLxHxK, k_BxMxHxK, v_BxMxHxV, mask_BxLxM[:, None])
    return y_BxLxHxV[:, :queries]


def _even(x_BxSxHxK: jax.Array) -> jax.Array:
    """An array with a place of zeros at the end of its sequence where that is odd."""
    return jnp.pad(x_BxSxHxK, ((0, 0), (0, x_BxSxHxK.shape[1] % 2), (0, 0), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(causal: bool, q, k, v, mask) -> jax.Array:
    """cuDNN's attention, whose gradient can be mapped, too: JAX's own rule for `vmap` fails on a mask that heads share."""
    return vmapped_as_rows(functools.partial(_dot_product_attention, causal), (0,) * 4, 0)(q, k, v, mask)


@struct.dataclass
class Saved:
    """What the gradient rule keeps of the forward pass.

    Attributes:
      arrays: leaves of the function that `jax.vjp` returned.
      shapes: shapes of the arguments, from which that function's structure is found again.
    """

    arrays: list[jax.Array]
    shapes: tuple[jax.ShapeDtypeStruct, ...] = struct.field(pytree_node=False)


def _fused_forward(causal: bool, *arguments):
    def forward(*arguments):
        y, pull = _with_pull(causal, *arguments)
        return y, jax.tree.leaves(pull)

    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in arguments)
    y, arrays = vmapped_as_rows(forward, (0,) * 4, (0, _row_axes(causal, shapes)))(*arguments)
    return y, Saved(arrays, shapes)


def _fused_backward(causal: bool, saved: Saved, dy: jax.Array):
    def backward(arrays, dy):
        return jax.tree.unflatten(jax.tree.structure(_pull_of(causal, saved.shapes, dy.shape[0])), arrays)(dy)

    gradients = vmapped_as_rows(backward, (_row_axes(causal, saved.shapes), 0), (0,) * 3)(saved.arrays, dy)
    return *gradients, None


_fused.defvjp(_fused_forward, _fused_backward)


def _pull_of(causal: bool, shapes: tuple[jax.ShapeDtypeStruct, ...], rows: int):
    """The function that `jax.vjp` returns for so many rows, of shapes."""
    of_rows = [jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for leaf in shapes]
    return jax.eval_shape(lambda *arguments: _with_pull(causal, *arguments)[1], *of_rows)


def _row_axes(causal: bool, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> list[int]:
    """The axis of the rows in each array that `jax.vjp` keeps: the one that grows with their number."""
    two, three = (jax.tree.leaves(_pull_of(causal, shapes, rows)) for rows in (2, 3))
    sizes = (enumerate(zip(a.shape, b.shape, strict=True)) for a, b in zip(two, three, strict=True))
    return [next((axis for axis, (a, b) in pairs if a != b), NO_ROWS) for pairs in sizes]


def _with_pull(causal: bool, q, k, v, mask):
    return jax.vjp(lambda q, k, v: _dot_product_attention(causal, q, k, v, mask), q, k, v)


def _dot_product_attention(causal: bool, q, k, v, mask) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=1.0, is_causal=causal, implementation="cudnn")


def vmapped_as_rows(function: Callable, row_axes: Any, result_axes: Any) -> Callable:
    """`function` of arrays, which sees an axis that `jax.vmap` maps as more rows. It has no gradient of its own.

    Args:
      function: any function of arrays whose rows do not know of each other.
      row_axes: axis of the rows in each argument, `NO_ROWS` for an array that has none.
      result_axes: axis of the rows in each result.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def _(size: int, is_mapped: Any, *arguments: Any):
        def joined(leaf: jax.Array, is_mapped: bool, axis: int) -> jax.Array:
            if axis == NO_ROWS:
                return leaf
            every = jnp.moveaxis(leaf if is_mapped else jnp.broadcast_to(leaf, (size, *leaf.shape)), 0, axis)
            return every.reshape(*every.shape[:axis], size * every.shape[axis + 1], *every.shape[axis + 2 :])

        def apart(leaf: jax.Array, axis: int) -> jax.Array:
            if axis == NO_ROWS:
                return leaf
            every = leaf.reshape(*leaf.shape[:axis], size, leaf.shape[axis] // size, *leaf.shape[axis + 1 :])
            return jnp.moveaxis(every, axis, 0)

        rows = jax.tree.map(joined, arguments, tuple(is_mapped), row_axes)
        results = vmapped_as_rows(function, row_axes, result_axes)(*rows)
        return jax.tree.map(apart, results, result_axes), jax.tree.map(lambda axis: axis != NO_ROWS, result_axes)

    return mapped


def _cudnn_refuses(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight) -> str | None:
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        return f"computes in bfloat16 or float16, not {q.dtype}"
    if q.shape[-1] != v.shape[-1] or q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"takes equal key and value dims of at most 128, multiples of 8, not {q.shape[-1]} and {v.shape[-1]}"
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
