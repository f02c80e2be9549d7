"""Landmark attention (Mohtashami, Jaggi, NeurIPS 2023, arXiv 2305.16300): retrieve whole blocks through one softmax.

A landmark token closes every block of the stream. The softmax has two levels: a query shares its weight among the
tokens of its own block and the landmarks of the other blocks, and what a landmark receives is shared among the tokens
of its block. At inference complete blocks are cached, each query retrieves the `k` blocks whose landmarks it likes best,
and the same softmax runs over [retrieved blocks | segment].

Letters: P tokens of a block with its landmark, N cached blocks, M blocks of the segment, R retrieved blocks.

Positions ("stingy", inference section of the paper): k+1 slots of P positions lie before the segment. For scoring, the k
newest cached blocks stand in slots 1..k and all older ones in slot 0; a retrieved block of rank r by age stands in
slot r if it is old, r+1 if it is among the k newest. The paper starts the segment at min(blocks ever, k+1) * P; here it
always starts at (k+1) * P and fewer blocks fill the last slots: rotary knows distances only, so both are the same, and
with fewer than k blocks or exactly k (where the authors' code fails or overlaps positions) all stand where they stood.

What we do where the paper is silent or differs:
- Ties go to the newest block, scores equal up to rounding included: in layer 0 all landmarks have the same key.
- A block none of whose raw tokens a query may see (all belong to another document) is invisible, landmark included; in
  the authors' code the weight of such a landmark is lost.
DEVIATION: the paper trains inside one window without a cache and never differentiates through it. Here the cache is
carried in training too and gradients flow through keys and values of retrieved blocks; the choice of blocks has none.
DEVIATION: the cache holds keys turned by their place in the block (slots are applied to the queries, which is the same by
rotary's group law and saves turning every retrieved key) and no values of landmarks, which never weigh anything.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from infini_jax.attention import MASKED, masked_softmax
from infini_jax.errors import require, require_positive
from infini_jax.layers import rotary
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig, memory_bytes
from infini_jax.segment import Segment, reset_where_new

Turn = Callable[[jax.Array, jax.Array], jax.Array]  # (...xSxHxK, positions S) -> the same, turned by its position
SELECTIONS = ("token_and_head", "heads", "tokens")


def grouped_softmax(
    scores_BxHxSxT: jax.Array, is_landmark_BxT: jax.Array, allowed_BxSxT: jax.Array, *, renormalise: bool = False
) -> jax.Array:
    """Attention weights BxHxSxT for any pattern of landmarks; the last S keys are the queries' own.

    A landmark belongs to the block that it closes; the tail without one is the last block. With i's own block b:
      own token j          softmax_ij over {allowed tokens of b} and {allowed landmarks of other blocks}
      token of block c     softmax_{i, landmark of c} * softmax of j among the allowed tokens of c
      landmark             0
    The weight of the landmark of a block without allowed tokens is lost, as in the authors' code; with `renormalise`
    such a landmark is left out, so that rows sum to 1 as long as they may see anything. Every key must be allowed or
    masked per row: `allowed_BxSxT` holds causality and documents.
    """
    queries, keys = scores_BxHxSxT.shape[-2:]
    block_BxT = jnp.cumsum(is_landmark_BxT, axis=1) - is_landmark_BxT  # at most T blocks: letter G below
    own_Bx1xSxG = (block_BxT[:, keys - queries :, None] == jnp.arange(keys))[:, None]
    raw_Bx1xSxT = (allowed_BxSxT & ~is_landmark_BxT[:, None])[:, None]
    closing_Bx1xSxT = (allowed_BxSxT & is_landmark_BxT[:, None])[:, None]

    logits_BxHxSxT = jnp.where(raw_Bx1xSxT, scores_BxHxSxT, MASKED)
    top_BxHxSxG = jnp.maximum(_by_block(jax.ops.segment_max, jax.lax.stop_gradient(logits_BxHxSxT), block_BxT), MASKED)
    exp_BxHxSxT = jnp.where(raw_Bx1xSxT, jnp.exp(logits_BxHxSxT - _at_keys(top_BxHxSxG, block_BxT)), 0.0)
    total_BxHxSxG = _by_block(jax.ops.segment_sum, exp_BxHxSxT, block_BxT)
    occupied_BxHxSxG = total_BxHxSxG > 0
    total_BxHxSxG = jnp.where(occupied_BxHxSxG, total_BxHxSxG, 1.0)

    landmark_BxHxSxG = _by_block(jax.ops.segment_sum, jnp.where(closing_Bx1xSxT, scores_BxHxSxT, 0.0), block_BxT)
    closed_Bx1xSxG = _by_block(jax.ops.segment_sum, closing_Bx1xSxT.astype(jnp.int32), block_BxT) > 0
    if renormalise:
        closed_Bx1xSxG = closed_Bx1xSxG & occupied_BxHxSxG
    group_BxHxSxG, _ = masked_softmax(
        jnp.where(own_Bx1xSxG, top_BxHxSxG + jnp.log(total_BxHxSxG), landmark_BxHxSxG),
        jnp.where(own_Bx1xSxG, occupied_BxHxSxG, closed_Bx1xSxG),
    )
    return exp_BxHxSxT * _at_keys(group_BxHxSxG / total_BxHxSxG, block_BxT)


def _by_block(reduce: Callable, x_BxHxSxT: jax.Array, block_BxT: jax.Array) -> jax.Array:
    """BxHxSxG: `reduce` over the keys of each block."""

    def row(x_HxSxT, block_T):
        return jnp.moveaxis(reduce(jnp.moveaxis(x_HxSxT, -1, 0), block_T, num_segments=block_T.size), 0, -1)

    return jax.vmap(row)(x_BxHxSxT, block_BxT)


def _at_keys(x_BxHxSxG: jax.Array, block_BxT: jax.Array) -> jax.Array:
    """BxHxSxT: each key's block's value."""
    return jax.vmap(lambda x_HxSxG, block_T: x_HxSxG[..., block_T])(x_BxHxSxG, block_BxT)


def blockwise_softmax(
    scores_BxHxSxMxP: jax.Array,
    visible_BxSxMxP: jax.Array,
    own_SxM: jax.Array,
    retrieved_BxHxSxRxP: jax.Array,
    retrieved_visible_BxHxSxRxP: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`grouped_softmax(..., renormalise=True)` over [retrieved | segment] of complete blocks, landmark last.

    Returns the weights of raw tokens: (BxHxSxMx(P-1) in the segment, BxHxSxRx(P-1) in retrieved blocks). A block weighs
    the log-sum-exp of its tokens where it is the query's own, its landmark's score elsewhere: two plain softmaxes.
    """
    inner_BxHxSxMxP, lse_BxHxSxM = masked_softmax(scores_BxHxSxMxP[..., :-1], visible_BxSxMxP[:, None, ..., :-1])
    inner_BxHxSxRxP, _ = masked_softmax(retrieved_BxHxSxRxP[..., :-1], retrieved_visible_BxHxSxRxP[..., :-1])
    seen_BxSxM = visible_BxSxMxP[..., :-1].any(axis=-1) & (own_SxM | visible_BxSxMxP[..., -1])
    seen_BxHxSxR = retrieved_visible_BxHxSxRxP[..., :-1].any(axis=-1) & retrieved_visible_BxHxSxRxP[..., -1]
    seen_BxHxSxM = jnp.broadcast_to(seen_BxSxM[:, None], lse_BxHxSxM.shape)

    local_BxHxSxM = jnp.where(own_SxM, lse_BxHxSxM, scores_BxHxSxMxP[..., -1])
    blocks_BxHxSxG, _ = masked_softmax(
        jnp.concatenate([local_BxHxSxM, retrieved_BxHxSxRxP[..., -1]], axis=-1),
        jnp.concatenate([seen_BxHxSxM, seen_BxHxSxR], axis=-1),
    )
    local_BxHxSxM, retrieved_BxHxSxR = jnp.split(blocks_BxHxSxG, [own_SxM.shape[1]], axis=-1)
    return inner_BxHxSxMxP * local_BxHxSxM[..., None], inner_BxHxSxRxP * retrieved_BxHxSxR[..., None]


