"""Tensors of a foreign model -> parameters, each of which is read when it is asked for: no more than one has to be held.

Parameters are stacked in layer groups as `infini_jax.model.transformer` has them, in the types of the files or in another.
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


def parameters(weights: Weights, architecture: Architecture, groups: Mapping[str, int], dtype: str = "") -> dict[str, Any]:
    """The parameters of a model as nested dicts of arrays; for the arguments and errors see `unread_parameters`."""
    return read_all(unread_parameters(weights, architecture, groups, dtype))


def read_all(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of tensors as nested dicts of arrays."""
    return {name: one.read() if isinstance(one, Tensor) else read_all(one) for name, one in tree.items()}


def unread_parameters(
    weights: Weights, architecture: Architecture, groups: Mapping[str, int], dtype: str = ""
) -> dict[str, Any]:
    """The parameters of a model as nested dicts of tensors, which are read from its files whenever they are asked for.

    Args:
      weights: the files of the model.
      architecture: what they hold.
      groups: names of the layer groups, and how many layers each has.
      dtype: type of the parameters, one of `WEIGHTS`; "" for that of each tensor in the files.

    Raises:
      ConfigError: a tensor is missing, nobody knows it, or it has another shape or type than the settings say.
    """
    require(dtype in ("", *WEIGHTS), "dtype", f"'{dtype}' is not a type of weights", f"give {' or '.join(WEIGHTS)}")
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
            put_in(found, row.path, of_tensors([of_row(tensors, row, row.tensor, architecture)], row, architecture, dtype))
    first = 0
    for group, count in groups.items():
        for row in (row for row in rows if row.in_layers):
            names = [row.tensor.format(first + layer) for layer in range(count)]
            stored = [of_row(tensors, row, name, architecture) for name in names]
            put_in(found, (group, *row.path), of_tensors(stored, row, architecture, dtype))
        first += count
    return found


def fully_named(tensors: Mapping[str, Tensor], wanted: Collection[str], prefix: str) -> dict[str, Tensor]:
    """Tensors by the names of a table, with the beginning that some files leave out."""
    return {prefix + name if prefix + name in wanted else name: tensor for name, tensor in tensors.items()}


def put_in(tree: dict[str, Any], path: Sequence[str], leaf: Tensor) -> None:
    """Puts a leaf into a tree at its path."""
    *above, last = path
    for name in above:
        tree = tree.setdefault(name, {})
    tree[last] = leaf


def of_row(tensors: Mapping[str, Tensor], row: Row, name: str, architecture: Architecture) -> Tensor:
    """The tensor of a name in a row. Raises `ConfigError` where it has another shape or type than it should have."""
    return checked(tensors[name], name, row.layout.stored_shape(architecture.sizes))


def checked(tensor: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor. Raises `ConfigError` where it has another shape, or no type of weights."""
    told = f"it has the shape {tensor.shape}, and the model's settings say {shape}"
    require(tensor.shape == shape, name, told, "restore the model's settings, or its tensors")
    told = f"it has the type {tensor.dtype}, which is not a type of weights"
    require(tensor.dtype in WEIGHTS, name, told, f"convert it to {' or '.join(WEIGHTS)}")
    return tensor


def of_tensors(stored: Sequence[Tensor], row: Row, architecture: Architecture, dtype: str) -> Tensor:
    """The parameter of stored tensors: one of each layer of a group, stacked, or the only one of the model.

    It is float32 where layers are stored in different types, and where a number is added to it: half precision would round.
    """
    types = {dtype} if dtype else {tensor.dtype for tensor in stored}
    kept = types.pop() if len(types) == 1 and not row.layout.offset else "float32"
    shape = row.layout.kept_shape(architecture.sizes)
    whole = (len(stored), *shape) if row.in_layers else shape

    def read() -> np.ndarray:
        parameter = np.empty(whole, np.dtype(kept))
        for tensor, place in zip(stored, parameter if row.in_layers else [parameter], strict=True):
            row.layout.put(tensor.read(), place, architecture.sizes)
        return parameter

    return Tensor(whole, kept, read)


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
