"""Parameters -> tensors of a file, each made when it is written: the way back of `infini_jax.pretrained.importing`.

A model whose settings a family has gets the family's config.json and tensors, by the tables that name them for the import. Any
other is written as it is, see `infini_jax.pretrained.own_format`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from infini_jax.config import ModelConfig, RunConfig
from infini_jax.errors import require
from infini_jax.model.inheritance import layer_names
from infini_jax.pretrained.architecture import Architecture
from infini_jax.pretrained.family_settings import family_of
from infini_jax.pretrained.layouts import Layout
from infini_jax.pretrained.names import TABLES, Row, rows_of
from infini_jax.pretrained.own_format import OWN, own_names, own_settings, run_settings
from infini_jax.pretrained.tensors import Tensor


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model as it is written.

    Attributes:
      settings: content of config.json.
      tensors: tensors by name, which are made when they are read.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def family(self) -> str:
        """Name of the family, infini_jax for a model outside all of them."""
        return self.settings["model_type"]

    @property
    def is_own(self) -> bool:
        """Whether the model is outside every family."""
        return self.family == OWN


@dataclasses.dataclass(frozen=True)
class Placed:
    """A parameter of one layer, or of the whole model, and how it lies against a tensor.

    Attributes:
      layout: how the one lies against the other.
      parameter: array that holds the parameter.
      layer: place of the layer on the array's first axis; None where nothing is stacked.
    """

    layout: Layout
    parameter: Any
    layer: int | None

    def read(self) -> np.ndarray:
        """The parameter, in the memory of this process."""
        return np.asarray(self.parameter if self.layer is None else self.parameter[self.layer])


def exported(run: RunConfig, step: int, params: Mapping[str, Any], dtype: str = "float32", context: int = 0) -> Exported:
    """A trained model as it is written.

    Args:
      run: settings of the run.
      step: step of the parameters.
      params: parameters of the model as nested dicts.
      dtype: name of the tensors' type, one of weights.
      context: tokens that the model was trained to read at once, for models of windows only, whose settings do not say it.
    """
    found = family_of(run.model, context)
    if found is None:
        tensors = {name: plain_tensor(name, leaf, dtype) for name, leaf in own_names(params).items()}
        return Exported(own_settings(run, step) | {"torch_dtype": dtype}, tensors)
    architecture, settings = found
    return Exported(
        settings | {"torch_dtype": dtype} | run_settings(run, step), family_tensors(architecture, run.model, params, dtype)
    )


def plain_tensor(name: str, leaf: Any, dtype: str) -> Tensor:
    """A parameter as the tensor that it is."""
    return Tensor(tuple(leaf.shape), dtype, lambda: finite(np.asarray(leaf).astype(np.dtype(dtype)), name, dtype))


def family_tensors(architecture: Architecture, model: ModelConfig, params: Mapping[str, Any], dtype: str) -> dict[str, Tensor]:
    """The tensors of a family's model, each of one parameter, or of several that the family has fused."""
    parts: dict[str, list[Placed]] = {}
    for row in rows_of(TABLES["safetensors", architecture.family], architecture):
        for name, part in placed_of(row, model, params):
            parts.setdefault(name, []).append(part)
    sizes = architecture.sizes
    return {
        name: Tensor(joined[0].layout.stored_shape(sizes), dtype, functools.partial(tensor_of, name, joined, sizes, dtype))
        for name, joined in parts.items()
    }


def placed_of(row: Row, model: ModelConfig, params: Mapping[str, Any]) -> Iterator[tuple[str, Placed]]:
    """(name of the tensor, its part) of a row of a table: for every layer, where layers have it."""
    if not row.in_layers:
        yield row.tensor, Placed(row.layout, leaf_at(params, row.path), None)
        return
    number = 0
    for group, names in layer_names(model).items():
        stacked = leaf_at(params, (group, *row.path))
        for place in range(len(names)):
            yield row.tensor.format(number), Placed(row.layout, stacked, place)
            number += 1


def leaf_at(params: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The parameter at a path."""
    for name in path:
        params = params[name]
    return params


def tensor_of(name: str, parts: list[Placed], sizes: Mapping[str, int], dtype: str) -> np.ndarray:
    """The tensor that parts make. Raises `ConfigError` where its type cannot hold a number."""
    tensor = np.empty(parts[0].layout.stored_shape(sizes), np.dtype(dtype))
    with np.errstate(over="ignore"):  # is found below
        for part in parts:
            part.layout.take(part.read(), tensor, sizes)
    return finite(tensor, name, dtype)


def finite(tensor: np.ndarray, name: str, dtype: str) -> np.ndarray:
    """The tensor itself. Raises `ConfigError` where it holds what is no finite number."""
    told = f"{name} holds numbers that are not finite in {dtype}"
    require(bool(np.isfinite(tensor).all()), "dtype", told, "give bfloat16 or float32, or another --step")
    return tensor
