"""Devices that share a sequence: the memories before each one's segments, and training, equal those of one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding, batch_sharding, check_shares, layout_of
from infini_jax.errors import ConfigError
from infini_jax.layers.heads import SEQUENCE_AXIS
from infini_jax.memory import infini
from infini_jax.memory.infini import InfiniConfig, InfiniMemory
from tests.support.commands import on_devices
from tests.support.streams import losses_of, tiny

PARTS = 4
RULES = {"linear": infini.parallel_linear, "delta": infini.parallel_delta}


# ---- what runs on four devices -------------------------------------------------------------------------------------------


def differences() -> dict[str, float]:
    """Of each rule."""
    jax.config.update("jax_enable_x64", True)
    return {rule: difference(rule) for rule in RULES}


def difference(rule: str) -> float:
    """Largest relative difference of outputs, final memory and gradients, float64: four devices of three segments against one.

    Three rows: no document ends; one ends between two devices; one inside a device's part, and another behind it.
    """
    B, W, S, H, G, F, V = 3, 3 * PARTS, 4, 4, 2, 5, 3
    rng = np.random.default_rng(0)
    q, k, v, upstream = (rng.uniform(0.1, 1, (B, W, S, *sizes)) for sizes in ((H, F), (G, F), (G, V), (H, V)))
    keeps = np.ones((B, W), bool)
    keeps[1, 6] = keeps[2, 4] = keeps[2, 9] = False
    memory = InfiniMemory(rng.normal(size=(B, G, F, V)), rng.uniform(1, 2, (B, G, F)))
    parallel = RULES[rule]

    def parts(memory, q, k, v, keeps):
        axes = (PartitionSpec(), *(PartitionSpec(None, SEQUENCE_AXIS),) * 4)
        return jax.shard_map(parallel, mesh=mesh, in_specs=axes, out_specs=(axes[1], axes[0]), check_vma=False)(
            memory, q, k, v, keeps
        )

    def loss(form, memory, q, k, v):
        a_mem, after = form(memory, q, k, v, keeps)
        return (a_mem * upstream).sum(), (a_mem, after)

    def measured(form):
        return jax.jit(jax.value_and_grad(functools.partial(loss, form), argnums=(0, 1, 2, 3), has_aux=True))(memory, q, k, v)

    mesh = jax.make_mesh((PARTS,), (SEQUENCE_AXIS,), axis_types=(AxisType.Auto,))
    one, several = (jax.tree.leaves(measured(form)) for form in (parallel, parts))
    return max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in zip(one, several, strict=True))


def run_of(update: str) -> RunConfig:
    model = dataclasses.replace(tiny("infini"), memory=InfiniConfig(update=update))
    train = TrainConfig(batch=2, sequence=8 * model.segment, learning_rate=1e-2)
    return RunConfig(model=model, data=MqarConfig(pairs=4, symbols=32), train=train, budget=Budget("steps", 3))


def all_losses() -> dict[str, dict[str, list[float]]]:
    """Of each rule."""
    return {update: losses(update) for update in RULES}


def losses(update: str) -> dict[str, list[float]]:
    """One device that takes eight segments in turn, and eight of which four share each row's sequence."""
    run = run_of(update)
    at_once = dataclasses.replace(run, train=dataclasses.replace(run.train, segments_per_step=8))
    layout = layout_of(at_once, Sharding("fsdp+sequence", 4))
    assert batch_sharding(layout.mesh, layout.rules).tokens.shard_shape((2, 8)) == (1, 2)
    return {"one": losses_of(run), "eight": losses_of(at_once, layout)}


# ---- the tests -----------------------------------------------------------------------------------------------------------


def test_devices_that_share_a_sequence_find_the_memories_of_one():
    found = on_devices(PARTS, "test_sequence", "differences()")
    assert found.keys() == RULES.keys()
    assert max(found.values()) < 1e-12, found  # rounding of float64


@pytest.mark.slow
def test_training_with_shared_sequences_equals_one_device():
    found = on_devices(8, "test_sequence", "all_losses()")
    assert found.keys() == RULES.keys()
    for update, of_rule in found.items():
        np.testing.assert_allclose(of_rule["eight"], of_rule["one"], rtol=2e-5, err_msg=update)  # sums in another order


@pytest.mark.parametrize(
    ("mechanism", "at_once", "per_row", "said"),
    [
        ("memorizing", 8, 4, "sharding.rules: memorizing takes the segments of a sequence in turn; choose infini, "),
        ("infini", 2, 4, "train.segments_per_step: 2 of 8 segments at once, all of which devices are to share; give 8"),
        ("infini", 8, 3, "sharding.per_row: 3 devices cannot share 8 segments; give a divisor of 8"),
    ],
)
def test_a_sequence_that_cannot_be_shared_is_refused_in_one_line(mechanism, at_once, per_row, said):
    run = dataclasses.replace(run_of("linear"), model=tiny(mechanism))
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, segments_per_step=at_once))
    with pytest.raises(ConfigError) as error:
        check_shares(run, Sharding("fsdp+sequence", per_row))
    assert str(error.value).startswith(said)
