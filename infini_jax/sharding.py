"""Where arrays live on several devices: logical axis -> mesh axis, for parameters, optimiser, memory and batch alike.

A row is one document stream, so sharding the batch never moves memory. Rows are split by hand (`shard_map`), what lies along
other mesh axes is left to the partitioner. Parameters that are split over the rows' devices (fsdp) lie in parts between the
steps; a step gathers them once, because its segments would gather them again and again, and adds up each device's part of the
gradient where it lies.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from jax.core import ShapedArray
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from infini_jax.config import ModelConfig, memory_of
from infini_jax.data.base import Batch
from infini_jax.errors import ConfigError, require
from infini_jax.heads import SLOTS_AXIS
from infini_jax.memory.offload import HOST, PINNED
from infini_jax.stream import Carry, init_params
from infini_jax.transformer import PARAMETER_AXES, init_memory, layer_groups

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axis of each logical axis; None is whole on every device, and so is an axis that its devices do not share evenly.

    Attributes:
      batch: rows of the batch and of the carried memory.
      embed, heads, kv_heads, head_dim, mlp, vocab, layers: of the parameters; heads and kv_heads of the memory, too.
      slots: of the memories that have some.
    """

    batch: str | None = "data"
    embed: str | None = None
    heads: str | None = None
    kv_heads: str | None = None
    head_dim: str | None = None
    mlp: str | None = None
    vocab: str | None = None
    layers: str | None = None
    slots: str | None = None

    def spec(self, names: Axes, shape: tuple[int, ...] | None = None, mesh: Mesh | None = None) -> PartitionSpec:
        """The partition of an array with these logical axes, as far as the `mesh` divides its `shape` where they are given."""
        found: list[str | None] = []
        for place, name in enumerate(names):
            axis = getattr(self, name, None) if name else None
            divides = axis is None or shape is None or shape[place] % mesh.shape[axis] == 0
            found.append(axis if axis not in found and divides else None)
        return PartitionSpec(*found)


DATA_PARALLEL = ShardingRules()
RULES = {
    "data": DATA_PARALLEL,
    "fsdp": ShardingRules(embed="data"),
    "fsdp+tensor": ShardingRules(embed="data", heads="model", kv_heads="model", mlp="model", vocab="model"),
    "fsdp+slots": ShardingRules(embed="data", slots=SLOTS_AXIS),
}
MOST_CORES = 8  # each of a CPU's devices holds all parameters


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How a run is spread over the devices at hand. It is no part of the run: the same run on other devices is the same run.

    Attributes:
      rules: data (parameters whole on every device), fsdp (in parts, gathered for each step), fsdp+tensor (heads, MLP and
        vocabulary split over several devices besides) or fsdp+slots (the slots of a memory split over them).
      tensor: devices that share a row with the last two.
    """

    rules: Literal["data", "fsdp", "fsdp+tensor", "fsdp+slots"] = "data"
    tensor: int = 1

    def __post_init__(self):
        require(self.rules in RULES, "sharding.rules", f"'{self.rules}' is not known", f"choose from {', '.join(RULES)}")
        splits = "+" in self.rules
        mend = "give at least 2" if splits else "leave it out, or choose fsdp+tensor or fsdp+slots"
        require((self.tensor > 1) == splits, "sharding.tensor", f"{self.tensor} devices a row with {self.rules}", mend)

    def layout(self, rows: int, devices: Sequence[Any] | None = None) -> "Layout":
        """Of all devices at hand, or of these. Raises `ConfigError` where they cannot be split so or share `rows`."""
        devices = jax.devices() if devices is None else devices
        shape, names = self._mesh(rows, len(devices))
        try:
            mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)
        except NotImplementedError as error:  # of TPUs, whose wires are a torus
            problem = f"{self.tensor} devices a row are no whole axes of the devices' torus"
            raise ConfigError("sharding.tensor", problem, "give a product of its axes") from error
        return Layout(mesh, RULES[self.rules])

    def counted_layout(self, rows: int, devices: int) -> "Layout":
        """The same of so many devices that are not here: arrays cannot lie on it, but how they would is known."""
        shape, names = self._mesh(rows, devices)
        return Layout(AbstractMesh(shape, names, axis_types=(AxisType.Auto,) * len(shape)), RULES[self.rules])

    def _mesh(self, rows: int, devices: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Shape and axes; the second is left out where one device has all of a row."""
        require(
            devices % self.tensor == 0,
            "sharding.tensor",
            f"{devices} devices are not whole groups of {self.tensor}",
            f"give a divisor of {devices}",
        )
        parts = devices // self.tensor
        require(
            rows % parts == 0,
            "train.batch",
            f"{rows} rows (batch / accumulate) cannot be shared by {parts} devices",
            f"give a multiple of {parts}",
        )
        shared = SLOTS_AXIS if self.rules == "fsdp+slots" else "model"
        return ((parts,), ("data",)) if self.tensor == 1 else ((parts, self.tensor), ("data", shared))


