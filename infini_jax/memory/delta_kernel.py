"""The gated delta rule's write as a Pallas kernel for TPUs: what it moves is its inputs and results, each once.

The plain form holds its parts of all chunks as arrays, and their gradients again. Here the memory of a few heads stays on the
chip while their tokens stream past, a block of chunks at a time. Of the forward pass the memory before each block is kept; the
backward pass finds the rest again inside the chip, block by block from the last one, and a chunk's gradient is JAX's own.

Per head and chunk, with the letters of `gated_delta`, (I + A) U = beta (V - e^G K S) is solved by the inverse X of I + A:
  S' = e^{G_C} S + (e^{G_C - G} K)^T U,  U = X beta (V - e^G K S),  dA = -X^T dX X^T
Letters: B rows, W segments of a row, T tokens of a segment, N blocks of all segments, G heads, K and V their dims; C tokens of
a chunk, which are the rows and columns of A.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from infini_jax.layers.blockwise import MADE_AGAIN
from infini_jax.memory.feature_maps import unit

CHUNK = 64  # tokens solved at once
MOST_CHUNKS = 8  # of a block
LANES = 128  # of a tile: tokens lie in memory as rows of whole tiles
DIM_STEP = 32  # of a head, so that few heads make whole tiles
MOST_BYTES = 12 * 2**20  # on the chip; 16 MiB are a kernel's by default

TOKENS = ("keys", "values", "gates", "gates")  # kinds of the arrays that have all tokens


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the kernel takes its work apart.

    Attributes:
      heads: number of heads that a cell has at once.
      chunks: number of chunks in a block.
      blocks: number of blocks in a segment.
      interpret: whether to run the kernel's own program without a TPU, slowly.
    """

    heads: int
    chunks: int
    blocks: int
    interpret: bool = False

    @classmethod
    def of(cls, k_BWxTxGxK: jax.Array, v_BWxTxGxV: jax.Array, interpret: bool = False) -> "Plan":
        """The plan for keys and values: as few heads as fill whole tiles, or all of them; up to `MOST_CHUNKS` chunks."""
        heads, chunks = k_BWxTxGxK.shape[2], k_BWxTxGxK.shape[1] // CHUNK
        dims = k_BWxTxGxK.shape[3], v_BWxTxGxV.shape[3]
        fitting = (few for few in range(1, heads) if heads % few == 0 and all(few * dim % LANES == 0 for dim in dims))
        at_once = max(count for count in range(1, MOST_CHUNKS + 1) if chunks % count == 0)
        return cls(next(fitting, heads), at_once, chunks // at_once, interpret)

    def bytes_on_chip(self, key_dim: int, value_dim: int) -> int:
        """Bytes that the backward pass holds on the chip: blocks twice, as the next ones arrive while it works."""
        tokens, state = self.chunks * CHUNK * (key_dim + value_dim), key_dim * value_dim
        return 4 * self.heads * (2 * 2 * tokens + 2 * 4 * state + (self.chunks + 1) * state + self.chunks * CHUNK**2)


def refuses(k_BWxTxGxK: jax.Array, v_BWxTxGxV: jax.Array) -> str | None:
    """Reason why the kernel cannot write these keys and values, or None."""
    tokens, dims = k_BWxTxGxK.shape[1], (k_BWxTxGxK.shape[3], v_BWxTxGxV.shape[3])
    if {k_BWxTxGxK.dtype, v_BWxTxGxV.dtype} - {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}:
        return f"takes float32 and bfloat16, not {k_BWxTxGxK.dtype} and {v_BWxTxGxV.dtype}"
    if tokens % CHUNK:
        return f"takes segments that {CHUNK} divides, not {tokens}"
    if any(dim % DIM_STEP for dim in dims):
        return f"takes dims that {DIM_STEP} divides, not {dims[0]} and {dims[1]}"
    needed = Plan.of(k_BWxTxGxK, v_BWxTxGxV).bytes_on_chip(*dims)
    return None if needed <= MOST_BYTES else f"needs {needed / 2**20:.0f} MiB on the chip"


def written(
    S_BxGxKxV: jax.Array,
    k_BWxTxGxK: jax.Array,
    v_BWxTxGxV: jax.Array,
    beta_BWxTxG: jax.Array,
    g_BWxTxG: jax.Array,
    keeps_BxW: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(S before each of W consecutive segments BxWxGxKxV, S after the last) of the gated delta rule.

    Args:
      S_BxGxKxV: S before the first segment.
      k_BWxTxGxK: keys of any length, the rows of all segments; the kernel makes their length one.
      v_BWxTxGxV: values.
      beta_BWxTxG: write strengths, zero where nothing is written.
      g_BWxTxG: log decays, zero where nothing is written.
      keeps_BxW: whether S survives the segment; where it does not, the segment's first write begins from zero.
      interpret: whether to run the kernel's own program without a TPU, slowly.
    """
    plan, batch = Plan.of(k_BWxTxGxK, v_BWxTxGxV, interpret), S_BxGxKxV.shape[0]

    def in_rows(x_BWxTxGxK: jax.Array) -> jax.Array:
        """All heads of a token side by side, which is how a projection leaves them."""
        return x_BWxTxGxK.reshape(batch, -1, math.prod(x_BWxTxGxK.shape[2:]))

    def in_chunks(x_BWxTxG: jax.Array) -> jax.Array:
        """BxGxNxcxC, c chunks in a block: whole tiles whatever the number of heads is."""
        x_BxGxt = jnp.moveaxis(in_rows(x_BWxTxG[..., None]), 2, 1).astype(S_BxGxKxV.dtype)
        return x_BxGxt.reshape(*x_BxGxt.shape[:2], -1, plan.chunks, CHUNK)

    arrays = in_rows(k_BWxTxGxK), in_rows(v_BWxTxGxV), in_chunks(beta_BWxTxG), in_chunks(g_BWxTxG)
    return _written(plan, S_BxGxKxV, *arrays, keeps_BxW.astype(jnp.int32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _written(plan: Plan, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(S before each segment BxWxGxKxV, S after the last BxGxKxV) of the arrays that `_forward` takes."""
    return _forward(plan, *arrays)[0]


def _forward(plan: Plan, S_BxGxKxV, k_Bxtxx, v_Bxtxx, beta_BxGxNxcxC, g_BxGxNxcxC, keeps_BxW):
    """(Results, what the gradient needs): t tokens of all segments, whose heads lie side by side; c chunks in a block."""
    count, arrays = g_BxGxNxcxC.shape[2], (k_Bxtxx, v_Bxtxx, beta_BxGxNxcxC, g_BxGxNxcxC)
    tiles = Tiles(plan, count, *S_BxGxKxV.shape[2:], place=lambda n: n)
    before = jax.ShapeDtypeStruct((S_BxGxKxV.shape[0], count, *S_BxGxKxV.shape[1:]), S_BxGxKxV.dtype)
    before_BxNxGxKxV, after_BxGxKxV = tiles.call(
        _forward_kernel, (keeps_BxW, S_BxGxKxV, *arrays), ("keeps", "state", *TOKENS), (before, S_BxGxKxV), ("states", "state")
    )
    return (before_BxNxGxKxV[:, :: plan.blocks], after_BxGxKxV), (before_BxNxGxKxV, *arrays, keeps_BxW)


def _backward(plan: Plan, saved: tuple[jax.Array, ...], gradients: tuple[jax.Array, jax.Array]):
    (before_BxNxGxKxV, *arrays, keeps_BxW), (E_BxWxGxKxV, last_BxGxKxV) = saved, gradients
    count, dims = before_BxNxGxKxV.shape[1], before_BxNxGxKxV.shape[3:]
    tiles = Tiles(plan, count, *dims, place=lambda n: count - 1 - n)
    given = keeps_BxW, before_BxNxGxKxV, *arrays, E_BxWxGxKxV, last_BxGxKxV
    kinds = "keeps", "states", *TOKENS, "reads", "state"
    kept = (plan.chunks + 1, plan.heads, *dims), (plan.chunks, plan.heads, CHUNK, CHUNK)
    return *tiles.call(_backward_kernel, given, kinds, (last_BxGxKxV, *arrays), ("state", *TOKENS), kept), None


_written.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Which part of each array a cell of the grid (row, heads, block) has on the chip.

    Attributes:
      plan: how the work is taken apart.
      count: number of blocks of all segments.
      key_dim: size of a key.
      value_dim: size of a value.
      place: function of a block's turn that gives its place.
    """

    plan: Plan
    count: int
    key_dim: int
    value_dim: int
    place: Callable[[Any], Any]

    def of(self, kind: str) -> pl.BlockSpec:
        """The part of an array of this kind: one of `TOKENS`, keeps, state, states (before blocks) or reads (of segments)."""
        plan, place = self.plan, self.place
        heads, tokens, state = plan.heads, plan.chunks * CHUNK, (plan.heads, self.key_dim, self.value_dim)
        return {
            "keeps": lambda: pl.BlockSpec(memory_space=pltpu.SMEM),
            "state": lambda: pl.BlockSpec((1, *state), lambda b, h, n: (b, h, 0, 0)),
            "states": lambda: pl.BlockSpec((1, 1, *state), lambda b, h, n: (b, place(n), h, 0, 0)),
            "reads": lambda: pl.BlockSpec((1, 1, *state), lambda b, h, n: (b, _divided(place(n), plan.blocks)[0], h, 0, 0)),
            "keys": lambda: pl.BlockSpec((1, tokens, heads * self.key_dim), lambda b, h, n: (b, place(n), h)),
            "values": lambda: pl.BlockSpec((1, tokens, heads * self.value_dim), lambda b, h, n: (b, place(n), h)),
            "gates": lambda: pl.BlockSpec((1, heads, 1, plan.chunks, CHUNK), lambda b, h, n: (b, h, place(n), 0, 0)),
        }[kind]()

    def call(self, kernel: Callable, given, kinds, results, result_kinds, scratch=()) -> tuple[jax.Array, ...]:
        """The results of a kernel, with the shapes and types of `results`; blocks of a row's heads in turn."""
        batch, heads = results[-1].shape[0], given[1].shape[-3]
        return pl.pallas_call(
            functools.partial(kernel, self.plan),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
            grid=(batch, heads // self.plan.heads, self.count),
            in_specs=[self.of(kind) for kind in kinds],
            out_specs=[self.of(kind) for kind in result_kinds],
            scratch_shapes=[pltpu.VMEM(shape, given[1].dtype) for shape in scratch],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
            interpret=self.plan.interpret,
        )(*given)


# ---- inside the chip -----------------------------------------------------------------------------------------------------


def _forward_kernel(plan: Plan, keeps_ref, S_ref, k_ref, v_ref, beta_ref, g_ref, before_ref, after_ref) -> None:
    """One block forwards: the memory stays in `after_ref` from block to block."""
    n, tokens = pl.program_id(2), (k_ref, v_ref, beta_ref, g_ref)
    is_new = _is_new(plan, keeps_ref, n)

    @pl.when(n == 0)
    def _():
        after_ref[...] = S_ref[...]

    before_ref[0] = after_ref[...]

    @pl.when(is_new)
    def _():
        after_ref[...] = jnp.zeros_like(after_ref)

    def chunk(c, _):
        for head in range(plan.heads):
            after_ref[0, head], _ = write_chunk(after_ref[0, head], *(x[place] for x, place in _of_chunk(tokens, c, head)))

    jax.lax.fori_loop(0, plan.chunks, chunk, None)


def _backward_kernel(plan: Plan, keeps_ref, before_ref, k_ref, v_ref, beta_ref, g_ref, E_ref, last_ref, D_ref, *rest) -> None:
    """One block backwards: the gradient by the memory stays in `D_ref` from block to block.

    `rest` are the gradients of keys, values and gates, then room for the memory before each chunk and each chunk's inverse.
    """
    *slopes, S_ref, X_ref = rest
    turn, tokens = pl.program_id(2), (k_ref, v_ref, beta_ref, g_ref)
    n = pl.num_programs(2) - 1 - turn
    is_new = _is_new(plan, keeps_ref, n)

    @pl.when(turn == 0)
    def _():
        D_ref[...] = last_ref[...]

    S_ref[0] = jnp.where(is_new, 0.0, before_ref[0, 0])

    def again(c, _):
        for head in range(plan.heads):
            inputs = [x[place] for x, place in _of_chunk(tokens, c, head)]
            with jax.named_scope(MADE_AGAIN):
                S_ref[c + 1, head], X_ref[c, head] = write_chunk(S_ref[c, head], *inputs)

    def back(turn, _):
        c = plan.chunks - 1 - turn
        for head in range(plan.heads):
            places = _of_chunk(tokens, c, head)
            inputs, X = (S_ref[c, head], *(x[place] for x, place in places)), X_ref[c, head]
            _, pull = jax.vjp(lambda *inputs, X=X: write_chunk(*inputs, known=X)[0], *inputs)
            D_ref[0, head], *found = pull(D_ref[0, head])
            for slope_ref, (_, place), slope in zip(slopes, places, found, strict=True):
                slope_ref[place] = slope

    jax.lax.fori_loop(0, plan.chunks, again, None)
    jax.lax.fori_loop(0, plan.chunks, back, None)

    @pl.when(is_new)
    def _():
        D_ref[...] = jnp.zeros_like(D_ref)

    @pl.when(_divided(n, plan.blocks)[1] == 0)
    def _():
        D_ref[...] += E_ref[0]


def _is_new(plan: Plan, keeps_ref, n):
    """Whether the block opens a segment that does not keep the memory."""
    segment, block = _divided(n, plan.blocks)
    return (block == 0) & (keeps_ref[pl.program_id(0), segment] == 0)


def _divided(n: jax.Array, by: int) -> tuple[jax.Array, jax.Array]:
    """(quotient, rest) of a number that is not negative; `divmod` asks for signs, and with them for the TPU at hand."""
    return jax.lax.div(n, jnp.asarray(by, n.dtype)), jax.lax.rem(n, jnp.asarray(by, n.dtype))


def _of_chunk(tokens, c, head: int) -> list[tuple[Any, tuple]]:
    """(array, place in it) of a head's keys and values CxK, CxV and gates 1xC in a chunk of the block."""
    k_ref, v_ref, beta_ref, g_ref = tokens
    heads = beta_ref.shape[1]

    def lanes(ref) -> tuple:
        size = ref.shape[2] // heads
        return 0, pl.ds(pl.multiple_of(c * CHUNK, CHUNK), CHUNK), pl.ds(head * size, size)

    gate = 0, head, 0, pl.ds(c, 1), slice(None)
    return [(k_ref, lanes(k_ref)), (v_ref, lanes(v_ref)), (beta_ref, gate), (g_ref, gate)]


def write_chunk(
    S_KxV: jax.Array,
    k_CxK: jax.Array,
    v_CxV: jax.Array,
    beta_1xC: jax.Array,
    g_1xC: jax.Array,
    known: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(S after a chunk, the chunk's inverse CxC), which is `known` where it is not found anew."""
    size, wide = g_1xC.shape[1], S_KxV.dtype
    row_CxC, column_CxC = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))

    def upright(x_1xC: jax.Array, mask_CxC: jax.Array) -> jax.Array:
        """Sums Cx1 of a row of numbers over each row of a mask."""
        return jnp.sum(jnp.where(mask_CxC, x_1xC, 0.0), axis=1, keepdims=True)

    k_CxK, v_CxV = unit(k_CxK.astype(wide)), v_CxV.astype(wide)
    beta_Cx1, G_Cx1 = upright(beta_1xC, row_CxC == column_CxC), upright(g_1xC, row_CxC >= column_CxC)
    G_1xC = jnp.sum(jnp.where(row_CxC == column_CxC, G_Cx1, 0.0), axis=0, keepdims=True)
    # masked before the exponential: above the diagonal it would overflow
    decay_CxC = jnp.exp(jnp.where(row_CxC > column_CxC, G_Cx1 - G_1xC, -jnp.inf))
    A_CxC = beta_Cx1 * decay_CxC * _product(k_CxK, k_CxK, (1, 1))
    X_CxC = unit_lower_inverse(A_CxC) if known is None else _known_inverse(A_CxC, known)
    u_CxV = _product(X_CxC, beta_Cx1 * (v_CxV - jnp.exp(G_Cx1) * _product(k_CxK, S_KxV)))
    end_1x1 = jnp.sum(g_1xC, axis=1, keepdims=True)
    return jnp.exp(end_1x1) * S_KxV + _product(jnp.exp(end_1x1 - G_Cx1) * k_CxK, u_CxV, (0, 0)), X_CxC


def _product(left: jax.Array, right: jax.Array, contracted: tuple[int, int] = (1, 0)) -> jax.Array:
    """A product of matrices in full precision: by default a TPU rounds what it multiplies to bfloat16."""
    (one, other), exact = contracted, jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(left, right, (((one,), (other,)), ((), ())), precision=exact)


def unit_lower_inverse(A_CxC: jax.Array) -> jax.Array:
    """(I + A)^-1 of a strictly lower triangular matrix whose size is a power of two.

    As `gated_delta.unit_lower_inverse`, by halves, but of all blocks of a size at once and without taking them out: where X
    has the inverses of blocks on its diagonal and L what stands between two of them, those of the pairs are X - X L X.
    """
    size = A_CxC.shape[0]
    row_CxC, column_CxC = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    X_CxC = jnp.where(row_CxC == column_CxC, 1.0, 0.0).astype(A_CxC.dtype)
    for level in range(size.bit_length() - 1):  # blocks of 2^level
        is_pair_CxC = row_CxC >> (level + 1) == column_CxC >> (level + 1)
        L_CxC = jnp.where(is_pair_CxC & (row_CxC >> level > column_CxC >> level), A_CxC, 0.0)
        X_CxC = X_CxC - (_product(_product(X_CxC, L_CxC), X_CxC) if level else L_CxC)
    return X_CxC


@jax.custom_vjp
def _known_inverse(A_CxC: jax.Array, X_CxC: jax.Array) -> jax.Array:
    """X = (I + A)^-1 where it was found before, with its gradient."""
    return X_CxC


def _known_inverse_backward(X_CxC: jax.Array, dX_CxC: jax.Array) -> tuple[jax.Array, None]:
    return -_product(_product(X_CxC, dX_CxC, (0, 0)), X_CxC, (1, 1)), None


_known_inverse.defvjp(lambda A_CxC, X_CxC: (X_CxC, X_CxC), _known_inverse_backward)
