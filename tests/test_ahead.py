"""Training steps compiled ahead of time for a TPU topology, by the TPU compiler, without a TPU."""

import dataclasses
import importlib.util

import pytest

from infini_jax.ahead import DoesNotFit, compile_step
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.memory import MECHANISMS
from infini_jax.memory.local import LocalConfig
from infini_jax.sharding import Sharding
from infini_jax.topology import Topology

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu: pip install 'infini_jax[tpu]'"),
]
V5E = Topology.parse("v5e:2x4")
SPREAD = Sharding("fsdp+tensor", 2)
MIB = 2**20


def run_with(memory) -> RunConfig:
    model = ModelConfig(vocab=256, layers=1, d_model=256, heads=2, segment=256, memory=memory, compute="bfloat16")
    train = TrainConfig(batch=4, sequence=512)
    return RunConfig(model=model, data=MqarConfig(pairs=16, symbols=64), train=train, budget=Budget("steps", 3))


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanisms_step_compiles_and_fits(name):
    """A step of 512 tokens a row with heads of 128, as TPUs like them, so that their own attention kernel is compiled too."""
    run = run_with(MECHANISMS[name].Config())
    found = compile_step(run, V5E, SPREAD)
    assert found.state_bytes > 0
    assert found.bytes < 128 * MIB
    assert {"all-gather", "reduce-scatter"} & {one.kind for one in found.collectives}


def test_a_step_that_has_no_room_is_told_apart_from_a_fault():
    """Embeddings of 8 GiB and two moments of it: more than a v5e chip has."""
    run = run_with(LocalConfig(window=64))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab=2**23))
    with pytest.raises(DoesNotFit):
        compile_step(run, Topology.parse("v5e:2x2"), Sharding())
