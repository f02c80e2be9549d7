"""Gated DeltaNet-2 (Hatamizadeh, Choi, Kautz 2026, arXiv 2605.22791): erasing and writing have gates of their own.

Per head, with keys of unit length and the decay of `kimi_delta`; the forms of a chunk are in `running_delta`:
  S_t = (I - k_t (b_t * k_t)^T) Diag(alpha_t) S_{t-1} + k_t (w_t * v_t)^T,  o_t = S_t^T q_t
  b_t = sigmoid(W_b x_t) of each channel of a key,  w_t = sigmoid(W_w x_t) of each channel of a value
Where all channels of b_t and w_t are one number beta_t it is Kimi delta attention. With `eigenvalues` signed b_t is twice as
large.
DEVIATION: those of `kimi_delta`: local attention beside the memory, no convolutions, output norm or output gate, queries that
keep their length, the rank of the decay's projection, first horizons.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from infini_jax.layers.segment import Segment
from infini_jax.memory.running_delta import Edits, RunningDelta, RunningDeltaConfig


@dataclasses.dataclass(frozen=True)
class GatedDelta2Config(RunningDeltaConfig):
    """Settings of Gated DeltaNet-2."""


class GatedDelta2(RunningDelta):
    """Memory of a key x value matrix per head: gates of each key channel for erasing, of each value channel for writing."""

    Config = GatedDelta2Config
    summary = "matrix memory, delta rule with channels that are erased and written apart"
    paper = "arXiv 2605.22791"
    parameter_axes: ClassVar = {
        **RunningDelta.parameter_axes,
        ("erase", "kernel"): ("embed", "kv_heads", "head_dim"),
        ("strength", "kernel"): ("embed", "kv_heads", "head_dim"),
    }

    def setup(self):
        super().setup()
        d = self.dims
        self.erase = nn.DenseGeneral((d.kv_heads, d.key_dim), use_bias=False, dtype=d.memory_dtype)
        self.strength = nn.DenseGeneral((d.kv_heads, d.value_dim), use_bias=False, dtype=d.memory_dtype)

    def _edits(self, segment: Segment) -> Edits:
        k_BxTxGxK, b_BxTxGxK = self._keys(segment), self.most_erased * nn.sigmoid(self.erase(segment.inputs))
        v_BxTxGxV, w_BxTxGxV = segment.values.astype(k_BxTxGxK.dtype), nn.sigmoid(self.strength(segment.inputs))
        return Edits(k_BxTxGxK, b_BxTxGxK * k_BxTxGxK, w_BxTxGxV * v_BxTxGxV, self._log_decay(segment.inputs))

    def _projected(self) -> float:
        return 2.0 * self.dims.d_model * self.dims.kv_heads * (self.dims.key_dim + self.dims.value_dim)
