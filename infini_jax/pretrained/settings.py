"""An architecture as settings of our models, as far as they can express it today."""

import dataclasses
from typing import Any

from infini_jax.config import ModelConfig
from infini_jax.errors import quoted, require
from infini_jax.memory.full import FullConfig
from infini_jax.pretrained.architecture import Architecture, Rotary

LONGEST_SEGMENT = 512  # tokens of a segment, by default
TODAY: dict[str, Any] = {
    "norm": "rms",
    "norm_places": "before",
    "qk_norm": "none",
    "mlp": "gelu_tanh",
    "biases": (),
    "residual": "in_turn",
    "head": "tied",
    "embedding_scale": 1.0,
    "attention_scale": 0.0,
    "score_cap": 0.0,
    "logit_cap": 0.0,
    "learned_positions": 0,
    "window": 0,
    "epsilon": 1e-6,
    "rotary": Rotary(),
}
"""What a block of `infini_jax.model.transformer` is: all that differs has no setting yet."""


def model_settings(architecture: Architecture, segment: int = 0) -> ModelConfig:
    """The settings of a model as it is: full attention over the context that it was trained to read.

    Args:
      architecture: the model.
      segment: tokens per segment; 0 is the context, at most 512.

    Raises `ConfigError` that names the first field for which there is no setting.
    """
    for name, value in TODAY.items():
        found = getattr(architecture, name)
        said = dataclasses.asdict(found) if dataclasses.is_dataclass(found) and not isinstance(found, type) else found
        told = f"{quoted(said)} is read, and models here cannot have it yet"
        require(found == value, f"architecture.{name}", told, f"import a model with {quoted(value)}")
    return ModelConfig(
        memory=FullConfig(slots=architecture.context),
        vocab=architecture.vocab,
        layers=architecture.layers,
        d_model=architecture.d_model,
        heads=architecture.heads,
        kv_heads=architecture.kv_heads,
        key_dim=architecture.key_dim,
        value_dim=architecture.value_dim,
        mlp_dim=architecture.mlp_dim,
        segment=segment or min(architecture.context, LONGEST_SEGMENT),
    )
