"""Training of a part of the parameters: what stays as it is, factors beside matrices, and FLOPs that the plan counts."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from infini_jax.config import BlockConfig, Budget, ModelConfig, Origin, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.memory.full import FullConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.model.cost import model_cost, program_flops, state_bytes, training_flops_per_step
from infini_jax.model.parts import Parts, parts_of
from infini_jax.model.stream import forward_segments, init_carry, logits_of
from infini_jax.training.checkpoint import Saving
from infini_jax.training.execute import execute
from infini_jax.training.fleet import Fleet
from infini_jax.training.gradient import gradient_function
from infini_jax.training.loop import train, training_steps, unexamined
from infini_jax.training.optimiser import make_optimiser
from infini_jax.training.origin import begun_from
from infini_jax.training.program import Training
from infini_jax.training.trained import Trained
from tests.support.marks import slow_but
from tests.support.saved import drawn, saved_run
from tests.support.streams import losses_of
from tests.test_cost import SETTINGS

MODEL = ModelConfig(memory=LocalConfig(), vocab=48, layers=2, d_model=16, heads=4, kv_heads=2, segment=8)
BIASED = dataclasses.replace(
    MODEL, block=BlockConfig(mlp="swiglu", norm="rms", head="own", biases=("query_key_value", "output", "mlp", "norm"))
)
PARENT = RunConfig(
    name="first",
    model=MODEL,
    data=MqarConfig(pairs=4, symbols=32, repeats=2),
    train=TrainConfig(batch=2, sequence=16, log_every=1, evaluation_steps=1),
    budget=Budget("steps", 3),
)
LORA = {"trains": "lora", "lora_rank": 3}
MEMORY = {"trains": "memory"}


def child(memory: Any, model: ModelConfig = MODEL, **train_settings: Any) -> RunConfig:
    """A run that begins at a checkpoint of `PARENT` with another model, and is not looked for."""
    return dataclasses.replace(
        PARENT,
        name="second",
        model=dataclasses.replace(model, memory=memory),
        train=dataclasses.replace(PARENT.train, **train_settings),
        origin=Origin("nowhere", "first", "f" * 12, 2, "d" * 12, model),
    )


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    return saved_run(PARENT, tmp_path_factory.mktemp("parts") / "first")


def begun(parent: Path, memory: Any, **train_settings: Any) -> RunConfig:
    return begun_from(dataclasses.replace(child(memory, **train_settings), origin=None), parent)


def moved(trained: dict) -> dict:
    """Trained parameters after something was learned: factors B are no longer zero."""
    return jax.tree.map(lambda leaf, by: leaf + by, trained, drawn(trained, 7))


def logits(model: ModelConfig, params: dict) -> np.ndarray:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, model.vocab, (2, 3 * model.segment)), jnp.int32)
    _, features, _ = forward_segments(model, params, init_carry(model, 2), tokens[:, : model.segment], tokens[:, :8] * 0)
    return np.asarray(logits_of(model, params, features))


@pytest.mark.parametrize("model", [MODEL, BIASED], ids=["plain", "biased, gated, own head"])
def test_factors_leave_the_model_as_it_was_and_merge_into_what_they_have_learned(model):
    """To the bit in the beginning, where (x A) 0 is added; float32 sums in another order later, W + A B apart or at once."""
    run = child(LocalConfig(), model, **LORA)
    parts, base = parts_of(run), drawn(parts_of(dataclasses.replace(run, train=PARENT.train)).shapes[0], 1)
    trained, frozen = parts.split(base, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, parts.merged(trained, frozen), base)
    np.testing.assert_array_equal(logits(run.model, parts.joined(trained, frozen)), logits(run.model, base))
    trained = moved(trained)
    merged = parts.merged(trained, frozen)
    apart, at_once = (logits(run.model, params) for params in (parts.joined(trained, frozen), merged))
    assert np.abs(at_once - logits(run.model, base)).max() > 0.1
    np.testing.assert_allclose(apart, at_once, atol=1e-5 * np.abs(at_once).max())


def test_merged_matrices_are_w_and_alpha_over_r_a_b():
    """In float64 NumPy, for every matrix of a layer with its axes; nothing else changes."""
    run = child(LocalConfig(), BIASED, **LORA, lora_alpha=6.0)
    parts, base = parts_of(run), drawn(parts_of(dataclasses.replace(run, train=PARENT.train)).shapes[0], 1)
    trained, frozen = parts.split(base, jax.random.key(3))
    trained = moved(trained)
    found, factors = flatten_dict(parts.merged(trained, frozen)), flatten_dict(trained)
    assert found.keys() == flatten_dict(base).keys()
    adapted = [path[:-1] for path in factors if path[-1] == "lora_a"]
    assert {path[1:] for path in adapted} == {
        *(("query",), ("key",), ("value",), ("memory", "out"), ("mlp", "up"), ("mlp", "gate"), ("mlp", "down"))
    }
    for path, leaf in flatten_dict(base).items():
        expected = np.asarray(leaf, np.float64)
        if path[-1] == "kernel" and path[:-1] in adapted:
            a, b = (np.asarray(factors[*path[:-1], name], np.float64) for name in ("lora_a", "lora_b"))
            product = np.einsum("lir,lro->lio", a.reshape(2, -1, 3), b.reshape(2, 3, -1))
            expected = expected + 6.0 / 3 * product.reshape(expected.shape)
            np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6)  # float32
        else:
            np.testing.assert_array_equal(found[path], leaf)


def gradient_of(run: RunConfig, params: dict, frozen: dict) -> dict:
    training = Training(run)
    state, batch = training.fresh(), training.source.batch(0)
    return jax.jit(gradient_function(run))(params, state.carry, batch, None, frozen)[0]


@pytest.mark.parametrize("segments", [1, 2])
def test_the_gradient_of_a_part_is_that_part_of_the_gradient_of_all(segments):
    """Also of the memory's own parameters in a layer above one that has none, and of the row of inserted tokens."""
    for memory in (InfiniConfig(layers=(1,)), LandmarkConfig(block=4)):
        some = child(memory, **MEMORY, segments_per_step=segments)
        every = dataclasses.replace(some, train=dataclasses.replace(some.train, trains="all"))
        params = drawn(parts_of(every).shapes[0], 2)
        trained, frozen = parts_of(some).split(params, jax.random.key(0))
        found, whole = flatten_dict(gradient_of(some, trained, frozen)), flatten_dict(gradient_of(every, params, {}))
        whole["embedding", "inserted"] = whole["embedding", "embedding"][48:]
        assert found.keys() == parts_of(some).trained
        for path, leaf in found.items():
            assert np.abs(leaf).max() > 0
            np.testing.assert_allclose(leaf, whole[path], rtol=1e-4, atol=1e-5 * np.abs(whole[path]).max())