ROWS_ALONE = Sharding()


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices and what is split over them. Attributes: mesh; rules."""

    mesh: Mesh | AbstractMesh
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
    return ROWS_ALONE.layout(rows).mesh


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


def gradient_over_rows(function: Callable, model: ModelConfig, layout: Layout | None) -> Callable:
    """The same where `function(carry, rows, params, *whole)` returns ((gradient like the parameters, *sums), carry).

    Parameters lie as the rules say: the parts on the rows' devices are gathered in front, and what is added up of the gradient
    is each device's part.
    """
    if layout is None or layout.row_parts == 1:
        return function
    axis = layout.rules.batch
    places = jax.tree.map(lambda place: place.spec, parameter_sharding(model, layout))
    specs = jax.tree.map(lambda spec: _only(axis, spec), places)

    def as_left(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        """Split along the axes that are left to the partitioner, which forgets them where parts are gathered."""
        left = PartitionSpec(*(None if name == axis else name for name in spec))
        return leaf if left == PartitionSpec(*(None,) * len(spec)) else jax.lax.with_sharding_constraint(leaf, left)

    def gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        if axis in spec:
            leaf = jax.lax.all_gather(leaf, axis, axis=spec.index(axis), tiled=True)
        return as_left(leaf, spec)

    def add_up(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        leaf = as_left(leaf, spec)
        if axis not in spec:
            return jax.lax.psum(leaf, axis)
        return jax.lax.psum_scatter(leaf, axis, scatter_dimension=spec.index(axis), tiled=True)

    def of_parts(carry: Carry, rows: Any, params: dict, *whole: Any) -> tuple[tuple, Carry]:
        (gradient, *sums), carry = function(carry, rows, jax.tree.map(gather, params, places), *whole)
        sums = jax.tree.map(lambda x: jax.lax.psum(x, axis), sums)
        return (jax.tree.map(add_up, gradient, places), sums), carry

    mapped = _mapped(of_parts, model, layout, (specs, PartitionSpec()), specs)

    def flat(*arguments: Any) -> tuple[tuple, Carry]:
        (gradient, sums), carry = mapped(*arguments)
        return (gradient, *sums), carry

    return flat


def _only(axis: str | None, spec: PartitionSpec) -> PartitionSpec:
    """What a partition says of one mesh axis."""
    return PartitionSpec(*(name if name == axis else None for name in spec))


def _mapped(function: Callable, model: ModelConfig, layout: Layout, results: Any, *first: Any) -> Callable:
    """`function(carry, rows, *whole)` by the rows' devices; `first` are the partitions of the first of `whole`."""
    axis = layout.rules.batch
    carry = jax.tree.map(lambda place: _only(axis, place.spec), carry_sharding(model, layout.mesh, layout.rules))

    def whole_program(carries, rows, *whole):
        others = (PartitionSpec(),) * (len(whole) - len(first))
        places = {
            "mesh": layout.mesh,
            "in_specs": (carry, PartitionSpec(axis), *first, *others),
            "out_specs": (results, carry),
        }
        return jax.shard_map(function, axis_names={axis}, check_vma=False, **places)(carries, rows, *whole)

    return whole_program


def parameter_axes(model: ModelConfig) -> dict:
    """Like the parameters, with the logical axes of each; what nobody names has none."""
    declared = dict(PARAMETER_AXES)
    for config, _ in layer_groups(model):
        declared |= {("memory", *path): axes for path, axes in memory_of(config, model.dims).parameter_axes.items()}

    def axes_of(path: tuple, leaf: jax.ShapeDtypeStruct) -> Axes:
        names = tuple(key.key for key in path)
        stacked = names[0].startswith("groups_")
        found = declared.get(names[1:] if stacked else names, (None,) * (leaf.ndim - stacked))
        return ("layers", *found) if stacked else found

    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(axes_of, shapes)


def parameter_sharding(model: ModelConfig, layout: Layout) -> dict:
    """Like the parameters, with the sharding of each array."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

    def place(leaf: jax.ShapeDtypeStruct, names: Axes) -> NamedSharding:
        return NamedSharding(layout.mesh, layout.rules.spec(names, leaf.shape, layout.mesh))

    return jax.tree.map(place, shapes, parameter_axes(model))


def sharding_like(tree: Any, params: Any, places: dict) -> dict:
    """The sharding of each array of a `tree` that holds copies of the parameters' tree, such as an optimiser's moments.

    An array that lies at a parameter's path and has its shape lies where the parameter does; any other is whole everywhere.
    """
    known = {
        tuple(path): (leaf.shape, place)
        for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(places), strict=True)
    }
    everywhere = replicated(jax.tree.leaves(places)[0].mesh)

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for begin in range(len(path)):
            shape, found = known.get(tuple(path[begin:]), ((), None))
            if found is not None and shape == leaf.shape:
                return found
        return everywhere

    return jax.tree_util.tree_map_with_path(place, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def carry_sharding(model: ModelConfig, mesh: Mesh, rules: ShardingRules = DATA_PARALLEL) -> Carry:
    """Like a `Carry`, with the sharding of each array, from the mechanisms' own logical axes."""

    def place(names: tuple[str, ...], leaf: ShapedArray) -> NamedSharding:
        kind = PINNED if leaf.memory_space == HOST else None
        shape = (leaf.shape[0], 0, *leaf.shape[2:])  # rows divide: the mesh was made for them
        return NamedSharding(mesh, rules.spec(("layers", *names), shape, mesh), memory_kind=kind)

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
