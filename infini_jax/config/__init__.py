"""Settings of a run: frozen dataclasses, validated when made, in plain JSON and back."""

from infini_jax.config.block import BlockConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.config.model import ModelConfig
from infini_jax.config.origin import Origin
from infini_jax.config.run import RunConfig
from infini_jax.config.train import Budget, Gives, TrainConfig, Trains, Unit

__all__ = [
    "BlockConfig",
    "Budget",
    "EvaluationConfig",
    "Gives",
    "ModelConfig",
    "Origin",
    "RunConfig",
    "TrainConfig",
    "Trains",
    "Unit",
]
