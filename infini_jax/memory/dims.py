"""What a mechanism knows of the model: the sizes of its layer, its types, and the parts of its attention."""

import dataclasses

import jax.numpy as jnp

from infini_jax.layers.distances import ROTARY, RotaryConfig
from infini_jax.layers.precision import Policy, policy_of


@dataclasses.dataclass(frozen=True)
class Dims:
    """Sizes of one attention layer.

    Attributes:
      d_model: width of the residual stream.
      heads: number of query heads.
      kv_heads: number of heads of keys, values and memory, a divisor of `heads`.
      key_dim: key dimension of one head.
      value_dim: value dimension of one head.
      segment: tokens of a segment that the layer sees, landmarks and memory tokens included.
      compute: type of activations, by name.
      rotary: turns of queries and keys, wherever positions are rotary.
      score_cap: bound of the scores of a softmax, as `layers.attention.soft_cap` takes it; 0 is none.
      output_bias: whether the output projection has a bias.
      mutual: memory tokens (before, after) of the segment that see all of their group, as in `MemoryConfig.mutual_tokens`.
      closed: whether output projections (`base.output_projection`) are zero before training, so that reading adds nothing.
    """

    d_model: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    segment: int
    compute: str = "float32"
    rotary: RotaryConfig = ROTARY
    score_cap: float = 0.0
    output_bias: bool = False
    mutual: tuple[int, int] = (0, 0)
    closed: bool = False

    @property
    def policy(self) -> Policy:
        """Types of parameters, activations, memory and sums."""
        return policy_of(self.compute)

    @property
    def dtype(self) -> jnp.dtype:
        """Type of activations and products."""
        return self.policy.compute

    @property
    def memory_dtype(self) -> jnp.dtype:
        """Type of the state that is carried."""
        return self.policy.memory
