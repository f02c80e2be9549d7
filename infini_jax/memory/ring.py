"""The ring of keys and values of the Memorizing Transformer (arXiv 2203.08913): new ones are written over the oldest."""

import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.errors import require
from infini_jax.layers.segment import Boundaries
from infini_jax.memory.offload import on_host, part_of, updated_by_parts


@struct.dataclass
class Ring:
    """Keys and values in N slots; the token written n-th stands in slot n mod N.

    Attributes:
      keys: BxGxNxK, of unit length.
      values: BxGxNxV.
      written: B, tokens since the document began, or since the oldest token that was held when the ring grew. `held_B` of
        them are there.
    """

    keys: jax.Array
    values: jax.Array
    written: jax.Array

    @property
    def held_B(self) -> jax.Array:
        """Number of valid slots, which are the first ones."""
        return jnp.minimum(self.written, self.keys.shape[-2])


def append(ring: Ring, k_BxTxGxK: jax.Array, v_BxTxGxV: jax.Array, bounds: Boundaries) -> Ring:
    """The ring with the open document's tokens at each row's cursor, over the oldest; a new document begins at slot 0."""
    slots = ring.keys.shape[2]
    before_B = jnp.where(bounds.keeps_B, ring.written, 0)
    writes_BxT = bounds.writes_BxT
    after_B = before_B + writes_BxT.sum(axis=1, dtype=jnp.int32)
    order_BxT = before_B[:, None] + jnp.cumsum(writes_BxT, axis=1, dtype=jnp.int32) - 1
    survives_BxT = writes_BxT & (order_BxT >= after_B[:, None] - slots)  # a segment may be longer than the ring
    slot_BxT = jnp.where(survives_BxT, order_BxT % slots, slots)  # `slots` is out of range: dropped

    def put(row_GxNxK: jax.Array, new_TxGxK: jax.Array, slot_T: jax.Array) -> jax.Array:
        return row_GxNxK.at[:, slot_T].set(new_TxGxK.swapaxes(0, 1).astype(row_GxNxK.dtype), mode="drop")

    def written(array_BxGxNxK: jax.Array, new_BxTxGxK: jax.Array) -> jax.Array:
        if not on_host(array_BxGxNxK):
            return jax.vmap(put)(array_BxGxNxK, new_BxTxGxK, slot_BxT)
        return updated_by_parts(
            array_BxGxNxK, 1, lambda g, part_Bx1xNxK: jax.vmap(put)(part_Bx1xNxK, part_of(new_BxTxGxK, g, axis=2), slot_BxT)
        )

    return Ring(keys=written(ring.keys, k_BxTxGxK), values=written(ring.values, v_BxTxGxV), written=after_B)


@struct.dataclass
class LostSlots:
    """What `append` writes over.

    Attributes:
      slots: BxL, those that may have been written; some may be there twice.
      keys: BxGxLxK, what was in them.
      values: BxGxLxV.
      written: B, as in the ring before.
    """

    slots: jax.Array
    keys: jax.Array
    values: jax.Array
    written: jax.Array


def lost_slots(before: Ring, after: Ring, segments: int, length: int) -> LostSlots:
    """What of the ring `before` so many segments of `length` tokens is not in the ring `after` them.

    A segment writes from the cursor on, or from slot 0 where a document begins in it; several may do both.
    """
    size, tokens = before.keys.shape[2], segments * length
    begins_B = after.written != before.written + tokens
    first = [jnp.where(begins_B, 0, before.written)] if segments == 1 else [before.written, jnp.zeros_like(before.written)]
    if len(first) * tokens >= size:
        slots_BxL = jnp.broadcast_to(jnp.arange(size), (len(begins_B), size))
    else:
        slots_BxL = jnp.concatenate([(cursor_B[:, None] + jnp.arange(tokens)) % size for cursor_B in first], axis=1)

    def held(array_BxGxNxK: jax.Array) -> jax.Array:
        if slots_BxL.shape[1] == size:
            return array_BxGxNxK
        return jax.vmap(lambda row_GxNxK, slot_L: row_GxNxK[:, slot_L])(array_BxGxNxK, slots_BxL)

    return LostSlots(slots_BxL, held(before.keys), held(before.values), before.written)


def slots_before(after: Ring, lost: LostSlots) -> Ring:
    """The ring before `append`."""

    def before(array_BxGxNxK: jax.Array, held_BxGxLxK: jax.Array) -> jax.Array:
        if held_BxGxLxK.shape == array_BxGxNxK.shape:
            return held_BxGxLxK
        put = jax.vmap(lambda row_GxNxK, slot_L, held_GxLxK: row_GxNxK.at[:, slot_L].set(held_GxLxK))
        return put(array_BxGxNxK, lost.slots, held_BxGxLxK)

    return Ring(before(after.keys, lost.keys), before(after.values, lost.values), lost.written)


def grown(ring: Ring, slots: int) -> Ring:
    """A larger ring with the tokens of `ring` in their order, for tuning with more memory than was trained with.

    Leaves may have axes in front of the batch (layers). The oldest token moves to slot 0, and `written` counts from it.
    Raises `ConfigError` where the ring would shrink.
    """
    old = ring.keys.shape[-2]
    require(slots >= old, "memory.slots", f"a ring of {old} slots does not shrink to {slots}", f"give at least {old}")
    oldest = jnp.where(ring.written > old, ring.written % old, 0)
    source = (oldest[..., None] + jnp.arange(old)) % old

    def moved(array: jax.Array) -> jax.Array:
        turned = jnp.take_along_axis(array, source[..., None, :, None], axis=-2)
        return jnp.pad(turned, [(0, 0)] * (array.ndim - 2) + [(0, slots - old), (0, 0)])

    return Ring(moved(ring.keys), moved(ring.values), ring.held_B)
