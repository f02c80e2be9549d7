"""∞-former (Martins, Marinho, Martins, ACL 2022, arXiv 2109.00301): the past as a continuous signal on [0, 1].

The layer's inputs X are regressed on N Gaussian densities psi; the memory is the matrix of coefficients B, and a query
reads it through one Gaussian density over time. Section numbers are the paper's:
  2.2  X(t) = B^T psi(t)                                               the signal that B stands for
  3.1  B = G^T X,  G = F^T (F F^T + lambda I)^-1, F = psi(positions)   first write, ridge regression
  3.1  z_j = q . (W_k B_j) / sqrt(d);  mu = sigmoid(w_mu . z);  sigma^2 = softplus(w_sigma . z)
  3.1  c = sum_j r_j W_v B_j,  r_j = E_p[psi_j], p = N(mu, sigma^2)    the long-term context, then its own W_o, then added
  3.2  B' = G_inf^T [X(t_1) .. X(t_M); X]                              later writes: the past contracted into [0, tau]
  code X <- X * sigmoid(Conv1d(X)) before every write                  the gate, a mask in the released code
  code KL(N(mu, sigma^2) || N(mu, sigma_0^2))                          regulariser, averaged over rows, heads and queries
Letters: T tokens of a segment (the paper's L), D model (its e), M samples of the old signal, P regression positions.

Gradients. B is detached where its old signal is sampled for a rewrite (`write_signal`) and nowhere else. So segment s+1
trains the gate and, through X, what lies below the layer in segment s; through this memory nothing reaches s-1. In a stack
X depends on the memories of the layers below, so a gradient can go one segment further back with each of them.
DEVIATION: the released code reads X from Transformer-XL's cache, which is detached and not normalised, and reads B in
the step that writes it. Here X is the layer's normalised input, B is written when the segment ends and read by the
next one, and X keeps its gradient: detached, only the gate would ever learn what is worth writing.
DEVIATION: rotary positions in the short-term attention, and no Transformer-XL cache: what every mechanism here has.
DEVIATION: a document that begins inside a segment is first written with zeros in place of the tokens before it; the paper
has no such case. The regression pads with zeros outside [0, 1] already, so this is more of the same.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import struct

from infini_jax.attention import attend_flops, attend_segment
from infini_jax.errors import require, require_positive
from infini_jax.memory import sticky
from infini_jax.memory.base import AUXILIARY, Cost, Dims, Memory, MemoryConfig, memory_bytes
from infini_jax.segment import Segment, reset_where_new

# Coefficients are large and alternate in sign where the signal is small: bf16 products, a TPU's default, rebuild it with an
# error of 3-15 % after six writes.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

VARIANCE_FLOOR = 1e-6  # of the released code: keeps log(sigma^2) finite


@struct.dataclass
class InfiniteMemory:
    """Attributes: B BxNxD coefficients of the signal; writes B int32, segments written since the document began; fit B, the
    R^2 with which the last of them was stored."""

    B: jax.Array
    writes: jax.Array
    fit: jax.Array


def basis(count: int, widths: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Centres and widths of the basis, each N float64: every centre of linspace(0, 1, N / len(widths)) with every width."""
    centres = np.linspace(0.0, 1.0, count // len(widths))
    return np.repeat(centres, len(widths)), np.tile(np.asarray(widths, np.float64), len(centres))


def gaussian(t, mean, variance):
    """The density N(t; mean, variance), on NumPy or JAX arrays, broadcast."""
    xp = t.__array_namespace__()
    return xp.exp(-0.5 * (t - mean) ** 2 / variance) / xp.sqrt(2.0 * np.pi * variance)


def psi(t, mu_N, sigma_N):
    """The basis functions at times t of any shape (...): (..., N)."""
    return gaussian(t[..., None], mu_N, sigma_N**2)


def ridge_matrix(positions_P: np.ndarray, count: int, widths: tuple[float, ...], penalty: float) -> np.ndarray:
    """F^T (F F^T + lambda I)^-1, PxN. Float64 on the host: its condition is above 1e6, float32 is per cents wrong."""
    F_NxP = psi(positions_P, *basis(count, widths)).T
    factor = scipy.linalg.cho_factor(F_NxP @ F_NxP.T + penalty * np.eye(count))
    return scipy.linalg.cho_solve(factor, F_NxP).T


@functools.lru_cache(maxsize=32)
def first_write_matrix(length: int, count: int, widths: tuple[float, ...], penalty: float) -> np.ndarray:
    """G, TxN float64: `length` vectors stand at (i + 1/2) / T, with T // 2 zero vectors before and after them."""
    pad = length // 2
    positions = (np.arange(-pad, length + pad) + 0.5) / length
    return ridge_matrix(positions, count, widths, penalty)[pad : pad + length]


@functools.lru_cache(maxsize=32)
def update_matrix(length: int, count: int, widths: tuple[float, ...], penalty: float, samples: int, tau: float) -> np.ndarray:
    """G_inf, (M + T)xN float64: samples of the old signal stand at tau m/M, new vectors at tau + (1 - tau) i/T.

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
    """Where the vectors of a segment stand in a first write, and in a later one: two T float64."""
    return (np.arange(length) + 0.5) / length, tau + (1 - tau) * np.arange(1, length + 1) / length


def sample_times(samples: int) -> np.ndarray:
    """t_m = m / M, where the old signal is sampled: M float64."""
    return np.arange(1, samples + 1) / samples


def gate(x_BxTxD: jax.Array, kernel_3xDxD: jax.Array, bias_D: jax.Array) -> jax.Array:
    """X * sigmoid(Conv1d(X)), width 3, zeros beyond the segment's ends: BxTxD."""
    mixed_BxTxD = jax.lax.conv_general_dilated(x_BxTxD, kernel_3xDxD, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return x_BxTxD * nn.sigmoid(mixed_BxTxD + bias_D)


def write_signal(
    B_BxNxD: jax.Array,
    x_BxTxD: jax.Array,
    continues_B: jax.Array,
    first_TxN: jax.Array,
    update_PxN: jax.Array,
    samples_MxN: jax.Array,
) -> jax.Array:
    """G_inf^T [psi(t) B; X] in rows that continue a signal, G^T X in the others: BxNxD.

    Args:
      B_BxNxD: coefficients of the signal so far, not looked at in rows that begin one. Detached here.
      first_TxN, update_PxN: G and G_inf, P = M + T.
      samples_MxN: psi(t) at the M times where the old signal is sampled; BxMxN where rows differ (sticky memories).
    """
    samples = samples_MxN.shape[-2]
    B_BxNxD = reset_where_new(continues_B, jax.lax.stop_gradient(B_BxNxD))
    old_BxMxD = jnp.matmul(samples_MxN, B_BxNxD, precision=jax.lax.Precision.HIGHEST)
    # Select the matrix, not the result: one product with X instead of two.
    new_BxTxN = jnp.where(continues_B[:, None, None], update_PxN[samples:], first_TxN)
    return _einsum("mn,bmd->bnd", update_PxN[:samples], old_BxMxD) + _einsum("btn,btd->bnd", new_BxTxN, x_BxTxD)


def stored_fit(B_BxNxD: jax.Array, x_BxTxD: jax.Array, counted_BxT: jax.Array, psi_BxTxN: jax.Array) -> jax.Array:
    """R^2 of the counted vectors X in the signal that B stands for: B, 1 is exact, 0 no better than their mean."""
    weights_BxTx1 = counted_BxT[..., None].astype(x_BxTxD.dtype)
    count_Bx1x1 = jnp.maximum(weights_BxTx1.sum(axis=1, keepdims=True), 1.0)
    mean_Bx1xD = (x_BxTxD * weights_BxTx1).sum(axis=1, keepdims=True) / count_Bx1x1
    missed_B = (weights_BxTx1 * (x_BxTxD - _einsum("btn,bnd->btd", psi_BxTxN, B_BxNxD)) ** 2).sum(axis=(1, 2))
    varied_B = (weights_BxTx1 * (x_BxTxD - mean_Bx1xD) ** 2).sum(axis=(1, 2))
    return 1.0 - missed_B / jnp.where(varied_B > 0, varied_B, 1.0)


def density_parameters(
    q_BxSxHxK: jax.Array, B_BxNxD: jax.Array, w_k_DxHxK: jax.Array, w_mu_N: jax.Array, w_sigma_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """mu and sigma^2 of each query's density over time: two BxHxS.

    w . z = q . W_k (w^T B) / sqrt(K): neither the keys of the basis nor the scores z are ever formed.
    """
    summary_Bx2xD = _einsum("rn,bnd->brd", jnp.stack([w_mu_N, w_sigma_N]), B_BxNxD)
    directions_Bx2xHxK = _einsum("brd,dhk->brhk", summary_Bx2xD, w_k_DxHxK)
    logits_2xBxHxS = _einsum("bshk,brhk->rbhs", q_BxSxHxK, directions_Bx2xHxK) * q_BxSxHxK.shape[-1] ** -0.5
    return nn.sigmoid(logits_2xBxHxS[0]), jnp.maximum(nn.softplus(logits_2xBxHxS[1]), VARIANCE_FLOOR)


@jax.custom_vjp
def expected_basis(mu_BxHxS: jax.Array, sigma_sq_BxHxS: jax.Array, mu_N: jax.Array, sigma_N: jax.Array) -> jax.Array:
    """r_j = N(mu; mu_j, sigma_j^2 + sigma^2), the mean of psi_j under the query's density on the whole line: BxHxSxN.

    Differentiable in mu and sigma^2. The gradient is written out because it needs r, which the product with the values
    keeps anyway, and one pass; autodiff keeps every intermediate of the size of r and takes three to four times as long.
    """
    return gaussian(mu_BxHxS[..., None], mu_N, sigma_N**2 + sigma_sq_BxHxS[..., None])


def _expected_basis_forward(mu_BxHxS, sigma_sq_BxHxS, mu_N, sigma_N):
    r_BxHxSxN = expected_basis(mu_BxHxS, sigma_sq_BxHxS, mu_N, sigma_N)
    return r_BxHxSxN, (r_BxHxSxN, mu_BxHxS, sigma_sq_BxHxS, mu_N, sigma_N)


def _expected_basis_backward(residuals, dr_BxHxSxN):
    """With v_j = sigma_j^2 + sigma^2 and e_j = dr_j r_j / v_j: dmu = sum e_j (mu_j - mu), dsigma^2 likewise."""
    r_BxHxSxN, mu_BxHxS, sigma_sq_BxHxS, mu_N, sigma_N = residuals
    precision_BxHxSxN = 1.0 / (sigma_N**2 + sigma_sq_BxHxS[..., None])
    distance_BxHxSxN = mu_N - mu_BxHxS[..., None]
    e_BxHxSxN = dr_BxHxSxN * r_BxHxSxN * precision_BxHxSxN
    terms = (e_BxHxSxN * distance_BxHxSxN, 0.5 * e_BxHxSxN * (distance_BxHxSxN**2 * precision_BxHxSxN - 1.0))
    zeros = tuple(np.zeros((), term.dtype) for term in terms)
    # One reduction of the pair: two separate sums would compute the terms twice.
    dmu_BxHxS, dsigma_sq_BxHxS = jax.lax.reduce(terms, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), (terms[0].ndim - 1,))
    return dmu_BxHxS, dsigma_sq_BxHxS, None, None


expected_basis.defvjp(_expected_basis_forward, _expected_basis_backward)


def context_flops(queries: int, count: int, d_model: int, heads: int, value_dim: int) -> tuple[float, float]:
    """FLOPs of r (B W_v) and of (r B) W_v for one row."""
    values_first = 2.0 * heads * count * value_dim * (d_model + queries)
    values_last = 2.0 * heads * queries * d_model * (count + value_dim)
    return values_first, values_last


def context(r_BxHxSxN: jax.Array, B_BxNxD: jax.Array, w_v_DxHxV: jax.Array) -> jax.Array:
    """c = sum_j r_j W_v B_j: BxSxHxV.

    The cheaper order of products: a segment of queries shares the N values of each head, r (B W_v); a few queries
    (decoding) cost less than projecting all N coefficients, (r B) W_v.
    """
    values_first, values_last = context_flops(r_BxHxSxN.shape[2], *B_BxNxD.shape[1:], *w_v_DxHxV.shape[1:])
    if values_first <= values_last:
        return _einsum("bhsn,bnhv->bshv", r_BxHxSxN, _einsum("bnd,dhv->bnhv", B_BxNxD, w_v_DxHxV))
    return _einsum("bhsd,dhv->bshv", _einsum("bhsn,bnd->bhsd", r_BxHxSxN, B_BxNxD), w_v_DxHxV)


def kl(sigma_sq: jax.Array, sigma_0: float) -> jax.Array:
    """KL(N(mu, sigma^2) || N(mu, sigma_0^2)), elementwise: 0 at sigma = sigma_0."""
    ratio = sigma_sq / sigma_0**2
    return 0.5 * (ratio - jnp.log(ratio) - 1.0)


@dataclasses.dataclass(frozen=True)
class InfiniteFormerConfig(MemoryConfig):
    """Widths, samples, tau and ridge default to those of the released sorting code.

    Attributes:
      basis: N, Gaussian densities; a multiple of the number of widths.
      widths: standard deviations that each centre comes with; [0, 1] is the whole memory.
      samples: M, places where the old signal is sampled for a rewrite.
      tau: the part of [0, 1] into which a rewrite contracts the past.
      ridge: lambda of the regression.
      kl_weight: weight of the mean KL divergence in the loss.
      kl_sigma: sigma_0, the standard deviation that the regulariser pulls densities to.
      sampling: where the old signal is sampled for a rewrite: at even times, or (sticky memories) at times drawn from where
        the segment's queries looked, at the edges of the histogram's bins as in the released code or uniformly inside them.
      seed: of those draws.
    """

    basis: int = 512
    widths: tuple[float, ...] = (0.01, 0.05)
    samples: int = 512
    tau: float = 0.75
    ridge: float = 1.0
    kl_weight: float = 1e-6
    kl_sigma: float = 0.05
    sampling: Literal["even", "sticky", "sticky_uniform"] = "even"
    seed: int = 0

    def check(self, dims: Dims) -> None:
        require(len(self.widths) > 0, "memory.widths", "there is none", "give at least one, e.g. (0.01, 0.05)")
        for width in self.widths:
            require(width > 0, "memory.widths", f"{width} is not above zero", "give parts of [0, 1], e.g. (0.01, 0.05)")
        require(
            self.basis >= len(self.widths) and self.basis % len(self.widths) == 0,
            "memory.basis",
            f"{self.basis} functions do not share {len(self.widths)} widths evenly",
            f"give a positive multiple of {len(self.widths)}",
        )
        require_positive("memory", samples=self.samples)
        require(
            self.sampling in ("even", "sticky", "sticky_uniform"),
            "memory.sampling",
            f"'{self.sampling}' is no way to sample",
            "choose even, sticky or sticky_uniform",
        )
        require(0 < self.tau < 1, "memory.tau", f"{self.tau} leaves no room for past or present", "give a number in (0, 1)")
        for name, value in (("ridge", self.ridge), ("kl_sigma", self.kl_sigma)):
            require(value > 0, f"memory.{name}", f"{value} is not above zero", "give a positive number")
        require(self.kl_weight >= 0, "memory.kl_weight", f"{self.kl_weight} is negative", "give 0 to switch it off")


class InfiniteFormer(Memory):
    """N coefficients of a continuous signal, contracted at every write and read by one Gaussian density a query and head."""

    Config = InfiniteFormerConfig
    summary = "continuous signal on N Gaussian basis functions, summed with local attention"
    paper = "arXiv 2109.00301"

    def setup(self):
        super().setup()
        c, d = self.config, self.dims
        # At the start z is small (|B| is about 0.03 for inputs of size 1), so mu is near 1/2 and sigma^2 near ln 2 for every
        # query: c is about half the integral of the value signal, well below 1, and training begins as short-term attention.
        self.w_mu = self.param("w_mu", nn.initializers.normal(c.basis**-0.5), (c.basis,))
        self.w_sigma = self.param("w_sigma", nn.initializers.normal(c.basis**-0.5), (c.basis,))
        heads_last = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        self.w_k = self.param("w_k", heads_last, (d.d_model, d.heads, d.key_dim))
        self.w_v = self.param("w_v", heads_last, (d.d_model, d.heads, d.value_dim))
        self.gate_kernel = self.param("gate_kernel", nn.initializers.lecun_normal(), (3, d.d_model, d.d_model))
        self.gate_bias = self.param("gate_bias", nn.initializers.zeros, (d.d_model,))
        self.long_out = nn.DenseGeneral(d.d_model, axis=(-2, -1), use_bias=False, dtype=d.dtype)

    def init_memory(self, batch: int) -> InfiniteMemory:
        return InfiniteMemory(
            B=jnp.zeros((batch, self.config.basis, self.dims.d_model), self.dims.memory_dtype),
            writes=jnp.zeros((batch,), jnp.int32),
            fit=jnp.zeros((batch,), self.dims.memory_dtype),
        )

    def attend(self, memory: InfiniteMemory, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        c = self.config
        reads_BxS = self._reads(memory, segment)
        mu_BxHxS, sigma_sq_BxHxS = self._densities(memory, segment)
        c_BxSxHxV = self._context(mu_BxHxS, sigma_sq_BxHxS, memory.B)
        c_BxSxHxV = jnp.where(reads_BxS[..., None, None], c_BxSxHxV, 0.0).astype(self.dims.dtype)
        kl_BxHxS = jnp.where(reads_BxS[:, None], kl(sigma_sq_BxHxS, c.kl_sigma), 0.0)
        metrics = {
            # Over all queries, those without a memory counting zero: a query weighs the same in every batch.
            AUXILIARY + "kl": c.kl_weight * kl_BxHxS.mean(),
            "mu": mu_BxHxS.mean(),
            "sigma_sq": sigma_sq_BxHxS.mean(),
            "fit": memory.fit.mean(),
        }
        return self.out(attend_segment(segment)) + self.long_out(c_BxSxHxV), metrics

    def _reads(self, memory: InfiniteMemory, segment: Segment) -> jax.Array:
        return segment.bounds.reads_BxS & (memory.writes > 0)[:, None]

    def _densities(self, memory: InfiniteMemory, segment: Segment) -> tuple[jax.Array, jax.Array]:
        q_BxSxHxK = segment.queries.astype(self.dims.memory_dtype)
        return density_parameters(q_BxSxHxK, memory.B, self.w_k, self.w_mu, self.w_sigma)

    def _sampled(self, memory: InfiniteMemory, segment: Segment) -> jax.Array:
        """psi at the times where the old signal is sampled: MxN, or BxMxN where they are drawn."""
        c, dtype = self.config, self.dims.memory_dtype
        mu_N, sigma_N = basis(c.basis, c.widths)
        if c.sampling == "even":
            return jnp.asarray(psi(sample_times(c.samples), mu_N, sigma_N), dtype)
        mu_BxHxS, sigma_sq_BxHxS = jax.lax.stop_gradient(self._densities(memory, segment))
        histogram_BxG = sticky.attention_histogram(mu_BxHxS, sigma_sq_BxHxS, self._reads(memory, segment))
        keys_B = sticky.row_keys(c.seed, memory.writes)
        times_BxM = sticky.draw_times(keys_B, histogram_BxG, c.samples, "edge" if c.sampling == "sticky" else "uniform")
        return psi(times_BxM, jnp.asarray(mu_N, dtype), jnp.asarray(sigma_N, dtype))

    def _context(self, mu_BxHxS: jax.Array, sigma_sq_BxHxS: jax.Array, B_BxNxD: jax.Array) -> jax.Array:
        mu_N, sigma_N = (jnp.asarray(x, B_BxNxD.dtype) for x in basis(self.config.basis, self.config.widths))
        r_BxHxSxN = expected_basis(mu_BxHxS, sigma_sq_BxHxS, mu_N, sigma_N)
        return context(r_BxHxSxN, B_BxNxD, self.w_v)

    def write(self, memory: InfiniteMemory, segment: Segment) -> InfiniteMemory:
        c, dtype = self.config, self.dims.memory_dtype
        length = segment.inputs.shape[1]
        # Masked before the convolution, so that no earlier document leaks through it; X * sigmoid(..) stays zero there.
        x_BxTxD = jnp.where(segment.bounds.writes_BxT[..., None], segment.inputs, 0).astype(self.dims.dtype)
        x_BxTxD = gate(x_BxTxD, self.gate_kernel.astype(self.dims.dtype), self.gate_bias.astype(self.dims.dtype))
        continues_B = segment.bounds.keeps_B & (memory.writes > 0)
        first = first_write_matrix(length, c.basis, c.widths, c.ridge)
        update = update_matrix(length, c.basis, c.widths, c.ridge, c.samples, c.tau)
        first_TxN, update_PxN = jnp.asarray(first, dtype), jnp.asarray(update, dtype)
        x_BxTxD = x_BxTxD.astype(dtype)
        B_BxNxD = write_signal(memory.B, x_BxTxD, continues_B, first_TxN, update_PxN, self._sampled(memory, segment))
        places_first, places_new = write_places(length, c.tau)
        psi_first_TxN, psi_new_TxN = (
            jnp.asarray(psi(t, *basis(c.basis, c.widths)), dtype) for t in (places_first, places_new)
        )
        psi_BxTxN = jnp.where(continues_B[:, None, None], psi_new_TxN, psi_first_TxN)
        fit_B = stored_fit(*jax.lax.stop_gradient((B_BxNxD, x_BxTxD)), segment.bounds.writes_BxT, psi_BxTxN)
        return InfiniteMemory(B=B_BxNxD, writes=jnp.where(continues_B, memory.writes + 1, 1), fit=fit_B)

    def logical_axes(self) -> InfiniteMemory:
        return InfiniteMemory(B=("batch", "slots", "model"), writes=("batch",), fit=("batch",))

    def cost(self, segment_length: int) -> Cost:
        c, d = self.config, self.dims
        density = 4.0 * d.heads * d.key_dim + 4.0 * d.d_model * (c.basis + d.heads * d.key_dim) / segment_length
        mixture = min(context_flops(segment_length, c.basis, d.d_model, d.heads, d.value_dim)) / segment_length
        own_output = 2.0 * d.heads * d.value_dim * d.d_model
        refit = 4.0 * c.basis * d.d_model * (segment_length + c.samples) / segment_length  # and its fit
        looked = 0.0 if c.sampling == "even" else density
        return Cost(
            local=attend_flops(segment_length, d.heads, d.key_dim, d.value_dim),
            read=density + mixture + own_output,
            write=6.0 * d.d_model**2 + refit + looked,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by attend, read and written by write
        )

    @classmethod
    def resized(cls, config: InfiniteFormerConfig, dims: Dims, size: int) -> tuple[InfiniteFormerConfig, Dims]:
        """`size` basis functions, rounded down to a multiple of the number of widths."""
        shared = len(config.widths)
        return dataclasses.replace(config, basis=max(size - size % shared, shared)), dims
