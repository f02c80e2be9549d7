"""Options of the command line for the sizes of a model and the bytes of its memory."""

import dataclasses
from typing import TYPE_CHECKING, Any

from infini_jax.config import ModelConfig
from infini_jax.errors import require
from infini_jax.memory.base import MemoryConfig

WITHOUT = ("memory", "elsewhere", "rotary_elsewhere")  # chosen by a command of its own, or in Python only
DECIDED = ("segment", "vocab")  # by the data or another model where they are left out


def option(field: dataclasses.Field) -> tuple[str, Any, dataclasses.Field]:
    """The option of a setting of models, of the same type and default."""
    is_decided = field.name in DECIDED
    left_out: Any = dataclasses.field(default=None)
    return (field.name, int | None, left_out) if is_decided else (field.name, field.type, field)


if TYPE_CHECKING:  # what follows is made at run time; of it a type checker knows the settings
    from infini_jax.config import ModelConfig as Shape
else:
    Shape = dataclasses.make_dataclass(
        "Shape", [option(field) for field in dataclasses.fields(ModelConfig) if field.name not in WITHOUT], frozen=True
    )
    Shape.__doc__ = ModelConfig.__doc__.replace(
        "number of raw tokens per segment.",
        f"number of raw tokens per segment (default: {ModelConfig.segment}, or that of the model that gets a memory).",
    ).replace(
        "number of raw tokens in the vocabulary (landmarks get ids above it).",
        f"vocabulary size in raw tokens, without landmarks (default: that of the data, at least {ModelConfig.vocab}).",
    )


def made(memory: MemoryConfig, shape: Shape, vocab: int = 0) -> ModelConfig:
    """The model of these sizes with this memory; its vocabulary is at least `vocab` unless the sizes name one."""
    given = {name: value for name, value in vars(shape).items() if value is not None}
    return ModelConfig(memory=memory, **{"vocab": max(vocab, ModelConfig.vocab), **given})


def sized(model: ModelConfig, memory_bytes: int, memory_axis: str) -> ModelConfig:
    """The model with its memory grown along an axis to `memory_bytes`, or as it is where neither is named."""
    require(not memory_axis or memory_bytes != 0, "memory axis", "nothing says how far to grow", "give --memory-bytes, too")
    return model.at_bytes(memory_bytes, memory_axis) if memory_bytes else model
