"""Tensors of a foreign model -> parameters, one tensor at a time: no more is held than the result and what is being read.

Parameters are stacked in layer groups as `infini_jax.model.transformer` has them, float32.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from infini_jax.errors import ConfigError, require
from infini_jax.pretrained.architecture import Architecture
from infini_jax.pretrained.families import architecture_of
from infini_jax.pretrained.metadata import settings_of
from infini_jax.pretrained.names import TABLES, WEIGHT, Row, Table, rows_of
from infini_jax.pretrained.tensors import WEIGHTS, Tensor, Weights


def described(weights: Weights) -> Architecture:
    """The architecture of a model's files. Raises `ConfigError` that names a field which is not supported."""
    is_gguf = weights.form == "gguf"
    return architecture_of(settings_of(weights.settings, weights.tensors) if is_gguf else weights.settings)


def parameters(weights: Weights, architecture: Architecture, groups: Mapping[str, int]) -> dict[str, Any]:
    """The parameters of a model as nested dicts of float32.

    Args:
      weights: the files of the model.
      architecture: what they hold.
      groups: names of the layer groups, and how many layers each has.

    Raises:
      ConfigError: a tensor is missing, nobody knows it, or it has another shape or type than the settings say.
    """
    grouped = sum(groups.values())
    told = f"they have {grouped} layers, the model has {architecture.layers}"
    require(grouped == architecture.layers, "groups", told, "give groups of all layers")
    table = TABLES[weights.form, architecture.family]
    rows = rows_of(table, architecture)
    wanted = set(wanted_names(rows, architecture.layers))
    tensors = fully_named(weights.tensors, wanted, table.prefix)
    check_names(tensors, wanted, table, architecture)
    found: dict[str, Any] = {}
    for row in rows:
        if not row.in_layers:
            fill(tensors, row, row.tensor, empty(found, row.path, row, architecture, ()), architecture)
    in_layers, first = [row for row in rows if row.in_layers], 0
    for group, count in groups.items():
        kept = [empty(found, (group, *row.path), row, architecture, (count,)) for row in in_layers]
        for layer in range(count):
            for row, stacked in zip(in_layers, kept, strict=True):
                fill(tensors, row, row.tensor.format(first + layer), stacked[layer], architecture)
        first += count
    return found


def fully_named(tensors: Mapping[str, Tensor], wanted: Collection[str], prefix: str) -> dict[str, Tensor]:
    """Tensors by the names of a table, with the beginning that some files leave out."""
    return {prefix + name if prefix + name in wanted else name: tensor for name, tensor in tensors.items()}


def empty(
    tree: dict[str, Any], path: Sequence[str], row: Row, architecture: Architecture, stacked: tuple[int, ...]
) -> np.ndarray:
    """A parameter that nobody has written yet, put into a tree at its path."""
    *above, leaf = path
    for name in above:
        tree = tree.setdefault(name, {})
    tree[leaf] = np.empty((*stacked, *row.layout.kept_shape(architecture.sizes)), np.float32)
    return tree[leaf]


def fill(tensors: Mapping[str, Tensor], row: Row, name: str, parameter: np.ndarray, architecture: Architecture) -> None:
    """Writes a tensor into its parameter. Raises `ConfigError` where it has another shape or type than it should have."""
    read = read_weight(tensors[name], name, row.layout.stored_shape(architecture.sizes))
    row.layout.put(read, parameter, architecture.sizes)


def read_weight(tensor: Tensor, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a tensor. Raises `ConfigError` where it has another shape, or no type of weights."""
    told = f"it has the shape {tensor.shape}, and the model's settings say {shape}"
    require(tensor.shape == shape, name, told, "restore the model's settings, or its tensors")
    told = f"it has the type {tensor.dtype}, which is none of weights"
    require(tensor.dtype in WEIGHTS, name, told, f"convert it to {' or '.join(WEIGHTS)}")
    return tensor.read()


def wanted_names(rows: Sequence[Row], layers: int) -> Iterator[str]:
    """The names of all tensors that a model needs."""
    for row in rows:
        yield from (row.tensor.format(layer) for layer in range(layers)) if row.in_layers else (row.tensor,)


def check_names(tensors: Collection[str], wanted: set[str], table: Table, architecture: Architecture) -> None:
    """Checks that all tensors are there and each is known: a bias that nobody adds would make another model of it.

    Raises `ConfigError` that names the first tensor at fault.
    """
    heads = {module.tensor + WEIGHT for module in table.modules if module.path == "head"}
    spare = heads if architecture.block.head == "tied" else set()  # some files have the tied matrix twice
    known = re.compile("|".join(table.ignored) or "(?!)")
    check_all_there(tensors, wanted)
    foreign = sorted(name for name in set(tensors) - wanted - spare if not known.fullmatch(name))
    if foreign:
        told = f"the family {architecture.family} has no such tensor with these settings"
        raise ConfigError(foreign[0], told, "import a model without it, or restore its settings")


def check_all_there(tensors: Collection[str], wanted: set[str]) -> None:
    """Raises `ConfigError` that names the first tensor of those that are missing."""
    missing = sorted(wanted - set(tensors))
    if missing:
        told = f"{len(missing)} of {len(wanted)} tensors are missing"
        raise ConfigError(missing[0], told, "restore the file, or the model's settings")
