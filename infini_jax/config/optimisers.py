"""Optimizers and schedules by name: the values of `TrainConfig.optimiser` and `TrainConfig.schedule`.

  adamw      decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101), b2 = 0.95
  adafactor  factored second moments, updates in proportion to the size of the parameter (Shazeer & Stern 2018, arXiv
             1804.04235): what the Infini-attention (rate 0.01, cosine) and Memorizing Transformer papers (rate 1.0, rsqrt)
             trained with
Schedules rise linearly over the warm-up, then
  cosine     fall to a tenth of the rate
  rsqrt      rate / sqrt(max(step, warm-up steps)): a rate of 1.0 with 1000 steps of warm-up peaks at 0.032, as published
  constant   stay
A schedule gives the share of the learning rate by step, and an optimizer updates at a rate of that share; the rate itself is
multiplied on behind, see `infini_jax.training.optimiser`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

Mask = Callable[[Any], Any]  # parameters -> a tree of bools like them: which of them are decayed


def cosine(steps: int, warm: int) -> optax.Schedule:
    """Share of the rate by step: up linearly over `warm` steps, then down to a tenth at `steps` by a cosine."""
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, warm, max(steps, warm + 1), 0.1)


def rsqrt(steps: int, warm: int) -> optax.Schedule:
    """Share of the rate by step: up linearly over `warm` steps, then 1 / sqrt(step)."""
    return lambda step: jnp.minimum(1.0, step / warm) / jnp.sqrt(jnp.maximum(step, warm))


def constant(steps: int, warm: int) -> optax.Schedule:
    """Share of the rate by step: up linearly over `warm` steps, then 1."""
    return optax.linear_schedule(0.0, 1.0, warm)


def adamw(share: optax.Schedule, weight_decay: float, mask: Mask) -> optax.GradientTransformation:
    """AdamW with b2 = 0.95 at the rate `share`; parameters outside `mask` are not decayed."""
    return optax.adamw(share, b2=0.95, weight_decay=weight_decay, mask=mask)


def adafactor(share: optax.Schedule, weight_decay: float, mask: Mask) -> optax.GradientTransformation:
    """Adafactor at the rate `share`; parameters outside `mask` are not decayed.

    Optax's own decay takes no schedule: decay is decoupled and scheduled here, like AdamW's.
    """
    return optax.chain(
        optax.adafactor(learning_rate=None, min_dim_size_to_factor=32),
        optax.add_decayed_weights(-weight_decay, mask=mask),
        optax.scale_by_schedule(share),
    )


SCHEDULES: dict[str, Callable[[int, int], optax.Schedule]] = {"cosine": cosine, "rsqrt": rsqrt, "constant": constant}
"""Registry of schedules: name -> function (steps, warm-up steps) -> schedule of the share of the learning rate."""
OPTIMISERS: dict[str, Callable[[optax.Schedule, float, Mask], optax.GradientTransformation]] = {
    "adamw": adamw,
    "adafactor": adafactor,
}
"""Registry of optimizers: name -> function (schedule of the share, weight decay, mask of decayed parameters) -> optimizer."""
