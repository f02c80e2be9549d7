"""Infini-attention's read and write as Pallas kernels for TPUs: what they move is their inputs and results, each once.

The memory of a head stays on the chip while its tokens stream past, a block of chunks at a time; features exist on the chip
only, where the gradient finds them again. Heads lie outside, BxHxTxK, which is how attention's kernel takes them too: the
projections of a layer then write them so, where heads side by side would be copied for the one or the other.

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

CHUNK = 128  # tokens whose features are made at once
MOST_CHUNKS = 16  # of a block
LANES = 128  # of a tile
MOST_BYTES = 12 * 2**20  # on the chip; 16 MiB are a kernel's by default
Update = Literal["linear", "delta"]


@dataclasses.dataclass(frozen=True)
class Cells:
    """How a kernel takes its work apart: a cell is a block of tokens of a row's key head.

    Attributes:
      queries: number of query heads that share a key head.
      chunks: number of chunks in a block.
      scale: factor of queries and keys in front of sigma.
      interpret: whether to run the kernel's own program without a TPU, slowly.
    """

    queries: int
    chunks: int
    scale: float
    interpret: bool

    @classmethod
    def of(cls, M_BxGxKxV: jax.Array, x_BxTxHxK: jax.Array, scale: float = 1.0, interpret: bool = False) -> "Cells":
        """The cells for queries or keys: as many chunks in a block as find room, or one."""
        (_, heads, *dims), (_, tokens, all_heads, _) = M_BxGxKxV.shape, x_BxTxHxK.shape
        one = cls(all_heads // heads, 1, scale, interpret)
        dividing = (count for count in range(MOST_CHUNKS, 1, -1) if tokens // CHUNK % count == 0)
        larger = (dataclasses.replace(one, chunks=count) for count in dividing)
        return next((cells for cells in larger if cells.bytes_on_chip(*dims) <= MOST_BYTES), one)

    def bytes_on_chip(self, key_dim: int, value_dim: int) -> int:
        """Bytes that the backward passes hold on the chip at most: all twice, as the next ones arrive while they work."""
        tokens, state = self.chunks * CHUNK * self.queries * (key_dim + value_dim), key_dim * (value_dim + 1)
        return 4 * 2 * (2 * tokens + 3 * state)


def refuses(M_BxGxKxV: jax.Array, *tokens_BxTxHxK: jax.Array) -> str | None:
    """Reason why the kernels cannot take these queries, or keys and values, or None."""
    tokens, (key_dim, value_dim) = tokens_BxTxHxK[0].shape[1], M_BxGxKxV.shape[2:]
    unknown = {x.dtype for x in tokens_BxTxHxK} - {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}
    if unknown or M_BxGxKxV.dtype != jnp.float32:
        return f"takes float32 and bfloat16 and a memory of float32, not {tokens_BxTxHxK[0].dtype} and {M_BxGxKxV.dtype}"
    if tokens % CHUNK:
        return f"takes segments that {CHUNK} divides, not {tokens}"
    if key_dim % LANES or value_dim % LANES:  # narrower heads lie in tiles that are mostly empty
        return f"takes dims that {LANES} divides, not {key_dim} and {value_dim}"
    needed = Cells.of(M_BxGxKxV, tokens_BxTxHxK[0]).bytes_on_chip(key_dim, value_dim)
    return None if needed <= MOST_BYTES else f"needs {needed / 2**20:.0f} MiB on the chip"


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
    a_BxHxTxV: Any = _read(cells, M_BxGxKxV, z_BxGxK[:, :, None], q_BxTxHxK.swapaxes(1, 2))
    return a_BxHxTxV.swapaxes(1, 2)


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
    arrays = M_BxGxKxV, z_BxGxK[:, :, None], k_BxTxGxK.swapaxes(1, 2), v_BxTxGxV.swapaxes(1, 2)
    after: Any = _written(cells, update, edges_Bx2, *arrays)
    return after[0], after[1][:, :, 0]


# ---- what is kept for the gradient ---------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(cells: Cells, M_BxGxKxV: jax.Array, z_BxGx1xK: jax.Array, q_BxHxTxK: jax.Array) -> jax.Array:
    """`read` of queries whose heads lie outside; so do those of the result."""
    result = jax.ShapeDtypeStruct((*q_BxHxTxK.shape[:3], M_BxGxKxV.shape[3]), q_BxHxTxK.dtype)
    given = {"state": M_BxGxKxV, "sum": z_BxGx1xK, "queries": q_BxHxTxK}
    return _called(cells, _read_kernel, given, {"reads": result})[0]


def _read_forward(cells: Cells, *arrays: jax.Array):
    return _read(cells, *arrays), arrays


def _read_backward(cells: Cells, saved: tuple[jax.Array, ...], dA_BxHxTxV: jax.Array) -> tuple[jax.Array, ...]:
    M_BxGxKxV, z_BxGx1xK, q_BxHxTxK = saved
    given = {"state": M_BxGxKxV, "sum": z_BxGx1xK, "queries": q_BxHxTxK, "reads": dA_BxHxTxV}
    results = {"state": M_BxGxKxV, "sum": z_BxGx1xK, "queries": q_BxHxTxK}
    return _called(cells, _read_gradient_kernel, given, results)


_read.defvjp(_read_forward, _read_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _written(cells: Cells, update: Update, edges_Bx2: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(M, z) after the segment of (M, z, keys, values), whose heads lie outside."""
    M_BxGxKxV, z_BxGx1xK, k_BxGxTxK, v_BxGxTxV = arrays
    before = {"state": M_BxGxKxV, "sum": z_BxGx1xK}
    given = {"edges": edges_Bx2, **before, "keys": k_BxGxTxK, "values": v_BxGxTxV}
    after_BxGxKxV, sum_BxGx1xK = _called(cells, functools.partial(_write_kernel, update), given, before)
    return after_BxGxKxV, sum_BxGx1xK


