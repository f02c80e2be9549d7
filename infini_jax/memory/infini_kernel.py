"""Infini-attention's read and write as Pallas kernels for TPUs: what they move is their inputs and results, each once.

The plain form copies queries, keys, values and their gradients into an order with the heads outside and back, as float32.
Here the memory of a few heads stays on the chip while their tokens stream past as they lie, a block of chunks at a time;
features exist on the chip only, where the gradient finds them again.

Per head, f = sigma(x) = elu(x) + 1 of a query or key x, with the equation numbers of `infini`, and with a gradient's name
in front of what it is the gradient of:
  eq. 7    A = n / m,  n = f M,  m = f z
           dn = dA / m,  dm = -dn.(f M) / m = -f.(dn M^T) / m,  df = dn M^T + dm z,  dM = f^T dn,  dz = dm f
  eq. 8    M' = M + f^T V,  z' = z + f                        df = V dM'^T + dz',  dV = f dM'
  eq. 9    M' = M + f^T U,  z' = z + f,  U = V - A            as eq. 8 with U for V, and through A, where dA = -dU
  dx = min(f, 1) df, as sigma's slope is sigma itself below zero and one above
Products take the precision that is set for the program, as those of the plain form do; everything else is float32 at least.
Letters: B rows, T tokens of a segment, H query heads, G key heads, K their dim, which is that of features, V values' dim; C
tokens of a chunk.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from infini_jax.layers.blockwise import MADE_AGAIN
from infini_jax.memory.tiles import MOST_BYTES, fewest_heads, in_rows, refuses_tokens

CHUNK = 128  # tokens whose features are made at once
MOST_CHUNKS = 16  # of a block
Update = Literal["linear", "delta"]


@dataclasses.dataclass(frozen=True)
class Cells:
    """How a kernel takes its work apart: a cell is a block of tokens of a row's few key heads.

    Attributes:
      heads: number of key heads that a cell has at once.
      queries: number of query heads for each of them.
      chunks: number of chunks in a block.
      scale: factor of queries and keys in front of sigma.
      interpret: whether to run the kernel's own program without a TPU, slowly.
    """

    heads: int
    queries: int
    chunks: int
    scale: float
    interpret: bool

    @classmethod
    def of(cls, M_BxGxKxV: jax.Array, x_BxTxHxK: jax.Array, scale: float = 1.0, interpret: bool = False) -> "Cells":
        """The cells for queries or keys: as few heads as fill whole tiles, or all; as many chunks as find room, or one."""
        (_, heads, *dims), (_, tokens, all_heads, _) = M_BxGxKxV.shape, x_BxTxHxK.shape
        one = cls(fewest_heads(heads, tuple(dims)), all_heads // heads, 1, scale, interpret)
        larger = (
            dataclasses.replace(one, chunks=count) for count in range(MOST_CHUNKS, 1, -1) if tokens // CHUNK % count == 0
        )
        return next((cells for cells in larger if cells.bytes_on_chip(*dims) <= MOST_BYTES), one)

    def bytes_on_chip(self, key_dim: int, value_dim: int) -> int:
        """Bytes that the backward passes hold on the chip at most: all twice, as the next ones arrive while they work."""
        tokens, state = self.chunks * CHUNK * self.queries * (key_dim + value_dim), key_dim * (value_dim + 1)
        return 4 * self.heads * (2 * 2 * tokens + 2 * 3 * state)


def refuses(M_BxGxKxV: jax.Array, *tokens_BxTxHxK: jax.Array) -> str | None:
    """Reason why the kernels cannot take these queries, or keys and values, or None."""
    problem = refuses_tokens(tokens_BxTxHxK, CHUNK)
    if problem is None and M_BxGxKxV.dtype != jnp.float32:
        problem = f"takes a memory of float32, not {M_BxGxKxV.dtype}"
    needed = Cells.of(M_BxGxKxV, tokens_BxTxHxK[0]).bytes_on_chip(*M_BxGxKxV.shape[2:])
    return problem or (None if needed <= MOST_BYTES else f"needs {needed / 2**20:.0f} MiB on the chip")


def read(
    M_BxGxKxV: jax.Array, z_BxGxK: jax.Array, q_BxTxHxK: jax.Array, *, scale: float = 1.0, interpret: bool = False
) -> jax.Array:
    """A_mem of eq. 7, BxTxHxV in the type of the queries; zero where nothing was written.

    Args:
      M_BxGxKxV: associative matrix.
      z_BxGxK: sum of the feature-mapped keys.
      q_BxTxHxK: queries, without sigma.
      scale: factor of queries in front of sigma.
      interpret: whether to run the kernel's own program without a TPU, slowly.
    """
    cells = Cells.of(M_BxGxKxV, q_BxTxHxK, scale, interpret)
    a_BxTxx = _read(cells, M_BxGxKxV, z_BxGxK[:, :, None], in_rows(q_BxTxHxK))
    return a_BxTxx.reshape(*q_BxTxHxK.shape[:3], -1)


def written(
    M_BxGxKxV: jax.Array,
    z_BxGxK: jax.Array,
    k_BxTxGxK: jax.Array,
    v_BxTxGxV: jax.Array,
    keeps_B: jax.Array,
    first_B: jax.Array,
    update: Update,
    *,
    scale: float = 1.0,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(M, z) after a segment, by eq. 8 or eq. 9.

    Args:
      M_BxGxKxV: associative matrix before.
      z_BxGxK: sum of the feature-mapped keys before.
      k_BxTxGxK: keys, without sigma.
      v_BxTxGxV: values.
      keeps_B: whether the memory survives the segment; where it does not, the write begins from zero.
      first_B: place of the first token that is written; all later ones are.
      update: linear is eq. 8, delta eq. 9.
      scale: factor of keys in front of sigma.
      interpret: whether to run the kernel's own program without a TPU, slowly.
    """
    cells = Cells.of(M_BxGxKxV, k_BxTxGxK, scale, interpret)
    edges_Bx2 = jnp.stack([keeps_B, first_B], axis=1).astype(jnp.int32)
    arrays = M_BxGxKxV, z_BxGxK[:, :, None], in_rows(k_BxTxGxK), in_rows(v_BxTxGxV)
    M_BxGxKxV, z_BxGx1xK = _written(cells, update, edges_Bx2, *arrays)
    return M_BxGxKxV, z_BxGx1xK[:, :, 0]