@struct.dataclass
class LandmarkMemory:
    """The newest complete blocks, oldest first and filled from the end.

    Attributes:
      keys: BxNxHxPxK turned by their place 0..P-1 in the block; the landmark's is the last.
      values: BxNxHx(P-1)xV of the raw tokens.
      tokens: B tokens of the open document that the cache holds, landmarks included; they are its last ones, so that
        the number says which blocks are filled and which tokens of the first of them belong to an older document.
    """

    keys: jax.Array
    values: jax.Array
    tokens: jax.Array


def append_blocks(memory: LandmarkMemory, keys: jax.Array, values: jax.Array, tokens: jax.Array) -> LandmarkMemory:
    """First in, first out. keys BxMxHxPxK, values BxMxHx(P-1)xV; `tokens` B of the open document in old and new blocks.

    A shift by M blocks for every row, whatever its documents: no scatter, and age is the place in the array.
    """
    blocks, length = memory.keys.shape[1], memory.keys.shape[3]
    return LandmarkMemory(
        keys=jnp.concatenate([memory.keys, keys], axis=1)[:, -blocks:],
        values=jnp.concatenate([memory.values, values], axis=1)[:, -blocks:],
        tokens=jnp.minimum(tokens, blocks * length).astype(memory.tokens.dtype),
    )


