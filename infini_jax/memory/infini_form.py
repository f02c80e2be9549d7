"""The form of Infini-attention's read and write of a segment, chosen here by platform: plain XLA, or kernels for TPUs.

The results are the same to rounding. `with form("plain"):` asks for one where `auto` would choose another.
Letters: B rows, T tokens of a segment, H query heads, G key heads, K and V their dims.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from infini_jax.errors import require
from infini_jax.layers.heads import by_heads, can_split
from infini_jax.layers.platforms import platform
from infini_jax.layers.precision import wide
from infini_jax.layers.segment import Segment

FORMS = ("auto", "plain", "kernel")
form = jax.make_user_context("auto")  # a part of jit's cache key
LEAST_BYTES = (
    2**24
)  # of all queries or keys; a v5e has room on the chip for eight such arrays, which the plain form keeps there


def chosen_form(memory: Any, feature_map: str, update: str, *tokens_BxTxHxK: jax.Array) -> str:
    """Name of the form for these queries, or keys and values: the one asked for by `form`, or else the kernel where it pays.

    Raises `ConfigError` where the form asked for does not exist or cannot do this.
    """
    asked = form.value
    require(asked in FORMS, "infini.form", f"'{asked}' is no form", f"choose one of {', '.join(FORMS)}")
    if asked == "plain" or (asked == "auto" and platform() != "tpu"):
        return "plain"
    if asked == "auto" and not pays(update, tokens_BxTxHxK[0]):
        return "plain"
    problem = _problem(memory, feature_map, *tokens_BxTxHxK)
    require(asked == "auto" or problem is None, "infini.form", f"the kernel {problem}", "choose auto or plain")
    return "kernel" if problem is None else "plain"


def pays(update: str, x_BxTxHxK: jax.Array) -> bool:
    """Whether a layer moves fewer bytes by the kernels, as was counted in programs for a v5e and a v5p (docs/performance.md).

    That is so for the linear update of bfloat16 that outgrows the chip. The delta update's plain form moves less on a v5e;
    float32 was not counted in a layer.
    """
    is_narrow, size = x_BxTxHxK.dtype != wide(x_BxTxHxK.dtype), x_BxTxHxK.size * x_BxTxHxK.dtype.itemsize
    return update == "linear" and is_narrow and size >= LEAST_BYTES


def _problem(memory: Any, feature_map: str, *tokens_BxTxHxK: jax.Array) -> str | None:
    """Reason why the kernel cannot do this, or None."""
    from infini_jax.memory import infini_kernel  # Pallas is not imported where nothing runs it

    if feature_map != "elu_plus_one" or memory.z is None:
        return "reads with sigma and its normalizer only"
    if not can_split(tokens_BxTxHxK[0].shape[2], memory.M.shape[1]):
        return "needs heads that devices share evenly"
    return infini_kernel.refuses(memory.M, *tokens_BxTxHxK)


def read_by_kernel(memory: Any, q_BxTxHxK: jax.Array, scale: float) -> jax.Array:
    """A_mem of eq. 7, BxTxHxV in the type of the queries, by the kernel; interpreted where no TPU is."""
    from infini_jax.memory import infini_kernel

    read = functools.partial(infini_kernel.read, scale=scale, interpret=platform() != "tpu")
    read = by_heads(read, (1, 1, 2), 2, q_BxTxHxK.shape[2], memory.M.shape[1])
    return read(memory.M, memory.z, q_BxTxHxK)


def written_by_kernel(memory: Any, segment: Segment, update: Literal["linear", "delta"], scale: float) -> Any:
    """The memory after a segment by eq. 8 or eq. 9, by the kernel; interpreted where no TPU is."""
    from infini_jax.memory import infini_kernel

    bounds, heads, tokens = segment.bounds, memory.M.shape[1], segment.keys.shape[1]
    first_B = tokens - jnp.sum(bounds.writes_BxT, axis=1, dtype=jnp.int32)  # those that are written are the last ones
    written = functools.partial(infini_kernel.written, update=update, scale=scale, interpret=platform() != "tpu")
    written = by_heads(written, (1, 1, 2, 2, None, None), (1, 1), heads, heads)
    M_BxGxKxV, z_BxGxK = written(memory.M, memory.z, segment.keys, segment.values, bounds.keeps_B, first_B)
    return memory.replace(M=M_BxGxKxV, z=z_BxGxK)


def made_again(function: Callable, given: jax.Array) -> Callable:
    """`function` of `given`, whose gradient on a TPU finds features again where they are wider than what they are made of.

    A TPU waits for its memory: in programs compiled for a v5e it moves a quarter less than where float32 features of bfloat16
    are kept, and with the delta update a third less. Nothing is gained where both are float32.
    """
    is_narrow = given.dtype != wide(given.dtype)
    return jax.checkpoint(function) if is_narrow and platform() == "tpu" else function