# ---- what is kept for the gradient ---------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(cells: Cells, M_BxGxKxV: jax.Array, z_BxGx1xK: jax.Array, q_BxTxx: jax.Array) -> jax.Array:
    """`read` of queries whose heads lie side by side; so do those of the result."""
    heads, value_dim = M_BxGxKxV.shape[1] * cells.queries, M_BxGxKxV.shape[3]
    result = jax.ShapeDtypeStruct((*q_BxTxx.shape[:2], heads * value_dim), q_BxTxx.dtype)
    given = {"state": M_BxGxKxV, "sum": z_BxGx1xK, "queries": q_BxTxx}
    return _called(cells, _read_kernel, given, {"reads": result})[0]


def _read_forward(cells: Cells, *arrays: jax.Array):
    return _read(cells, *arrays), arrays


def _read_backward(cells: Cells, saved: tuple[jax.Array, ...], dA_BxTxx: jax.Array) -> tuple[jax.Array, ...]:
    M_BxGxKxV, z_BxGx1xK, q_BxTxx = saved
    given = {"state": M_BxGxKxV, "sum": z_BxGx1xK, "queries": q_BxTxx, "reads": dA_BxTxx}
    results = {"state": M_BxGxKxV, "sum": z_BxGx1xK, "queries": q_BxTxx}
    return _called(cells, _read_gradient_kernel, given, results)


