"""Options of the command line for the sizes of a model and the bytes of its memory."""

import dataclasses
from typing import TYPE_CHECKING, Any

from infini_jax.config import ModelConfig
from infini_jax.errors import require
from infini_jax.memory.base import MemoryConfig

WITHOUT = ("memory", "elsewhere", "rotary_elsewhere")  # chosen by a command of its own, or in Python only
SEGMENT: Any = dataclasses.field(default=None)  # so that a model's own is told from one that is given


def option(field: dataclasses.Field) -> tuple[str, Any, dataclasses.Field]:
    """The option of a setting of models, of the same type and default."""
    return (field.name, int | None, SEGMENT) if field.name == "segment" else (field.name, field.type, field)


if TYPE_CHECKING:  # what follows is made at run time; of it a type checker knows the settings
    from infini_jax.config import ModelConfig as Shape
else:
    Shape = dataclasses.make_dataclass(
        "Shape", [option(field) for field in dataclasses.fields(ModelConfig) if field.name not in WITHOUT], frozen=True
    )
    Shape.__doc__ = ModelConfig.__doc__.replace(
        "number of raw tokens per segment.",
        f"number of raw tokens per segment; by default {ModelConfig.segment}, of a model that gets a memory its own.",
    )


def made(memory: MemoryConfig, shape: Shape) -> ModelConfig:
    """The model of these sizes with this memory."""
    return ModelConfig(memory=memory, **{name: value for name, value in vars(shape).items() if value is not None})


def sized(model: ModelConfig, memory_bytes: int, memory_axis: str) -> ModelConfig:
    """The model with its memory grown along an axis to `memory_bytes`, or as it is where neither is named."""
    require(not memory_axis or memory_bytes != 0, "memory axis", "nothing says how far to grow", "give --memory-bytes, too")
    return model.at_bytes(memory_bytes, memory_axis) if memory_bytes else model
