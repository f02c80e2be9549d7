"""Several devices give the numbers of one. Eight virtual CPU devices need a process of their own."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.sharding import Layout, ShardingRules, data_mesh

RULES = {"data": ShardingRules(), "data and heads": ShardingRules(heads="model", kv_heads="model")}


def losses(name: str) -> dict[str, list[float]]:
    """Losses of three steps on one device, on a mesh by rows, and on a mesh by rows and heads."""
    from jax.sharding import AxisType

    from infini_jax.config import Budget, RunConfig, TrainConfig
    from infini_jax.data.mqar import MqarConfig
    from infini_jax.optimiser import make_optimiser
    from infini_jax.sharding import batch_sharding
    from infini_jax.train import init_state, make_step, rows_of, state_sharding
    from tests.streams import tiny

    model = tiny(name)
    run = RunConfig(
        model=model,
        data=MqarConfig(pairs=4, symbols=32),
        train=TrainConfig(batch=8, sequence=2 * model.segment, learning_rate=1e-2),
        budget=Budget("steps", 3),
    )
    optimiser, source = make_optimiser(run.train, 3), run.data.open(rows_of(run, "train"))
    in_turns = dataclasses.replace(run, train=dataclasses.replace(run.train, accumulate=2))

    def trained(step, state, rows) -> list[float]:
        found = []
        for number in range(3):
            batch = source.batch(number)
            state, measured = step(state, batch if rows is None else jax.device_put(batch, rows))
            found.append(float(measured["loss"]))
        return found

    found = {"one": trained(make_step(run, optimiser), init_state(run, optimiser), None)}
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    for rules_name, rules in RULES.items():
        layout = Layout(mesh, rules)
        for key, kind in {rules_name: run, f"{rules_name}, in turns": in_turns}.items():
            state = jax.device_put(init_state(kind, optimiser), state_sharding(kind, optimiser, layout))
            found[key] = trained(make_step(kind, optimiser, layout), state, batch_sharding(mesh, rules))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_sharded_training_equals_one_device(name):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.test_sharding", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 1 + 2 * len(RULES)
    for layout, reached in found.items():
        np.testing.assert_allclose(reached, found["one"], rtol=2e-5, err_msg=layout)  # sums in another order


def test_rows_that_devices_cannot_share_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 3)
    with pytest.raises(
        ConfigError, match=r"^train.batch: 8 rows \(batch / accumulate\) cannot be shared by 3 devices; give a multiple of 3$"
    ):
        data_mesh(8)


def devices_of_a_fresh_process(code: str, **environment: str) -> int:
    clean = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    code = f"import jax; from infini_jax.sharding import use_cores; {code}; print(len(jax.devices()))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, env={**clean, **environment, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_cpu_is_a_device_a_core_as_far_as_the_rows_go_around():
    four = "import os; os.sched_getaffinity = lambda _: {0, 1, 2, 3}"
    assert devices_of_a_fresh_process(f"{four}; use_cores(8)") == 4
    assert devices_of_a_fresh_process(f"{four}; use_cores(6)") == 3
    assert devices_of_a_fresh_process(f"{four}; jax.devices(); use_cores(8)") == 1
    assert devices_of_a_fresh_process(f"{four}; use_cores(8)", XLA_FLAGS="--xla_force_host_platform_device_count=2") == 2


def test_names_without_a_rule_are_whole_on_every_device():
    spec = ShardingRules(heads="model").spec(("layers", "batch", "heads", "key_dim"))
    assert tuple(spec) == (None, "data", "model", None)


if __name__ == "__main__":
    print(json.dumps(losses(sys.argv[1])))
