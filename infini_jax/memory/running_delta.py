"""The delta rule with gates of each channel, written and read token by token: base of `kimi_delta` and `gated_delta2`.

Per head and token t: a key k_t of unit length, a log decay g_t <= 0 of each channel, an erased key e_t, a written value v_t
  S_t = (I - k_t e_t^T) Diag(exp g_t) S_{t-1} + k_t v_t^T                   write
  o_t = S_t^T q_t / sqrt(K)                                                 read, the token itself included
Chunks of C tokens are solved at once (WY form). With G the sum of g inside the chunk, k_ti = exp(G_t - G_i) k_i the key of
token i as token t sees it, and A_ti = e_t . k_ti for i < t, the additions U solve (I + A) U = V - (E exp G) S, and
  o_t = (q_t exp G_t) S + sum_{i <= t} (q_t . k_ti) u_i,   S' = Diag(exp G_C) S + sum_i k_Ci u_i^T
A decay of each channel does not come out of a product of keys, and exp(-G_i) alone overflows: the C x C x K numbers k_ti are
made, which is why chunks are shorter than those of `gated_delta`. A document that begins inside a chunk sees nothing older:
what is of another document has the factor zero in all three places.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.layers.grouped_heads import by_key_head
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import Boundaries, Segment
from infini_jax.memory.base import GATE, Cost, Dims, memory_bytes, segments_of_a_stream
from infini_jax.memory.feature_maps import unit
from infini_jax.memory.gated_delta import (
    Solved,
    check_horizons,
    first_biases,
    in_chunks,
    is_transition,
    states,
    unit_lower_inverse,
)
from infini_jax.memory.infini import combine, with_size
from infini_jax.memory.positions import Positioned, PositionedConfig, local_cost
from infini_jax.memory.window import view

SHORT_CHUNK = 16  # tokens solved at once: a power of two


class Edits(NamedTuple):
    """What each token does to S.

    Attributes:
      keys: BxTxGxK, of unit length.
      erased: BxTxGxK, keys by which S takes from what is written.
      values: BxTxGxV, as they are written.
      decay: BxTxGxK, logarithms of the factors by which channels of S are kept.
    """

    keys: jax.Array
    erased: jax.Array
    values: jax.Array
    decay: jax.Array


class Chunks(NamedTuple):
    """N chunks of tokens, as far as they do not depend on S.

    Attributes:
      solved: what they write.
      seen: NxBxGxCxCxK, keys as each token sees them: decayed since, zero where later or of another document.
      entered: NxBxGxCxK, what is left at each token of S before the chunk, a factor.
    """

    solved: Solved
    seen: jax.Array
    entered: jax.Array


def short_chunk(tokens: int) -> int:
    """Number of tokens solved at once in a segment of `tokens`."""
    return min(SHORT_CHUNK, 1 << (tokens - 1).bit_length())


def documents_in_chunks(bounds: Boundaries, chunk: int) -> tuple[jax.Array, jax.Array]:
    """(documents of N chunks NxBxC, document before each chunk NxB); behind the last token the last document goes on."""
    documents_BxT = bounds.key_documents
    padded = jnp.pad(documents_BxT, ((0, 0), (0, -documents_BxT.shape[1] % chunk)), mode="edge")
    documents_NxBxC = jnp.moveaxis(padded.reshape(padded.shape[0], -1, chunk), 1, 0)
    return documents_NxBxC, jnp.concatenate([bounds.open_document[None], documents_NxBxC[:-1, :, -1]])


def chunked(edits: Edits, bounds: Boundaries) -> Chunks:
    """The chunks of a segment's tokens, all at once."""
    chunk = short_chunk(edits.keys.shape[1])
    k_NxBxGxCxK, e_NxBxGxCxK, v_NxBxGxCxV, g_NxBxGxCxK = (in_chunks(x, chunk) for x in edits)
    documents_NxBxC, before_NxB = documents_in_chunks(bounds, chunk)
    lower_CxC = np.tril(np.ones((chunk, chunk), bool))
    same_NxBxCxC = (documents_NxBxC[..., :, None] == documents_NxBxC[..., None, :]) & lower_CxC
    same_NxBx1xCxCx1 = same_NxBxCxC[:, :, None, ..., None]
    # a sum and no difference of sums, so that nothing of another document is in it, not even its rounding
    G_NxBxGxCxK = jnp.sum(jnp.where(same_NxBx1xCxCx1, g_NxBxGxCxK[..., None, :, :], 0.0), axis=-2)
    # masked before the exponential: above the diagonal it would overflow
    since = jnp.where(same_NxBx1xCxCx1, G_NxBxGxCxK[..., :, None, :] - G_NxBxGxCxK[..., None, :, :], -jnp.inf)
    seen_NxBxGxCxCxK = jnp.exp(since) * k_NxBxGxCxK[..., None, :, :]
    goes_on_NxBx1xCx1 = (documents_NxBxC == before_NxB[..., None])[:, :, None, :, None]
    entered_NxBxGxCxK = jnp.where(goes_on_NxBx1xCx1, jnp.exp(G_NxBxGxCxK), 0.0)

    A_NxBxGxCxC = jnp.einsum("...tk,...tik->...ti", e_NxBxGxCxK, seen_NxBxGxCxCxK)
    solve_NxBxGxCxC = unit_lower_inverse(jnp.where(np.tril(lower_CxC, -1), A_NxBxGxCxC, 0.0))
    solved = Solved(
        fresh=solve_NxBxGxCxC @ v_NxBxGxCxV,
        erased=solve_NxBxGxCxC @ (entered_NxBxGxCxK * e_NxBxGxCxK),
        kept=seen_NxBxGxCxCxK[..., -1, :, :],
        left=entered_NxBxGxCxK[..., -1, :],
    )
    return Chunks(solved, seen_NxBxGxCxCxK, entered_NxBxGxCxK)


