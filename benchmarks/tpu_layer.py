"""Bytes that a whole layer of Infini-attention moves on a TPU, and the same layer without its memory: compiled, not run.

Question: what does a memory cost where projections and local attention stand around it? XLA chooses how arrays lie for all of
a layer, so that a memory alone (`benchmarks.tpu_traffic`) does not tell.
Command:  python -m benchmarks.tpu_layer --topologies v5e:1x1          (pip install 'infini_jax[tpu]'; minutes for each number)
Prints a line for each memory, in MB: forward and backward of one segment of projections, local attention, memory and output,
and a residual connection.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from jax.sharding import SingleDeviceSharding

from infini_jax.forecast.program_text import ProgramText
from infini_jax.forecast.topology import Topology
from infini_jax.forecast.traffic import bytes_moved
from infini_jax.layers.platforms import target
from infini_jax.layers.segment import Segment, whole
from infini_jax.memory.base import Dims
from infini_jax.memory.infini import Infini, InfiniConfig
from infini_jax.memory.window import view

MEMORIES = ("none", "linear", "delta")


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """The layer.

    Attributes:
      rows: number of rows.
      heads: number of heads.
      dim: dim of keys and values.
      segment: number of tokens.
      compute: type of activations.
      memories: how a segment is written; none is a layer without its memory.
      topologies: single chips.
    """

    rows: int = 16
    heads: int = 8
    dim: int = 128
    segment: int = 2048
    compute: Literal["float32", "bfloat16"] = "bfloat16"
    memories: tuple[Literal["none", "linear", "delta"], ...] = MEMORIES
    topologies: tuple[str, ...] = ("v5e:1x1", "v5p:1x1x1", "v6e:1x1")

    @property
    def dims(self) -> Dims:
        """The sizes as a memory sees them."""
        width = self.heads * self.dim
        return Dims(width, self.heads, self.heads, self.dim, self.dim, self.segment, compute=self.compute)


class LocalOnly(Infini):
    """Infini-attention without its memory: local attention and output."""

    def advance(self, memory: Any, segments: Segment) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        attended = self.attention(segments.queries, view(segments))
        return self.out(attended.astype(self.dims.dtype)), memory, {}


class Layer(nn.Module):
    """Projections, a memory's attention, and the residual connection."""

    memory: Infini

    @nn.compact
    def __call__(self, state: Any, x: jax.Array, documents: jax.Array, opened: jax.Array) -> tuple[jax.Array, Any]:
        d = self.memory.dims
        shapes = (d.heads, d.key_dim), (d.kv_heads, d.key_dim), (d.kv_heads, d.value_dim)
        q, k, v = (nn.DenseGeneral(shape, use_bias=False, dtype=d.dtype)(x) for shape in shapes)
        y, state, _ = self.memory.advance(state, Segment(x, q, k, v, whole(documents, opened)))
        return x + y, state


def moved(sizes: LayerSizes, memory: Literal["none", "linear", "delta"], topology: str) -> int:
    """Bytes that the compiled program of both passes moves on one chip."""
    dims = sizes.dims
    layer = Layer(LocalOnly(InfiniConfig(), dims) if memory == "none" else Infini(InfiniConfig(update=memory), dims))
    shape = sizes.rows, sizes.segment
    given = (
        jax.eval_shape(lambda: layer.memory.init_memory(sizes.rows)),
        jax.ShapeDtypeStruct((*shape, dims.d_model), dims.dtype),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    )
    params = jax.eval_shape(lambda *given: layer.init(jax.random.key(0), *given), *given)

    def both(params, state, x, documents, opened, slopes):
        results, pull = jax.vjp(lambda *point: layer.apply(*point, documents, opened), params, state, x)
        return results, pull(slopes)

    chip = SingleDeviceSharding(Topology.parse(topology).compile_devices()[0])
    arguments = params, *given, jax.eval_shape(layer.apply, params, *given)
    arguments = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=chip), arguments)
    with target("tpu"):
        compiled = jax.jit(both).lower(*arguments).compile()
    return bytes_moved(ProgramText.parse(compiled.as_text()))


def main(sizes: LayerSizes) -> None:
    """Prints the lines."""
    for topology in sizes.topologies:
        print(f"\n{topology}, jax {jax.__version__}, {sizes}; MB\n")
        for memory in sizes.memories:
            print(f"{memory:8} {moved(sizes, memory, topology) / 1e6:.0f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(LayerSizes))
