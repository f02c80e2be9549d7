"""Places of arrays on several devices: logical axis -> mesh axis, for parameters, optimizer, memory and batch alike.

A row is one document stream, so sharding the batch never moves memory. Rows are split by hand (`shard_map`), and so are the
segments of a sequence; splits along other mesh axes are left to the partitioner. Parameters that are split over the rows'
devices (fsdp) lie in parts between the steps; a step gathers them once, because its segments would gather them again and
again, and adds up each device's part of the gradient where it lies.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
from jax.core import ShapedArray
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from infini_jax.config import ModelConfig, RunConfig
from infini_jax.config.optimisers import GROUP
from infini_jax.data.batch import Batch
from infini_jax.devices.allocator import keep_pages
from infini_jax.errors import ConfigError, check_fields, require, require_positive
from infini_jax.layers.heads import SEQUENCE_AXIS, SLOTS_AXIS, by_hand
from infini_jax.layers.segment import with_leaves
from infini_jax.memory import memory_of
from infini_jax.memory.offload import HOST, PINNED
from infini_jax.model.stream import Carry, parameter_shapes
from infini_jax.model.transformer import PARAMETER_AXES, init_memory, layer_groups

Axes = tuple[str | None, ...]
AnyMesh = Mesh | AbstractMesh  # of devices that are here, or are not


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axis of each logical axis; None is whole on every device, and so is an axis that its devices do not share evenly.

    Attributes:
      batch: axis of the rows of the batch and of the carried memory.
      sequence: axis of the tokens of the batch.
      embed, heads, kv_heads, head_dim, mlp, vocab, layers: axes of the parameters; heads and kv_heads of the memory, too.
      slots: axis of the slots of memories that have some.
    """

    batch: str | None = "data"
    sequence: str | None = None
    embed: str | None = None
    heads: str | None = None
    kv_heads: str | None = None
    head_dim: str | None = None
    mlp: str | None = None
    vocab: str | None = None
    layers: str | None = None
    slots: str | None = None

    def spec(self, names: Axes, shape: tuple[int, ...] | None = None, mesh: AnyMesh | None = None) -> PartitionSpec:
        """The partition of an array with these logical axes, as far as the `mesh` divides its `shape` where they are given."""
        found: list[str | None] = []
        for place, name in enumerate(names):
            axis = getattr(self, name, None) if name else None
            divides = axis is None or shape is None or mesh is None or shape[place] % mesh.shape[axis] == 0
            found.append(axis if axis not in found and divides else None)
        return PartitionSpec(*found)


DATA_PARALLEL = ShardingRules()
RULES = {
    "data": DATA_PARALLEL,
    "fsdp": ShardingRules(embed="data"),
    "fsdp+tensor": ShardingRules(embed="data", heads="model", kv_heads="model", mlp="model", vocab="model"),
    "fsdp+slots": ShardingRules(embed="data", slots=SLOTS_AXIS),
    "fsdp+sequence": ShardingRules(embed="data", sequence=SEQUENCE_AXIS),
}
"""Registry of sharding rules: name -> rules."""
if TYPE_CHECKING:
    Rules = str
else:  # what the command line offers
    Rules = Literal[tuple(RULES)]
SHARED_AXIS = {"fsdp+tensor": "model", "fsdp+slots": SLOTS_AXIS, "fsdp+sequence": SEQUENCE_AXIS}  # whose devices share a row
MOST_CORES = 8  # each of a CPU's devices holds all parameters


