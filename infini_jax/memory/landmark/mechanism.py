"""Landmark attention (Mohtashami, Jaggi, NeurIPS 2023, arXiv 2305.16300): retrieve whole blocks through one softmax.

A landmark token closes every block. The softmax has two levels: a query shares its weight among the tokens of its own block
and the landmarks of other blocks, whose share is spread among the tokens of their blocks. At inference complete blocks are
cached, each query retrieves the `k` blocks whose landmarks it likes best, and the softmax runs over [those | segment].
Choices where the paper is silent or differs:
- Ties go to the newest block, scores equal up to rounding included: in layer 0 all landmarks have the same key.
- A block none of whose raw tokens a query may see (all belong to another document) is invisible, landmark included; in
  the authors' code the weight of such a landmark is lost.
- With the neighborhood `cache` (`local`) the segment before is seen as the segment is, through the softmax of two levels, and
  its blocks may be retrieved when they have left it. A window is refused: it would cut blocks, which are seen whole.
DEVIATION: with blocks > 0 the cache is carried in training too and gradients flow through keys and values of retrieved
blocks; the choice of blocks has none. The paper trains inside one window without a cache and never differentiates through
it: that is `blocks = 0`. The parameters are the same, so that a model trained so is read with any other number of blocks.
DEVIATION: the cache holds keys turned by their place in the block (slots are applied to the queries, which is the same by
rotary's group law and saves turning every retrieved key) and no values of landmarks, which never weigh anything.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from infini_jax.errors import present, require, require_positive
from infini_jax.layers.attention import MASKED
from infini_jax.layers.distances import Turn, unturned
from infini_jax.layers.segment import Segment, length_with_landmarks, reset_where_new, with_leaves
from infini_jax.memory import window
from infini_jax.memory.base import KEPT, Cost, Dims, memory_bytes, segments_of_a_stream
from infini_jax.memory.landmark import at_once, layouts, retrieval, straddle
from infini_jax.memory.landmark import softmax as landmark_softmax
from infini_jax.memory.landmark.retrieval import LandmarkMemory, Selection, append_blocks, leaving
from infini_jax.memory.landmark.straddle import OpenBlock, StraddlingMemory
from infini_jax.memory.positions import Positioned, PositionedConfig, View, relative_cost


@struct.dataclass
class Retrieved:
    """Blocks that a segment's queries read, oldest first.

    Attributes:
      ages: BxHxSxR, 0 for the newest complete block before the segment (it ends where the segment begins), 1 for the one
        before; -1 where nothing was read.
      scores: BxHxSxR, q . k / sqrt(K) of their landmarks in the slots they are read from; below -1e29 where nothing was read.
      mass: BxHxSxR, their shares of the outer softmax; the rest went to the segment.
    """

    ages: jax.Array
    scores: jax.Array
    mass: jax.Array


def join(
    near_BxSxHxV: jax.Array, near_BxHxS: jax.Array, far_BxHxRxSxV: jax.Array, far_BxHxRxS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(values BxSxHxV, shares of the retrieved blocks BxHxRxS) of one outer softmax over the segment and R retrieved blocks.

    Args:
      near_BxSxHxV, near_BxHxS: values and log-sum-exp of the segment.
      far_BxHxRxSxV, far_BxHxRxS: values of the retrieved blocks and their landmarks' scores.
    """
    z_BxHxCxS = jnp.concatenate([near_BxHxS[:, :, None], far_BxHxRxS], axis=2)
    exp_BxHxCxS = jnp.exp(z_BxHxCxS - jax.lax.stop_gradient(z_BxHxCxS.max(axis=2, keepdims=True)))
    shares_BxHxCxS = exp_BxHxCxS / exp_BxHxCxS.sum(axis=2, keepdims=True)  # a token sees itself, a landmark its block
    y_BxHxSxV = shares_BxHxCxS[:, :, 0, :, None] * near_BxSxHxV.swapaxes(1, 2)
    for rank in range(far_BxHxRxS.shape[2]):
        y_BxHxSxV += shares_BxHxCxS[:, :, rank + 1, :, None] * far_BxHxRxSxV[:, :, rank]
    return y_BxHxSxV.swapaxes(1, 2), shares_BxHxCxS[:, :, 1:]


