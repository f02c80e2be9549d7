"""The mechanisms as they are first written down: all scores at hand, every step in turn, nothing made again for the gradient.

Same parameters and same results as the package's (benchmarks/mechanisms.py asserts it); only slower and larger. Attention is
dense because the benchmark traces them under `attention.form("dense")`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.layers.attention import attend_segment, masked_softmax
from infini_jax.layers.distances import rotary
from infini_jax.layers.grouped_heads import by_key_head
from infini_jax.layers.segment import reset_where_new
from infini_jax.memory.base import Memory
from infini_jax.memory.feature_maps import unit
from infini_jax.memory.gated_delta import GatedDelta
from infini_jax.memory.infini import combine
from infini_jax.memory.infinite_former import signal
from infini_jax.memory.infinite_former.mechanism import InfiniteFormer
from infini_jax.memory.landmark import retrieval
from infini_jax.memory.landmark import softmax as landmark_softmax
from infini_jax.memory.landmark.mechanism import Landmark, join
from infini_jax.memory.memorizing import Memorizing


class NaiveGatedDelta(GatedDelta):
    """One token after the other."""

    def write(self, memory, segment):
        writes_BxTx1 = segment.bounds.writes_BxT[..., None]
        beta_BxTxG = nn.sigmoid(self.strength(segment.inputs)) * writes_BxTx1
        g_BxTxG = self._log_decay(segment.inputs) * writes_BxTx1

        def token(S_BxGxKxV, parts):
            k, v, beta, g = parts
            S_BxGxKxV = jnp.exp(g)[..., None, None] * S_BxGxKxV
            missing = v - jnp.einsum("bgk,bgkv->bgv", k, S_BxGxKxV)
            return S_BxGxKxV + jnp.einsum("bg,bgk,bgv->bgkv", beta, k, missing), None

        in_turn = (jnp.moveaxis(x, 1, 0) for x in (unit(segment.keys), segment.values, beta_BxTxG, g_BxTxG))
        return jax.lax.scan(token, reset_where_new(segment.bounds.keeps_B, memory), tuple(in_turn))[0]


class NaiveMemorizing(Memorizing):
    """All scores, one sort of all of them, and the values of the neighbors."""

    def attend(self, memory, segment):
        ring, q_BxSxHxK, scale_H = jax.lax.stop_gradient(memory.ring), self.unit(segment.queries), jnp.abs(self.scale)
        q_BxSxGxRxK = by_key_head(q_BxSxHxK, ring.keys.shape[1])
        scores_BxGxRxSxN = jnp.einsum("bsgrk,bgnk->bgrsn", q_BxSxGxRxK, ring.keys)
        valid_BxN = jnp.arange(ring.keys.shape[2]) < ring.written[:, None]
        best, slot = jax.lax.top_k(jnp.where(valid_BxN[:, None, None, None], scores_BxGxRxSxN, -jnp.inf), self.config.top_k)
        best, slot = (x.reshape(len(x), -1, *x.shape[3:]) for x in (best, slot))
        weights, _ = masked_softmax(scale_H[:, None, None] * jnp.where(jnp.isfinite(best), best, 0.0), jnp.isfinite(best))
        values_BxHxNxV = jnp.repeat(ring.values, q_BxSxGxRxK.shape[3], axis=1)
        chosen = jnp.take_along_axis(values_BxHxNxV[:, :, None], slot[..., None], axis=3)
        v_m = jnp.einsum("bhsi,bhsiv->bshv", weights, chosen)
        v_m = jnp.where(segment.bounds.reads_BxS[..., None, None], v_m, 0.0)
        return self.out(combine(self.gate, v_m, self.local(memory.recent, segment, q_BxSxHxK, scale_H))), {}


class NaiveLandmark(Landmark):
    """A copy of every retrieved block for every query that reads it."""

    def attend(self, memory, segment):
        c, reads_BxS = self.config, segment.bounds.reads_BxS
        queries = retrieval.turned_queries(segment.queries, segment.query_positions_S, c.retrieved, self.length)
        chosen = retrieval.choose(memory, queries, reads_BxS, c.retrieved, c.selection)
        far = retrieval.read(memory, queries, chosen, reads_BxS, form="gather")
        q, k = rotary(segment.queries, segment.query_positions_S), rotary(segment.keys, jnp.arange(segment.keys.shape[1]))
        near = landmark_softmax.dense(q, k, segment.values, segment.bounds, self.length)
        return self.out(join(*near, *far)[0]), {}


class NaiveInfiniteFormer(InfiniteFormer):
    """Section 3.1 as it is printed: keys, values and scores of every basis function; the old signal sampled and fitted."""

    def attend(self, memory, segment):
        q_BxSxHxK, c = segment.queries, self.config
        k_BxNxHxK, v_BxNxHxV = (jnp.einsum("bnd,dhk->bnhk", memory.B, w) for w in (self.w_k, self.w_v))
        z_BxHxSxN = jnp.einsum("bshk,bnhk->bhsn", q_BxSxHxK, k_BxNxHxK) / np.sqrt(q_BxSxHxK.shape[-1])
        mu_BxHxS = jax.nn.sigmoid(z_BxHxSxN @ self.w_mu)
        sigma_sq_BxHxS = jnp.maximum(jax.nn.softplus(z_BxHxSxN @ self.w_sigma), c.variance_floor)
        mu_N, sigma_N = (jnp.asarray(x, jnp.float32) for x in signal.basis(c.basis, c.widths))
        r_BxHxSxN = signal.gaussian(mu_BxHxS[..., None], mu_N, sigma_N**2 + sigma_sq_BxHxS[..., None])
        c_BxSxHxV = jnp.einsum("bhsn,bnhv->bshv", r_BxHxSxN, v_BxNxHxV)
        c_BxSxHxV = jnp.where(self._reads(memory, segment)[..., None, None], c_BxSxHxV, 0.0)
        return self.out(attend_segment(segment)) + self.long_out(c_BxSxHxV), {}

    def _contracted(self, memory, segment, times_BxM=None):
        old_MxN = jnp.asarray(self._update_matrix(segment.inputs.shape[1])[: self.config.samples], jnp.float32)
        return signal.resampled(jax.lax.stop_gradient(memory.B), self._sampled(memory, segment, times_BxM), old_MxN)


NAIVE: dict[type[Memory], type[Memory]] = {
    GatedDelta: NaiveGatedDelta,
    Memorizing: NaiveMemorizing,
    Landmark: NaiveLandmark,
    InfiniteFormer: NaiveInfiniteFormer,
}


def naive(module: Memory) -> Memory:
    """The naive form of a mechanism: its own class where dense attention alone makes it naive."""
    return NAIVE.get(type(module), type(module))(module.config, module.dims)
