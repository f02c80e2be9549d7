"""Where arrays live on several devices: logical axis -> mesh axis, for the carried memory and the batch.

A row is one document stream, so sharding the batch never moves memory. Parameters and optimiser are replicated.
"""

import dataclasses

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


def data_mesh(rows: int) -> Mesh:
    """All devices along one axis, `data`. Raises `ConfigError` where they do not share `rows` evenly."""
    devices = len(jax.devices())
    require(
        rows % devices == 0,
        "train.batch",
        f"{rows} rows cannot be shared by {devices} devices",
        f"give a multiple of {devices}",
    )
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


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