@dataclasses.dataclass(frozen=True)
class LandmarkConfig(PositionedConfig):
    """Settings of landmark attention.

    Attributes:
      positions: kind of positions inside the segment and the unfinished block before it. Retrieved blocks keep the slots of
        the paper, which are rotary, with relative and T5's positions too; with none they have none either.
      block: number of raw tokens per block, each followed by a landmark (50 in the paper).
      blocks: number of complete blocks kept; the oldest is evicted first. 0 keeps none, the paper's training form. An
        unfinished block is always carried to the next segment.
      retrieved: number of blocks per query (k), at most `blocks` unless that is 0.
      selection: scope of the selection: each token and head (as trained in the paper), all heads of a token together, or all
        tokens of the segment together. `tokens` is one of the paper's cheaper inference modes and is not causal: a token's
        selection depends on later tokens of its segment, and decoding selects by the tokens decoded so far.
    """

    block: int = 16
    blocks: int = 64
    retrieved: int = 4
    selection: Selection = "token_and_head"

    @property
    def landmark_every(self) -> int:
        return self.block

    def places(self, segment: int) -> int:
        return (self.retrieved + 1) * (self.block + 1) + length_with_landmarks(super().places(segment), self.block)

    def __post_init__(self):
        super().__post_init__()
        require_positive("memory", block=self.block, retrieved=self.retrieved)

    def check(self, dims: Dims) -> None:
        require(self.blocks >= 0, "memory.blocks", f"{self.blocks} is negative", "give a number of blocks, or 0 to carry none")
        require(
            self.blocks == 0 or self.retrieved <= self.blocks,
            "memory.retrieved",
            f"{self.retrieved} blocks asked of the {self.blocks} that are kept",
            f"give at most {self.blocks}, or keep more blocks or none",
        )
        require(dims.key_dim % 2 == 0, "key_dim", f"{dims.key_dim} is odd and rotary turns pairs", f"give {dims.key_dim + 1}")
        length = self.block + 1
        require(
            dims.segment % length != 1,
            "segment",
            f"{dims.segment} places are of no segment with a landmark after every {self.block} tokens",
            f"give S + ceil(S / {self.block}) for S raw tokens, e.g. {dims.segment + 1}",
        )
        require(
            self.local == "own" or dims.segment % length == 0,
            "memory.local",
            f"blocks of {self.block} tokens straddle segments, so that '{self.local}' would cut one",
            "leave it out, or give a model.segment that the block divides",
        )


