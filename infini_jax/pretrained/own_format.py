"""Models outside every family in files of this package: all settings of the run in config.json, and parameters as they are.

config.json has `model_type` infini_jax, and below `infini_jax` the format's number, the package's version, the step, and the
run's config as its folder has it. A tensor's name is the path of its parameter joined by dots, such as groups_0.query.kernel;
layers of equal memories are stacked along its first axis, as in training.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from infini_jax import __version__
from infini_jax.config import ModelConfig, RunConfig
from infini_jax.errors import ConfigError, require
from infini_jax.model.stream import parameter_shapes
from infini_jax.pretrained.fields import Fields
from infini_jax.pretrained.importing import check_all_there, checked
from infini_jax.pretrained.tensors import Tensor, Weights

OWN = "infini_jax"  # model_type, and the field with all that this package says of a model
FORMAT_NUMBER = 1


def own_settings(run: RunConfig, step: int) -> dict[str, Any]:
    """The config.json of a run at a step, as JSON values; the folder of its origin, which is a machine's, becomes a name."""
    if run.origin:
        run = dataclasses.replace(run, origin=dataclasses.replace(run.origin, folder=run.origin.name))
    said = {"format": FORMAT_NUMBER, "package": __version__, "step": step, "run": run.to_dict()}
    return {"model_type": OWN, OWN: said}


def is_own(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is one that `own_settings` made."""
    return settings.get("model_type") == OWN


def run_in(settings: Mapping[str, Any]) -> RunConfig:
    """The run in a config.json, the inverse of `own_settings`.

    Raises `ConfigError` where it cannot be read, or is of a newer format.
    """
    said = Fields(settings).inner(OWN)
    number = said.whole("format")
    mend = "update infini_jax"
    require(number == FORMAT_NUMBER, f"{OWN}.format", f"{number} is not {FORMAT_NUMBER}, which this version reads", mend)
    try:
        return RunConfig.from_dict(dict(said.inner("run").values))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{OWN}.run", f"it cannot be read ({error})", "restore the model's config.json") from error


def own_names(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, or their shapes, by the names of their tensors."""
    return {".".join(path): leaf for path, leaf in flatten_dict(params).items()}  # pyright: ignore[reportArgumentType]


def own_parameters(weights: Weights, model: ModelConfig, dtype: str = "") -> dict[str, Any]:
    """The parameters of a model as nested dicts of tensors; `dtype` is their type, "" that of each in the files.

    Raises `ConfigError` where a tensor is missing, nobody knows it, or it has another shape or type than the settings say.
    """
    shapes, tensors = own_names(parameter_shapes(model)), weights.tensors
    check_all_there(tensors, set(shapes))
    if foreign := sorted(tensors.keys() - shapes.keys()):
        raise ConfigError(foreign[0], "the model has no such parameter", "restore its config.json, or its tensors")
    found = {tuple(name.split(".")): in_type(checked(tensors[name], name, leaf.shape), dtype) for name, leaf in shapes.items()}
    return unflatten_dict(found)


def in_type(tensor: Tensor, dtype: str) -> Tensor:
    """The tensor in another type; "" is its own."""
    return Tensor(tensor.shape, dtype, lambda: np.array(tensor.read(), np.dtype(dtype))) if dtype else tensor