def held_tokens(memory: LandmarkMemory, blocks: jax.Array) -> jax.Array:
    """Boolean (B, ..., P): which tokens of the cached `blocks` (B, ...) belong to the open document."""
    cached, length = memory.keys.shape[1], memory.keys.shape[3]
    newer_P = length - 1 - jnp.arange(length)
    newer = (cached - 1 - blocks)[..., None] * length + newer_P
    return newer < memory.tokens.reshape((-1,) + (1,) * (newer.ndim - 1))


def gather_blocks(x_BxNxHxPxK: jax.Array, chosen_BxHxSxR: jax.Array) -> jax.Array:
    """BxHxSxRxPxK: each head's chosen blocks."""

    def head(x_NxPxK, chosen_SxR):
        return x_NxPxK.at[chosen_SxR].get(mode="promise_in_bounds")

    return jax.vmap(jax.vmap(head, in_axes=(1, 0)))(x_BxNxHxPxK, chosen_BxHxSxR)


def scoring_slots(blocks: int, retrieved: int) -> np.ndarray:
    """(N,) slot in which each cached block, oldest first, stands while it is scored."""
    return np.maximum(np.arange(blocks) - (blocks - retrieved) + 1, 0)


def retrieved_slots(chosen: jax.Array, blocks: int) -> jax.Array:
    """(..., R) slot of each retrieved block; `chosen` are places in a cache of `blocks`, ascending by age."""
    retrieved = chosen.shape[-1]
    return jnp.arange(retrieved) + (chosen >= blocks - retrieved)


def best_newest(scores: jax.Array, count: int) -> jax.Array:
    """(..., count) ascending places of the highest of `scores` (..., N); the last place wins a tie.

    Equal means equal up to rounding: products with equal keys may differ in their last bits, by the shape of the
    product, and a decoded token must choose as the whole segment does.
    """
    size = jnp.where(scores > MASKED / 2, jnp.abs(scores), 0.0).max(axis=-1, keepdims=True)
    slack = 32 * jnp.finfo(scores.dtype).eps * size
    places = jnp.arange(scores.shape[-1])

    def take(scores, _):
        near = scores >= scores.max(axis=-1, keepdims=True) - slack
        place = jnp.where(near, places, -1).max(axis=-1)
        return jnp.where(places == place[..., None], -jnp.inf, scores), place

    _, chosen = jax.lax.scan(take, scores, length=count)
    return jnp.sort(jnp.moveaxis(chosen, 0, -1), axis=-1)


