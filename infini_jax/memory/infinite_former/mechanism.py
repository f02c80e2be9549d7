"""∞-former (Martins, Marinho, Martins, ACL 2022, arXiv 2109.00301): the past as a continuous signal on [0, 1].

The layer's inputs X are regressed on N Gaussian densities psi; the memory is the matrix of coefficients B, and a query
reads it through one Gaussian density over time. Section numbers are the paper's; the functions are in signal.py and
expectation.py (reads):
  2.2  X(t) = B^T psi(t)                                               the signal that B stands for
  3.1  B = G^T X,  G = F^T (F F^T + lambda I)^-1, F = psi(positions)   first write, ridge regression
  3.1  z_j = q . (W_k B_j) / sqrt(d);  mu = sigmoid(w_mu . z);  sigma^2 = softplus(w_sigma . z)
  3.1  c = sum_j r_j W_v B_j,  r_j = E_p[psi_j], p = N(mu, sigma^2)    the long-term context, then its own W_o, then added
  3.2  B' = G_inf^T [X(t_1) .. X(t_M); X]                              later writes: the past contracted into [0, tau]
  3.3  t_m drawn from where the queries looked                         sticky memories, sticky.py
  code X <- X * sigmoid(Conv1d(X)) before every write                  the gate, a mask in the released code
  code KL(N(mu, sigma^2) || N(mu, sigma_0^2))                          regularizer, averaged over rows, heads and queries
X are the inputs of the tokens that leave the short-term memory: the oldest of a Transformer-XL cache of `cached` tokens and
the segment, as many as the segment is long once the cache is full, fewer or none before; with `cached` = 0 the segment.

Gradients. B is detached where its old signal is sampled for a rewrite (`write_signal`) and nowhere else, and the cache is
detached. Without a cache, segment s+1 trains the gate and, through X, what lies below the layer in segment s; through this
memory nothing reaches s-1. In a stack X depends on the memories of the layers below, so a gradient can go one segment further
back with each of them. With a cache of a segment or more, all of X was cached, and the gate alone learns what to write.
DEVIATION: the released code reads X from Transformer-XL's cache, not normalized, and reads B in the step that writes it.
Here X is the layer's normalized input, B is written when the segment ends and read by the next one; and without a cache X
keeps its gradient: detached, only the gate would ever learn which tokens to write.
DEVIATION: no cache by default, and rotary positions in the short-term attention: what every mechanism here has.
DEVIATION: W_k and W_v have the layer's G key heads, as many as query heads unless it groups them; the paper has no groups.
DEVIATION: where fewer vectors than a segment's are written, because the cache fills up or a document begins inside the
segment, zeros stand in place of the tokens before them; the paper has no such case. The regression pads with zeros outside
[0, 1] already, so this is more of the same. What is left in the cache of a document that ended is never written.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from infini_jax.errors import LATER, require, require_not_negative, require_positive
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import Segment, counts_before_each, reset_where_new, with_leaves
from infini_jax.memory import base, window
from infini_jax.memory.base import AUXILIARY, Cost, Dims, Neighborhood, memory_bytes, segments_of_a_stream
from infini_jax.memory.infinite_former import expectation, signal, sticky
from infini_jax.memory.positions import Positioned, PositionedConfig, local_cost, require_own_cache


@struct.dataclass
class ShortTerm:
    """Cache of the ∞-former's short-term attention.

    Attributes:
      recent: keys and values of the last C tokens.
      inputs: BxCxD, their layer inputs.
    """

    recent: window.Recent
    inputs: jax.Array


@struct.dataclass
class InfiniteMemory:
    """State of the ∞-former.

    Attributes:
      B: BxNxD, coefficients of the signal.
      writes: B int32, writes since the document began.
      fit: B, the R^2 with which the vectors of the last write were stored.
      cache: cache of the short-term attention, None where `cached` is 0.
    """

    B: jax.Array
    writes: jax.Array
    fit: jax.Array
    cache: ShortTerm | None


@struct.dataclass
class Leaving:
    """Vectors that a segment pushes out of the short-term memory.

    Attributes:
      x: BxTxD, zero where not of the open document.
      count: B, number of the last vectors that are of the open document.
    """

    x: jax.Array
    count: jax.Array

    @property
    def counted_BxT(self) -> jax.Array:
        """Whether each vector is of the open document."""
        return window.newest_BxN(self.x.shape[1], self.count)


def leaving(cache: ShortTerm | None, segment: Segment) -> Leaving:
    """The oldest vectors of cache and segment, as many as the segment is long; the segment's where there is no cache."""
    if cache is None:
        x_BxTxD, count_B = segment.inputs, segment.bounds.writes_BxT.sum(axis=1, dtype=jnp.int32)
    else:
        x_BxTxD = window.leaving(jax.lax.stop_gradient(cache.inputs), segment.inputs)
        count_B = window.leaving_B(cache.recent, segment.bounds)
    left = Leaving(x_BxTxD, count_B)
    # Masked before the gate's convolution, so that no earlier document leaks through it; X * sigmoid(..) stays zero there.
    return dataclasses.replace(left, x=jnp.where(left.counted_BxT[..., None], x_BxTxD, 0))


