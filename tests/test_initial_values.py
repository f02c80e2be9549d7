"""Initial values that decide learning can be set; left out they are what they always were."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import ModelConfig, RunConfig
from infini_jax.errors import ConfigError
from infini_jax.layers.key_taps import KeyTaps
from infini_jax.layers.segment import NO_DOCUMENT, whole
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.model.stream import init_params
from tests.support.streams import MODEL


@pytest.mark.parametrize(
    ("taps", "own", "shares"), [(2, None, [0.5, 0.5]), (2, 0.1, [0.1, 0.9]), (3, 1.0, [1, 0, 0]), (3, 0.0, [0, 0.5, 0.5])]
)
def test_keys_begin_as_the_mix_of_tokens_asked_for(taps, own, shares):
    """By inputs that are one at one token: its share is seen at each of the tokens that follow it."""
    inputs = jnp.zeros((1, 5, 3)).at[0, 1].set(1.0)
    module, bounds = KeyTaps(taps, jnp.float32, own), whole(jnp.zeros((1, 5), int), jnp.full(1, NO_DOCUMENT))
    mixed, _ = module.init_with_output(jax.random.key(0), inputs, bounds)
    np.testing.assert_allclose(mixed[0, 1 : 1 + taps, 0], shares, rtol=1e-6)
    assert float(mixed.sum()) == pytest.approx(3 * sum(shares))


def test_a_share_of_taps_reaches_the_model_and_enters_the_fingerprint_where_it_is_given():
    plain, other = (RunConfig(model=ModelConfig(key_taps=2, key_taps_own=own)) for own in (None, 0.25))
    assert plain.fingerprint() != other.fingerprint()
    assert RunConfig.from_dict(other.to_dict()) == other
    model = dataclasses.replace(MODEL, key_taps_own=0.25)
    kernel = init_params(model, jax.random.key(0))["groups_0"]["taps"]["kernel"]
    np.testing.assert_array_equal(kernel, np.broadcast_to(np.float32([0.25, 0.75])[:, None], kernel.shape))


@pytest.mark.parametrize(("taps", "own"), [(1, 0.5), (2, 1.5), (2, -0.1)])
def test_a_share_that_cannot_be_is_refused(taps, own):
    with pytest.raises(ConfigError, match=rf"^model.key_taps_own: {own} is not a weight among {taps} taps; give 0 to 1"):
        ModelConfig(key_taps=taps, key_taps_own=own)


@pytest.mark.parametrize("settings", [MemorizingConfig, InfiniConfig])
def test_gates_begin_where_they_are_asked_to(settings):
    for start in (0.0, -2.0):
        model = dataclasses.replace(MODEL, memory=settings(gate_init=start))
        gates = init_params(model, jax.random.key(0))["groups_0"]["memory"]["gate"]
        np.testing.assert_array_equal(gates, np.full(gates.shape, start, np.float32))