@dataclasses.dataclass(frozen=True)
class Sharding:
    """Distribution of a run over the devices at hand. It is no part of the run's identity: other devices give the same run.

    Attributes:
      rules: data (parameters replicated) or fsdp (parameters sharded, gathered for each step). With several devices per row:
        fsdp+tensor (heads, MLP and vocabulary are split), fsdp+slots (the slots of a memory) or fsdp+sequence (the segments of
        a sequence, all of which are processed at once).
      per_row: number of devices per row, for the last three rules.
    """

    rules: Rules = "data"
    per_row: int = 1

    def __post_init__(self):
        check_fields("sharding", self, rules=RULES)
        splits = self.rules in SHARED_AXIS
        mend = "give at least 2" if splits else f"leave it out, or choose {' or '.join(SHARED_AXIS)}"
        require((self.per_row > 1) == splits, "sharding.per_row", f"{self.per_row} devices per row with {self.rules}", mend)
        require_positive("sharding", per_row=self.per_row)

    def layout(self, rows: int, devices: Sequence[Any] | None = None) -> "Layout":
        """The layout of all devices, or of these. Raises `ConfigError` where they cannot be split so or share `rows`."""
        devices = jax.devices() if devices is None else devices
        shape, names = self._mesh(rows, len(devices))
        try:
            mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)
        except NotImplementedError as error:  # of TPUs, whose wires are a torus
            problem = f"{self.per_row} devices per row are not whole axes of the devices' torus"
            raise ConfigError("sharding.per_row", problem, "give a product of its axes") from error
        return Layout(mesh, RULES[self.rules])

    def counted_layout(self, rows: int, devices: int) -> "Layout":
        """The layout of `devices` devices that are not here: arrays cannot lie on it, but their shardings are known."""
        shape, names = self._mesh(rows, devices)
        return Layout(AbstractMesh(shape, names, axis_types=(AxisType.Auto,) * len(shape)), RULES[self.rules])

    def _mesh(self, rows: int, devices: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """(shape, axes) of the mesh; the second axis is left out where one device has all of a row."""
        require(
            devices % self.per_row == 0,
            "sharding.per_row",
            f"{devices} devices are not whole groups of {self.per_row}",
            f"give a divisor of {devices}",
        )
        parts = devices // self.per_row
        require(
            rows % parts == 0,
            "train.batch",
            f"{rows} rows (batch / accumulate) cannot be shared by {parts} devices",
            f"give a multiple of {parts}",
        )
        return ((parts,), ("data",)) if self.per_row == 1 else ((parts, self.per_row), ("data", SHARED_AXIS[self.rules]))


ROWS_ALONE = Sharding()


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices and the arrays that are split over them.

    Attributes:
      mesh: the devices with named axes.
      rules: mesh axis of each logical axis.
    """

    mesh: AnyMesh
    rules: ShardingRules = DATA_PARALLEL

    @property
    def row_parts(self) -> int:
        """Number of parts that the rows of a batch are split in."""
        return self._parts(self.rules.batch)

    @property
    def sequence_parts(self) -> int:
        """Number of parts that a sequence is split in."""
        return self._parts(self.rules.sequence)

    @property
    def token_parts(self) -> int:
        """Number of parts that the tokens of a batch are split in, by rows and along the sequence."""
        return self.row_parts * self.sequence_parts

    @property
    def token_axes(self) -> tuple[str, ...]:
        """The mesh axes over which the tokens of a batch are split."""
        return tuple(axis for axis in (self.rules.batch, self.rules.sequence) if axis)

    def _parts(self, axis: str | None) -> int:
        return 1 if axis is None else self.mesh.shape[axis]


def layout_of(run: RunConfig, sharding: Sharding = ROWS_ALONE, devices: Sequence[Any] | None = None) -> Layout:
    """The layout of a run over `devices`, all at hand by default. Raises `ConfigError` where they cannot share it."""
    check_shares(run, sharding)
    return sharding.layout(run.train.batch // run.train.accumulate, devices)


def check_shares(run: RunConfig, sharding: Sharding) -> None:
    """Checks a run's sharding: raises `ConfigError` where its sequence is to be split and cannot be."""
    if sharding.rules != "fsdp+sequence":
        return
    for config, _ in layer_groups(run.model):
        memory = memory_of(config, run.model.dims_of(config))
        own = "model.elsewhere" if config == run.model.elsewhere else run.model.mechanism
        require(
            memory.splits_sequence,
            "sharding.rules",
            f"{own if config.local == 'own' else 'memory.local'} takes the segments of a sequence in turn",
            "choose infini, or fsdp+tensor or fsdp+slots",
        )
    segments = run.train.sequence // run.model.segment
    at_once = run.train.segments_per_step
    problem = f"{at_once} of {segments} segments at once, all of which devices are to share"
    require(at_once in (0, segments), "train.segments_per_step", problem, f"give {segments}")
    problem = f"{sharding.per_row} devices cannot share {segments} segments"
    require(segments % sharding.per_row == 0, "sharding.per_row", problem, f"give a divisor of {segments}")


def use_cores(rows: int) -> None:
    """Makes a CPU look like one device per core, as many of them as share `rows` evenly; to be called before JAX is used.

    The process keeps the memory that it has used, see `infini_jax.devices.allocator`.
    XLA keeps one core busy with one device's rows far better than two with all rows. No effect on accelerators, where
    XLA_FLAGS already says how many devices a CPU has, and in a process that has used JAX.
    """
    keep_pages()
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = max(count for count in range(1, min(cores, MOST_CORES) + 1) if rows % count == 0)
    with contextlib.suppress(RuntimeError):  # JAX is in use: its devices stay
        jax.config.update("jax_num_cpu_devices", shared)


def data_mesh(rows: int) -> AnyMesh:
    """A mesh of all devices along one axis, `data`. Raises `ConfigError` where they do not share `rows` evenly."""
    return ROWS_ALONE.layout(rows).mesh


def on_own_rows(function: Callable, model: ModelConfig, layout: Layout | None) -> Callable:
    """`function(carry, rows, *whole) -> (results, carry)` where every device takes its own rows; results have rows in front.

    It is written out by `shard_map`, as loops over rows and heads (attention in tiles, retrieval) cannot be split by the
    automatic partitioner: it would bring all rows to every device. Other axes of the rules are left to it.
    """
    if layout is None or layout.row_parts == 1:
        return function
    return _mapped(function, model, layout, PartitionSpec(layout.rules.batch))


def summed_over_rows(function: Callable, model: ModelConfig, layout: Layout | None) -> Callable:
    """`function` on the rows of each device, its results summed over the devices that share the tokens."""
    if layout is None or layout.token_parts == 1:
        return function

    def summed(*arguments):
        sums, carry = function(*arguments)
        return jax.tree.map(lambda x: jax.lax.psum(x, layout.token_axes), sums), carry

    return _mapped(summed, model, layout, PartitionSpec())


def gradient_over_rows(function: Callable, model: ModelConfig, layout: Layout | None, parts: tuple[dict, dict]) -> Callable:
    """`function` on the rows of each device, its gradient and sums added up over them.

    `function(carry, rows, params, frozen, *whole)` returns ((gradient like `params`, *sums), carry).

    Parameters, of which `parts` are the shapes (params, frozen), lie as the rules say: what lies in parts on the rows' devices
    is gathered in front, and what is added up of the gradient is each device's part.
    """
    if layout is None or layout.token_parts == 1:
        return function
    axis, along = layout.rules.batch, layout.rules.sequence
    places = [jax.tree.map(lambda place: place.spec, sharding_like(part, model, layout)) for part in parts]
    specs = [jax.tree.map(lambda spec: _only(axis, spec), part) for part in places]

    def gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        if axis not in spec:
            return leaf
        return _by_parts(lambda part: jax.lax.all_gather(part, axis, axis=spec.index(axis), tiled=True), leaf, spec, axis)

    def add_up(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        def added(part: jax.Array) -> jax.Array:
            if axis not in spec:
                return jax.lax.psum(part, layout.token_axes)
            part = jax.lax.psum_scatter(part, axis, scatter_dimension=spec.index(axis), tiled=True)
            return part if along is None else jax.lax.psum(part, along)

        return _by_parts(added, leaf, spec, axis)

    def of_parts(carry: Carry, rows: Any, params: dict, frozen: dict, *whole: Any) -> tuple[tuple, Carry]:
        both = (jax.tree.map(gather, part, place) for part, place in zip((params, frozen), places, strict=True))
        (gradient, *sums), carry = function(carry, rows, *both, *whole)
        sums = jax.tree.map(lambda x: jax.lax.psum(x, layout.token_axes), sums)
        return (jax.tree.map(add_up, gradient, places[0]), sums), carry

    mapped = _mapped(of_parts, model, layout, (specs[0], PartitionSpec()), *specs)

    def flat(*arguments: Any) -> tuple[tuple, Carry]:
        (gradient, sums), carry = mapped(*arguments)
        return (gradient, *sums), carry

    return flat


def _by_parts(function: Callable, leaf: jax.Array, spec: PartitionSpec, axis: str | None) -> jax.Array:
    """`function` of the parts along the axes that are left to the partitioner, which would join them for a collective."""
    left = PartitionSpec(*(None if name == axis else name for name in spec))
    named = {name for name in left if name}
    return by_hand(function, left, left, named)(leaf) if named else function(leaf)


def _only(axis: str | None, spec: PartitionSpec) -> PartitionSpec:
    """The partition along one mesh axis alone."""
    return PartitionSpec(*(name if name == axis else None for name in spec))


def _mapped(function: Callable, model: ModelConfig, layout: Layout, results: Any, *first: Any) -> Callable:
    """`function(carry, rows, *whole)` by the tokens' devices; `first` are the partitions of the first of `whole`."""
    axis = layout.rules.batch
    carry = jax.tree.map(lambda place: _only(axis, place.spec), carry_sharding(model, layout.mesh, layout.rules))

    def whole_program(carries, rows, *whole):
        others = (PartitionSpec(),) * (len(whole) - len(first))
        places = {
            "mesh": layout.mesh,
            "in_specs": (carry, PartitionSpec(*layout.token_axes), *first, *others),
            "out_specs": (results, carry),
        }
        return jax.shard_map(function, axis_names=set(layout.token_axes), check_vma=False, **places)(carries, rows, *whole)

    return whole_program


def parameter_axes(model: ModelConfig) -> dict:
    """The logical axes of each parameter, in the structure of the parameters; None where nobody names an axis."""
    declared = dict(PARAMETER_AXES)
    for config, _ in layer_groups(model):
        declared |= {("memory", *path): axes for path, axes in memory_of(config, model.dims_of(config)).parameter_axes.items()}

    def axes_of(path: tuple, leaf: jax.ShapeDtypeStruct) -> Axes:
        names = tuple(key.key for key in path)
        stacked = names[0].startswith(GROUP)
        found = declared.get(names[1:] if stacked else names) or (None,) * (leaf.ndim - stacked)
        return ("layers", *found) if stacked else found

    return jax.tree_util.tree_map_with_path(axes_of, parameter_shapes(model))


def parameter_sharding(model: ModelConfig, layout: Layout) -> dict:
    """The sharding of each parameter, in the structure of the parameters."""

    def place(leaf: jax.ShapeDtypeStruct, names: Axes) -> NamedSharding:
        return NamedSharding(layout.mesh, layout.rules.spec(names, leaf.shape, layout.mesh))

    return jax.tree.map(place, parameter_shapes(model), parameter_axes(model))


def sharding_like(tree: Any, model: ModelConfig, layout: Layout) -> Any:
    """The sharding of each array of a `tree` that holds a model's parameters or copies, such as an optimizer's moments.

    An array that lies at a parameter's path and has its shape lies where the parameter does; any other is whole everywhere.
    """
    shapes, places = parameter_shapes(model), parameter_sharding(model, layout)
    known = {
        tuple(path): (leaf.shape, place)
        for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(places), strict=True)
    }
    everywhere = replicated(layout.mesh)

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for begin in range(len(path)):
            shape, found = known.get(tuple(path[begin:]), ((), None))
            if found is not None and shape == leaf.shape:
                return found
        return everywhere

    return jax.tree_util.tree_map_with_path(place, tree)


def replicated(mesh: AnyMesh) -> NamedSharding:
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def carry_sharding(model: ModelConfig, mesh: AnyMesh, rules: ShardingRules = DATA_PARALLEL) -> Carry:
    """The sharding of each array of a `Carry`, in its structure, from the mechanisms' own logical axes."""

    def place(names: tuple[str, ...], leaf: ShapedArray) -> NamedSharding:
        kind = PINNED if leaf.memory_space == HOST else None
        shape = (leaf.shape[0], 0, *leaf.shape[2:])  # rows divide: the mesh was made for them
        return NamedSharding(mesh, rules.spec(("layers", *names), shape, mesh), memory_kind=kind)

    def is_names(node) -> bool:
        return isinstance(node, tuple) and len(node) > 0 and all(isinstance(name, str) for name in node)

    axes = tuple(memory_of(config, model.dims_of(config)).logical_axes() for config, _ in layer_groups(model))
    program, shapes = jax.make_jaxpr(lambda: init_memory(model, 1), return_shape=True)()
    leaves = jax.tree.unflatten(jax.tree.structure(shapes), program.out_avals)  # shapes alone do not tell where arrays live
    memory = jax.tree.map(place, axes, leaves, is_leaf=is_names)
    by_row = NamedSharding(mesh, rules.spec(("batch",)))
    phase, before = by_row if model.has_phase else None, by_row if model.counts_places else None
    return with_leaves(Carry, memory=memory, open_document=by_row, phase=phase, before=before)


def batch_sharding(mesh: AnyMesh, rules: ShardingRules = DATA_PARALLEL) -> Batch:
    """The sharding of each array of a `Batch`, in its structure."""
    return Batch(*(NamedSharding(mesh, rules.spec(("batch", "sequence"))) for _ in Batch._fields))
