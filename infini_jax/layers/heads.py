"""Heads, slots and sequences split by hand over devices that share a row, where the partitioner cannot split the program."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

SLOTS_AXIS = "slots"  # of a mesh whose devices share the slots of a memory
SEQUENCE_AXIS = "sequence"  # of a mesh whose devices share the segments of a sequence


def left_axes() -> tuple[str, ...]:
    """Axes of the mesh of the program being traced that are left to the partitioner, the axis of slots apart."""
    return tuple(name for name in _left() if name != SLOTS_AXIS)


def _left() -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1)


def by_hand(function: Callable, in_specs: Any, out_specs: Any, axes: set[str]) -> Callable:
    """`function` on each device's own parts along `axes` of the mesh of the program being traced; other axes stay."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)


def by_slots(function: Callable, slots: int) -> Callable | None:
    """`function(keys BxGxNxK, held B, queries)` on each device's own slots, with equal results on all devices.

    None where the slots are not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if SLOTS_AXIS not in _left() or slots % mesh.shape[SLOTS_AXIS]:
        return None
    in_specs = (PartitionSpec(None, None, SLOTS_AXIS), PartitionSpec(), PartitionSpec())
    return by_hand(function, in_specs, PartitionSpec(), {SLOTS_AXIS})


def shares_sequence() -> bool:
    """Whether the program being traced is for devices that each have a part of the sequence's segments, in order."""
    mesh = jax.sharding.get_abstract_mesh()
    return SEQUENCE_AXIS in mesh.manual_axes and mesh.shape[SEQUENCE_AXIS] > 1


def handed_on(before: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(value before this device's part of the sequence, value at the end of the whole sequence).

    `before` is the value before the sequence, `last` the value at the end of each device's part.
    """
    if not shares_sequence():
        return before, last
    ends = jnp.concatenate([before[None], jax.lax.all_gather(last, SEQUENCE_AXIS)])
    return ends[jax.lax.axis_index(SEQUENCE_AXIS)], ends[-1]


def can_split(heads: int, kv_heads: int) -> bool:
    """Whether the devices that share a row share both kinds of heads evenly and nothing else; one device always does."""
    if SLOTS_AXIS in _left():
        return False
    mesh = jax.sharding.get_abstract_mesh()
    parts = math.prod(mesh.shape[name] for name in left_axes())
    return heads % parts == 0 == kv_heads % parts


def by_heads(function: Callable, places: tuple[int | None, ...], results: Any, heads: int, kv_heads: int) -> Callable:
    """`function` on each device's own heads; unchanged where they cannot be split.

    Args:
      places: axis of the heads in each argument; None where an argument has none and is whole.
      results: axis of the heads in each result.
      heads: number of query heads.
      kv_heads: number of key heads.
    """
    axes = left_axes()
    if not axes or not can_split(heads, kv_heads):
        return function

    def spec(place: int | None) -> PartitionSpec:
        return PartitionSpec() if place is None else PartitionSpec(*(None,) * place, axes)

    return by_hand(function, tuple(map(spec, places)), jax.tree.map(spec, results), set(axes))
