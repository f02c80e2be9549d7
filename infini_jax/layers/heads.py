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
    """Axes of the mesh that a program is traced for, which are left to the partitioner; that of slots apart."""
    return tuple(name for name in _left() if name != SLOTS_AXIS)


def _left() -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1)


def by_hand(function: Callable, in_specs: Any, out_specs: Any, axes: set[str]) -> Callable:
    """`function` on each device's own parts along `axes` of the mesh that a program is traced for; others stay as they are."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)


def by_slots(function: Callable, slots: int) -> Callable | None:
    """`function(keys BxGxNxK, held B, queries)` on each device's own slots, with the same results on all of them.

    None where the slots are not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if SLOTS_AXIS not in _left() or slots % mesh.shape[SLOTS_AXIS]:
        return None
    in_specs = (PartitionSpec(None, None, SLOTS_AXIS), PartitionSpec(), PartitionSpec())
    return by_hand(function, in_specs, PartitionSpec(), {SLOTS_AXIS})


def shares_sequence() -> bool:
    """Whether a program is traced for devices of which each has a part of the sequence's segments, in order."""
    mesh = jax.sharding.get_abstract_mesh()
    return SEQUENCE_AXIS in mesh.manual_axes and mesh.shape[SEQUENCE_AXIS] > 1


def handed_on(before: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of what each device's part ends with: (what stands before this device's part, what the whole sequence ends with).

    `before` stands before the sequence.
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

    return by_hand(function, tuple(map(spec, places)), jax.tree.map(spec, results), set(axes))
