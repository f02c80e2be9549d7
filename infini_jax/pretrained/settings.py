"""An architecture as settings of our models, and back: in the same words, with windows as the memory of layers elsewhere."""

import dataclasses
from typing import Any

from infini_jax.config import ModelConfig
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
        block=architecture.block,
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


def plain_settings(model: ModelConfig) -> ModelConfig:
    """The settings of the same model as `model_settings` has them: sizes in full, activations of float32."""
    d, memory, near = model.dims, model.memory, model.rotary_elsewhere
    if model.memory_layers == model.layers:
        memory = dataclasses.replace(memory, layers=None)
    return dataclasses.replace(
        model,
        kv_heads=d.kv_heads,
        key_dim=d.key_dim,
        value_dim=d.value_dim,
        mlp_dim=model.mlp_dim or 4 * model.d_model,
        compute="float32",
        memory=memory,
        rotary_elsewhere=near if near != model.rotary else None,
    )


def architecture_in(model: ModelConfig, family: str, context: int = 0) -> Architecture | None:
    """The architecture of `family` whose settings are nearest to a model's; those that say more than it has no words for.

    Whether nothing else is in the model is found by way of back, `model_settings`. None where a layer carries another memory
    than attention to the context or a window.

    Args:
      model: settings of the model.
      family: name of the family.
      context: tokens that it was trained to read at once, where all its layers have windows; 0 is what they reach together.
    """
    memories = [model.layer_memory(layer) for layer in range(model.layers)]
    full = [one for one in memories if isinstance(one, FullConfig)]
    near = [one for one in memories if isinstance(one, LocalConfig)]
    if len(full) + len(near) < model.layers:
        return None
    d, positions = model.dims, (*full, *near)[0].positions
    return Architecture(
        family,
        vocab=model.vocab,
        layers=model.layers,
        d_model=model.d_model,
        heads=d.heads,
        kv_heads=d.kv_heads,
        key_dim=d.key_dim,
        value_dim=d.value_dim,
        mlp_dim=model.mlp_dim or 4 * model.d_model,
        context=full[0].slots if full else context or near[0].window * model.layers,
        block=model.block,
        rotary=model.rotary if positions == "rotary" else None,
        window=near[0].window if near else 0,
        windowed=tuple(layer for layer, one in enumerate(memories) if isinstance(one, LocalConfig)),
        rotary_windowed=model.rotary_elsewhere,
    )
