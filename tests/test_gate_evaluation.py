"""Gates by layer and head are the sigmoid of the trained parameters, in the layers that have some."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import ConfigError
from infini_jax.evals.base import Subject
from infini_jax.evals.gates import GateEvaluation
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.model.transformer import memory_parameters
from infini_jax.training.optimiser import names_of
from tests.support.streams import initial

MODEL = ModelConfig(vocab=32, layers=3, d_model=16, heads=2, segment=8)


def run_with(memory) -> RunConfig:
    model = dataclasses.replace(MODEL, memory=memory)
    train = TrainConfig(batch=1, sequence=16)
    return RunConfig(name="gated", model=model, data=MqarConfig(pairs=2, symbols=32), train=train, budget=Budget("steps", 1))


@pytest.mark.parametrize(
    ("memory", "layers"),
    [
        pytest.param(InfiniConfig(), (0, 1, 2), id="in-every-layer"),
        pytest.param(MemorizingConfig(slots=16, top_k=2, layers=(1,)), (1,), id="in-the-memory-layer-only"),
    ],
)
def test_every_head_of_a_layer_with_gates_is_told(memory, layers):
    run, betas = run_with(memory), []
    gates = memory_parameters(run.model, "gates")

    def drawn(path, leaf):
        if names_of(path) not in gates:
            return leaf
        betas.append(np.random.default_rng(len(betas)).normal(size=leaf.shape))
        return jnp.asarray(betas[-1], leaf.dtype)

    params = jax.tree_util.tree_map_with_path(drawn, initial(run.model))
    found = GateEvaluation().measure(Subject(run, params))
    assert [tuple(one.labels.values()) for one in found] == [(layer, head) for layer in layers for head in (0, 1)]
    expected = 1 / (1 + np.exp(-np.concatenate([beta.ravel() for beta in betas])))
    np.testing.assert_allclose([one.value for one in found], expected, rtol=1e-6)  # float32


def test_a_mechanism_without_gates_has_none_to_tell():
    run = run_with(LocalConfig(window=4))
    assert not GateEvaluation().applies(run)
    assert GateEvaluation().applies(run_with(InfiniConfig()))
    with pytest.raises(ConfigError, match=r"^run: local has no gates; choose a run of a mechanism that has$"):
        GateEvaluation().check(run)
