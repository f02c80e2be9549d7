"""Bytes of a memory, measured on the shapes of its arrays, and the largest size along an axis that fits in some bytes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from infini_jax.errors import ConfigError

MOST_GROWN = 1 << 28  # size along an axis: settings made of it have 32 bits


def memory_bytes(memory: Any) -> int:
    """Bytes per sequence of one layer's memory, measured on the shapes that `init_memory` really makes.

    A neighborhood, which `MemoryConfig.local` puts beside the memory, is counted by `neighborhood.neighborhood_bytes`.
    """
    return bytes_of_shapes(jax.eval_shape(lambda: memory.remembered(memory.init_memory(1))))


def memory_bytes_bf16(memory: Any) -> int | None:
    """Bytes per sequence of one layer's memory with its numbers at bfloat16; counters keep their size.

    None where the mechanism does not declare that its memory may be kept so.
    """
    if not memory.keeps_bfloat16:
        return None
    shapes = jax.eval_shape(lambda: memory.remembered(memory.init_memory(1)))
    return bytes_of_shapes(jax.tree.map(at_bfloat16, shapes))


def at_bfloat16(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of an array with its numbers at bfloat16; whole numbers and truth values stay as they are."""
    is_number = jnp.issubdtype(shape.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(shape.shape, jnp.bfloat16) if is_number else shape


def bytes_of_shapes(shapes: Any) -> int:
    """Bytes of all arrays of these shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def largest_size(bytes_at: Callable[[int], int], layer_bytes: int, name: str, axis: str) -> int:
    """The largest size along an axis whose memory fits, found by bisection: bytes never fall along an axis.

    Args:
      bytes_at: function of a size that gives the bytes of one layer's memory.
      layer_bytes: number of bytes that it may have.
      name: name of the mechanism, for errors.
      axis: name of the axis, for errors.

    Raises:
      ConfigError: even the smallest memory does not fit, or even the largest one is smaller.
    """
    if bytes_at(1) > layer_bytes:
        problem = f"{layer_bytes:,} per layer are too few: {name} needs at least {bytes_at(1):,} bytes per layer"
        raise ConfigError("memory bytes", problem, "give more")
    low, high = 1, 2
    while bytes_at(high) <= layer_bytes:
        low, high = high, 2 * high
        if high > MOST_GROWN:
            if bytes_at(low) == bytes_at(1):
                raise ConfigError("memory bytes", f"{name} does not grow with its {axis}", "choose another axis")
            problem = f"{layer_bytes:,} per layer are too many: {name} has at most {bytes_at(low):,} bytes per layer"
            raise ConfigError("memory bytes", problem, "give less")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bytes_at(middle) <= layer_bytes else (low, middle)
    return low