def select_blocks(
    scores_BxHxSxN: jax.Array, readable_BxN: jax.Array, reads_BxS: jax.Array, retrieved: int, selection: str
) -> jax.Array:
    """Places of the blocks to retrieve, ascending: BxHxSxR, with one entry for all tokens (BxHx1xR) for `tokens`.

    `token_and_head`: each query of each head chooses by q . k_landmark. `heads`: the heads of a token share the choice
    by their highest softmax share. `tokens`: the queries that may read share it. Where fewer than R blocks are
    readable the first places are unreadable ones: the caller masks them.
    """
    readable_Bx1x1xN = readable_BxN[:, None, None]
    scores = jnp.where(readable_Bx1x1xN, jax.lax.stop_gradient(scores_BxHxSxN), MASKED)
    batch, heads, tokens, _ = scores.shape
    if selection != "token_and_head":
        scores = jax.nn.log_softmax(scores, axis=-1)  # the logarithm: shares themselves underflow, and then tie
    if selection == "heads":
        scores = scores.max(axis=1, keepdims=True)
    if selection == "tokens":
        scores = jnp.where(reads_BxS[:, None, :, None], scores, MASKED).max(axis=2, keepdims=True)
        tokens = 1
    chosen = best_newest(jnp.where(readable_Bx1x1xN, scores, MASKED), retrieved)
    return jnp.broadcast_to(chosen, (batch, heads, tokens, retrieved))


def retrieve(
    memory: LandmarkMemory,
    q_BxSxHxK: jax.Array,
    places_S: jax.Array,
    reads_BxS: jax.Array,
    retrieved: int,
    selection: str,
    turn: Turn = rotary,
) -> tuple[jax.Array, jax.Array]:
    """Chosen blocks BxHx(S or 1)xR and every query's scores with their tokens BxHxSxRxP, not yet masked.

    Queries carry no positions; `places_S` counts from the first token after the cached blocks.
    """
    blocks, length = memory.keys.shape[1], memory.keys.shape[3]
    wide, scale = memory.keys.dtype, q_BxSxHxK.shape[-1] ** -0.5
    positions_S = first_position(retrieved, length) + places_S
    # A key at place p of slot s, seen from position i, is a key turned by p seen from i - s * P: the queries are turned.
    q_BxSxHxCxK = jax.vmap(lambda slot: turn(q_BxSxHxK, positions_S - slot * length), out_axes=3)(jnp.arange(retrieved + 1))

    landmarks_BxNxHxK = turn(memory.keys[..., -1, :], jnp.asarray(scoring_slots(blocks, retrieved) * length))
    landmarks_BxNxHxK = landmarks_BxNxHxK.astype(q_BxSxHxK.dtype)
    scores_BxHxSxN = jnp.einsum("bshk,bnhk->bhsn", q_BxSxHxCxK[..., 0, :], landmarks_BxNxHxK, preferred_element_type=wide)
    every_BxN = jnp.broadcast_to(jnp.arange(blocks), memory.keys.shape[:2])
    readable_BxN = held_tokens(memory, every_BxN)[..., -2]  # its last raw token: one token at least beside the landmark
    chosen_BxHxSxR = select_blocks(scores_BxHxSxN * scale, readable_BxN, reads_BxS, retrieved, selection)

    slots_BxSxHxR = jnp.swapaxes(retrieved_slots(chosen_BxHxSxR, blocks), 1, 2)
    later_BxSxHxR = slots_BxSxHxR > jnp.arange(retrieved)  # slot r+1 for rank r; else slot r
    q_BxSxHxRxK = jnp.where(later_BxSxHxR[..., None], q_BxSxHxCxK[..., 1:, :], q_BxSxHxCxK[..., :-1, :])
    keys_BxHxSxRxPxK = gather_blocks(memory.keys, chosen_BxHxSxR).astype(q_BxSxHxK.dtype)
    if chosen_BxHxSxR.shape[2] == 1:  # one gather for all queries
        scores = jnp.einsum("bshrk,bhrpk->bhsrp", q_BxSxHxRxK, keys_BxHxSxRxPxK[:, :, 0], preferred_element_type=wide)
    else:
        scores = jnp.einsum("bshrk,bhsrpk->bhsrp", q_BxSxHxRxK, keys_BxHxSxRxPxK, preferred_element_type=wide)
    return chosen_BxHxSxR, scores * scale


def first_position(retrieved: int, length: int) -> int:
    """Position of the first token after the cached blocks: behind k+1 slots."""
    return (retrieved + 1) * length


