"""Options of the command line for the sizes of a model, the bytes of its memory, and a model that gets a memory."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infini_jax.config import ModelConfig
from infini_jax.config.attach import Attachment, attached
from infini_jax.errors import require
from infini_jax.memory.base import MemoryConfig
from infini_jax.records.folder import RunFolder
from infini_jax.training.trained import saved_config

WITHOUT = ("memory", "elsewhere", "rotary_elsewhere")  # chosen by a command of its own, or in Python only
CHOSEN = ("segment", "compute")  # of a model that gets a memory; all else is its own
MODELS = Path("results/models")  # imported ones, by name
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


def found_run(path: Path) -> Path:
    """The folder of a run; of an imported model its name alone will do."""
    return MODELS / path if len(path.parts) == 1 and not path.exists() else path


def attached_to(origin: Path, own: Path, memory: MemoryConfig, how: Attachment, window: int, shape: Shape) -> ModelConfig:
    """The model of a run with a memory attached to it.

    Args:
      origin: folder of the run.
      own: folder of the run that begins there, whose settings do where it was begun and the other one is gone.
      memory, how, window: as `infini_jax.config.attach.attached` takes them.
      shape: sizes that were given, of which segment and compute are chosen.

    Raises `ConfigError` where the folder is no run's, another size was given, or the memory cannot be attached.
    """
    is_there = RunFolder(origin).config.is_file() or not RunFolder(own).config.is_file()
    model, default = saved_config(origin if is_there else own, "from").model, ModelConfig()
    for name, value in vars(shape).items():
        theirs = getattr(model, name)
        is_theirs = name in CHOSEN or value in (None, getattr(default, name), theirs)
        require(is_theirs, f"model.{name}", f"{value} is not {theirs}, as {origin} has it", "leave it out")
    compute = model.compute if shape.compute == default.compute else shape.compute
    return dataclasses.replace(attached(model, memory, how, window, shape.segment or model.segment), compute=compute)
