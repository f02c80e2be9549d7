"""The gated delta rule (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464) as a memory carried from segment to segment.

Per head, for each written token t with a key of unit length, a write strength beta_t in (0, 1) and a log decay g_t <= 0:
  S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - k_t^T e^{g_t} S_{t-1})^T        write, token by token
  o = S^T q / sqrt(K)                                                       read, with the S of earlier segments
  beta_t = sigmoid(w_beta x_t),  g_t = -exp(a) softplus(w_g x_t + b)        g_t = 0 with decay none: the plain delta rule
Written a chunk at a time (WY form): with G the sum of g inside the chunk and A_ti = beta_t e^{G_t - G_i} k_t.k_i for i < t,
the tokens' real additions U solve (I + A) U = beta (V - e^G K S), and S' = e^{G_C} S + sum_i e^{G_C - G_i} k_i u_i^T.
DEVIATION: the paper's token mixer reads the running S_t at every token. Here, as in Infini-attention, a token reads the S of
earlier segments only, its own segment by local attention, and a gate per head mixes both; no output norm and no output gate.
DEVIATION: queries keep their length; the gate and the output projection follow, where the paper has a norm.
DEVIATION: heads first remember for 1 to `LONGEST` segments, evenly spread in the logarithm. The published layer's decay starts
at tens of tokens: such a memory is empty when the next segment reads it.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.errors import require
from infini_jax.layers.attention import attend_flops
from infini_jax.layers.grouped_heads import by_key_head
from infini_jax.layers.segment import Segment, reset_where_new
from infini_jax.memory.base import GATE, Cost, Dims, Memory, MemoryConfig, memory_bytes
from infini_jax.memory.feature_maps import unit
from infini_jax.memory.infini import mixed_with_local, with_size

CHUNK = 64  # tokens solved at once: a power of two
LONGEST = 64  # segments


def retrieve(S_BxGxKxV: jax.Array, q_BxSxHxK: jax.Array) -> jax.Array:
    """o = S^T q / sqrt(K): BxSxHxV; query head h reads the memory of key head h // (H / G)."""
    q_BxSxGxRxK = by_key_head(q_BxSxHxK, S_BxGxKxV.shape[1])
    o_BxSxGxRxV = jnp.einsum("bsgrk,bgkv->bsgrv", q_BxSxGxRxK, S_BxGxKxV) * q_BxSxHxK.shape[-1] ** -0.5
    return o_BxSxGxRxV.reshape(*q_BxSxHxK.shape[:3], -1)


def unit_lower_inverse(A: jax.Array) -> jax.Array:
    """(I + A)^-1 of strictly lower triangular A ...xCxC, C a power of two, by halves.

    Its blocks are inverses of spans of tokens, which stay small as the rule contracts; the closed product of I + A^{2^i}
    would take the difference of huge powers.
    """
    size = A.shape[-1]
    if size <= 2:
        return jnp.eye(size, dtype=A.dtype) - A
    half = size // 2
    top, bottom = unit_lower_inverse(jnp.stack([A[..., :half, :half], A[..., half:, half:]]))
    corner = -bottom @ (A[..., half:, :half] @ top)
    return jnp.concatenate(
        [jnp.concatenate([top, jnp.zeros_like(top)], axis=-1), jnp.concatenate([corner, bottom], axis=-1)], axis=-2
    )


def chunk_length(tokens: int) -> int:
    """Number of tokens solved at once in a segment of `tokens`."""
    return min(CHUNK, 1 << (tokens - 1).bit_length())