def read_values(
    memory: LandmarkMemory, chosen_BxHxSxR: jax.Array, weights_BxHxSxRxP: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """BxSxHxV: the weighted sum of the retrieved blocks' raw values, weights BxHxSxRx(P-1)."""
    wide = memory.values.dtype
    values_BxHxSxRxPxV = gather_blocks(memory.values, chosen_BxHxSxR).astype(dtype)
    weights_BxHxSxRxP = weights_BxHxSxRxP.astype(dtype)
    if chosen_BxHxSxR.shape[2] == 1:
        values_BxHxRxPxV = values_BxHxSxRxPxV[:, :, 0]
        return jnp.einsum("bhsrp,bhrpv->bshv", weights_BxHxSxRxP, values_BxHxRxPxV, preferred_element_type=wide)
    return jnp.einsum("bhsrp,bhsrpv->bshv", weights_BxHxSxRxP, values_BxHxSxRxPxV, preferred_element_type=wide)


@dataclasses.dataclass(frozen=True)
class LandmarkConfig(MemoryConfig):
    """Settings of landmark attention.

    Attributes:
      block: raw tokens of a block; a landmark follows each group of so many (50 in the paper).
      blocks: complete blocks kept, the oldest evicted first.
      retrieved: blocks a query reads (k).
      selection: who chooses them: each token and head (as trained in the paper), all heads of a token together, or all
        tokens of the segment together. `tokens` is one of the paper's cheap forms of inference and is not causal: what
        a token retrieves depends on later tokens of its segment, and decoding chooses by the tokens at hand only.
    """

    block: int = 16
    blocks: int = 64
    retrieved: int = 4
    selection: Literal["token_and_head", "heads", "tokens"] = "token_and_head"

    @property
    def landmark_every(self) -> int:
        return self.block

    def check(self, dims: Dims) -> None:
        require_positive("memory", block=self.block, blocks=self.blocks, retrieved=self.retrieved)
        require(
            self.retrieved <= self.blocks,
            "memory.retrieved",
            f"{self.retrieved} blocks asked of the {self.blocks} that are kept",
            f"give at most {self.blocks} or keep more blocks",
        )
        require(
            self.selection in SELECTIONS,
            "memory.selection",
            f"'{self.selection}' is no selection",
            f"choose one of {', '.join(SELECTIONS)}",
        )
        require(dims.key_dim % 2 == 0, "key_dim", f"{dims.key_dim} is odd and rotary turns pairs", f"give {dims.key_dim + 1}")
        length = self.block + 1
        require(
            dims.segment % length == 0,
            "segment",
            f"{dims.segment} tokens with landmarks are no whole number of blocks of {self.block} and a landmark",
            f"give a raw segment that is a multiple of memory.block = {self.block}",
        )


class Landmark(Memory):
    """Complete blocks in a first-in-first-out cache, retrieved through their landmarks inside the one softmax."""

    Config = LandmarkConfig
    summary = "cache of blocks, retrieved through landmark tokens inside one grouped softmax"
    paper = "arXiv 2305.16300"

    @property
    def length(self) -> int:
        """Tokens of a block, its landmark included: P."""
        return self.config.block + 1

    def init_memory(self, batch: int) -> LandmarkMemory:
        c, d = self.config, self.dims
        return LandmarkMemory(
            keys=jnp.zeros((batch, c.blocks, d.heads, self.length, d.key_dim), d.memory_dtype),
            values=jnp.zeros((batch, c.blocks, d.heads, c.block, d.value_dim), d.memory_dtype),
            tokens=jnp.zeros((batch,), jnp.int32),
        )

    def attend(self, memory: LandmarkMemory, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        c, bounds, places_S = self.config, segment.bounds, segment.query_positions_S
        chosen, far_BxHxSxRxP = retrieve(memory, segment.queries, places_S, bounds.reads_BxS, c.retrieved, c.selection)
        near_BxHxSxMxP = self._local_scores(segment)
        near_weights, far_weights = blockwise_softmax(
            near_BxHxSxMxP,
            bounds.local_BxSxT.reshape(*bounds.reads_BxS.shape, -1, self.length),
            places_S[:, None] // self.length == jnp.arange(near_BxHxSxMxP.shape[3]),
            far_BxHxSxRxP,
            held_tokens(memory, chosen) & bounds.reads_BxS[:, None, :, None, None],
        )
        values = segment.values
        raw_BxMxPxHxV = values.reshape(len(values), -1, self.length, *values.shape[2:])[:, :, :-1]
        near_weights = near_weights.astype(values.dtype)
        wide = self.dims.memory_dtype
        y_BxSxHxV = jnp.einsum("bhsmp,bmphv->bshv", near_weights, raw_BxMxPxHxV, preferred_element_type=wide)
        y_BxSxHxV = y_BxSxHxV + read_values(memory, chosen, far_weights, values.dtype)
        mass_H = far_weights.sum(axis=(-2, -1)).mean(axis=(0, 2))
        return self.out(y_BxSxHxV.astype(self.dims.dtype)), {"retrieved_mass": mass_H}

    def _local_scores(self, segment: Segment) -> jax.Array:
        """BxHxSxMxP: every query with every key of the segment, rotary applied."""
        q_BxSxHxK = rotary(segment.queries, segment.query_positions_S)
        k_BxTxHxK = rotary(segment.keys, jnp.arange(segment.keys.shape[1]))
        wide = self.dims.memory_dtype
        scores_BxHxSxT = jnp.einsum("bshk,bthk->bhst", q_BxSxHxK, k_BxTxHxK, preferred_element_type=wide)
        scores_BxHxSxT = scores_BxHxSxT * self.dims.key_dim**-0.5
        return scores_BxHxSxT.reshape(*scores_BxHxSxT.shape[:3], -1, self.length)

    def write(self, memory: LandmarkMemory, segment: Segment) -> LandmarkMemory:
        """Keeps every block of the segment; what is no part of the open document becomes zero and is masked."""
        keeps_B, writes_BxT = segment.bounds.keeps_B, segment.bounds.writes_BxT

        def blocks(x_BxTxHxK):
            x_BxTxHxK = jnp.where(writes_BxT[..., None, None], x_BxTxHxK.astype(self.dims.memory_dtype), 0.0)
            return x_BxTxHxK.reshape(x_BxTxHxK.shape[0], -1, self.length, *x_BxTxHxK.shape[2:])

        memory = reset_where_new(keeps_B, memory)
        keys_BxMxPxHxK = rotary(blocks(segment.keys), jnp.arange(self.length))
        values_BxMxPxHxV = blocks(segment.values)[:, :, :-1]
        return append_blocks(
            memory,
            jnp.swapaxes(keys_BxMxPxHxK, 2, 3),
            jnp.swapaxes(values_BxMxPxHxV, 2, 3),
            memory.tokens + writes_BxT.sum(axis=1),
        )

    def logical_axes(self) -> LandmarkMemory:
        return LandmarkMemory(
            keys=("batch", "slots", "heads", "block", "key_dim"),
            values=("batch", "slots", "heads", "block", "value_dim"),
            tokens=("batch",),
        )

    def cost(self, segment_length: int) -> Cost:
        """Products with landmarks' keys are counted, those with their values are not made."""
        c, d = self.config, self.dims
        block_products = self.length * d.key_dim + c.block * d.value_dim  # one query with the tokens of one block
        item = d.memory_dtype.itemsize
        gathers = 1.0 / segment_length if c.selection == "tokens" else 1.0
        landmark_bytes = c.blocks * d.heads * d.key_dim * item
        return Cost(
            local=2.0 * d.heads * block_products * segment_length / self.length,
            read=2.0 * d.heads * (c.blocks * d.key_dim + c.retrieved * block_products),
            bytes_moved=gathers * c.retrieved * d.heads * block_products * item
            + (landmark_bytes + 2.0 * memory_bytes(self)) / segment_length,  # the shift reads and writes the whole cache
        )

    @classmethod
    def resized(cls, config: LandmarkConfig, dims: Dims, size: int) -> tuple[LandmarkConfig, Dims]:
        """`size` blocks are kept; a cache smaller than k is retrieved whole."""
        return dataclasses.replace(config, blocks=size, retrieved=min(config.retrieved, size)), dims
