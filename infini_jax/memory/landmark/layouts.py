"""Layouts of landmark attention's pairs of query and chosen block: which pairs share a copy of a block.

Letters as in retrieval.py: N cached blocks, P tokens of a block with its landmark, A tokens that choose (S, or 1 where all
share a choice), Y choices and X = Y S pairs of a key head, in E tiles of C.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


def form_of(pairs: int, blocks: int, length: int, shared: bool) -> tuple[str, int]:
    """(form, queries per tile) to read `pairs` queries and choices of one key head from a cache of `blocks`.

    A tile costs a copy of P tokens and C queries, filled or not: so C is about sqrt(pairs P / blocks). Below eight every pair
    has its own copy, which is as fast, and a shared choice needs no sorting.
    """
    if shared:
        return "shared", 1
    size = 2 ** round(np.log2(pairs * length / blocks) / 2) if pairs >= blocks else 1
    return ("tiles", min(size, 128)) if size >= 8 else ("gather", 1)


def tiles_of(pairs: int, blocks: int, size: int) -> int:
    """Number of tiles that suffice for any choice, (X + (C-1) min(N, X)) / C: a block's last tile may hold one pair only."""
    return (pairs + (size - 1) * min(blocks, pairs)) // size


def tiling(queries: int, repeats: int, retrieved: int, blocks: int, length: int, shared: bool) -> tuple[int, int]:
    """Tiles (E, C) in which `read` takes one key head's part of a segment: `queries` tokens, each of `repeats` heads.

    Heads of several segments that are read at once are all among `repeats`.
    E blocks are copied and E C products of a query and a block are made, those of empty places included.
    """
    choices, pairs = repeats * retrieved, queries * repeats * retrieved
    form, size = form_of(pairs, blocks, length, shared)
    return {"shared": (choices, queries), "gather": (pairs, 1), "tiles": (tiles_of(pairs, blocks, size), size)}[form]


@struct.dataclass
class InOrder:
    """Layout of a key head's pairs in tiles where every tile is full and the pairs stay in their order.

    Attributes:
      block: E, the block of each tile.
    """

    block: jax.Array

    def to_tiles(self, x_XxK: jax.Array) -> jax.Array:
        """The pairs' vectors in their tiles, ExCxK. The transpose of `from_tiles`."""
        return x_XxK.reshape(self.block.size, -1, x_XxK.shape[1])

    def from_tiles(self, y_ExCxV: jax.Array) -> jax.Array:
        """Each pair's vector from the tiles, XxV."""
        return y_ExCxV.reshape(-1, y_ExCxV.shape[2])


@struct.dataclass
class Sorted:
    """Layout of a key head's pairs in tiles where pairs lie by block, and tiles may have empty places.

    Attributes:
      block: E, the block of each tile.
      pair: ExC, the pair in each place of each tile, -1 where there is none.
      place: X, the place of each pair, counted over all tiles.
    """

    block: jax.Array
    pair: jax.Array
    place: jax.Array

    def to_tiles(self, x_XxK: jax.Array) -> jax.Array:
        """The pairs' vectors in their tiles, ExCxK, 0 where there is no pair. The transpose of `from_tiles`."""
        x_ExCxK = x_XxK.at[jnp.maximum(self.pair, 0)].get(mode="promise_in_bounds")
        return jnp.where(self.pair[..., None] >= 0, x_ExCxK, 0)

    def from_tiles(self, y_ExCxV: jax.Array) -> jax.Array:
        """Each pair's vector from the tiles, XxV."""
        return y_ExCxV.reshape(-1, y_ExCxV.shape[2]).at[self.place].get(mode="promise_in_bounds")


PairLayout = InOrder | Sorted


def shared_layout(blocks_Yx1: jax.Array) -> InOrder:
    """Layout with a tile for each choice, in which all tokens lie: they share the choice."""
    return InOrder(blocks_Yx1.squeeze(1))


def gather_layout(blocks_YxS: jax.Array) -> InOrder:
    """Layout with a tile for each pair."""
    return InOrder(blocks_YxS.reshape(-1))


def tiles_layout(blocks_YxS: jax.Array, cached: int, size: int) -> Sorted:
    """Layout in tiles of `size` pairs, sorted by block; each of the `cached` blocks begins in a new tile."""
    blocks_X = blocks_YxS.reshape(-1)
    pairs = blocks_X.size
    count = tiles_of(pairs, cached, size)
    sorted_X, order_X = jax.lax.sort((blocks_X, jnp.arange(pairs, dtype=jnp.int32)), num_keys=1, is_stable=False)
    held_N = jnp.zeros(cached, jnp.int32).at[blocks_X].add(1, mode="promise_in_bounds")
    tiles_N = (held_N + size - 1) // size
    last_N = jnp.cumsum(tiles_N)
    # a block's first place in tiles, less its first place in the sorted pairs
    shift_N = (last_N - tiles_N) * size - (jnp.cumsum(held_N) - held_N)
    places_X = (jnp.arange(pairs) + shift_N[sorted_X]).astype(jnp.int32)
    ended_E = jnp.zeros(count, jnp.int32).at[last_N].add(1, mode="drop")  # blocks whose tiles end in front of each tile
    put = {"mode": "promise_in_bounds", "unique_indices": True}
    return Sorted(
        block=jnp.minimum(jnp.cumsum(ended_E), cached - 1),
        pair=jnp.full(count * size, -1, jnp.int32).at[places_X].set(order_X, **put).reshape(count, size),
        place=jnp.zeros(pairs, jnp.int32).at[order_X].set(places_X, **put),
    )


def pair_layout(form: str, size: int, blocks_BxGxYxA: jax.Array, tokens: int, cached: int) -> PairLayout:
    """The layout of every key head of every sequence in `form`; a choice may be shared by all `tokens` (BxGxYx1)."""
    layouts = {"shared": shared_layout, "gather": gather_layout, "tiles": partial(tiles_layout, cached=cached, size=size)}
    choosers = 1 if form == "shared" else tokens
    blocks_BxGxYxA = jnp.broadcast_to(blocks_BxGxYxA, (*blocks_BxGxYxA.shape[:3], choosers))
    return jax.vmap(jax.vmap(layouts[form]))(blocks_BxGxYxA)


def block_copies(x_Nx: jax.Array, layout: PairLayout) -> jax.Array:
    """A copy of its block for each tile: E blocks in place of N."""
    return x_Nx.at[layout.block].get(mode="promise_in_bounds")


def by_pair(y_ExVxC: jax.Array, layout: PairLayout) -> jax.Array:
    """Each pair's vector, XxV, from tiles in which the vector stands before the pairs."""
    # a transpose would otherwise be folded into the product before it and make that slow
    return layout.from_tiles(jax.lax.optimization_barrier(y_ExVxC).swapaxes(1, 2))