def _write_forward(cells: Cells, update: Update, edges_Bx2: jax.Array, *arrays: jax.Array):
    return _written(cells, update, edges_Bx2, *arrays), (edges_Bx2, *arrays)


def _write_backward(cells: Cells, update: Update, saved: tuple[jax.Array, ...], slopes: tuple[jax.Array, jax.Array]):
    edges_Bx2, M_BxGxKxV, z_BxGx1xK, k_BxGxTxK, v_BxGxTxV = saved
    dM_BxGxKxV, dz_BxGx1xK = slopes
    tokens = {"keys": k_BxGxTxK, "values": v_BxGxTxV}
    given = {"edges": edges_Bx2, "state_slope": dM_BxGxKxV, "sum_slope": dz_BxGx1xK, **tokens}
    if update == "linear":
        keeps_Bx1x1x1 = edges_Bx2[:, :1, None, None] > 0
        dk_BxGxTxK, dv_BxGxTxV = _called(cells, _linear_gradient_kernel, given, tokens)
        return None, *(jnp.where(keeps_Bx1x1x1, x, 0.0) for x in slopes), dk_BxGxTxK, dv_BxGxTxV
    before = {"state": M_BxGxKxV, "sum": z_BxGx1xK}
    given = {"edges": edges_Bx2, "state_slope": dM_BxGxKxV, "sum_slope": dz_BxGx1xK, **before, **tokens}
    return None, *_called(cells, _delta_gradient_kernel, given, before | tokens)


_written.defvjp(_write_forward, _write_backward)


