"""Log-linear attention against the states of its levels, token by token in float64 loops."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import ModelConfig
from infini_jax.errors import ConfigError
from infini_jax.memory.base import memory_bytes
from infini_jax.memory.log_linear import LogLinear, LogLinearConfig, highest_bit
from tests.reference import log_linear as reference
from tests.support import ragged
from tests.support.ragged import DIMS

LONG, SHORT = (LogLinear(LogLinearConfig(longest=longest), DIMS) for longest in (32, 6))


def row_of(module):
    def row(params, arrays, documents):
        return reference.row(arrays, documents, lengths=ragged.LENGTHS, params=params, levels=module.config.levels)

    return row


def squares_of_matrices(memory):
    """What a loss may have of the memory: counts have no gradient."""
    return ragged.squares(memory["S"] if isinstance(memory, dict) else memory.S)


@pytest.mark.parametrize("module", [LONG, SHORT], ids=["documents that fit", "longer documents"])
def test_outputs_memory_and_gradients_are_the_reference_s(module):
    """Documents of up to 19 tokens, in buckets of up to 16, and of up to 4 where the rest shares the highest level."""
    point = (ragged.parameters(module), ragged.inputs())
    weights, direction = ragged.like(point[1][0], seed=5), ragged.like(point, seed=6)
    with jax.enable_x64(True):
        gradient, (outputs, memory, _) = ragged.streamed_with_gradient(module, *point, weights, squares_of_matrices)

    def loss(moved):
        outputs, memory = ragged.expected(row_of(module), *moved)
        return np.sum(outputs * weights) + squares_of_matrices(memory)

    ragged.assert_close((outputs, memory), ordered(ragged.expected(row_of(module), *point)), ragged.EXACT)
    ragged.assert_slope(gradient, loss, point, direction, idle=())


def ordered(expected):
    outputs, memory = expected
    return outputs, [memory["S"], memory["count"]]


@settings(max_examples=8, deadline=None)
@given(documents=ragged.documents_cut_anywhere(), seed=st.integers(0, 99))
def test_documents_cut_anywhere_are_the_reference_s(documents, seed):
    params, arrays = ragged.parameters(LONG), ragged.inputs(seed)
    with jax.enable_x64(True):
        outputs, memory, _ = ragged.stream(LONG, params, arrays, documents)
    ragged.assert_close((outputs, memory), ordered(ragged.expected(row_of(LONG), params, arrays, documents)), ragged.EXACT)


def test_a_token_sees_its_document_in_buckets_that_double():
    """Of 13 tokens before it: 8, 4 and 1, and itself; the levels that the published mask has (section 3.1)."""
    levels = np.asarray(highest_bit(np.arange(14) ^ 13, 20)) + 1
    np.testing.assert_array_equal(levels, [4] * 8 + [3] * 4 + [1] + [0])


def test_a_bucket_is_a_matrix_and_their_number_grows_with_the_logarithm_of_the_document():
    dims = dataclasses.replace(DIMS, compute="float32")
    found = {
        longest: LogLinear(LogLinear.holding(LogLinearConfig(), dims, longest), dims) for longest in (1, 2, 3, 4096, 2**20)
    }
    one = memory_bytes(found[1])
    matrix = memory_bytes(found[3]) - one
    assert matrix == DIMS.kv_heads * DIMS.key_dim * DIMS.value_dim * 4 == one - 4  # float32, and a count
    assert memory_bytes(found[2]) == one
    assert [(memory_bytes(found[longest]) - 4) / matrix for longest in (4096, 2**20)] == [12, 20]


@pytest.mark.parametrize("longest", [0, 2**31])
def test_documents_that_cannot_be_are_refused(longest):
    with pytest.raises(ConfigError, match=r"^memory\.longest: "):
        ModelConfig(memory=LogLinearConfig(longest=longest))
