"""Kimi delta attention (Kimi Team 2025, "Kimi Linear", arXiv 2510.26692): a delta rule whose channels forget apart.

Per head, with keys of unit length; eq. 1 is the paper's, the forms of a chunk are in `running_delta`:
  eq. 1   S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_{t-1} + beta_t k_t v_t^T,  o_t = S_t^T q_t
          alpha_t = exp(-exp(a) softplus(W_up W_down x_t + b)),  beta_t = sigmoid(w_beta x_t)
With `eigenvalues` signed beta_t is twice as large, and what a token leaves along its key is between -1 and 1.
DEVIATION: the paper's layer is this memory alone, between layers of full attention. Here, as in all layers of this package,
local attention stands beside it and a gate per head mixes both. There is no short convolution (`model.key_taps` has that of
keys), no output norm and no output gate.
DEVIATION: queries keep their length and are divided by sqrt(K); the paper gives them unit length.
DEVIATION: W_down has the rank of a key; the paper's is the head dimension, the same for keys and values.
DEVIATION: channels first remember for 1 to 64 segments (`horizons`), evenly spread in the logarithm in each head.
"""

import dataclasses

import flax.linen as nn

from infini_jax.layers.segment import Segment
from infini_jax.memory.running_delta import Edits, RunningDelta, RunningDeltaConfig


@dataclasses.dataclass(frozen=True)
class KimiDeltaConfig(RunningDeltaConfig):
    """Settings of Kimi delta attention."""


class KimiDelta(RunningDelta):
    """Memory of a key x value matrix per head: a decay of each channel, one strength for what is erased and written."""

    Config = KimiDeltaConfig
    summary = "matrix memory, delta rule with a decay per channel, read after every token"
    paper = "arXiv 2510.26692"

    def setup(self):
        super().setup()
        self.strength = nn.Dense(self.dims.kv_heads, use_bias=False, dtype=self.dims.memory_dtype)

    def _edits(self, segment: Segment) -> Edits:
        k_BxTxGxK, v_BxTxGxV = self._keys(segment), segment.values.astype(self.dims.memory_dtype)
        beta_BxTxGx1 = self.most_erased * nn.sigmoid(self.strength(segment.inputs))[..., None]
        return Edits(k_BxTxGxK, beta_BxTxGx1 * k_BxTxGxK, beta_BxTxGx1 * v_BxTxGxV, self._log_decay(segment.inputs))

    def _projected(self) -> float:
        return 2.0 * self.dims.d_model * self.dims.kv_heads
