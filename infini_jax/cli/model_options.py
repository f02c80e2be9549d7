"""Options of the command line for the sizes of a model and the bytes of its memory."""

import dataclasses
from typing import TYPE_CHECKING

from infini_jax.config import ModelConfig
from infini_jax.errors import require

WITHOUT = ("memory", "elsewhere", "rotary_elsewhere")  # chosen by a command of its own, or in Python only

if TYPE_CHECKING:  # what follows is made at run time; of it a type checker knows the settings
    from infini_jax.config import ModelConfig as Shape
else:
    Shape = dataclasses.make_dataclass(
        "Shape",
        [(field.name, field.type, field) for field in dataclasses.fields(ModelConfig) if field.name not in WITHOUT],
        frozen=True,
    )
    Shape.__doc__ = ModelConfig.__doc__


def sized(model: ModelConfig, memory_bytes: int, memory_axis: str) -> ModelConfig:
    """The model with its memory grown along an axis to `memory_bytes`, or as it is where neither is named."""
    require(not memory_axis or memory_bytes != 0, "memory axis", "nothing says how far to grow", "give --memory-bytes, too")
    return model.at_bytes(memory_bytes, memory_axis) if memory_bytes else model
