"""The optimizer of a run: one of `infini_jax.config.optimisers`, with a learning rate of its own for the memory's gates.

Schedules are linear in the rate, and so are the updates. The rates therefore stand in the optimizer's state and not in the
compiled step, which trials of several rates share.
"""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from infini_jax.config import ModelConfig, TrainConfig
from infini_jax.config.optimisers import OPTIMISERS, SCHEDULES
from infini_jax.model.transformer import memory_parameters, without_decay
from infini_jax.training.clipping import clip_by_global_norm


def schedule(train: TrainConfig, steps: int) -> optax.Schedule:
    """The share of the learning rate by the count of updates done, for a run of `steps`; a warm-up has at least one update."""
    return SCHEDULES[train.schedule](steps, max(1, round(train.warmup * steps)))


def names_of(path: tuple) -> tuple[str, ...]:
    """The keys of JAX's path to a parameter."""
    return tuple(key.key for key in path)


def averaged(average: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The moving average of the parameters after update `step`, the first of which has the number 1.

    The newest parameters weigh max(1 - decay, 10 / (9 + step)): all at first, so that the initial ones are left out; then the
    average is over a tenth of what was done, until that is longer than the decay's own horizon.
    """
    return optax.incremental_update(params, average, jnp.maximum(1 - decay, 10 / (9 + step)))


def make_optimiser(train: TrainConfig, steps: int, model: ModelConfig) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps, behind a clip of the global gradient norm.

    Gates have their own rate, because they never leave 0.5 at the common one, and their own decay. Weight decay leaves out
    embedding and an own head, vectors, scalars, gates, biases and what the mechanisms of `model` declare in `no_decay`.
    """
    gates, no_decay = memory_parameters(model, "gates"), without_decay(model)

    def labels(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(lambda path, _: "gates" if names_of(path) in gates else "weights", params)

    def matrices(params: dict) -> dict:  # layers are stacked in front: a vector has two axes
        return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim > 2 and names_of(path) not in no_decay, params)

    shape = schedule(train, steps)
    weights = OPTIMISERS[train.optimiser](shape, train.weight_decay, matrices)
    decay = train.gate_weight_decay  # without one the state is that of Adam alone, as checkpoints have it
    gate_updates = optax.adamw(shape, weight_decay=decay) if decay else optax.adam(shape)
    scale = optax.inject_hyperparams(optax.scale)  # by a number in the optimizer's state
    groups: dict[Hashable, optax.GradientTransformation] = {
        "weights": optax.chain(weights, scale(step_size=train.learning_rate)),
        "gates": optax.chain(gate_updates, scale(step_size=train.gate_learning_rate)),
    }
    return optax.chain(clip_by_global_norm(train.clip), optax.multi_transform(groups, labels))