def _called(cells: Cells, kernel: Callable, given: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[jax.Array, ...]:
    """The results of a kernel, in the shapes and types of `results`; arrays under the name of what they are.

    The grid is (row, key head, block); the blocks of a row's head are taken in turn.
    """
    every = {**results, **given}
    batch, heads, key_dim, value_dim = next(every[name] for name in ("state", "state_slope") if name in every).shape
    tokens = next(every[name] for name in ("queries", "keys") if name in every).shape[2]
    many, block = cells.queries, cells.chunks * CHUNK
    sizes = {"queries": (many, key_dim), "reads": (many, value_dim), "keys": (1, key_dim), "values": (1, value_dim)}
    specs = {name: pl.BlockSpec((1, few, block, dim), lambda b, h, n: (b, h, n, 0)) for name, (few, dim) in sizes.items()}
    for name, shape in {"state": (key_dim, value_dim), "sum": (1, key_dim)}.items():
        specs[name] = specs[f"{name}_slope"] = pl.BlockSpec((1, 1, *shape), lambda b, h, n: (b, h, 0, 0))
    specs["edges"] = pl.BlockSpec(memory_space=pltpu.SMEM)
    return pl.pallas_call(
        functools.partial(kernel, cells),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results.values()],
        grid=(batch, heads, tokens // block),
        in_specs=[specs[name] for name in given],
        out_specs=[specs[name] for name in results],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=cells.interpret,
    )(*given.values())


# ---- inside the chip -----------------------------------------------------------------------------------------------------


def _read_kernel(cells: Cells, M_ref, z_ref, q_ref, a_ref) -> None:
    """eq. 7 for a block of queries."""

    def chunk(c, place) -> None:
        f_CxK = _features(cells, q_ref[place], M_ref.dtype)
        a_CxV = _product(f_CxK, M_ref[0, 0]) * _over_mass(f_CxK, z_ref[0, 0])
        a_ref[place] = a_CxV.astype(a_ref.dtype)

    _each_chunk(cells, cells.queries, chunk)


def _read_gradient_kernel(cells: Cells, M_ref, z_ref, q_ref, dA_ref, dM_ref, dz_ref, dq_ref) -> None:
    """Gradients of eq. 7; those by M and z stay on the chip from block to block."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        dM_ref[...], dz_ref[...] = jnp.zeros_like(dM_ref), jnp.zeros_like(dz_ref)

    def chunk(c, place) -> None:
        f_CxK = _features(cells, q_ref[place], M_ref.dtype)
        df_CxK, dM_KxV, dz_1xK = read_gradient(M_ref[0, 0], z_ref[0, 0], f_CxK, dA_ref[place])
        dM_ref[0, 0] += dM_KxV
        dz_ref[0, 0] += dz_1xK
        dq_ref[place] = _by_sigma(cells, f_CxK, df_CxK).astype(dq_ref.dtype)

    _each_chunk(cells, cells.queries, chunk)


def _write_kernel(update: Update, cells: Cells, edges_ref, M_ref, z_ref, k_ref, v_ref, after_ref, sum_ref) -> None:
    """eq. 8 or eq. 9 for a block of keys: the memory after stays on the chip from block to block."""
    turn, keeps, first = _edges(cells, edges_ref)

    @pl.when(turn == 0)
    def _():
        after_ref[...], sum_ref[...] = _kept(keeps, M_ref[...]), _kept(keeps, z_ref[...])

    def chunk(c, place) -> None:
        f_CxK = _features(cells, k_ref[place], M_ref.dtype) * _is_written(first, c)
        v_CxV = v_ref[place].astype(M_ref.dtype)
        if update == "delta":
            v_CxV = v_CxV - _old(keeps, M_ref, z_ref, f_CxK)
        after_ref[0, 0] += _product(f_CxK, v_CxV, (0, 0))
        sum_ref[0, 0] += jnp.sum(f_CxK, axis=0, keepdims=True)

    _each_chunk(cells, 1, chunk)


def _linear_gradient_kernel(cells: Cells, edges_ref, D_ref, dz_ref, k_ref, v_ref, dk_ref, dv_ref) -> None:
    """Gradients of eq. 8 by keys and values; D is that by the memory after."""
    _, _, first = _edges(cells, edges_ref)

    def chunk(c, place) -> None:
        f_CxK = _features(cells, k_ref[place], D_ref.dtype) * _is_written(first, c)
        df_CxK = _product(v_ref[place].astype(D_ref.dtype), D_ref[0, 0], (1, 1)) + dz_ref[0, 0]
        dk_ref[place] = _by_sigma(cells, f_CxK, df_CxK).astype(dk_ref.dtype)
        dv_ref[place] = _product(f_CxK, D_ref[0, 0]).astype(dv_ref.dtype)

    _each_chunk(cells, 1, chunk)


def _delta_gradient_kernel(
    cells: Cells, edges_ref, D_ref, dz_ref, M_ref, z_ref, k_ref, v_ref, dM_ref, dsum_ref, dk_ref, dv_ref
) -> None:
    """Gradients of eq. 9; D and dz are those by the memory after, dM and dsum those by the memory before."""
    turn, keeps, first = _edges(cells, edges_ref)

    @pl.when(turn == 0)
    def _():
        dM_ref[...], dsum_ref[...] = D_ref[...], dz_ref[...]

    def chunk(c, place) -> None:
        f_CxK = _features(cells, k_ref[place], M_ref.dtype) * _is_written(first, c)
        with jax.named_scope(MADE_AGAIN):
            u_CxV = v_ref[place].astype(M_ref.dtype) - _old(keeps, M_ref, z_ref, f_CxK)
        dU_CxV = _product(f_CxK, D_ref[0, 0])
        M_KxV, z_1xK = _kept(keeps, M_ref[0, 0]), _kept(keeps, z_ref[0, 0])
        df_CxK, dM_KxV, dz_1xK = read_gradient(M_KxV, z_1xK, f_CxK, -dU_CxV)
        df_CxK = df_CxK + _product(u_CxV, D_ref[0, 0], (1, 1)) + dz_ref[0, 0]
        dM_ref[0, 0] += dM_KxV
        dsum_ref[0, 0] += dz_1xK
        dk_ref[place] = _by_sigma(cells, f_CxK, df_CxK).astype(dk_ref.dtype)
        dv_ref[place] = dU_CxV.astype(dv_ref.dtype)

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


def _each_chunk(cells: Cells, heads: int, chunk: Callable) -> None:
    """Calls `chunk` with the number of each chunk of the block and its place, for each of so many heads."""

    def turn(c, _) -> None:
        for head in range(heads):
            chunk(c, (0, head, pl.ds(pl.multiple_of(c * CHUNK, CHUNK), CHUNK)))

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


def _old(keeps, M_ref, z_ref, f_CxK: jax.Array) -> jax.Array:
    """What the keys read of the memory before the segment, CxV."""
    M_KxV, z_1xK = _kept(keeps, M_ref[0, 0]), _kept(keeps, z_ref[0, 0])
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
