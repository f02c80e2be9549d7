"""Mixed precision: the type of every kind of number, derived in one place from the compute type.

  parameters  float32 always, and with them gradients and the optimizer's moments: an update of a thousandth is less than half
              a step of bfloat16's 8 bits and would be rounded away
  compute     activations, and the operands of matrix products; parameters are cast to it where they are used
  memory      the state carried from segment to segment, float32 at least: bfloat16 sums drift by several percent within tens
              of segments and overflow later
  output      sums and softmax inside attention, logits and loss, float32 at least

Models compute in float32 or bfloat16; tests run parts in float64, which "at least" lets through. There is no loss scaling:
bfloat16 has float32's range.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

Compute = Literal["float32", "bfloat16"]
PARAMETERS = jnp.float32  # stated where a parameter is made: the default of initializers is float64 under JAX_ENABLE_X64


def wide(dtype: Any) -> jnp.dtype:
    """The type of sums over numbers of `dtype`: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Types of a model's numbers.

    Attributes:
      parameters: type of parameters, gradients and moments.
      compute: type of activations and the operands of products.
      memory: type of the state carried from segment to segment.
      output: type of sums, softmax, logits and loss.
    """

    parameters: jnp.dtype
    compute: jnp.dtype
    memory: jnp.dtype
    output: jnp.dtype


def policy_of(compute: str) -> Policy:
    """The policy of a compute type, given by its name."""
    return Policy(jnp.dtype(PARAMETERS), jnp.dtype(compute), memory=wide(compute), output=wide(compute))
