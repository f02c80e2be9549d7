"""Memories that live in the host's memory, where the platform has one beside the device's (TPUs, GPUs; CPUs pretend).

Where an array lives is a part of its type inside a program, so functions ask the array and no setting is handed around. Only
slices of it are copied and put back, because a program computes with arrays on the device.
"""

from collections.abc import Callable

import jax

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device
PINNED = "pinned_host"  # the memory kind of a sharding on the host


def on_host(array: jax.Array) -> bool:
    """Whether an array lies in the host's memory."""
    return jax.typeof(array).memory_space == HOST


def to_host(array: jax.Array) -> jax.Array:
    """The array in the host's memory."""
    return jax.device_put(array, HOST)


def to_device(array: jax.Array) -> jax.Array:
    """The array in the device's memory, itself where it is there already."""
    return jax.device_put(array, DEVICE) if on_host(array) else array


def part_of(array: jax.Array, number: jax.Array, axis: int) -> jax.Array:
    """The slice of an array at place `number` of an axis, which stays with size 1, on the device."""
    return to_device(jax.lax.dynamic_slice_in_dim(array, number, 1, axis))


def updated_by_parts(array: jax.Array, axis: int, update: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """An array on the host whose slices along an axis become `update(number, part)`, one on the device at a time."""

    def step(number: jax.Array, array: jax.Array) -> jax.Array:
        new = to_host(update(number, part_of(array, number, axis)))
        return jax.lax.dynamic_update_slice_in_dim(array, new, number, axis)

    return jax.lax.fori_loop(0, array.shape[axis], step, array)
