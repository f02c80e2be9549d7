"""Optimizers and schedules by name: the values of `TrainConfig.optimiser` and `TrainConfig.schedule`.

  adamw      decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101), b2 = 0.95
  adafactor  factored second moments, updates in proportion to the size of the parameter (Shazeer & Stern 2018, arXiv
             1804.04235): what the Infini-attention (rate 0.01, cosine) and Memorizing Transformer papers (rate 1.0, rsqrt)
             trained with
The first update has the number 1. Schedules rise linearly over W updates of warm-up, the last of which has the peak; then
  cosine     fall to a tenth of the rate, which the last update has
  rsqrt      rate / sqrt(max(update, W)): a rate of 1.0 with 1000 updates of warm-up peaks at 0.032, as published
  constant   stay
A schedule gives the share of the learning rate for a count of updates that were done, and an optimizer updates at a rate of
that share; the rate itself is multiplied on behind, see `infini_jax.training.optimiser`.

Layers are stacked: below a key that begins with `GROUP`, a parameter has the layers as its first axis. An optimizer that looks
at more than one number at a time goes through `each_layer_alone`, which shows it one layer after the other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

GROUP = "groups_"  # of layers with equal memories; begins the name of their stacked parameters
Mask = Callable[[Any], Any]  # parameters -> a tree of bools like them: which of them are decayed


def cosine(steps: int, warm: int) -> optax.Schedule:
    """Up to the peak at update `warm`, then down to a tenth at update `steps`."""
    return optax.warmup_cosine_decay_schedule(1 / warm, 1.0, warm - 1, max(steps - 1, warm), 0.1)


def rsqrt(steps: int, warm: int) -> optax.Schedule:
    """Up to 1 / sqrt(warm) at update `warm`, then 1 / sqrt(update)."""
    return lambda done: jnp.minimum(1.0, (done + 1) / warm) / jnp.sqrt(jnp.maximum(done + 1, warm))


def constant(steps: int, warm: int) -> optax.Schedule:
    """Up to the peak at update `warm`, and there it stays."""
    return lambda done: jnp.minimum(1.0, (done + 1) / warm)


def each_layer_alone(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation with each layer of a stack on its own, as it would be in a model of that layer alone.

    It must treat each parameter alone, as factored moments and clips by a parameter's own size do. The trees must be dicts
    with the stacks' keys on top; parameters below other keys are updated as they are.
    """

    def of(name: str, function: Callable) -> Callable:
        return jax.vmap(function) if name.startswith(GROUP) else function

    def init(params: Any) -> dict:
        parts = {name: {name: part} for name, part in params.items() if jax.tree.leaves(part)}
        return {name: of(name, transformation.init)(part) for name, part in parts.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, dict]:
        moved, new = dict(updates), {}
        for name, before in state.items():
            moves, new[name] = of(name, transformation.update)({name: updates[name]}, before, {name: params[name]})
            moved |= moves
        return moved, new

    return optax.GradientTransformation(init, update)


def adamw(share: optax.Schedule, weight_decay: float, mask: Mask) -> optax.GradientTransformation:
    """AdamW with b2 = 0.95 at the rate `share`; parameters outside `mask` are not decayed."""
    return optax.adamw(share, b2=0.95, weight_decay=weight_decay, mask=mask)


def adafactor(share: optax.Schedule, weight_decay: float, mask: Mask) -> optax.GradientTransformation:
    """Adafactor at the rate `share`; parameters outside `mask` are not decayed.

    Optax's own decay takes no schedule: decay is decoupled and scheduled here, like AdamW's.
    """
    return optax.chain(
        each_layer_alone(optax.adafactor(learning_rate=None, min_dim_size_to_factor=32)),
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
