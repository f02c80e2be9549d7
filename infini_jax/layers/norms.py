"""Norms of the residual stream, of heads, and of what layers add."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp


def norm_of(kind: Literal["rms", "layer"], epsilon: float, biased: bool, dtype: jnp.dtype) -> nn.Module:
    """The module of a norm over the last axis, whose parameters are `scale` and, where it is `biased`, `bias`.

    rms is x scale / sqrt(mean(x^2) + epsilon); layer is the same of x - mean(x), plus the bias. Sums are float32 at least.
    """
    if kind == "rms":
        return nn.RMSNorm(epsilon=epsilon, dtype=dtype)
    # the fast variance, mean(x^2) - mean(x)^2, loses the digits of a stream whose mean is large
    return nn.LayerNorm(epsilon=epsilon, use_bias=biased, use_fast_variance=False, dtype=dtype)
