"""Reading the ∞-former's memory: the mean of the continuous signal under a query's Gaussian density over time.

  c = sum_j r_j W_v B_j,  r_j = integral of psi_j(t) N(t; mu, sigma^2) = N(mu; mu_j, sigma_j^2 + sigma^2)
Two exact rewrites, each taken where it saves products (`order_of`).
Order: r (B W_v) for a segment of queries, which share the values of each key head; (r B) W_v for a few queries (decoding).
Fewer functions: with u a grid of J places of distance h,
  N(t; mu_j, s^2) = integral N(u; mu_j, s^2/2) N(t; u, s^2/2) du = h sum_u N(u; mu_j, s^2/2) N(t; u, s^2/2)
up to 2 exp(-(pi s / h)^2 / 2), the trapezoid rule's error on a Gaussian (Poisson's summation formula). So C functions of
width s at dense centers are J functions of width s / sqrt(2) whose coefficients are one constant JxC product away, and J does
not grow with C: 57 instead of 256 for s = 0.05 in float32. A read of a large basis costs little more than one of a small.
Letters: Q queries of all heads that share coefficients, J functions of one width; as in signal.py, D model, N basis functions,
C their centers.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.memory.infinite_former.signal import einsum, gaussian


@dataclasses.dataclass(frozen=True)
class Functions:
    """Gaussian functions of one width at equal distances.

    Attributes:
      first, last: outermost centers.
      count: number of functions J.
      width: standard deviation.
      merges: number C of basis functions that they stand for, 0 if they are the basis functions themselves.
    """

    first: float
    last: float
    count: int
    width: float
    merges: int = 0

    @property
    def centres_J(self) -> np.ndarray:
        """The centers, J float64."""
        return np.linspace(self.first, self.last, self.count)

    @property
    def merge_JxC(self) -> np.ndarray:
        """Matrix from the coefficients of the basis to those of these functions, JxC float64."""
        step = (self.last - self.first) / (self.count - 1)
        return step * gaussian(self.centres_J[:, None], np.linspace(0.0, 1.0, self.merges), self.width**2)


def thinned(count: int, width: float, rounding: float) -> Functions:
    """The fewest functions that stand for `count` functions of this width on [0, 1], at a relative error of `rounding`."""
    narrow = width / math.sqrt(2.0)
    reach = narrow * math.sqrt(2.0 * math.log(1.0 / rounding))
    step = math.pi * width / math.sqrt(2.0 * math.log(2.0 / rounding))
    return Functions(-reach, 1.0 + reach, math.ceil((1.0 + 2.0 * reach) / step) + 1, narrow, merges=count)


@dataclasses.dataclass(frozen=True)
class Order:
    """Way to compute a read.

    Attributes:
      values_first: whether the order is r (B W_v), else (r B) W_v.
      functions: the functions of each width.
      flops: FLOPs of one row.
    """

    values_first: bool
    functions: tuple[Functions, ...]
    flops: float


@functools.lru_cache(maxsize=128)
def order_of(
    queries: int, count: int, widths: tuple[float, ...], d_model: int, heads: int, kv_heads: int, value_dim: int, dtype: str
) -> Order:
    """The order of products and the functions that take the fewest FLOPs."""
    rounding, centres = float(np.finfo(dtype).eps) / 8, count // len(widths)

    def plan(values_first: bool) -> Order:
        a_function = (
            2.0 * value_dim * (kv_heads * d_model + heads * queries) if values_first else 2.0 * heads * queries * d_model
        )
        flops, functions = 0.0 if values_first else 2.0 * heads * queries * d_model * value_dim, []
        for width in widths:
            dense, fewer = Functions(0.0, 1.0, centres, width), thinned(centres, width, rounding)
            prices = (dense.count * a_function, fewer.count * (a_function + 2.0 * centres * d_model))
            functions.append(dense if prices[0] <= prices[1] else fewer)
            flops += min(prices)
        return Order(values_first, tuple(functions), flops)

    return min(plan(True), plan(False), key=lambda plan: plan.flops)


def expected_basis(mu: jax.Array, sigma_sq: jax.Array, mu_N: jax.Array, sigma_N: jax.Array | float) -> jax.Array:
    """r_j = N(mu; mu_j, sigma_j^2 + sigma^2), the mean of psi_j under N(mu, sigma^2) on the whole line: (..., N)."""
    return gaussian(mu[..., None], mu_N, sigma_N**2 + sigma_sq[..., None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def expected_signal(
    mu_BxGxQ: jax.Array, sigma_sq_BxGxQ: jax.Array, coefficients: tuple[jax.Array, ...], functions: tuple[Functions, ...]
) -> jax.Array:
    """sum_j r_j s_j, the mean of a signal under each query's density: BxGxQxV.

    `coefficients` are s, BxGxJxV for each width. The gradient is written out: it takes r and one more pass, where autodiff
    keeps every intermediate of the size of r.
    """
    return _expected_signal_forward(mu_BxGxQ, sigma_sq_BxGxQ, coefficients, functions)[0]


def _expected_signal_forward(mu_BxGxQ, sigma_sq_BxGxQ, coefficients, functions) -> tuple[Any, tuple]:
    y_BxGxQxV, r = 0.0, []
    for some, s_BxGxJxV in zip(functions, coefficients, strict=True):
        r.append(expected_basis(mu_BxGxQ, sigma_sq_BxGxQ, jnp.asarray(some.centres_J, mu_BxGxQ.dtype), some.width))
        y_BxGxQxV += einsum("bgqj,bgjv->bgqv", r[-1], s_BxGxJxV)
    return y_BxGxQxV, (mu_BxGxQ, sigma_sq_BxGxQ, coefficients, r)


def _expected_signal_backward(functions, residuals, dy_BxGxQxV):
    """Gradients of `expected_signal`. With v = sigma_j^2 + sigma^2 and e_j = r_j (s_j . dy):
    dmu = sum e_j (mu_j - mu) / v and dsigma^2 = sum e_j ((mu_j - mu)^2 / v - 1) / 2v.
    """
    mu_BxGxQ, sigma_sq_BxGxQ, coefficients, r = residuals
    dmu_BxGxQ, dsigma_sq_BxGxQ, ds = 0.0, 0.0, []
    for some, s_BxGxJxV, r_BxGxQxJ in zip(functions, coefficients, r, strict=True):
        # Transposed afterwards: a product that reads r along its queries takes three times as long on a CPU.
        ds.append(einsum("bgqv,bgqj->bgvj", dy_BxGxQxV, r_BxGxQxJ).swapaxes(2, 3))
        distance_BxGxQxJ = jnp.asarray(some.centres_J, mu_BxGxQ.dtype) - mu_BxGxQ[..., None]
        e_BxGxQxJ = r_BxGxQxJ * einsum("bgqv,bgjv->bgqj", dy_BxGxQxV, s_BxGxJxV)
        moments = (e_BxGxQxJ, e_BxGxQxJ * distance_BxGxQxJ, e_BxGxQxJ * distance_BxGxQxJ**2)
        # One reduction of all three: separate sums would compute them thrice.
        zeroth, first, second = jax.lax.reduce(moments, (np.zeros((), e_BxGxQxJ.dtype),) * 3, _add_each, (3,))
        v_BxGxQ = some.width**2 + sigma_sq_BxGxQ
        dmu_BxGxQ += first / v_BxGxQ
        dsigma_sq_BxGxQ += 0.5 * (second / v_BxGxQ - zeroth) / v_BxGxQ
    return dmu_BxGxQ, dsigma_sq_BxGxQ, tuple(ds)


def _add_each(left, right):
    return tuple(a + b for a, b in zip(left, right, strict=True))


expected_signal.defvjp(_expected_signal_forward, _expected_signal_backward)


def context(
    mu_BxHxS: jax.Array, sigma_sq_BxHxS: jax.Array, B_BxNxD: jax.Array, w_v_DxGxV: jax.Array, widths: tuple[float, ...]
) -> jax.Array:
    """Long-term context c = sum_j r_j W_v B_j: BxSxHxV. Query head h reads the values of key head h // (H / G)."""
    batch, heads, queries = mu_BxHxS.shape
    (count, d_model), (kv_heads, value_dim) = B_BxNxD.shape[1:], w_v_DxGxV.shape[1:]
    plan = order_of(queries, count, widths, d_model, heads, kv_heads, value_dim, B_BxNxD.dtype.name)
    # The basis has every center with every width in turn.
    by_width = [B_BxNxD[:, place :: len(widths)] for place in range(len(widths))]
    merged = [
        einsum("jc,bcd->bjd", jnp.asarray(some.merge_JxC, B_BxNxD.dtype), B_BxCxD) if some.merges else B_BxCxD
        for some, B_BxCxD in zip(plan.functions, by_width, strict=True)
    ]

    def read(*coefficients: jax.Array) -> jax.Array:
        """Signal of the heads that share coefficients, for all queries at once: BxHxSxV."""
        shared = coefficients[0].shape[1]
        mu_BxGxQ, sigma_sq_BxGxQ = (x.reshape(batch, shared, -1) for x in (mu_BxHxS, sigma_sq_BxHxS))
        y_BxGxQxV: Any = expected_signal(mu_BxGxQ, sigma_sq_BxGxQ, coefficients, plan.functions)
        return y_BxGxQxV.reshape(batch, heads, queries, -1)

    if plan.values_first:
        return jnp.swapaxes(read(*(einsum("bjd,dgv->bgjv", B_BxJxD, w_v_DxGxV) for B_BxJxD in merged)), 1, 2)
    signal_BxHxSxD = read(*(B_BxJxD[:, None] for B_BxJxD in merged))
    signal_BxGxRxSxD = signal_BxHxSxD.reshape(batch, kv_heads, -1, queries, d_model)
    return einsum("bgrsd,dgv->bsgrv", signal_BxGxRxSxD, w_v_DxGxV).reshape(batch, queries, heads, value_dim)
