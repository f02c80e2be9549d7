"""Carries for controls: what is said of a memory is compared with no memory, or with that of another document.

A neighborhood beside the memory (`MemoryConfig.local`) is no part of it: the text's own stays; controls tell of the far past.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from infini_jax.config import ModelConfig
from infini_jax.memory.neighborhood import FarAndNear
from infini_jax.model.stream import Carry, init_carry


def is_both(memory: Any) -> bool:
    """Whether this is what a layer carries with a neighborhood."""
    return isinstance(memory, FarAndNear)


def emptied(model: ModelConfig, carry: Carry) -> Carry:
    """The carry of new streams with the landmarks where they are; neighborhoods stay, and then their documents, too."""
    fresh = dataclasses.replace(init_carry(model, carry.open_document.shape[0]), phase=carry.phase, before=carry.before)
    if not any(map(is_both, carry.memory)):
        return fresh

    def layer(empty: Any, held: Any) -> Any:
        return dataclasses.replace(empty, near=held.near) if is_both(held) else empty

    memory = tuple(map(layer, fresh.memory, carry.memory))
    return dataclasses.replace(fresh, memory=memory, open_document=carry.open_document)


def with_neighborhoods(carry: Carry, change: Callable[[jax.Array], jax.Array]) -> Carry:
    """The carry with every array of its neighborhoods, which has layers and rows in front, changed."""

    def layer(held: Any) -> Any:
        return dataclasses.replace(held, near=jax.tree.map(change, held.near)) if is_both(held) else held

    return dataclasses.replace(carry, memory=tuple(map(layer, carry.memory)))
