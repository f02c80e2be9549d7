"""Mixed precision: the type of every kind of number, derived in one place from the compute type.

  parameters  float32 always, and with them gradients and the optimiser's moments: an update of a thousandth is less than half
              a step of bfloat16's 8 bits and would be rounded away
  compute     activations, and the operands of matrix products; parameters are cast to it where they are used
  memory      what is carried from segment to segment, float32 at least: bfloat16 sums drift by per cents within tens of
              segments and overflow later
  output      sums and softmax inside attention, logits and loss, float32 at least

float32 and bfloat16 are what a model computes in; tests run parts in float64, which "at least" lets through. There is no loss
scaling: bfloat16 has float32's range.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

Compute = Literal["float32", "bfloat16"]


def wide(dtype: Any) -> jnp.dtype:
    """The type of sums over numbers of `dtype`: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Types of a model that computes in `compute`. Attributes: parameters, compute, memory, output, as above."""

    parameters: jnp.dtype
    compute: jnp.dtype
    memory: jnp.dtype
    output: jnp.dtype


def policy_of(compute: str) -> Policy:
    """The policy of a compute type by its name."""
    return Policy(jnp.dtype(jnp.float32), jnp.dtype(compute), memory=wide(compute), output=wide(compute))