def test_the_gradient_of_factors_is_that_of_their_products_with_the_merged_gradient():
    """dA = s dW B^T and dB = s A^T dW, where dW is the gradient of all parameters at the merged ones."""
    some = child(InfiniConfig(), BIASED, **LORA)
    every = dataclasses.replace(some, train=PARENT.train)
    trained, frozen = parts_of(some).split(drawn(parts_of(every).shapes[0], 2), jax.random.key(0))
    trained = moved(trained)
    found = flatten_dict(gradient_of(some, trained, frozen))
    whole = flatten_dict(gradient_of(every, parts_of(some).merged(trained, frozen), {}))
    assert set(found) - set(flatten_dict(trained)) == set()
    for path in [path for path in found if path[-1] == "lora_a"]:
        a, b = (np.asarray(flatten_dict(trained)[*path[:-1], name], np.float64) for name in ("lora_a", "lora_b"))
        a_LxIxR, b_LxRxO = a.reshape(2, -1, 3), b.reshape(2, 3, -1)
        dw_LxIxO = np.asarray(whole[*path[:-1], "kernel"], np.float64).reshape(2, a_LxIxR.shape[1], -1)
        expected = (16 / 3 * np.einsum("lio,lro->lir", dw_LxIxO, b_LxRxO), 16 / 3 * np.einsum("lir,lio->lro", a_LxIxR, dw_LxIxO))
        for name, one in zip(("lora_a", "lora_b"), expected, strict=True):
            leaf = np.asarray(found[*path[:-1], name]).reshape(one.shape)
            np.testing.assert_allclose(leaf, one, atol=1e-4 * np.abs(one).max(), err_msg=str(path))


@pytest.mark.parametrize("settings", [MEMORY, {**LORA, "average": 0.5}], ids=["memory", "lora"])
def test_what_is_frozen_stays_to_the_bit_and_has_no_state(settings, parent, tmp_path):
    """A run through its folder: checkpoints hold what is trained, readers get the whole model, and it goes on to the same end."""
    run = begun(parent, InfiniConfig(), **settings)
    folder, everywhere = tmp_path / "second", Saving(every_steps=1, keep=9)
    row = execute(run, folder, study="", saving=everywhere)
    base, first, last = Trained.open(parent).params, Trained.open(folder, 0).params, Trained.open(folder, 3).params
    parts = parts_of(run)
    assert row.trained_parameters == parts.counts[0] < parts.counts[1]
    paths = flatten_dict(last)
    for path, leaf in flatten_dict(base).items():
        np.testing.assert_array_equal(flatten_dict(first)[path], leaf)
        is_merged = settings is not MEMORY and path[-1] == "kernel"
        assert np.array_equal(paths[path], leaf) == (not is_merged)
    gate = ("groups_0", "memory", "gate")
    assert not np.array_equal(paths[gate], flatten_dict(first)[gate])
    shapes = Training(run).shapes
    frozen = flatten_dict(shapes.frozen)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(shapes.optimiser)]
    assert frozen
    assert not [name for name in names if any(name.endswith("/".join(path)) for path in frozen)]
    kept = sum(file.stat().st_size for file in (folder / "checkpoints" / "3").rglob("*") if file.is_file())
    assert (folder / "frozen").is_dir()
    (folder / "row.parquet").unlink()
    again = execute(run, folder, study="", saving=everywhere, resume=1)
    assert (again.train_loss, again.loss, again.flops_actual) == (row.train_loss, row.loss, row.flops_actual)
    jax.tree.map(np.testing.assert_array_equal, Trained.open(folder).params, last)
    assert kept > 0
    grandchild = begun_from(dataclasses.replace(PARENT, name="third", model=run.model), folder, 3)
    assert grandchild.origin != run.origin