_read.defvjp(_read_forward, _read_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _written(cells: Cells, update: Update, edges_Bx2: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(M, z) after the segment of (M, z, keys, values), whose heads lie side by side."""
    given = dict(zip(("edges", "state", "sum", "keys", "values"), (edges_Bx2, *arrays), strict=True))
    return _called(cells, functools.partial(_write_kernel, update), given, {"state": arrays[0], "sum": arrays[1]})


def _write_forward(cells: Cells, update: Update, edges_Bx2: jax.Array, *arrays: jax.Array):
    return _written(cells, update, edges_Bx2, *arrays), (edges_Bx2, *arrays)


def _write_backward(cells: Cells, update: Update, saved: tuple[jax.Array, ...], slopes: tuple[jax.Array, jax.Array]):
    edges_Bx2, M_BxGxKxV, z_BxGx1xK, k_BxTxx, v_BxTxx = saved
    dM_BxGxKxV, dz_BxGx1xK = slopes
    tokens = {"keys": k_BxTxx, "values": v_BxTxx}
    given = {"edges": edges_Bx2, "slope": dM_BxGxKxV, "slope_sum": dz_BxGx1xK, **tokens}
    if update == "linear":
        keeps_Bx1x1x1 = edges_Bx2[:, :1, None, None] > 0
        dk_BxTxx, dv_BxTxx = _called(cells, _linear_gradient_kernel, given, tokens)
        return None, *(jnp.where(keeps_Bx1x1x1, x, 0.0) for x in slopes), dk_BxTxx, dv_BxTxx
    before = {"state": M_BxGxKxV, "sum": z_BxGx1xK}
    given = {"edges": edges_Bx2, "slope": dM_BxGxKxV, "slope_sum": dz_BxGx1xK, **before, **tokens}
    return None, *_called(cells, _delta_gradient_kernel, given, before | tokens)


_written.defvjp(_write_forward, _write_backward)


def _called(
    cells: Cells, kernel: Callable, given: Mapping[str, jax.Array], results: Mapping[str, jax.Array]
) -> tuple[jax.Array, ...]:
    """The results of a kernel, in the shapes and types of `results`; arrays under the name of what they are.

    The grid is (row, heads, block); the blocks of a row's heads are taken in turn.
    """
    every = {**results, **given}
    batch, heads, key_dim, value_dim = next(every[name] for name in ("state", "slope") if name in every).shape
    tokens = next(every[name] for name in ("queries", "keys") if name in every).shape[1]
    few, block = cells.heads, cells.chunks * CHUNK
    many = few * cells.queries
    state, total = (pl.BlockSpec((1, few, *one), lambda b, h, n: (b, h, 0, 0)) for one in ((key_dim, value_dim), (1, key_dim)))
    widths = {"queries": many * key_dim, "reads": many * value_dim, "keys": few * key_dim, "values": few * value_dim}
    specs = {name: pl.BlockSpec((1, block, width), lambda b, h, n: (b, n, h)) for name, width in widths.items()}
    specs |= {"edges": pl.BlockSpec(memory_space=pltpu.SMEM), "state": state, "slope": state, "sum": total, "slope_sum": total}
    return pl.pallas_call(
        functools.partial(kernel, cells),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results.values()],
        grid=(batch, heads // few, tokens // block),
        in_specs=[specs[name] for name in given],
        out_specs=[specs[name] for name in results],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=cells.interpret,
    )(*given.values())


# ---- inside the chip -----------------------------------------------------------------------------------------------------


def _read_kernel(cells: Cells, M_ref, z_ref, q_ref, a_ref) -> None:
    """eq. 7 for a block of queries."""

    def chunk(c, head, own) -> None:
        f_CxK = _features(cells, q_ref[own(q_ref)], M_ref.dtype)
        a_CxV = _product(f_CxK, M_ref[0, head]) * _over_mass(f_CxK, z_ref[0, head])
        a_ref[own(a_ref)] = a_CxV.astype(a_ref.dtype)

    _each_chunk(cells, cells.queries, chunk)


def _read_gradient_kernel(cells: Cells, M_ref, z_ref, q_ref, dA_ref, dM_ref, dz_ref, dq_ref) -> None:
    """Gradients of eq. 7; those by M and z stay on the chip from block to block."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        dM_ref[...], dz_ref[...] = jnp.zeros_like(dM_ref), jnp.zeros_like(dz_ref)

    def chunk(c, head, own) -> None:
        f_CxK = _features(cells, q_ref[own(q_ref)], M_ref.dtype)
        df_CxK, dM_KxV, dz_1xK = read_gradient(M_ref[0, head], z_ref[0, head], f_CxK, dA_ref[own(dA_ref)])
        dM_ref[0, head] += dM_KxV
        dz_ref[0, head] += dz_1xK
        dq_ref[own(dq_ref)] = _by_sigma(cells, f_CxK, df_CxK).astype(dq_ref.dtype)

    _each_chunk(cells, cells.queries, chunk)


def _write_kernel(update: Update, cells: Cells, edges_ref, M_ref, z_ref, k_ref, v_ref, after_ref, sum_ref) -> None:
    """eq. 8 or eq. 9 for a block of keys: the memory after stays on the chip from block to block."""
    turn, keeps, first = _edges(cells, edges_ref)

    @pl.when(turn == 0)
    def _():
        after_ref[...], sum_ref[...] = _kept(keeps, M_ref[...]), _kept(keeps, z_ref[...])

    def chunk(c, head, own) -> None:
        f_CxK = _features(cells, k_ref[own(k_ref)], M_ref.dtype) * _is_written(first, c)
        v_CxV = v_ref[own(v_ref)].astype(M_ref.dtype)
        if update == "delta":
            v_CxV = v_CxV - _old(keeps, M_ref, z_ref, head, f_CxK)
        after_ref[0, head] += _product(f_CxK, v_CxV, (0, 0))
        sum_ref[0, head] += jnp.sum(f_CxK, axis=0, keepdims=True)

    _each_chunk(cells, 1, chunk)


def _linear_gradient_kernel(cells: Cells, edges_ref, D_ref, dz_ref, k_ref, v_ref, dk_ref, dv_ref) -> None:
    """Gradients of eq. 8 by keys and values; D is that by the memory after."""
    _, _, first = _edges(cells, edges_ref)

    def chunk(c, head, own) -> None:
        f_CxK = _features(cells, k_ref[own(k_ref)], D_ref.dtype) * _is_written(first, c)
        df_CxK = _product(v_ref[own(v_ref)].astype(D_ref.dtype), D_ref[0, head], (1, 1)) + dz_ref[0, head]
        dk_ref[own(dk_ref)] = _by_sigma(cells, f_CxK, df_CxK).astype(dk_ref.dtype)
        dv_ref[own(dv_ref)] = _product(f_CxK, D_ref[0, head]).astype(dv_ref.dtype)

    _each_chunk(cells, 1, chunk)


def _delta_gradient_kernel(
    cells: Cells, edges_ref, D_ref, dz_ref, M_ref, z_ref, k_ref, v_ref, dM_ref, dsum_ref, dk_ref, dv_ref
) -> None:
    """Gradients of eq. 9; D and dz are those by the memory after, dM and dsum those by the memory before."""
    turn, keeps, first = _edges(cells, edges_ref)

    @pl.when(turn == 0)
    def _():
        dM_ref[...], dsum_ref[...] = D_ref[...], dz_ref[...]

    def chunk(c, head, own) -> None:
        f_CxK = _features(cells, k_ref[own(k_ref)], M_ref.dtype) * _is_written(first, c)
        with jax.named_scope(MADE_AGAIN):
            u_CxV = v_ref[own(v_ref)].astype(M_ref.dtype) - _old(keeps, M_ref, z_ref, head, f_CxK)
        dU_CxV = _product(f_CxK, D_ref[0, head])
        M_KxV, z_1xK = _kept(keeps, M_ref[0, head]), _kept(keeps, z_ref[0, head])
        df_CxK, dM_KxV, dz_1xK = read_gradient(M_KxV, z_1xK, f_CxK, -dU_CxV)
        df_CxK = df_CxK + _product(u_CxV, D_ref[0, head], (1, 1)) + dz_ref[0, head]
        dM_ref[0, head] += dM_KxV
        dsum_ref[0, head] += dz_1xK
        dk_ref[own(dk_ref)] = _by_sigma(cells, f_CxK, df_CxK).astype(dk_ref.dtype)
        dv_ref[own(dv_ref)] = dU_CxV.astype(dv_ref.dtype)

    _each_chunk(cells, 1, chunk)

    @pl.when(turn == pl.num_programs(2) - 1)
    def _():
        dM_ref[...], dsum_ref[...] = _kept(keeps, dM_ref[...]), _kept(keeps, dsum_ref[...])


def read_gradient(M_KxV: jax.Array, z_1xK: jax.Array, f_CxK: jax.Array, dA_CxV: jax.Array) -> tuple[jax.Array, ...]:
    """Gradients of eq. 7 by features, M and z, of which no product is made again: (df CxK, dM KxV, dz 1xK)."""
    over_mass_Cx1 = _over_mass(f_CxK, z_1xK)
    dn_CxV = dA_CxV.astype(M_KxV.dtype) * over_mass_Cx1
    df_CxK = _product(dn_CxV, M_KxV, (1, 1))
    dm_Cx1 = -over_mass_Cx1 * jnp.sum(f_CxK * df_CxK, axis=1, keepdims=True)
    return df_CxK + dm_Cx1 * z_1xK, _product(f_CxK, dn_CxV, (0, 0)), jnp.sum(dm_Cx1 * f_CxK, axis=0, keepdims=True)


def _each_chunk(cells: Cells, queries: int, chunk: Callable) -> None:
    """Calls `chunk` with each chunk of the block and each head: its number, its key head, and its place in an array."""

    def turn(c, _) -> None:
        rows = pl.ds(pl.multiple_of(c * CHUNK, CHUNK), CHUNK)

        def own(number: int, ref) -> tuple:
            size = ref.shape[2] // (cells.heads * queries)
            return 0, rows, pl.ds(number * size, size)

        for number in range(cells.heads * queries):
            chunk(c, number // queries, functools.partial(own, number))

    jax.lax.fori_loop(0, cells.chunks, turn, None)


def _features(cells: Cells, x_CxK: jax.Array, wide: Any) -> jax.Array:
    """sigma(x) = elu(x) + 1 of scaled queries or keys; below zero it is e^x."""
    x_CxK = cells.scale * x_CxK.astype(wide)
    return jnp.where(x_CxK > 0, x_CxK + 1.0, jnp.exp(jnp.minimum(x_CxK, 0.0)))


def _by_sigma(cells: Cells, f_CxK: jax.Array, df_CxK: jax.Array) -> jax.Array:
    """The gradient by queries or keys of the one by their features; of features that were made zero it is zero."""
    return cells.scale * jnp.minimum(f_CxK, 1.0) * df_CxK


def _over_mass(f_CxK: jax.Array, z_1xK: jax.Array) -> jax.Array:
    """1 / (f z) Cx1, zero where nothing was written and NaN where z overflowed, as in `infini.normalised`."""
    mass_Cx1 = jnp.sum(f_CxK * z_1xK, axis=1, keepdims=True)
    is_empty_Cx1 = mass_Cx1 <= 0
    over_Cx1 = jnp.where(is_empty_Cx1, 0.0, 1.0 / jnp.where(is_empty_Cx1, 1.0, mass_Cx1))
    return jnp.where(jnp.isfinite(mass_Cx1), over_Cx1, jnp.nan)


def _old(keeps, M_ref, z_ref, head: int, f_CxK: jax.Array) -> jax.Array:
    """What the keys read of the memory before the segment, CxV."""
    M_KxV, z_1xK = _kept(keeps, M_ref[0, head]), _kept(keeps, z_ref[0, head])
    return _product(f_CxK, M_KxV) * _over_mass(f_CxK, z_1xK)


def _kept(keeps, state: jax.Array) -> jax.Array:
    """The part of a memory that survives the segment: all of it or nothing."""
    return jnp.where(keeps, state, 0.0)


def _edges(cells: Cells, edges_ref) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(number of the block, whether the row's memory is kept, place in the block of the row's first token that is written)."""
    row, turn = pl.program_id(0), pl.program_id(2)
    return turn, edges_ref[row, 0] > 0, edges_ref[row, 1] - turn * (cells.chunks * CHUNK)


def _is_written(first: jax.Array, c) -> jax.Array:
    """Whether each token of a chunk is written, Cx1."""
    place_Cx1 = jax.lax.broadcasted_iota(first.dtype, (CHUNK, 1), 0) + c.astype(first.dtype) * CHUNK
    return place_Cx1 >= first


def _product(left: jax.Array, right: jax.Array, contracted: tuple[int, int] = (1, 0)) -> jax.Array:
    (one, other), wide = contracted, left.dtype
    return jax.lax.dot_general(left, right, (((one,), (other,)), ((), ())), preferred_element_type=wide)
