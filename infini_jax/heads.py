"""Heads split by hand over the devices that share a row, for programs that the partitioner cannot split: loops and kernels."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def left_axes() -> tuple[str, ...]:
    """Axes of the mesh that a program is traced for, which are left to the partitioner."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1)


def can_split(heads: int, kv_heads: int) -> bool:
    """Whether the devices along these axes share both kinds of heads evenly; one device always does."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = math.prod(mesh.shape[name] for name in left_axes())
    return heads % parts == 0 == kv_heads % parts


def by_heads(function: Callable, places: tuple[int | None, ...], results: Any, heads: int, kv_heads: int) -> Callable:
    """`function` on each device's own heads; as it is where they cannot be split.

    Args:
      places: of each argument the axis of its heads; None where it has none and is whole.
      results: the same of what it returns.
    """
    axes = left_axes()
    if not axes or not can_split(heads, kv_heads):
        return function

    def spec(place: int | None) -> PartitionSpec:
        return PartitionSpec() if place is None else PartitionSpec(*(None,) * place, axes)

    in_specs, out_specs = tuple(map(spec, places)), jax.tree.map(spec, results)
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=set(axes), check_vma=False)
