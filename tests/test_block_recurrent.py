"""The block-recurrent layer against the paper's equations, one state and token at a time in float64."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.errors import ConfigError
from infini_jax.memory.block_recurrent import BlockRecurrent, BlockRecurrentConfig
from tests.reference import block_recurrent
from tests.support import ragged
from tests.support.ragged import DIMS

LAYERS = {gate: BlockRecurrent(BlockRecurrentConfig(states=3, gate=gate), DIMS) for gate in ("fixed", "lstm")}


def row_of(gate: str):
    return functools.partial(block_recurrent.row, lengths=ragged.LENGTHS, gate=gate)


@pytest.mark.parametrize("gate", LAYERS)
def test_outputs_states_and_gradients_are_the_reference_s(gate):
    ragged.assert_is_the_reference(LAYERS[gate], row_of(gate), idle=())


@settings(max_examples=8, deadline=None)
@given(documents=ragged.documents_cut_anywhere(), seed=st.integers(0, 99))
def test_documents_cut_anywhere_are_the_reference_s(documents, seed):
    ragged.assert_follows_documents(LAYERS["fixed"], row_of("fixed"), documents, seed)


def test_states_stay_float32_in_narrow_types():
    ragged.assert_narrow_types_stay_near(LAYERS["lstm"], row_of("lstm"))


def test_the_recurrent_layer_is_the_third_from_the_top():
    assert BlockRecurrent.usual_layers(12) == (9,)
    assert BlockRecurrent.usual_layers(2) == (0,)


def test_no_states_are_refused():
    with pytest.raises(ConfigError, match=r"^memory.states: 0 state vectors remember nothing; give at least 1$"):
        BlockRecurrentConfig(states=0).check(DIMS)
