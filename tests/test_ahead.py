"""Training steps for devices that are not here: lowered by JAX alone, compiled ahead of time where their compiler is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding
from infini_jax.forecast.compiled import DoesNotFit, compile_step
from infini_jax.forecast.topology import Topology, is_installed
from infini_jax.layers.platforms import target
from infini_jax.memory import MECHANISMS
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig, Ring, search
from infini_jax.memory.topk import approximate
from infini_jax.training.program import Training

pytestmark = pytest.mark.slow
compiles = pytest.mark.skipif(not is_installed("tpu"), reason="needs libtpu: pip install 'infini_jax[tpu]'")
V5E = Topology.parse("v5e:2x4")
SPREAD = Sharding("fsdp+tensor", 2)
MIB = 2**20


def run_with(memory, **training) -> RunConfig:
    model = ModelConfig(vocab=256, layers=1, d_model=256, heads=2, segment=256, memory=memory, compute="bfloat16")
    train = TrainConfig(**{"batch": 4, "sequence": 512, **training})
    return RunConfig(model=model, data=MqarConfig(pairs=16, symbols=64), train=train, budget=Budget("steps", 3))


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanisms_step_is_lowered_for_devices_that_are_not_here(name):
    layout = SPREAD.counted_layout(rows=4, devices=8)
    training = Training(run_with(MECHANISMS[name].Config()), layout)
    with target("tpu"):
        traced = training.step.trace(training.shapes, training.batch)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "mhlo.num_partitions = 8" in text
    assert "reduce_scatter" in text


@compiles
@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanisms_step_compiles_and_fits(name):
    """A step of 512 tokens per row with heads of 128, as TPUs like them, so that their own attention kernel compiles too."""
    run = run_with(MECHANISMS[name].Config())
    found = compile_step(run, V5E, SPREAD)
    assert found.state_bytes > 0
    assert found.bytes < 128 * MIB
    assert {"all-gather", "reduce-scatter"} & {one.kind for one in found.collectives}


@compiles
@pytest.mark.parametrize("update", ["linear", "delta"])
def test_a_step_whose_sequences_are_shared_compiles(update):
    found = compile_step(run_with(InfiniConfig(update=update), segments_per_step=2), V5E, Sharding("fsdp+sequence", 2))
    assert found.bytes < 16 * MIB
    assert "all-gather" in {one.kind for one in found.collectives}


@compiles
def test_slots_on_the_host_take_no_memory_of_a_device():
    """65 536 slots of 2 heads of 128, keys and values, float32: 128 MiB, of which a head is on the device at a time."""
    memories = (MemorizingConfig(slots=2**16, held=held) for held in ("device", "host"))
    device, host = (compile_step(run_with(memory, batch=8), V5E, Sharding()) for memory in memories)
    assert device.state_bytes - host.state_bytes == 128 * MIB
    assert host.temporary_bytes < 256 * MIB


def temporaries(function, *arguments) -> int:
    """Bytes that a function needs on one chip beside its arguments and results."""
    chip = SingleDeviceSharding(Topology.parse("v5e:1x1").compile_devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=chip), arguments)
    with target("tpu"):
        return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


@compiles
def test_a_search_sorts_nothing_and_holds_the_scores_of_one_head():
    """8 heads, 64K keys, 512 queries. The plain top_k of all scores is a sort of 3 GiB; the approximate one holds none."""

    def plain(ring, q_BxSxHxK):
        return jax.lax.top_k(jnp.einsum("bshk,bhnk->bhsn", q_BxSxHxK, ring.keys), 32)

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(1, 8, 2**16, 64), (1, 512, 8, 64)]]
    ring = Ring(arrays[0], arrays[0], jax.ShapeDtypeStruct((1,), jnp.int32))
    exact = functools.partial(search, k=32)
    fused = functools.partial(search, k=32, find=functools.partial(approximate, recall_target=0.95))
    assert temporaries(plain, ring, arrays[1]) > 2**31
    assert temporaries(exact, ring, arrays[1]) < 130 * MIB
    assert temporaries(fused, ring, arrays[1]) < MIB


@pytest.mark.skipif(not is_installed("cuda"), reason="needs the CUDA plug-in: pip install 'infini_jax[cuda]'")
@pytest.mark.parametrize("name", ["infini", "memorizing"])
def test_a_step_compiles_for_gpus_that_are_not_here(name):
    """With attention by cuDNN, on eight H100s."""
    jax.config.update("jax_platforms", "cpu")
    found = compile_step(run_with(MECHANISMS[name].Config()), Topology.parse("h100:8"), SPREAD)
    assert 0 < found.state_bytes < found.bytes < 256 * MIB
    assert found.collectives


@compiles
def test_a_step_that_has_no_room_is_told_apart_from_a_fault():
    """Embeddings of 8 GiB and two moments of it: more than a v5e chip has."""
    run = run_with(LocalConfig(window=64))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab=2**23))
    with pytest.raises(DoesNotFit):
        compile_step(run, Topology.parse("v5e:2x2"), Sharding())
