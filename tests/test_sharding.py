"""Several devices give the numbers of one. Eight virtual CPU devices need a process of their own."""

import dataclasses
import math
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import (
    RULES,
    Layout,
    Sharding,
    ShardingRules,
    data_mesh,
    layout_of,
)
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.memory.infini import InfiniConfig
from infini_jax.training.program import Training
from tests.support import streams
from tests.support.commands import on_devices
from tests.support.streams import losses_of, tiny
from tests.test_parts import child

EVERY = "fsdp+tensor"  # what every mechanism is tried with; one is tried with all
LAYOUTS = {  # rules, devices per row, whether the rows of a device are taken in two turns
    "data": ("data", 1, False),
    "fsdp": ("fsdp", 1, False),
    "fsdp+tensor": ("fsdp+tensor", 2, False),
    "fsdp+tensor, in turns": ("fsdp+tensor", 2, True),
    "fsdp+slots": ("fsdp+slots", 2, False),
}


def losses(name: str) -> dict[str, list[float]]:
    """Losses of three steps on one device and on eight, by layout."""
    model = tiny(name)
    run = RunConfig(
        model=model,
        data=MqarConfig(pairs=4, symbols=32),
        train=TrainConfig(batch=8, sequence=2 * model.segment, learning_rate=1e-2),
        budget=Budget("steps", 3),
    )
    found = {"one": losses_of(run)}
    for key in LAYOUTS if name in ("infini", "memorizing") else (EVERY,):
        rules, per_row, in_turns = LAYOUTS[key]
        kind = dataclasses.replace(run, train=dataclasses.replace(run.train, accumulate=1 + in_turns))
        found[key] = losses_of(kind, layout_of(kind, Sharding(rules, per_row)))
    return found


def all_losses() -> dict[str, dict[str, list[float]]]:
    """`losses` of every mechanism."""
    return {name: losses(name) for name in MECHANISMS}


@pytest.fixture(scope="module")
def of_eight_devices():
    return on_devices(8, "test_sharding", "all_losses()")


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_sharded_training_equals_one_device(name, of_eight_devices):
    found = of_eight_devices[name]
    assert found.keys() >= {"one", EVERY}
    for layout, reached in found.items():
        np.testing.assert_allclose(reached, found["one"], rtol=2e-5, err_msg=layout)  # sums in another order


def factors_in_parts() -> dict[str, Any]:
    """Losses of a run of low-rank factors on one device and on eight that hold parameters in parts, and whether they do."""
    run = child(InfiniConfig(), trains="lora", lora_rank=3, batch=8)
    layout = layout_of(run, Sharding("fsdp"))
    in_parts = [any(place.spec) for place in jax.tree.leaves(Training(run, layout).places.frozen)]
    return {"one": losses_of(run), "eight": losses_of(run, layout), "in parts": any(in_parts)}


@pytest.mark.slow
def test_frozen_parameters_lie_in_parts_too():
    found = on_devices(8, "test_sharding", "factors_in_parts()")
    assert found["in parts"]
    np.testing.assert_allclose(found["eight"], found["one"], rtol=2e-5)


@pytest.mark.parametrize("optimiser", ["adamw", "adafactor"])
def test_parameters_and_moments_are_in_as_many_parts_as_there_are_devices(optimiser):
    """Of a model whose sizes the devices divide: an eighth on each, but for short vectors, scalars and factored moments."""
    model = dataclasses.replace(tiny("infini"), vocab=64, d_model=64, heads=4, kv_heads=4)
    train = TrainConfig(batch=8, sequence=model.segment, optimiser=optimiser, average=0.9)
    run = RunConfig(model=model, data=MqarConfig(pairs=2, symbols=32), train=train, budget=Budget("steps", 3))
    layout = Layout(AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2), RULES["fsdp+tensor"])
    shapes, places = Training(run).shapes, Training(run, layout).places

    def share_of_a_device(name: str) -> float:
        leaves = [jax.tree.leaves(getattr(tree, name)) for tree in (shapes, places)]
        whole = sum(math.prod(leaf.shape) for leaf in leaves[0])
        return sum(math.prod(place.shard_shape(leaf.shape)) for leaf, place in zip(*leaves, strict=True)) / whole

    assert share_of_a_device("params") == share_of_a_device("average") < 1.1 / 8
    assert share_of_a_device("optimiser") < (1.1 / 8 if optimiser == "adamw" else 1)
    assert share_of_a_device("carry") < 1.1 / 8  # rows and heads


@pytest.mark.parametrize("name", MECHANISMS)
def test_large_parameters_of_every_mechanism_are_in_parts(name):
    """Also those that only it has: on each of eight devices a quarter at most of every one that is no vector a head."""
    assert streams.whole_parameters(dataclasses.replace(tiny(name), **streams.WIDE)) == []


