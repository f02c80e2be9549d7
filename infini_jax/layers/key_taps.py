"""Keys that know the tokens they follow: a short causal convolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import NO_DOCUMENT, Boundaries


class KeyTaps(nn.Module):
    """A short causal depthwise convolution: each token's mix of itself and the taps - 1 tokens before it.

    Only tokens of the same document and segment are mixed. With two taps a key knows the token it follows, so that one layer
    can recall `value after key`; recall studies commonly put such a convolution before every mixer (Arora et al. 2023, arXiv
    2312.04927).

    Attributes:
      taps: number of tokens that are mixed, the token itself included.
      dtype: type of the mix.
      own: share of the token itself in the mix before training, what is left is shared evenly; None is the mean of all.
    """

    taps: int
    dtype: jnp.dtype
    own: float | None = None

    @nn.compact
    def __call__(self, inputs_BxTxD: jax.Array, bounds: Boundaries) -> jax.Array:
        """The mixes of the S query tokens, which begin at `bounds.start`: BxSxD."""
        width, back = inputs_BxTxD.shape[-1], self.taps - 1
        kernel_IxD = self.param("kernel", self._start, (self.taps, width), PARAMETERS).astype(self.dtype)
        queries = bounds.query_documents.shape[1]

        def recent(sequence: jax.Array, fill: int) -> jax.Array:
            pads = [(0, 0), (back, 0)] + [(0, 0)] * (sequence.ndim - 2)
            padded = jnp.pad(sequence, pads, constant_values=fill)
            return jax.lax.dynamic_slice_in_dim(padded, bounds.start, queries + back, axis=1)

        inputs_BxRxD, documents_BxR = recent(inputs_BxTxD, 0), recent(bounds.key_documents, NO_DOCUMENT)
        mixed_BxSxD = jnp.zeros((), self.dtype)
        for tap in range(self.taps):
            window = slice(back - tap, back - tap + queries)
            same_BxS = documents_BxR[:, window] == bounds.query_documents
            mixed_BxSxD += jnp.where(same_BxS[..., None], inputs_BxRxD[:, window] * kernel_IxD[tap], 0)
        return mixed_BxSxD

    def _start(self, key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
        """The kernel before training."""
        if self.own is None:
            return jnp.full(shape, 1 / self.taps, dtype)
        before = (1 - self.own) / (self.taps - 1)
        return jnp.full(shape, before, dtype).at[0].set(self.own)
