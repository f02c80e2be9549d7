"""The continuous signal of the ∞-former (arXiv 2109.00301): its basis, regression, contraction, and its use by queries.

mechanism.py holds the equations in order and the parameters; here is the mathematics as plain functions.
Letters: T vectors written at once (the paper's L), D model (its e), N basis functions, C = N / widths their centers, M samples
of the old signal, P regression positions, Q queries of all heads that read the same signal.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from infini_jax.layers.grouped_heads import by_key_head
from infini_jax.layers.platforms import unrolled
from infini_jax.layers.segment import reset_where_new

# Coefficients are large and alternate in sign where the signal is small: bf16 products, a TPU's default, rebuild it with an
# error of 3-15 % after six writes.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

VARIANCE_FLOOR = 1e-6  # of the released sorting code, 1e-4 in the GPT-2 code: keeps log(sigma^2) finite


def basis(count: int, widths: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(centers, widths) of the basis, each N float64: every center of linspace(0, 1, N / len(widths)) with every width."""
    centres = np.linspace(0.0, 1.0, count // len(widths))
    return np.repeat(centres, len(widths)), np.tile(np.asarray(widths, np.float64), len(centres))


def gaussian(t, mean, variance):
    """The density N(t; mean, variance), on NumPy or JAX arrays, broadcast."""
    xp = t.__array_namespace__()
    # Divisions and roots of the variance, which many t share, not of every element.
    return xp.exp((t - mean) ** 2 * (-0.5 / variance)) * (1.0 / xp.sqrt(2.0 * np.pi * variance))


def psi(t, mu_N, sigma_N):
    """The basis functions at times t of any shape (...): (..., N)."""
    return gaussian(t[..., None], mu_N, sigma_N**2)


def ridge_matrix(positions_P: np.ndarray, count: int, widths: tuple[float, ...], penalty: float) -> np.ndarray:
    """F^T (F F^T + lambda I)^-1, PxN. Float64 on the host: its condition is above 1e6, float32 is off by several percent."""
    F_NxP = psi(positions_P, *basis(count, widths)).T
    factor = scipy.linalg.cho_factor(F_NxP @ F_NxP.T + penalty * np.eye(count))
    return scipy.linalg.cho_solve(factor, F_NxP).T


@functools.lru_cache(maxsize=32)
def first_write_matrix(length: int, count: int, widths: tuple[float, ...], penalty: float) -> np.ndarray:
    """Matrix G of a first write, TxN float64: vectors stand at (i + 1/2) / T, T // 2 zero vectors before and after."""
    pad = length // 2
    positions = (np.arange(-pad, length + pad) + 0.5) / length
    return ridge_matrix(positions, count, widths, penalty)[pad : pad + length]


@functools.lru_cache(maxsize=32)
def update_matrix(length: int, count: int, widths: tuple[float, ...], penalty: float, samples: int, tau: float) -> np.ndarray:
    """Matrix G_inf of a later write, (M + T)xN float64: old samples at tau m/M, new vectors at tau + (1 - tau) i/T.

    Zero vectors surround them, at the released code's places (its shift is 1 / (2T + M), not 1 / (2T + 2M)).
    """
    shift = 1.0 / (2 * length + samples)
    padding = np.linspace(-0.5 + shift, 1.5 - shift, 2 * (length + samples))
    before, after = padding[padding < 0], padding[padding > 1]
    old = tau * np.arange(1, samples + 1) / samples
    _, new = write_places(length, tau)
    matrix = ridge_matrix(np.concatenate([before, old, new, after]), count, widths, penalty)
    return matrix[len(before) : len(before) + samples + length]


def write_places(length: int, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """(places of a segment's vectors in a first write, their places in a later one), each T float64."""
    return (np.arange(length) + 0.5) / length, tau + (1 - tau) * np.arange(1, length + 1) / length


def sample_times(samples: int) -> np.ndarray:
    """Times t_m = m / M where the old signal is sampled: M float64."""
    return np.arange(1, samples + 1) / samples


@functools.lru_cache(maxsize=32)
def contraction_matrix(
    length: int, count: int, widths: tuple[float, ...], penalty: float, samples: int, tau: float
) -> np.ndarray:
    """Matrix from the old coefficients to their part of the new ones with even sampling, NxN float64.

    It is the part of G_inf that takes samples of the old signal, times psi(t_m).
    """
    update = update_matrix(length, count, widths, penalty, samples, tau)
    return update[:samples].T @ psi(sample_times(samples), *basis(count, widths))


def gate(x_BxTxD: jax.Array, kernel_3xDxD: jax.Array, bias_D: jax.Array) -> jax.Array:
    """X * sigmoid(Conv1d(X)), width 3, zeros beyond the segment's ends: BxTxD.

    It is computed as a product with each vector's neighborhood: XLA's convolution takes half of a training step on a CPU.
    """
    length = x_BxTxD.shape[1]
    padded = jnp.pad(x_BxTxD, [(0, 0), (1, 1), (0, 0)])
    neighbours_BxTx3D = jnp.concatenate([padded[:, tap : tap + length] for tap in range(3)], axis=-1)
    return x_BxTxD * nn.sigmoid(neighbours_BxTx3D @ kernel_3xDxD.reshape(-1, kernel_3xDxD.shape[-1]) + bias_D)


def resampled(B_BxNxD: jax.Array, functions: jax.Array, old_MxN: jax.Array) -> jax.Array:
    """The old signal sampled by the functions psi, MxN or BxMxN, and fitted at its new place: G_old^T (psi B), BxNxD."""
    return einsum("mn,bmd->bnd", old_MxN, jnp.matmul(functions, B_BxNxD, precision=jax.lax.Precision.HIGHEST))


def write_signal(
    contracted_BxNxD: jax.Array, x_BxTxD: jax.Array, continues_B: jax.Array, first_TxN: jax.Array, new_TxN: jax.Array
) -> jax.Array:
    """Coefficients after a write, BxNxD: past plus G_inf^T X in rows that continue a signal, G^T X in the others.

    Args:
      contracted_BxNxD: contribution of the old signal's samples, not looked at in rows that begin one. Detached here.
      x_BxTxD: X, the vectors that are written.
      continues_B: whether a row continues a signal.
      first_TxN, new_TxN: G, and the rows of G_inf that belong to new vectors.
    """
    old_BxNxD = reset_where_new(continues_B, jax.lax.stop_gradient(contracted_BxNxD))
    return old_BxNxD + added_signal(x_BxTxD, continues_B, first_TxN, new_TxN)


def added_signal(x_BxTxD: jax.Array, continues_B: jax.Array, first_TxN: jax.Array, new_TxN: jax.Array) -> jax.Array:
    """What the vectors X add to the coefficients, BxNxD, see `write_signal`."""
    # Select the matrix, not the result: one product with X instead of two.
    matrix_BxTxN = jnp.where(continues_B[:, None, None], new_TxN, first_TxN)
    return einsum("btn,btd->bnd", matrix_BxTxN, x_BxTxD)


def pasts(
    B_BxNxD: jax.Array, added_WxBxNxD: jax.Array, continues_WxB: jax.Array, contract: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The past's part of the coefficients after each of W writes, WxBxNxD, without gradient.

    As the old signal is detached where it is contracted, this recurrence is all of a write that has to be done in turn, and
    only forwards.

    Args:
      B_BxNxD: coefficients before the first write.
      added_WxBxNxD: what each write adds, `added_signal`.
      continues_WxB: whether a row continues a signal; in the others nothing is left of it.
      contract: function from coefficients to their part of the next ones, BxNxD.
    """

    def step(B_BxNxD: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        added_BxNxD, continues_B = item
        past_BxNxD = reset_where_new(continues_B, contract(B_BxNxD))
        return past_BxNxD + added_BxNxD, past_BxNxD

    turns = jax.lax.stop_gradient((added_WxBxNxD, continues_WxB))
    _, past_WxBxNxD = jax.lax.scan(step, jax.lax.stop_gradient(B_BxNxD), turns, unroll=unrolled(len(added_WxBxNxD)))
    return past_WxBxNxD


def stored_fit(B_BxNxD: jax.Array, x_BxTxD: jax.Array, counted_BxT: jax.Array, psi_BxTxN: jax.Array) -> jax.Array:
    """R^2 per row of the counted vectors X in the signal of the coefficients: 1 is exact, 0 no better than their mean."""
    weights_BxTx1 = counted_BxT[..., None].astype(x_BxTxD.dtype)
    count_Bx1x1 = jnp.maximum(weights_BxTx1.sum(axis=1, keepdims=True), 1.0)
    mean_Bx1xD = (x_BxTxD * weights_BxTx1).sum(axis=1, keepdims=True) / count_Bx1x1
    missed_B = (weights_BxTx1 * (x_BxTxD - einsum("btn,bnd->btd", psi_BxTxN, B_BxNxD)) ** 2).sum(axis=(1, 2))
    varied_B = (weights_BxTx1 * (x_BxTxD - mean_Bx1xD) ** 2).sum(axis=(1, 2))
    return 1.0 - missed_B / jnp.where(varied_B > 0, varied_B, 1.0)


def density_parameters(
    q_BxSxHxK: jax.Array,
    B_BxNxD: jax.Array,
    w_k_DxGxK: jax.Array,
    w_mu_N: jax.Array,
    w_sigma_N: jax.Array,
    floor: float = VARIANCE_FLOOR,
) -> tuple[jax.Array, jax.Array]:
    """(mu, sigma^2) of each query's density over time, each BxHxS; `floor` is the least sigma^2.

    w . z = q . W_k (w^T B) / sqrt(K): neither the keys of the basis nor the scores z are ever formed.
    """
    batch, queries, heads, size = q_BxSxHxK.shape
    summary_Bx2xD = einsum("in,bnd->bid", jnp.stack([w_mu_N, w_sigma_N]), B_BxNxD)
    directions_Bx2xGxK = einsum("bid,dgk->bigk", summary_Bx2xD, w_k_DxGxK)
    q_BxSxGxRxK = by_key_head(q_BxSxHxK, w_k_DxGxK.shape[1])
    logits_2xBxHxS = (
        einsum("bsgrk,bigk->ibgrs", q_BxSxGxRxK, directions_Bx2xGxK).reshape(2, batch, heads, queries) * size**-0.5
    )
    return nn.sigmoid(logits_2xBxHxS[0]), jnp.maximum(nn.softplus(logits_2xBxHxS[1]), floor)


def kl(sigma_sq: jax.Array, sigma_0: float) -> jax.Array:
    """KL(N(mu, sigma^2) || N(mu, sigma_0^2)), elementwise: 0 at sigma = sigma_0."""
    ratio = sigma_sq / sigma_0**2
    return 0.5 * (ratio - jnp.log(ratio) - 1.0)
