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
DEVIATION: heads first remember for 1 to 64 segments (`horizons`), evenly spread in the logarithm, and one head alone for 64.
The published layer's decay starts at tens of tokens: such a memory is empty when the next segment reads it.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.errors import require
from infini_jax.layers.grouped_heads import by_key_head
from infini_jax.layers.heads import by_heads, can_split
from infini_jax.layers.platforms import platform
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.recurrence import composed, linear_recurrence
from infini_jax.layers.segment import Segment, reset_where_new
from infini_jax.memory.base import GATE, Cost, Dims, memory_bytes
from infini_jax.memory.feature_maps import unit
from infini_jax.memory.infini import mixed_with_local, with_size
from infini_jax.memory.positions import Positioned, PositionedConfig, local_cost
from infini_jax.memory.window import view

CHUNK = 64  # tokens solved at once: a power of two
LONGEST = 1e6  # segments, which no document has

FORMS = ("auto", "chunks", "kernel")
form = jax.make_user_context("auto")  # of a write; `with form("chunks"):`; a part of jit's cache key


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


def in_chunks(x_BxTxGx: jax.Array, chunk: int) -> jax.Array:
    """Tokens in N chunks of C, NxBxGxCx..., with zeros behind the last: no write strength and no decay is no write."""
    batch, tokens, *rest = x_BxTxGx.shape
    count = -(-tokens // chunk)
    padded = jnp.pad(x_BxTxGx, [(0, 0), (0, count * chunk - tokens)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(padded.reshape(batch, count, chunk, *rest), (1, 3), (0, 2))


class Solved(NamedTuple):
    """The parts of N chunks that do not depend on S.

    Attributes:
      fresh: NxBxGxCxV, additions as if S were zero.
      erased: NxBxGxCxK, by which S takes from them.
      kept: NxBxGxCxK, keys with what is left of them at the end of the chunk.
      left: what is left of S there: NxBxGx1, a factor, or NxBxGxK, one of each channel of a key.
    """

    fresh: jax.Array
    erased: jax.Array
    kept: jax.Array
    left: jax.Array


def solve_chunks(k_BxTxGxK: jax.Array, v_BxTxGxV: jax.Array, beta_BxTxG: jax.Array, g_BxTxG: jax.Array) -> Solved:
    """The part of T tokens that does not depend on S, for all chunks at once (WY form)."""
    chunk = chunk_length(k_BxTxGxK.shape[1])
    k_NxBxGxCxK, v_NxBxGxCxV = in_chunks(k_BxTxGxK, chunk), in_chunks(v_BxTxGxV, chunk)
    beta_NxBxGxCx1 = in_chunks(beta_BxTxG, chunk)[..., None]
    G_NxBxGxC = jnp.cumsum(in_chunks(g_BxTxG, chunk), axis=-1)

    lower_CxC = np.tril(np.ones((chunk, chunk), bool), -1)
    # masked before the exponential: above the diagonal it would overflow
    decay_NxBxGxCxC = jnp.exp(jnp.where(lower_CxC, G_NxBxGxC[..., :, None] - G_NxBxGxC[..., None, :], -jnp.inf))
    A_NxBxGxCxC = beta_NxBxGxCx1 * decay_NxBxGxCxC * jnp.einsum("...tk,...ik->...ti", k_NxBxGxCxK, k_NxBxGxCxK)
    solve_NxBxGxCxC = unit_lower_inverse(A_NxBxGxCxC) * jnp.swapaxes(beta_NxBxGxCx1, -1, -2)
    fresh_NxBxGxCxV = solve_NxBxGxCxC @ v_NxBxGxCxV
    erased_NxBxGxCxK = solve_NxBxGxCxC @ (jnp.exp(G_NxBxGxC)[..., None] * k_NxBxGxCxK)
    end_NxBxG = G_NxBxGxC[..., -1]
    kept_NxBxGxCxK = jnp.exp(end_NxBxG[..., None] - G_NxBxGxC)[..., None] * k_NxBxGxCxK
    return Solved(fresh_NxBxGxCxV, erased_NxBxGxCxK, kept_NxBxGxCxK, jnp.exp(end_NxBxG)[..., None])


def states(S_BxGxKxV: jax.Array, solved: Solved) -> tuple[jax.Array, jax.Array]:
    """(S before each chunk NxBxGxKxV, S after the last).

    A chunk is S' = A S + B, and only that product is done in turn, where A is no larger than the chunk.
    """
    if is_transition(solved.kept.shape[-2], solved.kept.shape[-1]):
        return linear_recurrence(S_BxGxKxV, *transitions(solved))

    def step(S_BxGxKxV: jax.Array, chunk: Solved) -> tuple[jax.Array, jax.Array]:
        u_BxGxCxV = chunk.fresh - chunk.erased @ S_BxGxKxV
        return chunk.left[..., None] * S_BxGxKxV + jnp.swapaxes(chunk.kept, -1, -2) @ u_BxGxCxV, S_BxGxKxV

    after, before = jax.lax.scan(step, S_BxGxKxV, solved)
    return before, after


def transitions(solved: Solved) -> tuple[jax.Array, jax.Array]:
    """(A NxBxGxKxK, B NxBxGxKxV) of S' = A S + B, each chunk's effect on S."""
    keptT_NxBxGxKxC, size = jnp.swapaxes(solved.kept, -1, -2), solved.kept.shape[-1]
    left_NxBxGxKxK = solved.left[..., None] * jnp.eye(size, dtype=solved.left.dtype)
    return left_NxBxGxKxK - keptT_NxBxGxKxC @ solved.erased, keptT_NxBxGxKxC @ solved.fresh


def is_transition(chunk: int, key_dim: int) -> bool:
    """Whether a chunk is written as one K x K product instead of two of C x K, which are fewer FLOPs where C is below K."""
    return chunk >= key_dim


def write_tokens(
    S_BxGxKxV: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxV: jax.Array, beta_BxTxG: jax.Array, g_BxTxG: jax.Array
) -> jax.Array:
    """S BxHxKxV after T tokens of the gated delta rule, solved in chunks."""
    return states(S_BxGxKxV, solve_chunks(k_BxTxGxK, v_BxTxGxV, beta_BxTxG, g_BxTxG))[1]


def parallel(S_BxGxKxV: jax.Array, solved: Solved, keeps_BxW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(S before each of W consecutive segments BWxGxKxV, S after the last); `solved` has the rows of all segments, BW.

    `keeps_BxW` is `Boundaries.keeps_B` of each segment: where its document began inside, nothing of S is left or erased. The
    transitions of a segment's chunks become one where there are several segments, so that only a product per segment is done
    in turn, for one more product of transitions per chunk.
    """
    (batch, count), chunks = keeps_BxW.shape, len(solved.left)
    if count > 1 and is_transition(solved.kept.shape[-2], solved.kept.shape[-1]):
        keeps_WxBx1x1x1 = keeps_BxW.T[..., None, None, None]
        A_WxBxGxKxK, B_WxBxGxKxV = (
            jnp.moveaxis(x.reshape(batch, count, *x.shape[1:]), 1, 0) for x in composed(*transitions(solved))
        )
        before, after = linear_recurrence(S_BxGxKxV, jnp.where(keeps_WxBx1x1x1, A_WxBxGxKxK, 0.0), B_WxBxGxKxV)
        return jnp.swapaxes(before, 0, 1).reshape(-1, *S_BxGxKxV.shape[1:]), after

    def in_turn(x_NxBWxGx: jax.Array) -> jax.Array:
        """WNxBxG... of the chunks of all segments."""
        x_WxNxBxGx = jnp.moveaxis(x_NxBWxGx.reshape(chunks, batch, count, *x_NxBWxGx.shape[2:]), 2, 0)
        return x_WxNxBxGx.reshape(count * chunks, *x_WxNxBxGx.shape[2:])

    solved = Solved(*map(in_turn, solved))
    keeps_WxNxB = keeps_BxW.T[:, None] | (np.arange(chunks) > 0)[:, None]
    keeps_WNxBx1x1 = keeps_WxNxB.reshape(-1, batch, 1, 1)
    left = jnp.where(keeps_WNxBx1x1, solved.left, 0.0)
    erased = jnp.where(keeps_WNxBx1x1[..., None], solved.erased, 0.0)
    before, after = states(S_BxGxKxV, solved._replace(left=left, erased=erased))
    return jnp.swapaxes(before[::chunks], 0, 1).reshape(-1, *S_BxGxKxV.shape[1:]), after


def chosen_form(k_BxTxGxK: jax.Array, v_BxTxGxV: jax.Array) -> str:
    """Name of the form that writes a segment: the one asked for by `form`, or else the kernel on a TPU where it can.

    Raises `ConfigError` where the form asked for does not exist or cannot do this.
    """
    asked = form.value
    require(asked in FORMS, "gated_delta.form", f"'{asked}' is not a form", f"choose one of {', '.join(FORMS)}")
    if asked == "chunks" or (asked == "auto" and platform() != "tpu"):
        return "chunks"
    from infini_jax.memory import delta_kernel  # Pallas is not imported where nothing runs it

    problem, heads = delta_kernel.refuses(k_BxTxGxK, v_BxTxGxV), k_BxTxGxK.shape[2]
    if problem is None and not can_split(heads, heads):
        problem = "needs heads that devices share evenly"
    require(asked == "auto" or problem is None, "gated_delta.form", f"the kernel {problem}", "choose auto or chunks")
    return "kernel" if problem is None else "chunks"


def by_kernel(
    S_BxGxKxV: jax.Array, segments: Segment, beta_BWxTxG: jax.Array, g_BWxTxG: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(S before each of W consecutive segments BWxGxKxV, S after the last) by the kernel; interpreted where no TPU is."""
    from infini_jax.memory import delta_kernel

    heads, keeps_BxW = S_BxGxKxV.shape[1], segments.bounds.keeps_B.reshape(S_BxGxKxV.shape[0], -1)
    written = functools.partial(delta_kernel.written, interpret=platform() != "tpu")
    written = by_heads(written, (1, 2, 2, 2, 2, None), (2, 1), heads, heads)
    before_BxWxGxKxV, after = written(S_BxGxKxV, segments.keys, segments.values, beta_BWxTxG, g_BWxTxG, keeps_BxW)
    return before_BxWxGxKxV.reshape(-1, *S_BxGxKxV.shape[1:]), after


def check_horizons(horizons: tuple[float, float], dims: Dims) -> None:
    """Raises `ConfigError` unless the memory can first remember for so many segments."""
    field, shortest, longest = "memory.horizons", min(horizons), max(horizons)
    too_short = f"{shortest:g} segments are less than a token"
    require(shortest * dims.segment >= 1, field, too_short, f"give at least {1 / dims.segment:g}")
    require(longest <= LONGEST, field, f"{longest:g} segments are too many", f"give at most {LONGEST:g}")


def first_biases(horizons: tuple[float, float], segment: int, count: int, dtype: jnp.dtype) -> jax.Array:
    """softplus^-1 of one over the tokens that each of `count` heads or channels first remembers; one alone takes the last."""
    first, last = horizons
    horizons_N = segment * (np.geomspace(first, last, count) if count > 1 else np.array([last]))
    return jnp.log(jnp.expm1(jnp.asarray(1.0 / horizons_N, dtype)))


@dataclasses.dataclass(frozen=True)
class GatedDeltaConfig(PositionedConfig):
    """Settings of the gated delta rule.

    Attributes:
      decay: learned forgets by a factor per token and head; none is the delta rule, which only overwrites.
      gate_init: initial gate between memory and local attention; 0 weighs both equally.
      horizons: initial memory horizons of the first and the last head, in segments until all but 1/e is forgotten; heads
        between them are spaced evenly in the logarithm. A single head starts with the last, as a short horizon hides what is
        to be learned.
    """

    decay: Literal["learned", "none"] = "learned"
    gate_init: float = 0.0
    # In every fingerprint: one head alone began with the first of them before. Study initial_values (docs/findings.md): from
    # 64 segments one head learned MQAR in 5 of 6 runs, from 8 in 3 and from 1 in none; on text no difference was settled.
    horizons: tuple[float, float] = (1.0, 64.0)

    def check(self, dims: Dims) -> None:
        check_horizons(self.horizons, dims)


class GatedDelta(Positioned):
    """Memory of a key x value matrix per head that forgets, and that each token overwrites where its key points."""

    Config = GatedDeltaConfig
    summary = "matrix memory, gated delta rule token by token, one gate per head"
    paper = "arXiv 2412.06464"
    axes = ("key_dim", "value_dim", "heads")
    gates = (("gate",),)
    learns, holds = ("inputs", "keys", "values"), "matrix"
    neighborhoods = ("segment", "window", "cache")
    honors = ("attention_scale", "rotary", "score_cap")

    def setup(self):
        super().setup()
        d = self.dims
        self.gate = self.param("gate", nn.initializers.constant(self.config.gate_init), (d.heads,), PARAMETERS)
        self.strength = nn.Dense(d.kv_heads, use_bias=False, dtype=d.memory_dtype)
        if self.config.decay == "learned":
            self.forget = nn.Dense(d.kv_heads, dtype=d.memory_dtype, bias_init=self._spread)
            self.forget_rate = self.param("forget_rate", nn.initializers.zeros, (d.kv_heads,), PARAMETERS)

    def _spread(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return first_biases(self.config.horizons, self.dims.segment, shape[0], dtype)

    def init_memory(self, batch: int) -> jax.Array:
        d = self.dims
        return jnp.zeros((batch, d.kv_heads, d.key_dim, d.value_dim), d.memory_dtype)

    def attend(self, memory: jax.Array, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        a_mem_BxSxHxV = retrieve(memory, segment.queries.astype(self.dims.memory_dtype))
        a_dot_BxSxHxV = self.attention(segment.queries, view(segment))
        a_BxSxHxV = mixed_with_local(self.gate, a_mem_BxSxHxV, segment, a_dot_BxSxHxV)
        return self.out(a_BxSxHxV.astype(self.dims.dtype)), {GATE: nn.sigmoid(self.gate)}

    def write(self, memory: jax.Array, segment: Segment) -> jax.Array:
        if chosen_form(segment.keys, segment.values) == "kernel":
            return by_kernel(memory, segment, *self._gates(segment))[1]
        return states(reset_where_new(segment.bounds.keeps_B, memory), self._solved(segment))[1]

    def advance(self, memory: jax.Array, segments: Segment) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        if chosen_form(segments.keys, segments.values) == "kernel":
            before, memory = by_kernel(memory, segments, *self._gates(segments))
        else:
            keeps_BxW = segments.bounds.keeps_B.reshape(memory.shape[0], -1)
            before, memory = parallel(memory, self._solved(segments), keeps_BxW)
        attended, metrics = self.attend(before, segments)
        return attended, memory, metrics

    def _solved(self, segment: Segment) -> Solved:
        wide = self.dims.memory_dtype
        return solve_chunks(unit(segment.keys.astype(wide)), segment.values.astype(wide), *self._gates(segment))

    def _gates(self, segment: Segment) -> tuple[jax.Array, jax.Array]:
        """(beta BxTxG, g BxTxG), zero where nothing is written."""
        writes_BxTx1 = segment.bounds.writes_BxT[..., None]
        return nn.sigmoid(self.strength(segment.inputs)) * writes_BxTx1, self._log_decay(segment.inputs) * writes_BxTx1

    def _log_decay(self, inputs_BxTxD: jax.Array) -> jax.Array:
        if self.config.decay == "none":
            return jnp.zeros((*inputs_BxTxD.shape[:2], self.dims.kv_heads), self.dims.memory_dtype)
        return -jnp.exp(self.forget_rate) * nn.softplus(self.forget(inputs_BxTxD))

    def logical_axes(self) -> tuple[str, ...]:
        return ("batch", "kv_heads", "key_dim", "value_dim")

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        d, chunk = self.dims, chunk_length(segment_length)
        matrix, square = 2.0 * d.heads * d.key_dim * d.value_dim, 2.0 * d.key_dim**2
        halves = [2**level for level in range(1, chunk.bit_length() - 1)]
        inverse = sum(2.0 * chunk * half**2 for half in halves)  # two products of half x half for chunk / 2 half corners
        solved = 2.0 * chunk**2 * (2 * d.key_dim + d.value_dim)  # A, what is erased, what is fresh
        padded_tokens = -(-segment_length // chunk) * chunk
        written = 2.0 * matrix / d.heads
        if is_transition(chunk, d.key_dim):  # A and B, and A S once per chunk
            written = square + matrix / d.heads + square * d.value_dim / chunk
            if segments > 1:  # the transitions of a segment's chunks become one, in one product less than there are chunks
                written += square * d.key_dim * (1 / chunk - 1 / padded_tokens)
        in_chunk = d.kv_heads * ((inverse + solved) / chunk + written)
        projections = 2.0 * d.d_model * d.kv_heads * (2 if self.config.decay == "learned" else 1)
        local = local_cost(self.config, d, segment_length, segments=segments)
        return dataclasses.replace(
            local,
            read=local.read + matrix,
            write=projections + in_chunk * padded_tokens / segment_length,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by attend, read and written by write
        )

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        return self.cost(segment_length, segments)

    @classmethod
    def resized(cls, config: GatedDeltaConfig, dims: Dims, size: int, axis: str = "key_dim") -> tuple[GatedDeltaConfig, Dims]:
        return config, with_size(dims, size, axis)
