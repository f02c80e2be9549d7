"""Bytes that the read and write of a matrix memory move on a TPU, against the least: compiled ahead of time, not run.

Question: which mechanisms reach the roofline on paper, and what do the kernels gain?
Command:  python -m benchmarks.tpu_traffic --topologies v5e:1x1          (pip install 'infini_jax[tpu]'; most of an hour on two
          cores, nearly all of it for `delta, chunks`; --only leaves mechanisms out)
Prints a table for each topology, in MB and in times the least: forward and backward of what a layer does with its memory in
one segment. The least is each input read once forwards and once backwards, each result written, each gradient of a result
read and each gradient of an input written once; what fits on the chip (128 MiB on a v5e and a v6e) may stay there from one
pass to the other, so that a program can move less. Keys and values come as a projection leaves them, all heads side by side.
  delta, chunks   the gated delta rule's write, as plain XLA
  delta, kernel   the same by the kernel
  infini          Infini-attention's read and write, linear update
  infini, delta   the same with the delta update
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import SingleDeviceSharding

from infini_jax.forecast.program_text import ProgramText
from infini_jax.forecast.topology import Topology
from infini_jax.forecast.traffic import bytes_moved
from infini_jax.layers.platforms import target
from infini_jax.memory import delta_kernel, gated_delta, infini
from infini_jax.memory.feature_maps import elu_plus_one, unit
from infini_jax.memory.infini import InfiniMemory

MECHANISMS = ("delta, chunks", "delta, kernel", "infini", "infini, delta")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is read and written.

    Attributes:
      rows: number of rows.
      heads: number of heads.
      dims: dims of keys and values.
      segments: numbers of tokens.
      compute: types of queries, keys and values; memories and gates are float32.
      topologies: single chips.
      only: mechanisms of the table.
    """

    rows: int = 16
    heads: int = 8
    dims: tuple[int, ...] = (32, 128)
    segments: tuple[int, ...] = (256, 2048)
    compute: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    topologies: tuple[str, ...] = ("v5e:1x1", "v5p:1x1x1", "v6e:1x1")
    only: tuple[str, ...] = MECHANISMS


@dataclasses.dataclass(frozen=True)
class Case:
    """One point of the table.

    Attributes:
      mechanism: one of `MECHANISMS`.
      dim: dim of keys and values.
      segment: number of tokens.
      compute: type of queries, keys and values.
      rows: number of rows.
      heads: number of heads.
    """

    mechanism: str
    dim: int
    segment: int
    compute: str = "float32"
    rows: int = 16
    heads: int = 8

    def program(self) -> tuple[Callable, tuple]:
        """(function, shapes of its arguments) of the memory's work in one segment."""
        wide, tokens = jnp.float32, (self.rows, self.segment, self.heads * self.dim)
        matrix = jax.ShapeDtypeStruct((self.rows, self.heads, self.dim, self.dim), wide)
        projected = jax.ShapeDtypeStruct(tokens, jnp.dtype(self.compute))
        if self.mechanism.startswith("delta"):
            gate = jax.ShapeDtypeStruct((self.rows, self.segment, self.heads), wide)
            function = by_kernel if self.mechanism == "delta, kernel" else in_chunks
            return functools.partial(function, self.heads), (matrix, projected, projected, gate, gate)
        sums = jax.ShapeDtypeStruct(matrix.shape[:3], wide)
        update = "delta" if self.mechanism == "infini, delta" else "linear"
        function = functools.partial(read_and_written, self.heads, update)
        return function, (InfiniMemory(matrix, sums), projected, projected, projected)

    def least(self) -> int:
        """Bytes that any program of both passes moves: see the head of this file."""
        function, shapes = self.program()
        inputs, results = bytes_of(shapes), bytes_of(jax.eval_shape(function, *shapes))
        return 3 * inputs + 2 * results

    def moved(self, topology: str) -> int:
        """Bytes that the compiled program of both passes moves on one chip."""
        function, shapes = self.program()
        chip = SingleDeviceSharding(Topology.parse(topology).compile_devices()[0])

        def both(inputs, slopes):
            results, pull = jax.vjp(function, *inputs)
            return results, pull(slopes)

        given = shapes, jax.eval_shape(function, *shapes)
        given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=chip), given)
        with target("tpu"):
            compiled = jax.jit(both).lower(*given).compile()
        return bytes_moved(ProgramText.parse(compiled.as_text()))


def by_heads(heads: int, *arrays: jax.Array) -> list[jax.Array]:
    """Arrays BxTx(GK) as BxTxGxK."""
    return [x.reshape(*x.shape[:2], heads, -1) for x in arrays]


def in_chunks(heads: int, S: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array, g: jax.Array) -> jax.Array:
    """The plain write of keys and values BxTx(GK)."""
    k, v = (x.astype(jnp.float32) for x in by_heads(heads, k, v))
    return gated_delta.write_tokens(S, unit(k), v, beta, g)


def by_kernel(heads: int, S: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel's write of keys and values BxTx(GK)."""
    return delta_kernel.written(S, *by_heads(heads, k, v), beta, g, jnp.ones((S.shape[0], 1), bool))[1]


def read_and_written(
    heads: int, update: str, memory: InfiniMemory, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, InfiniMemory]:
    """(A_mem in the type of the queries, the memory after the segment) of queries, keys and values BxTx(GK)."""
    q, k, v = by_heads(heads, q, k, v)
    wide = memory.M.dtype

    def read(memory: InfiniMemory, q: jax.Array) -> jax.Array:
        return infini.retrieve(memory, elu_plus_one(q.astype(wide))).astype(q.dtype)

    def updated(memory: InfiniMemory, k: jax.Array, v: jax.Array) -> InfiniMemory:
        return infini.update(memory, elu_plus_one(k.astype(wide)), v.astype(wide), update)

    return infini.made_again(read, q)(memory, q), infini.made_again(updated, k)(memory, k, v)


def bytes_of(tree) -> int:
    """Bytes of all arrays of a tree, without the padding of tiles."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main(sizes: Sizes) -> None:
    """Prints the tables."""
    for topology in sizes.topologies:
        print(f"\n{topology}, jax {jax.__version__}, {sizes.rows} rows, {sizes.heads} heads; MB (times the least)\n")
        print("| type | dim | segment | " + " | ".join(sizes.only) + " |\n" + "|---" * (3 + len(sizes.only)) + "|")
        for compute, dim, segment in ((c, d, s) for c in sizes.compute for d in sizes.dims for s in sizes.segments):
            line = []
            for mechanism in sizes.only:
                case = Case(mechanism, dim, segment, compute, sizes.rows, sizes.heads)
                moved = case.moved(topology)
                line.append(f"{moved / 1e6:.0f} ({moved / case.least():.2f})")
            print(f"| {compute} | {dim} | {segment} | " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
