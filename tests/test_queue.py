"""How far the host is ahead of the devices: a few programs, because a CPU's devices hang where many wait for them."""

import os
import subprocess
import sys
from typing import cast

import jax

from infini_jax.devices.queue import MOST_AHEAD, keep_close
from infini_jax.training.skips import Skips

LOOP = """
import jax, jax.numpy as jnp
from infini_jax.devices.queue import keep_close

mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole, rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")

def summed(weights, x):
    sums = []
    for weight in weights:
        x = jnp.tanh(x @ weight)
        sums.append(jax.lax.psum(x.T @ x, "data"))
    return sums

summed = jax.shard_map(summed, mesh=mesh, in_specs=(whole, rows), out_specs=whole, check_vma=False)

@jax.jit
def step(weights, x):
    return [weight + 1e-6 * found for weight, found in zip(weights, summed(weights, x))]

weights = [jax.device_put(jnp.full((64, 64), 0.01), jax.sharding.NamedSharding(mesh, whole))] * 4
x = jax.device_put(jnp.ones((256, 64)), jax.sharding.NamedSharding(mesh, rows))
made = []
for _ in range(600):
    weights = step(weights, x)
    made.append(weights[0])
    keep_close(made)
print(len(jax.devices()), float(made[-1].sum()) > 0)
"""


class Measured:
    """What a step measures, without a device: whether somebody waited for it."""

    def __init__(self):
        self.is_awaited = False

    def block_until_ready(self):
        self.is_awaited = True


def test_no_more_than_a_few_steps_of_training_wait_for_the_device():
    """However rarely a line is logged."""
    skips, steps = Skips(0, 0), [Measured() for _ in range(100)]
    for number, step in enumerate(steps):
        skips.add(cast(jax.Array, step))
        assert [one.is_awaited for one in steps[: number + 1]] == [at <= number - MOST_AHEAD for at in range(number + 1)]


def test_a_long_loop_of_sums_over_two_devices_of_a_cpu_ends():
    """In a process of its own, which hangs on jax 0.10 where nothing keeps the host close."""
    two = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", LOOP], env=two, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["2", "True"], done.stderr


def test_results_that_are_there_already_are_kept_close_to():
    keep_close([])
    keep_close([jax.numpy.ones(()) for _ in range(3 * MOST_AHEAD)])