def carried_through(S_BxGxKxV: jax.Array, solved: Solved, count: int) -> tuple[jax.Array, jax.Array]:
    """(S before each chunk NxBWxGxKxV of `count` W consecutive segments, S after the last); `solved` has all rows, BW."""

    def in_turn(x_NxBWx: jax.Array) -> jax.Array:
        chunks, rows = x_NxBWx.shape[:2]
        x_WxNxBx = jnp.moveaxis(x_NxBWx.reshape(chunks, rows // count, count, *x_NxBWx.shape[2:]), 2, 0)
        return x_WxNxBx.reshape(count * chunks, rows // count, *x_NxBWx.shape[2:])

    before, after = states(S_BxGxKxV, Solved(*map(in_turn, solved)))
    before_NxBxWx = jnp.moveaxis(before.reshape(count, -1, *before.shape[1:]), 0, 2)
    return before_NxBxWx.reshape(before_NxBxWx.shape[0], -1, *S_BxGxKxV.shape[1:]), after


def read_running(before_NxBxGxKxV: jax.Array, chunks: Chunks, q_BxTxHxK: jax.Array) -> jax.Array:
    """o_t = S_t^T q_t / sqrt(K) of every token, BxTxHxV; query head h reads the memory of key head h // (H / G)."""
    rows, tokens, heads, size = q_BxTxHxK.shape
    q_BxTxGxRxK, chunk = by_key_head(q_BxTxHxK, before_NxBxGxKxV.shape[2]), chunks.entered.shape[3]
    q_NxBxGxCxRxK = in_chunks(q_BxTxGxRxK, chunk)
    u_NxBxGxCxV = chunks.solved.fresh - chunks.solved.erased @ before_NxBxGxKxV
    scores = jnp.einsum("nbgtrk,nbgtik->nbgtri", q_NxBxGxCxRxK, chunks.seen)
    entered_NxBxGxCxRxK = q_NxBxGxCxRxK * chunks.entered[..., None, :]
    o_NxBxGxCxRxV = jnp.einsum("nbgtrk,nbgkv->nbgtrv", entered_NxBxGxCxRxK, before_NxBxGxKxV)
    o_NxBxGxCxRxV = o_NxBxGxCxRxV + jnp.einsum("nbgtri,nbgiv->nbgtrv", scores, u_NxBxGxCxV)
    o_BxNxCxGxRxV = jnp.moveaxis(o_NxBxGxCxRxV, (0, 2), (1, 3))
    return o_BxNxCxGxRxV.reshape(rows, -1, heads, o_BxNxCxGxRxV.shape[-1])[:, :tokens] * size**-0.5


def at_places_of_keys(q_BxSxHxK: jax.Array, bounds: Boundaries) -> jax.Array:
    """Queries BxTxHxK at the segment's places, zero where there is none, as while a segment is decoded."""
    tokens = bounds.key_documents.shape[1]
    if q_BxSxHxK.shape[1] == tokens:
        return q_BxSxHxK
    none_BxTxHxK = jnp.zeros((q_BxSxHxK.shape[0], tokens, *q_BxSxHxK.shape[2:]), q_BxSxHxK.dtype)
    return jax.lax.dynamic_update_slice_in_dim(none_BxTxHxK, q_BxSxHxK, bounds.start, axis=1)


@dataclasses.dataclass(frozen=True)
class RunningDeltaConfig(PositionedConfig):
    """Settings of a delta rule that is read token by token.

    Attributes:
      eigenvalues: range of the factor that a token leaves of S along its key: positive, between 0 and 1, or signed, between
        -1 and 1, with twice the strength (Grazzi et al. 2024, arXiv 2411.12537).
      gate_init: the gate between memory and local attention before training; 0 lets both weigh the same.
      horizons: segments after which the first and the last channel of each head have forgotten all but 1/e before training,
        channels between them evenly in the logarithm.
    """

    eigenvalues: Literal["positive", "signed"] = "positive"
    gate_init: float = 0.0
    horizons: tuple[float, float] = (1.0, 64.0)

    def check(self, dims: Dims) -> None:
        check_horizons(self.horizons, dims)


class RunningDelta(Positioned):
    """Base of memories of a key x value matrix per head whose channels forget apart, read after every token.

    A subclass makes the `Edits` of a segment (`_edits`) and counts their projections (`_projected`).
    """

    axes = ("key_dim", "value_dim", "heads")
    gates = (("gate",),)
    no_decay = (*Positioned.no_decay, ("forget_up", "bias"))
    parameter_axes: ClassVar = {
        **Positioned.parameter_axes,
        ("forget_down", "kernel"): ("embed", None),
        ("forget_up", "kernel"): ("embed", "kv_heads", "head_dim"),
    }
    learns, holds = ("inputs", "keys", "values"), "matrix"
    reads_own = True
    neighborhoods = ("segment", "window", "cache")
    honors = ("attention_scale", "rotary", "score_cap")

    def setup(self):
        super().setup()
        d, wide = self.dims, self.dims.memory_dtype
        self.gate = self.param("gate", nn.initializers.constant(self.config.gate_init), (d.heads,), PARAMETERS)
        self.forget_down = nn.Dense(d.key_dim, use_bias=False, dtype=wide)
        self.forget_up = nn.DenseGeneral((d.kv_heads, d.key_dim), dtype=wide, bias_init=self._spread)
        self.forget_rate = self.param("forget_rate", nn.initializers.zeros, (d.kv_heads,), PARAMETERS)

    def _spread(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """The biases of one head, for all heads."""
        return jnp.resize(first_biases(self.config.horizons, self.dims.segment, self.dims.key_dim, dtype), shape)

    def _log_decay(self, inputs_BxTxD: jax.Array) -> jax.Array:
        """g = -exp(a) softplus(W_up W_down x + b), BxTxGxK."""
        return -jnp.exp(self.forget_rate)[:, None] * nn.softplus(self.forget_up(self.forget_down(inputs_BxTxD)))

    @property
    def most_erased(self) -> float:
        """The largest share of what S holds along a key that a token takes out of it."""
        return 2.0 if self.config.eigenvalues == "signed" else 1.0

    def _edits(self, segment: Segment) -> Edits:
        raise NotImplementedError

    def _projected(self) -> float:
        """FLOPs per token of the projections that `_edits` makes beside the decay's."""
        raise NotImplementedError

    def init_memory(self, batch: int) -> jax.Array:
        d = self.dims
        return jnp.zeros((batch, d.kv_heads, d.key_dim, d.value_dim), d.memory_dtype)

    def attend(self, memory: jax.Array, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        chunks = chunked(self._edits(segment), segment.bounds)
        return self._mixed(self._read_written(carried_through(memory, chunks.solved, 1)[0], chunks, segment), segment)

    def write(self, memory: jax.Array, segment: Segment) -> jax.Array:
        return carried_through(memory, chunked(self._edits(segment), segment.bounds).solved, 1)[1]

    def advance(self, memory: jax.Array, segments: Segment) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        chunks = chunked(self._edits(segments), segments.bounds)
        before, after = carried_through(memory, chunks.solved, segments_of_a_stream(memory, segments))
        attended, metrics = self._mixed(self._read_written(before, chunks, segments), segments)
        return attended, after, metrics

    def _keys(self, segment: Segment) -> jax.Array:
        """Keys of unit length."""
        return unit(segment.keys.astype(self.dims.memory_dtype))

    def _read_written(self, before: jax.Array, chunks: Chunks, segment: Segment) -> jax.Array:
        """What the segment's queries read after their tokens, BxSxHxV."""
        q_BxTxHxK = at_places_of_keys(segment.queries.astype(self.dims.memory_dtype), segment.bounds)
        return segment.bounds.of_queries(read_running(before, chunks, q_BxTxHxK))

    def _mixed(self, a_mem_BxSxHxV: jax.Array, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(output BxSxD of what is read and local attention, metrics)."""
        a_BxSxHxV = combine(self.gate, a_mem_BxSxHxV, self.attention(segment.queries, view(segment)))
        return self.out(a_BxSxHxV.astype(self.dims.dtype)), {GATE: nn.sigmoid(self.gate)}

    def logical_axes(self) -> tuple[str, ...]:
        return ("batch", "kv_heads", "key_dim", "value_dim")

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        d, chunk = self.dims, short_chunk(segment_length)
        padded = -(-segment_length // chunk) * chunk / segment_length
        matrix, square = 2.0 * d.key_dim * d.value_dim, 2.0 * d.key_dim**2
        halves = [2**level for level in range(1, chunk.bit_length() - 1)]
        inverse = sum(2.0 * half**2 for half in halves)  # two products of half x half for chunk / 2 half corners
        solved = 2.0 * chunk * (2 * d.key_dim + d.value_dim) + inverse  # A, what is erased, what is fresh
        written = square + matrix + square * d.value_dim / chunk if is_transition(chunk, d.key_dim) else 2.0 * matrix
        read = d.heads * (matrix + 2.0 * chunk * (d.key_dim + d.value_dim)) + d.kv_heads * matrix  # and U
        forget = 2.0 * d.key_dim * (d.d_model + d.kv_heads * d.key_dim)
        write = forget + self._projected() + padded * d.kv_heads * (solved + written)
        local = local_cost(self.config, d, segment_length, segments=segments)
        return dataclasses.replace(
            local,
            read=local.read + padded * read,
            write=write,
            write_again=write,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by attend, read and written by write
        )

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        return self.cost(segment_length, segments)

    @classmethod
    def resized(
        cls, config: RunningDeltaConfig, dims: Dims, size: int, axis: str = "key_dim"
    ) -> tuple[RunningDeltaConfig, Dims]:
        return config, with_size(dims, size, axis)
