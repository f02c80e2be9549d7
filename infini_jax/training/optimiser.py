"""Optimisers and schedules by name; the memory's gates apart, with their own rate.

  adamw      decoupled weight decay (Loshchilov, Hutter 2019), b2 = 0.95
  adafactor  factored second moments, updates in proportion to the size of the parameter (Shazeer, Stern 2018): what the
             Infini-attention (rate 0.01, cosine) and Memorizing Transformer papers (rate 1.0, rsqrt) trained with
Schedules rise linearly over the warm-up, then
  cosine     fall to a tenth of the rate
  rsqrt      rate / sqrt(max(step, warm-up steps)): a rate of 1.0 with 1000 steps of warm-up peaks at 0.032, as published
  constant   stay
All of them are linear in the rate, and so are the updates. The rates therefore stand in the optimiser's state and not in the
compiled step, which trials of several rates share.
"""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import optax

from infini_jax.config import ModelConfig, TrainConfig
from infini_jax.model.transformer import memory_parameters


def schedule(train: TrainConfig, steps: int) -> optax.Schedule:
    """The share of the learning rate by step, for a run of `steps`."""
    warm = max(1, round(train.warmup * steps))
    if train.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, warm, max(steps, warm + 1), 0.1)
    if train.schedule == "constant":
        return optax.linear_schedule(0.0, 1.0, warm)
    return lambda step: jnp.minimum(1.0, step / warm) / jnp.sqrt(jnp.maximum(step, warm))


def names_of(path: tuple) -> tuple[str, ...]:
    """The keys of JAX's path to a parameter."""
    return tuple(key.key for key in path)


def make_optimiser(train: TrainConfig, steps: int, model: ModelConfig) -> optax.GradientTransformation:
    """The optimizer of a run, behind a clip of the global gradient norm; gates apart, which never leave 0.5 at the common
    rate.

    Weight decay leaves out embedding, vectors, scalars, gates and the parameters that the mechanisms of `model` declare so.
    """
    gates, no_decay = memory_parameters(model, "gates"), memory_parameters(model, "no_decay")

    def labels(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(lambda path, _: "gates" if names_of(path) in gates else "weights", params)

    def matrices(params: dict) -> dict:  # layers are stacked in front: a vector has two axes
        return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim > 2 and names_of(path) not in no_decay, params)

    shape = schedule(train, steps)
    weights = {
        "adamw": lambda: optax.adamw(shape, b2=0.95, weight_decay=train.weight_decay, mask=matrices),
        # adafactor's own decay takes no schedule: decoupled and scheduled like AdamW's here
        "adafactor": lambda: optax.chain(
            optax.adafactor(learning_rate=None, min_dim_size_to_factor=32),
            optax.add_decayed_weights(-train.weight_decay, mask=matrices),
            optax.scale_by_schedule(shape),
        ),
    }[train.optimiser]
    scale = optax.inject_hyperparams(optax.scale)  # by a number in the optimiser's state
    groups: dict[Hashable, optax.GradientTransformation] = {
        "weights": optax.chain(weights(), scale(step_size=train.learning_rate)),
        "gates": optax.chain(optax.adam(shape), scale(step_size=train.gate_learning_rate)),
    }
    return optax.chain(optax.clip_by_global_norm(train.clip), optax.multi_transform(groups, labels))