class Landmark(Positioned):
    """Memory of complete blocks, first in, first out, retrieved through their landmarks inside the one softmax."""

    Config = LandmarkConfig
    summary = "cache of blocks, retrieved through landmark tokens inside one grouped softmax"
    paper = "arXiv 2305.16300"
    axes = ("blocks", "block")
    holds, keeps_bfloat16 = "slots", True
    neighborhoods, honors = ("segment", "cache"), ("attention_scale", "rotary")
    exempt: ClassVar = {"costs_grow_with_bytes": "more blocks are read in another form (`layouts.form_of`), of fewer products"}

    @property
    def length(self) -> int:
        """Number P of tokens of a block, its landmark included."""
        return self.config.block + 1

    @property
    def turn(self) -> Turn:
        """The turn of queries and keys of blocks to their places and slots."""
        return unturned if self.config.positions == "none" else self.dims.rotary

    @property
    def turns(self) -> bool:
        """Whether a turn is all there is to the positions, so that whole blocks are attended to as they are turned."""
        return self.config.positions in ("rotary", "none")

    @property
    def straddles(self) -> bool:
        """Whether blocks may end inside a later segment, so that the unfinished one is carried."""
        return self.dims.segment % self.length != 0

    def init_memory(self, batch: int) -> LandmarkMemory | StraddlingMemory | tuple[()]:
        c, d = self.config, self.dims
        cache = self._init_cache(batch) if c.blocks else ()
        if not self.straddles:
            return cache
        block = OpenBlock(
            keys=jnp.zeros((batch, c.block, d.kv_heads, d.key_dim), d.memory_dtype),
            values=jnp.zeros((batch, c.block, d.kv_heads, d.value_dim), d.memory_dtype),
            tokens=jnp.zeros((batch,), jnp.int32),
        )
        return StraddlingMemory(cache, block)

    def _init_cache(self, batch: int) -> LandmarkMemory:
        c, d = self.config, self.dims
        return LandmarkMemory(
            keys=jnp.zeros((batch, d.kv_heads, c.blocks, self.length, d.key_dim), d.memory_dtype),
            values=jnp.zeros((batch, d.kv_heads, c.blocks, c.block, d.value_dim), d.memory_dtype),
            tokens=jnp.zeros((batch,), jnp.int32),
        )

    def attend(
        self, memory: Any, segment: Segment, chosen_BxHxRxA: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(output BxSxD, metrics). `chosen_BxHxRxA` are the blocks to read, as `retrieval.choose` would give them if None.

        They may be another code's choice: places in the cache, the oldest first along R; A is S, or 1 if all tokens share it.
        """
        if self.config.blocks == 0:
            y_BxSxHxV, _ = self._near(memory, segment)
            return self.out(y_BxSxHxV.astype(self.dims.dtype)), {"retrieved_mass": jnp.zeros(self.dims.heads, jnp.float32)}
        y_BxSxHxV, found = self._both(memory, segment, chosen_BxHxRxA)
        return self._output(y_BxSxHxV, found.mass, segment)

    def _output(
        self, y_BxSxHxV: jax.Array, mass_BxHxSxR: jax.Array, segment: Segment
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(output BxSxD, metrics) of the attention's values and the shares of the retrieved blocks."""
        live_S = straddle.live_S(segment.bounds, self.length) if self.straddles else None
        mass_H = mass_BxHxSxR.sum(axis=-1).mean(axis=(0, 2), where=live_S)
        return self.out(y_BxSxHxV.astype(self.dims.dtype)), {"retrieved_mass": mass_H}

    def retrieved(
        self, memory: LandmarkMemory | StraddlingMemory, segment: Segment, chosen_BxHxRxA: jax.Array | None = None
    ) -> "Retrieved":
        """The blocks that each query of the segment reads, for analysis: `module.apply(..., method="retrieved")`.

        `chosen_BxHxRxA` as in `attend`. Raises `ConfigError` where no blocks are kept.
        """
        require(self.config.blocks > 0, "memory.blocks", "no blocks are kept, so none are retrieved", "keep some")
        return self._both(memory, segment, chosen_BxHxRxA)[1]

    def _near(self, memory: Any, segment: Segment) -> tuple[jax.Array, jax.Array]:
        """(values BxSxHxV, log-sum-exp BxHxS) of the segment and its neighborhood or an unfinished block before it."""
        segment = window.with_neighbors_as_keys(segment)
        if not self.turns:
            return self._near_with_bias(memory, segment)
        if self.straddles:
            return straddle.attend_span(segment, memory.block, self.length, self.turn)
        q_BxSxHxK = self.turn(segment.queries, segment.query_positions_S)
        k_BxTxGxK = self.turn(segment.keys, jnp.arange(segment.keys.shape[1]))
        return landmark_softmax.attend_blocks(q_BxSxHxK, k_BxTxGxK, segment.values, segment.bounds, self.length)

    def _near_with_bias(self, memory: Any, segment: Segment) -> tuple[jax.Array, jax.Array]:
        """`_near` with relative or T5's positions, which take all scores at once."""
        q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, bounds = segment.queries, segment.keys, segment.values, segment.bounds
        if self.straddles:
            block = straddle.turned_back(memory.block, self.turn)
            q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, bounds = straddle.span_of(segment, block, self.length, unturned)
        places_S, places_J = bounds.start + jnp.arange(q_BxSxHxK.shape[1]), jnp.arange(k_BxJxGxK.shape[1])
        seen = View(k_BxJxGxK, v_BxJxGxV, bounds.sight(), places_S, places_J)
        q_BxSxHxK, added_xSxJ = self.attention.added(q_BxSxHxK, seen)
        return landmark_softmax.dense(q_BxSxHxK, k_BxJxGxK, v_BxJxGxV, bounds, self.length, added_xSxJ)

    def _both(self, memory: Any, segment: Segment, given: jax.Array | None) -> tuple[jax.Array, "Retrieved"]:
        c, cache, reads_BxS, places_S = self.config, memory, segment.bounds.reads_BxS, self._places(segment)
        if self.straddles:
            cache, places_S = memory.cache, places_S + straddle.phase_of(segment.bounds)
            reads_BxS = reads_BxS & straddle.live_S(segment.bounds, self.length)
        queries = retrieval.turned_queries(segment.queries, places_S, c.retrieved, self.length, self.turn)
        own = (cache, queries, reads_BxS, c.retrieved, c.selection, self.turn)
        chosen = checkpoint_name(retrieval.choose(*own) if given is None else given, KEPT)
        far_BxHxRxSxV, far_BxHxRxS = retrieval.read(cache, queries, chosen, reads_BxS)
        y_BxSxHxV, shares_BxHxRxS = join(*self._near(memory, segment), far_BxHxRxSxV, far_BxHxRxS)
        ages_BxHxRxS = jnp.where(far_BxHxRxS > MASKED, c.blocks - 1 - chosen, -1)
        by_query = (x.swapaxes(2, 3) for x in (ages_BxHxRxS, far_BxHxRxS, shares_BxHxRxS))
        return y_BxSxHxV, Retrieved(*by_query)

    def _places(self, segment: Segment) -> jax.Array:
        """Places S of the queries behind the cached blocks: those of the neighborhood stand before the segment's."""
        return segment.query_positions_S + (0 if segment.near is None else segment.near.keys.shape[1])

    def write(self, memory: Any, segment: Segment) -> Any:
        """The memory with every block of the segment; its tokens outside the open document become zero and are masked.

        Older documents' blocks stay until they are pushed out, masked too, so that `restored` finds them.
        """
        if self.straddles:
            return self._write_straddling(memory, segment)
        if self.config.blocks == 0:
            return ()
        held_B = jnp.where(segment.bounds.keeps_B, memory.tokens, 0)
        keys, values, writes_BxT = leaving(segment)
        return append_blocks(memory, *self._new_blocks(keys, values, writes_BxT), held_B + writes_BxT.sum(axis=1))

    def _new_blocks(self, k_BxTxGxK: jax.Array, v_BxTxGxV: jax.Array, writes_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(keys BxGxMxPxK turned by their place, values BxGxMx(P-1)xV) of blocks of tokens, zero where not written."""

        def blocks(x_BxTxGxK):
            x_BxTxGxK = jnp.where(writes_BxT[..., None, None], x_BxTxGxK.astype(self.dims.memory_dtype), 0.0)
            return x_BxTxGxK.reshape(x_BxTxGxK.shape[0], -1, self.length, *x_BxTxGxK.shape[2:])

        keys_BxMxPxGxK = self.turn(blocks(k_BxTxGxK), jnp.arange(self.length))
        values_BxMxbxGxV = blocks(v_BxTxGxV)[:, :, :-1]
        return jnp.moveaxis(keys_BxMxPxGxK, 3, 1), jnp.moveaxis(values_BxMxbxGxV, 3, 1)

    def _write_straddling(self, memory: StraddlingMemory, segment: Segment) -> StraddlingMemory:
        """The memory with the blocks that the segment completes; the unfinished one waits."""
        bounds, (count, left) = segment.bounds, straddle.completed(segment.bounds, self.length)
        written_BxT = bounds.writes_BxT & straddle.live_T(bounds, self.length)
        old_block = reset_where_new(bounds.keeps_B, memory.block)
        keys_BxMxPxGxK, values_BxMxbxGxV, block = straddle.blocks_of(old_block, segment, written_BxT, self.length, self.turn)
        cache, tokens_B = memory.cache, old_block.tokens + written_BxT.sum(axis=1)
        if isinstance(cache, LandmarkMemory):  # some blocks are kept
            keys, values = (jnp.moveaxis(x, 3, 1) for x in (keys_BxMxPxGxK, values_BxMxbxGxV))
            tokens_B = tokens_B + jnp.where(bounds.keeps_B, cache.tokens, 0)
            cache = append_blocks(cache, keys, values, jnp.maximum(tokens_B - left, 0), count)
        waiting_B = jnp.minimum(tokens_B, left).astype(block.tokens.dtype)
        return StraddlingMemory(cache, dataclasses.replace(block, tokens=waiting_B))

    def advance(self, memory, segments: Segment):
        """(outputs BWxSxD, memory, metrics) of W segments, as `Memory.advance`.

        They are taken at once, unless a block straddles them or they have a neighborhood.
        """
        c = self.config
        if self.straddles:
            return super().advance(memory, segments)
        if c.blocks == 0:
            y_BxSxD, metrics = self.attend(memory, segments)
            return y_BxSxD, (), metrics
        if segments_of_a_stream(memory, segments) == 1 or segments.near is not None:
            return super().advance(memory, segments)
        blocks = at_once.Blocks.of(memory, *self._new_blocks(*leaving(segments)), segments.bounds)
        queries = retrieval.turned_queries(segments.queries, segments.query_positions_S, c.retrieved, self.length, self.turn)
        asked = (queries, segments.bounds.reads_BxS, c.retrieved, c.selection, self.turn)
        _, far_BxHxRxSxV, far_BxHxRxS = at_once.read(blocks, c.blocks, *asked)
        y_BxSxHxV, shares_BxHxRxS = join(*self._near(memory, segments), far_BxHxRxSxV, far_BxHxRxS)
        y_BxSxD, metrics = self._output(y_BxSxHxV, shares_BxHxRxS.swapaxes(2, 3), segments)
        return y_BxSxD, blocks.cache_after(c.blocks), metrics

    def lost(self, before: Any, after: Any, segments: int, phase_B: jax.Array | None) -> Any:
        if self.config.blocks == 0:
            return before
        if not self.straddles:
            return retrieval.oldest_blocks(before, segments * self.dims.segment // self.length)
        most = segments * straddle.span_blocks(self.dims.segment, self.length)
        return StraddlingMemory(retrieval.oldest_blocks(before.cache, most), before.block)

    def restored(self, after: Any, lost: Any, segments: int, phase_B: jax.Array | None) -> Any:
        if self.config.blocks == 0:
            return lost
        if not self.straddles:
            return retrieval.blocks_before(after, lost)
        phase = present(phase_B, "blocks straddle segments")[0]
        count = straddle.completed_by(phase, segments, self.dims.segment, self.length)
        return StraddlingMemory(retrieval.blocks_before(after.cache, lost.cache, count), lost.block)

    def logical_axes(self) -> LandmarkMemory | StraddlingMemory | tuple[()]:
        cache = with_leaves(
            LandmarkMemory,
            keys=("batch", "kv_heads", "slots", "block", "key_dim"),
            values=("batch", "kv_heads", "slots", "block", "value_dim"),
            tokens=("batch",),
        )
        cache = cache if self.config.blocks else ()
        if not self.straddles:
            return cache
        block = with_leaves(
            OpenBlock,
            keys=("batch", "block", "kv_heads", "key_dim"),
            values=("batch", "block", "kv_heads", "value_dim"),
            tokens=("batch",),
        )
        return StraddlingMemory(cache, block)

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        """FLOPs and bytes moved per token, products with masked tokens and with empty places of tiles included.

        Segments at once share tiles, which then hold fewer empty places, and read from all of their blocks.
        """
        c, d = self.config, self.dims
        near, beside = straddle if self.straddles else landmark_softmax, c.neighbors(d.segment)[0]
        products = near.products if self.turns and not beside else near.dense_products
        local = 2.0 * d.heads * products(beside + segment_length, self.length, d.key_dim, d.value_dim)
        keys = straddle.span_blocks(segment_length, self.length) * self.length if self.straddles else beside + segment_length
        placed = relative_cost(d, keys, segment_length, segments) if c.positions == "relative" else Cost()
        if c.blocks == 0:
            return dataclasses.replace(placed, local=local, bytes_moved=2.0 * memory_bytes(self) / segment_length)
        shared, repeats = c.selection == "tokens", segments * d.heads // d.kv_heads
        blocks = c.blocks if segments == 1 else c.blocks + segments * segment_length // self.length
        sizes = (segment_length, repeats, c.retrieved, blocks, self.length, shared)
        block_products = self.length * d.key_dim + c.block * d.value_dim  # one query with the tokens of one block
        item = d.memory_dtype.itemsize
        tiles, places = layouts.tiling(*sizes)
        copied = d.kv_heads * tiles * block_products * item
        landmark_bytes = segments * c.blocks * d.kv_heads * d.key_dim * item
        moved = copied + landmark_bytes + 2.0 * memory_bytes(self)  # the shift reads and writes the whole cache
        tokens = segments * segment_length
        chosen = 2.0 * d.heads * c.blocks * d.key_dim
        return dataclasses.replace(
            placed,
            local=local,
            read=placed.read + chosen + 2.0 * d.kv_heads * tiles * places / tokens * block_products,
            read_saved=placed.read_saved + 2 * chosen,  # the choice has no gradient
            bytes_moved=moved / tokens,
        )

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        has_near = self.config.blocks > 0 and self.config.neighbors(self.dims.segment)[0] > 0
        return self.cost(segment_length, 1 if self.straddles or has_near else segments)

    @classmethod
    def resized(cls, config: LandmarkConfig, dims: Dims, size: int, axis: str = "blocks") -> tuple[LandmarkConfig, Dims]:
        """(settings, dims) of `size` blocks, of which no more than k are retrieved, or of blocks of `size` tokens.

        Blocks grow by lengths that divide the segment, and then by whole segments: between those an unfinished block would be
        carried too, and a longer block could take fewer bytes.
        """
        if axis == "blocks":
            return dataclasses.replace(config, blocks=size, retrieved=min(config.retrieved, size)), dims
        tokens = dims.segment - math.ceil(dims.segment / (config.block + 1))  # without their landmarks
        if size >= tokens:
            block = size - size % tokens
        else:
            block = max(length for length in range(1, size + 1) if tokens % length == 0)
        return dataclasses.replace(config, block=block), dataclasses.replace(
            dims, segment=length_with_landmarks(tokens, block)
        )
