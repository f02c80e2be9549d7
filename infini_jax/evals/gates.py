"""Gates: the share of each head's output that comes from the memory, by layer and head, as the mechanism itself reports it."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.config import ModelConfig, RunConfig
from infini_jax.errors import require
from infini_jax.evals.base import Evaluation, Subject, Watch, unwatched
from infini_jax.memory.base import reported_gates
from infini_jax.model.cost import model_cost
from infini_jax.model.stream import forward_segments, init_carry, parameter_shapes
from infini_jax.model.transformer import layer_groups
from infini_jax.records.measures import Measure


@dataclasses.dataclass(frozen=True)
class GateEvaluation(Evaluation):
    """The trained gate of every head: 0 ignores the memory, 1 sees nothing else.

    Gates depend on no text, so one segment tells.
    """

    name: ClassVar[str] = "gates"

    def applies(self, run: RunConfig) -> bool:
        """Whether the run's mechanism has gates."""
        return has_gates(run.model)

    def check(self, run: RunConfig) -> None:
        """Checks a run: raises `ConfigError` where its mechanism has no gates."""
        require(has_gates(run.model), "run", f"{run.model.mechanism} has no gates", "choose a run of a mechanism that has")

    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of one segment."""
        return model_cost(run.model).flops * run.model.segment

    def measure(self, subject: Subject, watch: Watch = unwatched) -> list[Measure]:
        """One figure per layer and head, labeled with both."""
        found = gates(subject.run.model, subject.params)
        watch(1, 1)
        return [
            Measure(self.name, "gate", float(gate), 1, labels={"layer": layer, "head": head})
            for layer, gate_H in found.items()
            for head, gate in enumerate(np.asarray(gate_H))
        ]


@functools.partial(jax.jit, static_argnums=0)
def gates(model: ModelConfig, params: dict) -> dict[int, jax.Array]:
    """The H gates of each layer that has some, between 0 and 1, by the layer's number."""
    empty = jnp.zeros((1, model.segment), jnp.int32)
    _, _, metrics = forward_segments(model, params, init_carry(model, 1), empty, empty)
    found, layer = {}, 0
    for (_, count), group in zip(layer_groups(model), metrics, strict=True):
        reported = reported_gates(group)
        if reported is not None:
            found |= {layer + number: reported[number].ravel() for number in range(count)}
        layer += count
    return found


@functools.cache
def has_gates(model: ModelConfig) -> bool:
    """Whether any layer of a model reports gates; found from shapes, without computing anything."""
    return bool(jax.eval_shape(functools.partial(gates, model), parameter_shapes(model)))
