"""Settings of a run: frozen dataclasses, validated when made."""

from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.config.run import Budget, Gives, ModelConfig, RunConfig, TrainConfig, Unit

__all__ = ["Budget", "EvaluationConfig", "Gives", "ModelConfig", "RunConfig", "TrainConfig", "Unit"]
