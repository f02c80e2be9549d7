"""Optimisers and schedules by name; the memory's gates apart, with their own rate.

  adamw      decoupled weight decay (Loshchilov, Hutter 2019), b2 = 0.95
  adafactor  factored second moments, updates in proportion to the size of the parameter (Shazeer, Stern 2018): what the
             Infini-attention (rate 0.01, cosine) and Memorizing Transformer papers (rate 1.0, rsqrt) trained with
Schedules rise linearly over the warm-up, then
  cosine     fall to a tenth of the rate
  rsqrt      rate / sqrt(max(step, warm-up steps)): a rate of 1.0 with 1000 steps of warm-up peaks at 0.032, as published
  constant   stay
"""

import jax
import jax.numpy as jnp
import optax

from infini_jax.config import TrainConfig


def schedule(train: TrainConfig, rate: float, steps: int) -> optax.Schedule:
    """Learning rate by step, for a run of `steps`."""
    warm = max(1, round(train.warmup * steps))
    if train.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, rate, warm, max(steps, warm + 1), rate / 10)
    if train.schedule == "constant":
        return optax.linear_schedule(0.0, rate, warm)
    return lambda step: rate * jnp.minimum(1.0, step / warm) / jnp.sqrt(jnp.maximum(step, warm))


def is_gate(path: tuple) -> bool:
    """Memory gates train with their own rate and without weight decay: with the common rate they never leave 0.5."""
    return path[-1].key == "gate"


def make_optimiser(train: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Behind a clip of the global gradient norm; gates apart; embedding, vectors and scalars are not decayed."""

    def labels(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(lambda path, _: "gates" if is_gate(path) else "weights", params)

    def matrices(params: dict) -> dict:
        return jax.tree.map(lambda leaf: leaf.ndim > 2, params)  # layers are stacked in front: a vector has two axes

    rate = schedule(train, train.learning_rate, steps)
    weights = {
        "adamw": lambda: optax.adamw(rate, b2=0.95, weight_decay=train.weight_decay, mask=matrices),
        # adafactor's own decay takes no schedule: decoupled and scheduled like AdamW's here
        "adafactor": lambda: optax.chain(
            optax.adafactor(learning_rate=None, min_dim_size_to_factor=32),
            optax.add_decayed_weights(-train.weight_decay, mask=matrices),
            optax.scale_by_schedule(rate),
        ),
    }[train.optimiser]
    groups = {"weights": weights(), "gates": optax.adam(schedule(train, train.gate_learning_rate, steps))}
    return optax.chain(optax.clip_by_global_norm(train.clip), optax.multi_transform(groups, labels))