def in_chunks(x_BxTxHx: jax.Array, chunk: int) -> jax.Array:
    """Tokens in N chunks of C, NxBxHxCx..., with zeros behind the last: no write strength and no decay is no write."""
    batch, tokens, *rest = x_BxTxHx.shape
    count = -(-tokens // chunk)
    padded = jnp.pad(x_BxTxHx, [(0, 0), (0, count * chunk - tokens)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(padded.reshape(batch, count, chunk, *rest), (1, 3), (0, 2))


class Solved(NamedTuple):
    """The part of N chunks that does not depend on S.

    Attributes:
      fresh: NxBxHxCxV, added values as if S were zero.
      erased: NxBxHxCxK, keys whose reading of S is subtracted from `fresh`.
      kept: NxBxHxCxK, keys with the decay from their token to the chunk's end.
      left: NxBxH, log decay over the chunk, the sum of its g.
    """

    fresh: jax.Array
    erased: jax.Array
    kept: jax.Array
    left: jax.Array


def solve_chunks(k_BxTxHxK: jax.Array, v_BxTxHxV: jax.Array, beta_BxTxH: jax.Array, g_BxTxH: jax.Array) -> Solved:
    """The part of T tokens that does not depend on S, for all chunks at once (WY form)."""
    chunk = chunk_length(k_BxTxHxK.shape[1])
    k_NxBxHxCxK, v_NxBxHxCxV = in_chunks(k_BxTxHxK, chunk), in_chunks(v_BxTxHxV, chunk)
    beta_NxBxHxCx1 = in_chunks(beta_BxTxH, chunk)[..., None]
    G_NxBxHxC = jnp.cumsum(in_chunks(g_BxTxH, chunk), axis=-1)

    lower_CxC = np.tril(np.ones((chunk, chunk), bool), -1)
    # masked before the exponential: above the diagonal it would overflow
    decay_NxBxHxCxC = jnp.exp(jnp.where(lower_CxC, G_NxBxHxC[..., :, None] - G_NxBxHxC[..., None, :], -jnp.inf))
    A_NxBxHxCxC = beta_NxBxHxCx1 * decay_NxBxHxCxC * jnp.einsum("...tk,...ik->...ti", k_NxBxHxCxK, k_NxBxHxCxK)
    solve_NxBxHxCxC = unit_lower_inverse(A_NxBxHxCxC) * jnp.swapaxes(beta_NxBxHxCx1, -1, -2)
    fresh_NxBxHxCxV = solve_NxBxHxCxC @ v_NxBxHxCxV
    erased_NxBxHxCxK = solve_NxBxHxCxC @ (jnp.exp(G_NxBxHxC)[..., None] * k_NxBxHxCxK)
    left_NxBxH = G_NxBxHxC[..., -1]
    kept_NxBxHxCxK = jnp.exp(left_NxBxH[..., None] - G_NxBxHxC)[..., None] * k_NxBxHxCxK
    return Solved(fresh_NxBxHxCxV, erased_NxBxHxCxK, kept_NxBxHxCxK, left_NxBxH)


def write_chunks(S_BxHxKxV: jax.Array, solved: Solved) -> jax.Array:
    """S BxHxKxV after the chunks, one after the other."""

    def step(S_BxHxKxV: jax.Array, chunk: Solved) -> tuple[jax.Array, None]:
        u_BxHxCxV = chunk.fresh - chunk.erased @ S_BxHxKxV
        return jnp.exp(chunk.left)[..., None, None] * S_BxHxKxV + jnp.swapaxes(chunk.kept, -1, -2) @ u_BxHxCxV, None

    return jax.lax.scan(step, S_BxHxKxV, solved)[0]


def write_tokens(
    S_BxHxKxV: jax.Array, k_BxTxHxK: jax.Array, v_BxTxHxV: jax.Array, beta_BxTxH: jax.Array, g_BxTxH: jax.Array
) -> jax.Array:
    """S BxHxKxV after T tokens of the gated delta rule, solved in chunks."""
    return write_chunks(S_BxHxKxV, solve_chunks(k_BxTxHxK, v_BxTxHxV, beta_BxTxH, g_BxTxH))


def parallel(S_BxHxKxV: jax.Array, solved: Solved, keeps_BxW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(S before each of W consecutive segments BWxHxKxV, S after the last); `solved` has the rows of all segments, BW.

    Only the short scan over chunks is done in turn. `keeps_BxW` is `Boundaries.keeps_B` of each segment.
    """
    batch, count = keeps_BxW.shape

    def step(S_BxHxKxV: jax.Array, item: tuple[Solved, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chunks, keeps_B = item
        return write_chunks(reset_where_new(keeps_B, S_BxHxKxV), chunks), S_BxHxKxV

    in_turn = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(len(x), batch, count, *x.shape[2:]), 2, 0), solved)
    S_BxHxKxV, before_WxBxHxKxV = jax.lax.scan(step, S_BxHxKxV, (in_turn, keeps_BxW.T))
    return jnp.swapaxes(before_WxBxHxKxV, 0, 1).reshape(-1, *S_BxHxKxV.shape[1:]), S_BxHxKxV


@dataclasses.dataclass(frozen=True)
class GatedDeltaConfig(MemoryConfig):
    """Settings of the gated delta rule.

    Attributes:
      decay: learned forgets by a factor per token and head; none is the delta rule, which only overwrites.
      gate_init: the gate between memory and local attention before training; 0 lets both weigh the same.
    """

    decay: Literal["learned", "none"] = "learned"
    gate_init: float = 0.0

    def check(self, dims: Dims) -> None:
        require(self.decay in ("learned", "none"), "memory.decay", f"'{self.decay}' is no decay", "choose learned or none")


class GatedDelta(Memory):
    """Memory of a key x value matrix per head that forgets, and that each token overwrites where its key points."""

    Config = GatedDeltaConfig
    summary = "matrix memory, gated delta rule token by token, one gate a head"
    paper = "arXiv 2412.06464"
    axes = ("key_dim", "value_dim", "heads")
    gates = (("gate",),)

    def setup(self):
        super().setup()
        d = self.dims
        self.gate = self.param("gate", nn.initializers.constant(self.config.gate_init), (d.heads,))
        self.strength = nn.Dense(d.kv_heads, use_bias=False, dtype=d.memory_dtype)
        if self.config.decay == "learned":
            self.forget = nn.Dense(d.kv_heads, dtype=d.memory_dtype, bias_init=self._spread)
            self.forget_rate = self.param("forget_rate", nn.initializers.zeros, (d.kv_heads,))

    def _spread(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """softplus^-1 of one over the tokens that each head first remembers for."""
        horizons_H = self.dims.segment * np.geomspace(1.0, LONGEST, shape[0])
        return jnp.log(jnp.expm1(jnp.asarray(1.0 / horizons_H, dtype)))

    def init_memory(self, batch: int) -> jax.Array:
        d = self.dims
        return jnp.zeros((batch, d.kv_heads, d.key_dim, d.value_dim), d.memory_dtype)

    def attend(self, memory: jax.Array, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        a_mem_BxSxHxV = retrieve(memory, segment.queries.astype(self.dims.memory_dtype))
        a_BxSxHxV = mixed_with_local(self.gate, a_mem_BxSxHxV, segment)
        return self.out(a_BxSxHxV.astype(self.dims.dtype)), {GATE: nn.sigmoid(self.gate)}

    def write(self, memory: jax.Array, segment: Segment) -> jax.Array:
        return write_chunks(reset_where_new(segment.bounds.keeps_B, memory), self._solved(segment))

    def advance(self, memory: jax.Array, segments: Segment) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        keeps_BxW = segments.bounds.keeps_B.reshape(memory.shape[0], -1)
        before, memory = parallel(memory, self._solved(segments), keeps_BxW)
        y_BxSxD, metrics = self.attend(before, segments)
        return y_BxSxD, memory, metrics

    def _solved(self, segment: Segment) -> Solved:
        wide, writes_BxTx1 = self.dims.memory_dtype, segment.bounds.writes_BxT[..., None]
        beta_BxTxH = nn.sigmoid(self.strength(segment.inputs)) * writes_BxTx1
        g_BxTxH = self._log_decay(segment.inputs) * writes_BxTx1
        return solve_chunks(unit(segment.keys.astype(wide)), segment.values.astype(wide), beta_BxTxH, g_BxTxH)

    def _log_decay(self, inputs_BxTxD: jax.Array) -> jax.Array:
        if self.config.decay == "none":
            return jnp.zeros((*inputs_BxTxD.shape[:2], self.dims.kv_heads), self.dims.memory_dtype)
        return -jnp.exp(self.forget_rate) * nn.softplus(self.forget(inputs_BxTxD))

    def logical_axes(self) -> tuple[str, ...]:
        return ("batch", "kv_heads", "key_dim", "value_dim")

    def cost(self, segment_length: int) -> Cost:
        d, chunk = self.dims, chunk_length(segment_length)
        matrix = 2.0 * d.heads * d.key_dim * d.value_dim
        halves = [2**level for level in range(1, chunk.bit_length() - 1)]
        inverse = sum(2.0 * chunk * half**2 for half in halves)  # two products of half x half for chunk / 2 half corners
        solved = 2.0 * chunk**2 * (2 * d.key_dim + d.value_dim)  # A, what is erased, what is fresh
        padded_tokens = -(-segment_length // chunk) * chunk
        in_chunk = d.kv_heads * (inverse + solved) / chunk + 2.0 * matrix * d.kv_heads / d.heads
        projections = 2.0 * d.d_model * d.kv_heads * (2 if self.config.decay == "learned" else 1)
        return Cost(
            local=attend_flops(segment_length, d.heads, d.key_dim, d.value_dim),
            read=matrix,
            write=projections + in_chunk * padded_tokens / segment_length,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by attend, read and written by write
        )

    @classmethod
    def resized(cls, config: GatedDeltaConfig, dims: Dims, size: int, axis: str = "key_dim") -> tuple[GatedDeltaConfig, Dims]:
        return config, with_size(dims, size, axis)
