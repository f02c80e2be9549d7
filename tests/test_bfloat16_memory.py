"""Memories that may be kept at bfloat16 between segments: what it costs does not grow, and bytes are those of arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import ModelConfig
from infini_jax.config.attach import attached
from infini_jax.layers.segment import Segment, whole
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.memory.full import FullConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.sizes import memory_bytes_bf16
from tests.support.streams import BATCH, SEGMENTS, free_inputs, layer, tiny

KEPT = [name for name, mechanism in MECHANISMS.items() if mechanism.keeps_bfloat16]
ONCE = 2.0**-8  # the most that one rounding to bfloat16 changes a number, relative to it
LONG = 512  # segments


def rounded(memory):
    """The memory as it comes back from bfloat16; counters as they are."""

    def back(leaf):
        return leaf.astype(jnp.bfloat16).astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(back, memory)


def written(name: str, inputs, segments: int, is_rounded: bool):
    """The memory after so many segments of one document, rounded or not behind each."""
    module, params, _ = layer(name)
    size = module.dims.segment
    documents = jnp.zeros((BATCH, size), jnp.int32)
    bounds = whole(documents, jnp.zeros(BATCH, jnp.int32))
    each = [jnp.stack([array[:, n * size : (n + 1) * size] for n in range(SEGMENTS)]) for array in inputs]

    @jax.jit
    def run():
        def step(memory, number):
            segment = Segment(*(array[number % SEGMENTS] for array in each), bounds)
            memory = module.apply(params, memory, segment, method="write")
            return (rounded(memory) if is_rounded else memory), None

        return jax.lax.scan(step, module.init_memory(BATCH), jnp.arange(segments))[0]

    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(run())]


def change(name: str, inputs, segments: int) -> float:
    """The largest change of a number by rounding, relative to the largest number of its array."""
    exact, kept = (written(name, inputs, segments, is_rounded) for is_rounded in (False, True))
    return max(
        np.abs(a - b).max() / np.abs(a).max() for a, b in zip(exact, kept, strict=True) if a.size and np.abs(a).max() > 0
    )


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_at_bfloat16_is_rounded_once_however_long_the_document(name):
    """The compressed cache of the Compressive Transformer is made of numbers that were rounded: twice there."""
    times = 2 if name == "compressive" else 1
    inputs = free_inputs(name)
    assert 0 < change(name, inputs, SEGMENTS) <= times * ONCE
    assert change(name, inputs, LONG) <= times * ONCE


def test_a_sum_would_stop_growing():
    """Each segment adds 16 to the normalizer of keys of zero: from 4096 on, bfloat16 rounds it away."""
    x, q, k, v = free_inputs("infini")
    inputs = (x, q, jnp.zeros_like(k), v)
    assert "infini" not in KEPT
    assert change("infini", inputs, LONG) == pytest.approx(0.5, abs=0.01)


def test_mechanisms_declare_it_and_sums_do_not():
    assert set(KEPT) == {"local", "full", "transformer_xl", "compressive", "memorizing", "landmark"}


@pytest.mark.parametrize("name", KEPT)
def test_bytes_at_bfloat16_are_two_a_number_and_counters_keep_theirs(name):
    module = memory_of(tiny(name).memory, tiny(name).dims)
    arrays = jax.tree.leaves(module.init_memory(1))
    numbers = sum(leaf.size for leaf in arrays if leaf.dtype == jnp.float32)
    counters = sum(leaf.nbytes for leaf in arrays if leaf.dtype != jnp.float32)
    assert memory_bytes_bf16(module) == 2 * numbers + counters
    assert tiny(name).memory_bytes_bf16 == tiny(name).layers * (2 * numbers + counters)


def test_a_model_has_such_bytes_where_all_its_layers_can_be_kept_so():
    some = dataclasses.replace(ModelConfig(layers=4), memory=MemorizingConfig(layers=(1,), slots=32, cached=0))
    one_layer = 32 * 2 * (32 + 32) * 2 + 4
    assert some.memory_bytes_bf16 == one_layer
    others = dataclasses.replace(some, elsewhere=FullConfig(slots=16))
    assert others.memory_bytes_bf16 == one_layer + 3 * (16 * 2 * (32 + 32) * 2 + 4)
    assert dataclasses.replace(some, elsewhere=InfiniConfig()).memory_bytes_bf16 is None
    assert ModelConfig(memory=InfiniConfig()).memory_bytes_bf16 is None
    near = dataclasses.replace(some, memory=some.memory.with_local("cache"))
    assert near.memory_bytes_bf16 == one_layer  # a neighborhood is none of it
    slots = MemorizingConfig(slots=32, cached=0, top_k=2)
    model = dataclasses.replace(ModelConfig(layers=4), memory=FullConfig(slots=64))
    beside = attached(model, dataclasses.replace(slots, layers=(1,)), "add")
    assert beside.memory_bytes_bf16 == one_layer  # nor is the attention that was there, in this layer and in the others
    assert attached(model, InfiniConfig(layers=(1,)), "add").memory_bytes_bf16 is None
    assert CapacityRun(memory=FullConfig(slots=8)).memory_bytes_bf16 == 8 * (16 + 16) * 2 + 4
