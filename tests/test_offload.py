"""A ring on the host reads, writes, learns and trains as one on the device, and stays on the host."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import ConfigError
from infini_jax.layers.platforms import platform, target
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.offload import PINNED
from infini_jax.model.stream import init_carry, scan_segments
from infini_jax.training.loop import train
from tests.support import streams

ON_DEVICE = dataclasses.replace(streams.tiny("memorizing"), heads=4, kv_heads=2)
ON_HOST = dataclasses.replace(ON_DEVICE, memory=dataclasses.replace(ON_DEVICE.memory, held="host"))

# These compile a ring on the host for the device at hand.
on_the_host = pytest.mark.skipif(platform() == "cuda", reason="XLA does not compile a ring on the host for NVIDIA GPUs")


def rings(carry):
    return [leaf for group in carry.memory for leaf in (group.ring.keys, group.ring.values)]


@on_the_host
@pytest.mark.slow
def test_logits_ring_and_gradients_are_the_same():
    """Bit for bit: the same products, one key head after the other."""
    params, tokens = streams.parameters_of(ON_DEVICE), streams.tokens_of(ON_DEVICE)
    documents = jnp.searchsorted(jnp.array([20]), jnp.arange(tokens.shape[1]), side="right") * jnp.array([[0], [1]])

    def run(params, model):
        sequence = streams.Sequence(tokens, documents)
        carry, logits, _ = scan_segments(model, params, init_carry(model, 2), sequence, lambda logits, part: logits, bptt=1)
        return jnp.sum(logits**2), (carry, logits)

    both = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
    ((_, (host, ours)), gradient), ((_, (device, theirs)), slope) = both(params, ON_HOST), both(params, ON_DEVICE)
    assert all(ring.sharding.memory_kind == PINNED for ring in rings(host))
    assert all(ring.sharding.memory_kind == "device" for ring in rings(device))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, host, device)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), gradient, slope)


@on_the_host
def test_decoding_reads_it_too():
    params, tokens = streams.parameters_of(ON_DEVICE), streams.tokens_of(ON_DEVICE)[:, :20]
    ours, theirs = (streams.decoded(model, params, tokens) for model in (ON_HOST, ON_DEVICE))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@on_the_host
@pytest.mark.slow
def test_training_keeps_it_there_and_finds_the_same_loss():
    def trained(model):
        run = RunConfig(
            model=model,
            data=MqarConfig(pairs=4, symbols=32, repeats=2),
            train=TrainConfig(batch=4, sequence=32),
            budget=Budget("steps", 2),
        )
        return train(run, lambda line: None)

    host, device = trained(ON_HOST), trained(ON_DEVICE)
    assert all(ring.sharding.memory_kind == PINNED for ring in rings(host.state.carry))
    assert host.last["loss"] == pytest.approx(device.last["loss"], rel=1e-6)


@on_the_host
def test_no_whole_ring_of_a_layer_is_on_the_device():
    """Of the types in the program of a segment: only slices of one key head are."""
    model = dataclasses.replace(ON_HOST, memory=MemorizingConfig(slots=24, top_k=4, held="host"))
    tokens = streams.tokens_of(model)
    program = jax.make_jaxpr(lambda params, carry: streams.scorer(model).__wrapped__(params, carry, tokens, tokens))(
        streams.parameters_of(ON_DEVICE), init_carry(model, 2)
    )
    text = str(program)
    assert "f32<host>[2,2,24,4]" in text
    assert "f32[2,2,24,4]" not in text


def test_gpus_of_nvidia_refuse_it_before_anything_compiles():
    with target("cuda"), pytest.raises(ConfigError, match=r"^memory.held: XLA does not compile .*; choose device"):
        init_carry(ON_HOST, 2)
    with target("cuda"):
        init_carry(ON_DEVICE, 2)


def test_another_place_is_refused():
    with pytest.raises(ConfigError, match=r"^memory.held: 'disk' is not known; choose device or host$"):
        dataclasses.replace(ON_DEVICE, memory=MemorizingConfig(held="disk"))
