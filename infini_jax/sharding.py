"""Where arrays live on several devices: logical axis -> mesh axis, for the carried memory and the batch.

A row is one document stream, so sharding the batch never moves memory. Parameters and optimiser are replicated.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable

import jax
from jax.core import ShapedArray
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from infini_jax.config import ModelConfig, memory_of
from infini_jax.data.base import Batch
from infini_jax.errors import require
from infini_jax.memory.offload import HOST, PINNED
from infini_jax.stream import Carry
from infini_jax.transformer import init_memory, layer_groups


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axis of each logical axis that may be split; all others are whole on every device."""

    batch: str | None = "data"
    heads: str | None = None
    kv_heads: str | None = None
    slots: str | None = None

    def spec(self, names: tuple[str, ...]) -> PartitionSpec:
        """The partition of an array with these logical axes."""
        return PartitionSpec(*(getattr(self, name, None) for name in names))


DATA_PARALLEL = ShardingRules()
MOST_CORES = 8  # each of a CPU's devices holds all parameters


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices and what is split over them. Attributes: mesh; rules."""

    mesh: Mesh
    rules: ShardingRules = DATA_PARALLEL

    @property
    def row_parts(self) -> int:
        """Parts that the rows of a batch are split in."""
        return 1 if self.rules.batch is None else self.mesh.shape[self.rules.batch]


def use_cores(rows: int) -> None:
    """Makes a CPU look like a device a core, as many of them as share `rows` evenly; to be called before JAX is used.

    XLA keeps one core busy with one device's rows far better than two with all rows. No effect on accelerators, where
    XLA_FLAGS already says how many devices a CPU has, and in a process that has used JAX.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = max(count for count in range(1, min(cores, MOST_CORES) + 1) if rows % count == 0)
    with contextlib.suppress(RuntimeError):  # JAX is in use: its devices stay
        jax.config.update("jax_num_cpu_devices", shared)


def data_mesh(rows: int) -> Mesh:
    """All devices along one axis, `data`. Raises `ConfigError` where they do not share `rows` evenly."""
    devices = len(jax.devices())
    require(
        rows % devices == 0,
        "train.batch",
        f"{rows} rows (batch / accumulate) cannot be shared by {devices} devices",
        f"give a multiple of {devices}",
    )
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def on_own_rows(function: Callable, model: ModelConfig, layout: Layout | None) -> Callable:
    """`function(carry, rows, *whole) -> (results, carry)` where every device takes its own rows; results have rows in front.

    Written out by `shard_map`, for loops over rows and heads (attention in tiles, retrieval) cannot be split by the
    automatic partitioner: it would bring all rows to every device. Other axes of the rules are left to it.
    """
    if layout is None or layout.row_parts == 1:
        return function
    return _mapped(function, model, layout, PartitionSpec(layout.rules.batch))


def summed_over_rows(function: Callable, model: ModelConfig, layout: Layout | None) -> Callable:
    """The same where results are sums over rows, which are added up over the devices."""
    if layout is None or layout.row_parts == 1:
        return function

    def summed(*arguments):
        sums, carry = function(*arguments)
        return jax.tree.map(lambda x: jax.lax.psum(x, layout.rules.batch), sums), carry

    return _mapped(summed, model, layout, PartitionSpec())


def _mapped(function: Callable, model: ModelConfig, layout: Layout, results: PartitionSpec) -> Callable:
    axis = layout.rules.batch

    def rows_only(place: NamedSharding) -> PartitionSpec:
        return PartitionSpec(*(name if name == axis else None for name in place.spec))

    carry = jax.tree.map(rows_only, carry_sharding(model, layout.mesh, layout.rules))

    def whole_program(carries, rows, *whole):
        in_specs = (carry, PartitionSpec(axis), *(PartitionSpec() for _ in whole))
        places = {"mesh": layout.mesh, "in_specs": in_specs, "out_specs": (results, carry)}
        return jax.shard_map(function, axis_names={axis}, check_vma=False, **places)(carries, rows, *whole)

    return whole_program


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def carry_sharding(model: ModelConfig, mesh: Mesh, rules: ShardingRules = DATA_PARALLEL) -> Carry:
    """Like a `Carry`, with the sharding of each array, from the mechanisms' own logical axes."""

    def place(names: tuple[str, ...], leaf: ShapedArray) -> NamedSharding:
        kind = PINNED if leaf.memory_space == HOST else None
        return NamedSharding(mesh, rules.spec(("layers", *names)), memory_kind=kind)

    def is_names(node) -> bool:
        return isinstance(node, tuple) and len(node) > 0 and all(isinstance(name, str) for name in node)

    axes = tuple(memory_of(config, model.dims).logical_axes() for config, _ in layer_groups(model))
    program, shapes = jax.make_jaxpr(lambda: init_memory(model, 1), return_shape=True)()
    leaves = jax.tree.unflatten(jax.tree.structure(shapes), program.out_avals)  # shapes alone do not tell where arrays live
    memory = jax.tree.map(place, axes, leaves, is_leaf=is_names)
    by_row = NamedSharding(mesh, rules.spec(("batch",)))
    return Carry(memory, by_row, by_row if model.has_phase else None)


def batch_sharding(mesh: Mesh, rules: ShardingRules = DATA_PARALLEL) -> Batch:
    """Like a `Batch`, with the sharding of each array."""
    return Batch(*(NamedSharding(mesh, rules.spec(("batch", "tokens"))) for _ in Batch._fields))