def append(cache: ShortTerm | None, segment: Segment) -> ShortTerm | None:
    """The cache after the segment, without gradient."""
    if cache is None:
        return None
    return jax.lax.stop_gradient(ShortTerm(window.append(cache.recent, segment), window.shift(cache.inputs, segment.inputs)))


def caches(cache: ShortTerm | None, segments: Segment, count: int) -> tuple[ShortTerm | None, ShortTerm | None]:
    """(cache before each of `count` consecutive segments, one row per segment; cache after the last), without gradient."""
    if cache is None:
        return None, None
    recents, inputs = window.before_each(cache.recent, segments, count), window.windows(cache.inputs, segments.inputs, count)
    before, after = map(ShortTerm, recents, inputs)
    return jax.lax.stop_gradient((before, after))


@dataclasses.dataclass(frozen=True)
class InfiniteFormerConfig(PositionedConfig):
    """Settings of the ∞-former. Widths, samples, tau and ridge default to those of the released sorting code.

    The GPT-2 runs on WikiText-103 and PG-19 had widths (0.005, 0.01), ridge 0.5, tau 0.5.

    Attributes:
      basis: number N of Gaussian densities; a multiple of the number of widths.
      widths: standard deviations at each center; [0, 1] is the whole memory.
      samples: number M of samples of the old signal in a rewrite.
      tau: part of [0, 1] into which a rewrite contracts the past.
      ridge: ridge penalty lambda of the regression.
      kl_weight: weight of the mean KL divergence in the loss.
      kl_sigma: standard deviation sigma_0 toward which the regularizer pulls densities.
      sampling: sampling of the old signal in a rewrite: at even times, or (sticky memories) at times drawn from where the
        segment's queries attended, at the edges of the histogram's bins as in the released code or uniformly inside them.
      seed: seed of the drawn times.
      variance_floor: smallest sigma^2 of a query's density; 1e-6 in the released sorting code, 1e-4 in its GPT-2 code.
      cached: tokens of earlier segments that the short-term attention sees and that are not yet in the signal: tokens that
        leave this cache are written to it. With 0 a segment is written when it ends, as with another neighborhood (`local`).
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
    variance_floor: float = dataclasses.field(default=signal.VARIANCE_FLOOR, metadata=LATER)
    cached: int = 0

    def with_local(self, local: Neighborhood) -> "InfiniteFormerConfig":
        return dataclasses.replace(self, local=local, cached=self.cached if local == "own" else 0)

    def places(self, segment: int) -> int:
        return super().places(segment) + self.cached

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
        require_not_negative("memory", seed=self.seed)
        require(self.cached >= 0, "memory.cached", f"{self.cached} tokens are none", "give 0 for no cache")
        require_own_cache(self, cached=self.cached)
        require(0 < self.tau < 1, "memory.tau", f"{self.tau} leaves no room for past or present", "give a number in (0, 1)")
        for name, value in (("ridge", self.ridge), ("kl_sigma", self.kl_sigma), ("variance_floor", self.variance_floor)):
            require(value > 0, f"memory.{name}", f"{value} is not above zero", "give a positive number")
        require(self.kl_weight >= 0, "memory.kl_weight", f"{self.kl_weight} is negative", "give 0 to switch it off")


class InfiniteFormer(Positioned):
    """Memory of N coefficients of a continuous signal, contracted at every write.

    Each query and head reads it by one Gaussian density over time.
    """

    Config = InfiniteFormerConfig
    summary = "continuous signal on N Gaussian basis functions, summed with local attention"
    paper = "arXiv 2109.00301"
    axes = ("basis",)
    learns = ("inputs",)  # through X, without a cache
    neighborhoods = ("segment", "window", "cache")
    honors = ("attention_scale", "rotary", "score_cap")
    parameter_axes: ClassVar = {
        **Positioned.parameter_axes,
        ("w_k",): ("embed", "kv_heads", "head_dim"),
        ("w_v",): ("embed", "kv_heads", "head_dim"),
        ("long_out", "kernel"): ("heads", "head_dim", "embed"),
        ("gate_kernel",): (None, "embed", None),
    }

    def setup(self):
        super().setup()
        c, d = self.config, self.dims
        # At the start z is small (|B| is about 0.03 for inputs of size 1), so mu is near 1/2 and sigma^2 near ln 2 for every
        # query: c is about half the integral of the value signal, well below 1, and training begins as short-term attention.
        self.w_mu = self.param("w_mu", nn.initializers.normal(c.basis**-0.5), (c.basis,), PARAMETERS)
        self.w_sigma = self.param("w_sigma", nn.initializers.normal(c.basis**-0.5), (c.basis,), PARAMETERS)
        heads_last = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        self.w_k = self.param("w_k", heads_last, (d.d_model, d.kv_heads, d.key_dim), PARAMETERS)
        self.w_v = self.param("w_v", heads_last, (d.d_model, d.kv_heads, d.value_dim), PARAMETERS)
        self.gate_kernel = self.param("gate_kernel", nn.initializers.lecun_normal(), (3, d.d_model, d.d_model), PARAMETERS)
        self.gate_bias = self.param("gate_bias", nn.initializers.zeros, (d.d_model,), PARAMETERS)
        self.long_out = base.output_projection(d)

    def init_memory(self, batch: int) -> InfiniteMemory:
        c, d = self.config, self.dims
        cache = None
        if c.cached:
            inputs_BxCxD = jnp.zeros((batch, c.cached, d.d_model), d.memory_dtype)
            cache = ShortTerm(window.empty(batch, c.cached, d), inputs_BxCxD)
        return InfiniteMemory(
            B=jnp.zeros((batch, c.basis, d.d_model), d.memory_dtype),
            writes=jnp.zeros((batch,), jnp.int32),
            fit=jnp.zeros((batch,), d.memory_dtype),
            cache=cache,
        )

    def attend(self, memory: InfiniteMemory, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        c = self.config
        reads_BxS = self._reads(memory, segment)
        mu_BxHxS, sigma_sq_BxHxS = self._densities(memory, segment)
        c_BxSxHxV = expectation.context(mu_BxHxS, sigma_sq_BxHxS, memory.B, self.w_v, c.widths)
        c_BxSxHxV = jnp.where(reads_BxS[..., None, None], c_BxSxHxV, 0.0).astype(self.dims.dtype)
        kl_BxHxS = jnp.where(reads_BxS[:, None], signal.kl(sigma_sq_BxHxS, c.kl_sigma), 0.0)
        metrics = {
            # Over all queries, those without a memory counting zero: a query weighs the same in every batch.
            AUXILIARY + "kl": c.kl_weight * kl_BxHxS.mean(),
            "mu": mu_BxHxS.mean(),
            "sigma_sq": sigma_sq_BxHxS.mean(),
            "fit": memory.fit.mean(),
        }
        return self.out(self._short_term(memory, segment)) + self.long_out(c_BxSxHxV), metrics

    def _short_term(self, memory: InfiniteMemory, segment: Segment) -> jax.Array:
        carried = () if memory.cache is None else (jax.lax.stop_gradient(memory.cache.recent),)
        return self.attention(segment.queries, window.view(segment, *carried))

    def _reads(self, memory: InfiniteMemory, segment: Segment) -> jax.Array:
        return segment.bounds.reads_BxS & (memory.writes > 0)[:, None]

    def _densities(self, memory: InfiniteMemory, segment: Segment) -> tuple[jax.Array, jax.Array]:
        q_BxSxHxK = segment.queries.astype(self.dims.memory_dtype)
        return signal.density_parameters(q_BxSxHxK, memory.B, self.w_k, self.w_mu, self.w_sigma, self.config.variance_floor)

    def write(self, memory: InfiniteMemory, segment: Segment, times_BxM: jax.Array | None = None) -> InfiniteMemory:
        """The memory after the segment. The old signal is sampled at `times_BxM` in [0, 1]; as `sampling` says where None.

        They may come from another code's draws (`sticky.times_of`), as many as `samples`.
        """
        left = leaving(memory.cache, segment)
        x_BxTxD, continues_B = self._gated(left), segment.bounds.keeps_B & (memory.writes > 0)
        past_BxNxD = self._contracted(memory.B, memory, segment, times_BxM)
        B_BxNxD = signal.write_signal(past_BxNxD, x_BxTxD, continues_B, *self._matrices(x_BxTxD.shape[1]))
        written = InfiniteMemory(
            B=B_BxNxD,
            writes=jnp.where(continues_B, memory.writes, 0) + 1,
            fit=self._fit(B_BxNxD, x_BxTxD, left, continues_B),
            cache=None,
        )
        # Rows that nothing left have no signal: from a document's first vector that leaves on, every segment pushes some out.
        return reset_where_new(left.count > 0, written).replace(cache=append(memory.cache, segment))

    def advance(self, memory: InfiniteMemory, segments: Segment) -> tuple[jax.Array, InfiniteMemory, dict[str, jax.Array]]:
        """(outputs BWxSxD, memory, metrics) of W segments, as `Memory.advance`.

        All is done at once but the contractions, which no gradient goes through, unless old signals are sampled where queries
        of segments before looked.
        """
        count = segments_of_a_stream(memory, segments)
        if count == 1 or self.config.sampling != "even":
            return super().advance(memory, segments)
        cache, cache_after = caches(memory.cache, segments, count)
        left = leaving(cache, segments)
        is_written_R, keeps_R = left.count > 0, segments.bounds.keeps_B & (left.count > 0)
        is_written_BxW, keeps_BxW = (x_R.reshape(-1, count) for x_R in (is_written_R, keeps_R))
        writes_BxX = counts_before_each(memory.writes, is_written_BxW.astype(memory.writes.dtype), keeps_BxW)
        writes_R = writes_BxX[:, :-1].reshape(-1)
        x_RxTxD, continues_R = self._gated(left), keeps_R & (writes_R > 0)
        added_RxNxD = signal.added_signal(x_RxTxD, continues_R, *self._matrices(x_RxTxD.shape[1]))
        added_WxBxNxD = jnp.moveaxis(added_RxNxD.reshape(-1, count, *added_RxNxD.shape[1:]), 1, 0)
        continues_WxB = continues_R.reshape(-1, count).T
        after_WxBxNxD = added_WxBxNxD + signal.pasts(
            memory.B, added_WxBxNxD, continues_WxB, lambda B_BxNxD: self._contracted(B_BxNxD, memory, segments)
        )
        before_WxBxNxD = jnp.concatenate([memory.B[None], after_WxBxNxD[:-1]])
        B_RxNxD, after_RxNxD = (jnp.swapaxes(x, 0, 1).reshape(added_RxNxD.shape) for x in (before_WxBxNxD, after_WxBxNxD))
        fit_R = jnp.where(is_written_R, self._fit(after_RxNxD, x_RxTxD, left, continues_R), 0)
        fit_BxX = jnp.concatenate([memory.fit[:, None], fit_R.reshape(-1, count)], axis=1)
        y_RxSxD, metrics = self.attend(InfiniteMemory(B_RxNxD, writes_R, fit_BxX[:, :-1].reshape(-1), cache), segments)
        return y_RxSxD, InfiniteMemory(after_WxBxNxD[-1], writes_BxX[:, -1], fit_BxX[:, -1], cache_after), metrics

    def _gated(self, left: Leaving) -> jax.Array:
        """X as it is written, BxTxD."""
        gate_weights = (x.astype(self.dims.dtype) for x in (self.gate_kernel, self.gate_bias))
        return signal.gate(left.x.astype(self.dims.dtype), *gate_weights).astype(self.dims.memory_dtype)

    def _matrices(self, length: int) -> tuple[jax.Array, jax.Array]:
        """(G, the rows of G_inf that belong to new vectors), TxN each."""
        c, dtype = self.config, self.dims.memory_dtype
        first_TxN = signal.first_write_matrix(length, c.basis, c.widths, c.ridge)
        return jnp.asarray(first_TxN, dtype), jnp.asarray(self._update_matrix(length)[c.samples :], dtype)

    def _fit(self, B_BxNxD: jax.Array, x_BxTxD: jax.Array, left: Leaving, continues_B: jax.Array) -> jax.Array:
        """R^2 per row of the vectors X in the signal that was written of them, without gradient."""
        c = self.config
        first, later = signal.write_places(x_BxTxD.shape[1], c.tau)
        psi_TxN = (jnp.asarray(signal.psi(t, *signal.basis(c.basis, c.widths)), B_BxNxD.dtype) for t in (later, first))
        psi_BxTxN = jnp.where(continues_B[:, None, None], *psi_TxN)
        return signal.stored_fit(*jax.lax.stop_gradient((B_BxNxD, x_BxTxD)), left.counted_BxT, psi_BxTxN)

    def _update_matrix(self, length: int) -> np.ndarray:
        c = self.config
        return signal.update_matrix(length, c.basis, c.widths, c.ridge, c.samples, c.tau)

    def _contracted(
        self, B_BxNxD: jax.Array, memory: InfiniteMemory, segment: Segment, times_BxM: jax.Array | None = None
    ) -> jax.Array:
        """Contribution of the old signal's samples to the new coefficients: BxNxD, where B are the old ones.

        Times that are drawn follow from where the segment's queries looked in the memory.
        """
        c, dtype, length = self.config, self.dims.memory_dtype, segment.inputs.shape[1]
        B_BxNxD = jax.lax.stop_gradient(B_BxNxD)
        if (
            times_BxM is None and c.sampling == "even" and c.basis <= 2 * c.samples
        ):  # else sampling and refit cost less than their product
            matrix = signal.contraction_matrix(length, c.basis, c.widths, c.ridge, c.samples, c.tau)
            return signal.einsum("nj,bjd->bnd", jnp.asarray(matrix, dtype), B_BxNxD)
        old_MxN = jnp.asarray(self._update_matrix(length)[: c.samples], dtype)
        return signal.resampled(B_BxNxD, self._sampled(memory, segment, times_BxM), old_MxN)

    def _sampled(self, memory: InfiniteMemory, segment: Segment, times_BxM: jax.Array | None) -> jax.Array:
        """psi at the times where the old signal is sampled: MxN, or BxMxN where they are drawn or given."""
        c, dtype = self.config, self.dims.memory_dtype
        mu_N, sigma_N = signal.basis(c.basis, c.widths)
        if times_BxM is not None:
            return signal.psi(times_BxM.astype(dtype), jnp.asarray(mu_N, dtype), jnp.asarray(sigma_N, dtype))
        if c.sampling == "even":
            return jnp.asarray(signal.psi(signal.sample_times(c.samples), mu_N, sigma_N), dtype)
        mu_BxHxS, sigma_sq_BxHxS = jax.lax.stop_gradient(self._densities(memory, segment))
        histogram_BxG = sticky.attention_histogram(mu_BxHxS, sigma_sq_BxHxS, self._reads(memory, segment))
        keys_B = sticky.row_keys(c.seed, memory.writes)
        times_BxM = sticky.draw_times(keys_B, histogram_BxG, c.samples, "edge" if c.sampling == "sticky" else "uniform")
        return signal.psi(times_BxM, jnp.asarray(mu_N, dtype), jnp.asarray(sigma_N, dtype))

    def logical_axes(self) -> InfiniteMemory:
        cache = (
            with_leaves(ShortTerm, recent=window.LOGICAL_AXES, inputs=("batch", "slots", "model"))
            if self.config.cached
            else None
        )
        return with_leaves(InfiniteMemory, B=("batch", "slots", "model"), writes=("batch",), fit=("batch",), cache=cache)

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        c, d = self.config, self.dims
        density = 4.0 * d.heads * d.key_dim + 4.0 * d.d_model * (c.basis + d.kv_heads * d.key_dim) / segment_length
        sizes = (d.d_model, d.heads, d.kv_heads, d.value_dim)
        context = expectation.order_of(segment_length, c.basis, c.widths, *sizes, d.memory_dtype.name)
        own_output = 2.0 * d.heads * d.value_dim * d.d_model
        even = c.sampling == "even"
        contracted = 2.0 * d.d_model * c.basis * (min(c.basis, 2 * c.samples) if even else 2 * c.samples) / segment_length
        short_term = local_cost(c, d, segment_length, c.cached, segments)
        fit, looked = 2.0 * c.basis * d.d_model, 0.0 if even else density  # where sticky memories look
        merged = sum(2.0 * some.count * some.merges * d.d_model for some in context.functions) / segment_length
        return dataclasses.replace(
            short_term,
            read=short_term.read + density + context.flops / segment_length + own_output,
            # the gate; the fit of the new vectors, and how good it is; the old signal
            write=6.0 * d.d_model**2 + 2 * fit + contracted + looked,
            # matrices of the fit and of thinned functions are constant; no gradient reaches R^2, the old signal, the histogram
            read_saved=short_term.read_saved + merged,
            write_saved=fit + 2 * (fit + contracted + looked),
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by attend, read and written by write
        )

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        return self.cost(segment_length, segments if self.config.sampling == "even" else 1)

    @classmethod
    def resized(
        cls, config: InfiniteFormerConfig, dims: Dims, size: int, axis: str = "basis"
    ) -> tuple[InfiniteFormerConfig, Dims]:
        """(settings, dims) of `size` basis functions, rounded down to a multiple of the number of widths."""
        shared = len(config.widths)
        return super().resized(config, dims, max(size - size % shared, shared), axis)
