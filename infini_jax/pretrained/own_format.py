"""What config.json says of an exported run, and the files of models outside every family.

Every config.json that is written has below `infini_jax` the number of the format, the version of the package, the step and the
config of the run as its folder has it. That of a model outside every family has nothing but `model_type` infini_jax. The
name of a tensor is there the path of its parameter joined by dots, such as groups_0.query.kernel, and layers of equal memories
are stacked along its first axis, as in training.
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

OWN = "infini_jax"  # model_type, and the field with all that is said of a run
FORMAT_NUMBER = 1


def run_settings(run: RunConfig, step: int) -> dict[str, Any]:
    """The part of config.json with a run at a step; the folder of its origin, which is a machine's, becomes a name."""
    if run.origin:
        run = dataclasses.replace(run, origin=dataclasses.replace(run.origin, folder=run.origin.name))
    return {OWN: {"format": FORMAT_NUMBER, "package": __version__, "step": step, "run": run.to_dict()}}


def own_settings(run: RunConfig, step: int) -> dict[str, Any]:
    """The config.json of a run outside every family at a step, as JSON values."""
    return {"model_type": OWN, **run_settings(run, step)}


def is_own(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model outside every family."""
    return settings.get("model_type") == OWN


def run_in(settings: Mapping[str, Any]) -> RunConfig | None:
    """The run in a config.json, the inverse of `run_settings`; None where it says none, and is that of a family.

    Raises `ConfigError` where it cannot be read, or is of a newer format.
    """
    if OWN not in settings and not is_own(settings):
        return None
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
