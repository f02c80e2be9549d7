"""The most recent keys and values, oldest first, as shared by the mechanisms that keep them verbatim."""

import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.memory.base import Dims
from infini_jax.segment import Segment


@struct.dataclass
class Recent:
    """Attributes: keys BxNxHxK (without positions), values BxNxHxV, length B: how many of the newest are valid."""

    keys: jax.Array
    values: jax.Array
    length: jax.Array


def empty(batch: int, slots: int, dims: Dims) -> Recent:
    """No valid entry in `slots` places."""
    return Recent(
        keys=jnp.zeros((batch, slots, dims.heads, dims.key_dim), dims.memory_dtype),
        values=jnp.zeros((batch, slots, dims.heads, dims.value_dim), dims.memory_dtype),
        length=jnp.zeros(batch, jnp.int32),
    )


def valid_BxN(recent: Recent) -> jax.Array:
    """Entries of the document that is still open; older ones are masked, never zeroed."""
    slots = recent.keys.shape[1]
    return jnp.arange(slots) >= slots - recent.length[:, None]


def append(recent: Recent, segment: Segment) -> Recent:
    """Shifts the segment in. Written tokens are a suffix of the segment, so valid entries stay a suffix."""
    slots = recent.keys.shape[1]
    bounds = segment.bounds
    kept_B = jnp.where(bounds.keeps_B, recent.length, 0)

    def shift(old: jax.Array, new: jax.Array) -> jax.Array:
        joined = jnp.concatenate([old, new.astype(old.dtype)], axis=1)
        return joined[:, joined.shape[1] - slots :]

    return Recent(
        keys=shift(recent.keys, segment.keys),
        values=shift(recent.values, segment.values),
        length=jnp.minimum(kept_B + bounds.writes_BxT.sum(axis=1, dtype=jnp.int32), slots),
    )


LOGICAL_AXES = Recent(
    keys=("batch", "slots", "heads", "key_dim"), values=("batch", "slots", "heads", "value_dim"), length=("batch",)
)
