"""The ring before each of many segments, without making one after the other: places in one array of all that is ever in it.

The array has the N slots as they are before the first segment, and behind them the tokens of all W segments in their order.
What stands in a slot before a segment follows from counts alone, because the open document's tokens are the last ones before
it: with `written` of them, slot n holds the one that stands 1 + (written - 1 - n) mod N places before the segment, where that
many were written; it is among the segments' tokens, or still in slot n.
"""

import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.layers.segment import Boundaries, tokens_before_each
from infini_jax.memory.ring import Ring


@struct.dataclass
class Rings:
    """The ring before each of W segments of T tokens and after the last.

    Attributes:
      every: keys and values of the N slots before the first segment and, behind them, of all tokens, J = N + W T of them; with
        what was written before the first segment.
      written: BxX, as `Ring.written` before each segment and after the last, X = W + 1.
      slots: number N.
      tokens: number T.
    """

    every: Ring
    written: jax.Array
    slots: int = struct.field(pytree_node=False)
    tokens: int = struct.field(pytree_node=False)

    @classmethod
    def of(cls, ring: Ring, k_RxTxGxK: jax.Array, v_RxTxGxV: jax.Array, bounds: Boundaries) -> "Rings":
        """The rings of consecutive segments, whose keys and values have one row per segment, those of a stream together."""

        def joined(old_BxGxNxK: jax.Array, new_RxTxGxK: jax.Array) -> jax.Array:
            new_BxLxGxK = new_RxTxGxK.reshape(len(old_BxGxNxK), -1, *new_RxTxGxK.shape[2:])
            return jnp.concatenate([old_BxGxNxK, new_BxLxGxK.swapaxes(1, 2).astype(old_BxGxNxK.dtype)], axis=2)

        every = Ring(joined(ring.keys, k_RxTxGxK), joined(ring.values, v_RxTxGxV), ring.written)
        return cls(every, tokens_before_each(ring.written, bounds), ring.keys.shape[2], k_RxTxGxK.shape[1])

    def places(self, slot: jax.Array, written: jax.Array, segment: jax.Array) -> jax.Array:
        """The place in `every` of what stands in a slot before a segment; any place where the slot is not held.

        Args:
          slot: number of the slot.
          written: `Ring.written` before the segment.
          segment: number of the segment. All three are broadcast.
        """
        token = segment * self.tokens - 1 - (written - 1 - slot) % self.slots
        return jnp.where(token >= 0, self.slots + token, slot)

    def places_found(self, slot_RxHxSxk: jax.Array) -> jax.Array:
        """The places in `every` of slots that each segment's queries found, -1 for slot -1: BxHxWxSxk."""
        batch, count = len(self.written), self.written.shape[1] - 1
        slot_BxHxWxSxk = jnp.moveaxis(slot_RxHxSxk.reshape(batch, count, *slot_RxHxSxk.shape[1:]), 1, 2)
        numbers_Wx1x1 = jnp.arange(count)[:, None, None]
        place_BxHxWxSxk = self.places(slot_BxHxWxSxk, self.written[:, None, :-1, None, None], numbers_Wx1x1)
        return jnp.where(slot_BxHxWxSxk < 0, -1, place_BxHxWxSxk)

    def keys_before(self, numbers_c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(keys CxGxNxK, number of valid slots C) before the segments of these numbers, C = B c rows, a stream's together."""
        written_Bxcx1 = self.written[:, numbers_c, None]
        place_BxcxN = self.places(jnp.arange(self.slots), written_Bxcx1, numbers_c[:, None])
        take = jax.vmap(lambda keys_GxJxK, place_N: keys_GxJxK.at[:, place_N].get(mode="promise_in_bounds"), (None, 0))
        keys_BxcxGxNxK = jax.vmap(take)(self.every.keys, place_BxcxN)
        held_C = jnp.minimum(written_Bxcx1, self.slots).reshape(-1)
        return keys_BxcxGxNxK.reshape(-1, *keys_BxcxGxNxK.shape[2:]), held_C

    def after(self, bounds: Boundaries) -> Ring:
        """The ring after the last segment; slots that hold nothing of the open document have what `append` leaves in them."""
        batch = len(self.written)
        keeps_BxW, writes_BxWxT = bounds.keeps_B.reshape(batch, -1), bounds.writes_BxT.reshape(batch, -1, self.tokens)
        before_BxW = jnp.where(keeps_BxW, self.written[:, :-1], 0)
        order_BxWxT = before_BxW[..., None] + jnp.cumsum(writes_BxWxT, axis=2, dtype=jnp.int32) - 1
        slot_BxL = jnp.where(writes_BxWxT, order_BxWxT % self.slots, self.slots).reshape(batch, -1)  # `slots` is dropped

        def taken(every_GxJxK: jax.Array, place_N: jax.Array) -> jax.Array:
            return every_GxJxK.at[:, place_N].get(mode="promise_in_bounds")

        place_L = self.slots + jnp.arange(slot_BxL.shape[1])
        # the newest token of a slot has the highest place
        place_BxN = jax.vmap(lambda slot_L: jnp.arange(self.slots).at[slot_L].max(place_L, mode="drop"))(slot_BxL)
        keys, values = (jax.vmap(taken)(x, place_BxN) for x in (self.every.keys, self.every.values))
        return Ring(keys, values, self.written[:, -1])
