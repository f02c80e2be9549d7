"""An architecture as settings of our models: in the same words, with windows as the memory of layers elsewhere."""

import dataclasses
from typing import Any

from infini_jax.config import ModelConfig
from infini_jax.config.block import BlockConfig
from infini_jax.layers.distances import ROTARY
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.positions import Positions
from infini_jax.pretrained.architecture import Architecture

LONGEST_SEGMENT = 512  # tokens of a segment, by default


def model_settings(architecture: Architecture, segment: int = 0) -> ModelConfig:
    """The settings of a model as it is: attention over the context, or the window, that each layer was trained to read.

    Args:
      architecture: the model.
      segment: tokens per segment; 0 is the context, at most 512.

    Raises `ConfigError` that names the setting, where models here cannot have a part.
    """
    names = [field.name for field in dataclasses.fields(BlockConfig)]
    block = BlockConfig(**{name: getattr(architecture, name) for name in names})
    return ModelConfig(
        vocab=architecture.vocab,
        layers=architecture.layers,
        d_model=architecture.d_model,
        heads=architecture.heads,
        kv_heads=architecture.kv_heads,
        key_dim=architecture.key_dim,
        value_dim=architecture.value_dim,
        mlp_dim=architecture.mlp_dim,
        segment=segment or min(architecture.context, LONGEST_SEGMENT),
        block=block,
        **attention_of(architecture),
    )


def attention_of(architecture: Architecture) -> dict[str, Any]:
    """The settings of memories and positions of all layers."""
    windowed = architecture.windowed
    positions: Positions = "rotary" if architecture.rotary else "none"
    whole = tuple(layer for layer in range(architecture.layers) if layer not in windowed)
    rotary = architecture.rotary or ROTARY
    near = architecture.rotary_windowed or rotary
    if not windowed:
        return {"memory": FullConfig(slots=architecture.context, positions=positions), "rotary": rotary}
    window: MemoryConfig = LocalConfig(window=architecture.window, positions=positions)
    if not whole:
        return {"memory": window, "rotary": near}
    memory = FullConfig(slots=architecture.context, positions=positions, layers=whole)
    return {"memory": memory, "rotary": rotary, "elsewhere": window, "rotary_elsewhere": near if near != rotary else None}