def slots_found() -> dict[str, list]:
    """The nearest of 262 144 slots by one device and by eight that share them, with ties across the devices' parts."""
    from infini_jax.memory.memorizing import Ring, search

    draw = np.random.default_rng(0)
    keys = draw.normal(size=(1, 1, 2**18, 8)).astype(np.float32)
    keys[0, 0, [5, 40_000, 100_000, 200_000]] = 10.0  # in four parts of eight, with the same product
    ring = Ring(jnp.asarray(keys), jnp.asarray(keys), jnp.asarray([250_000]))
    queries = draw.normal(size=(1, 16, 1, 8)).astype(np.float32)
    queries[0, 0] = 1.0

    def found(ring, queries):
        return search(ring, queries, 16)

    layout = Sharding("fsdp+slots", 8).layout(rows=1)
    split = NamedSharding(layout.mesh, layout.rules.spec(("batch", "kv_heads", "slots", "key_dim")))
    shared = Ring(jax.device_put(ring.keys, split), jax.device_put(ring.values, split), ring.written)
    with jax.set_mesh(layout.mesh):
        parts = jax.jit(found).lower(shared, queries).compile()
        assert {shard.data.shape for shard in shared.keys.addressable_shards} == {(1, 1, 2**15, 8)}
        assert "all-gather" in parts.as_text()
        by_eight = parts(shared, queries)
    return {"one": np.asarray(jax.jit(found)(ring, queries)).tolist(), "eight": np.asarray(by_eight).tolist()}


def test_slots_that_devices_share_give_the_neighbours_of_one_search():
    found = on_devices(8, "test_sharding", "slots_found()")
    assert found["eight"] == found["one"]
    assert found["one"][0][0][0][:4] == [5, 40_000, 100_000, 200_000]  # equal products: the lowest slot first


def test_an_axis_that_the_devices_do_not_divide_stays_whole():
    mesh = AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rules = RULES["fsdp+tensor"]
    assert tuple(rules.spec(("vocab", "embed"), (65, 64), mesh)) == (None, "data")
    assert tuple(rules.spec(("embed", "kv_heads", "head_dim"), (64, 1, 16), mesh)) == ("data", None, None)
    assert tuple(rules.spec(("embed", "embed"), (64, 64), mesh)) == ("data", None)  # a mesh axis splits one axis of an array


@pytest.mark.parametrize(
    ("rules", "per_row", "said"),
    [
        ("zero", 1, "sharding.rules: 'zero' is not known; choose one of data, fsdp, fsdp+sequence, fsdp+slots, fsdp+tensor"),
        ("fsdp+tensor", 1, "sharding.per_row: 1 devices per row with fsdp+tensor; give at least 2"),
        (
            "data",
            2,
            "sharding.per_row: 2 devices per row with data; leave it out, or choose fsdp+tensor or fsdp+slots or "
            "fsdp+sequence",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(rules, per_row, said):
    with pytest.raises(ConfigError) as error:
        Sharding(rules, per_row)
    assert str(error.value) == said


def test_devices_that_are_no_whole_groups_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 3)
    with pytest.raises(ConfigError, match=r"^sharding.per_row: 3 devices are not whole groups of 2; give a divisor of 3$"):
        Sharding("fsdp+tensor", 2).layout(rows=6)


def test_rows_that_devices_cannot_share_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 3)
    with pytest.raises(
        ConfigError, match=r"^train.batch: 8 rows \(batch / accumulate\) cannot be shared by 3 devices; give a multiple of 3$"
    ):
        data_mesh(8)


def devices_of_a_fresh_process(code: str, **environment: str) -> int:
    clean = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    code = f"import jax; from infini_jax.devices.sharding import use_cores; {code}; print(len(jax.devices()))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, env={**clean, **environment, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
def test_a_cpu_is_a_device_a_core_as_far_as_the_rows_go_around():
    four = "import os; os.sched_getaffinity = lambda _: {0, 1, 2, 3}"
    assert devices_of_a_fresh_process(f"{four}; use_cores(8)") == 4
    assert devices_of_a_fresh_process(f"{four}; use_cores(6)") == 3
    assert devices_of_a_fresh_process(f"{four}; jax.devices(); use_cores(8)") == 1
    assert devices_of_a_fresh_process(f"{four}; use_cores(8)", XLA_FLAGS="--xla_force_host_platform_device_count=2") == 2


def test_names_without_a_rule_are_whole_on_every_device():
    spec = ShardingRules(heads="model").spec(("layers", "batch", "heads", "key_dim"))
    assert tuple(spec) == (None, "data", "model", None)
