"""Memory Caching against loops over tokens, segments and cached states in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import ModelConfig
from infini_jax.errors import ConfigError
from infini_jax.memory.base import memory_bytes
from infini_jax.memory.memory_caching import MemoryCaching, MemoryCachingConfig
from infini_jax.memory.window import newest_BxN
from tests.reference import memory_caching as reference
from tests.support import ragged
from tests.support.ragged import DIMS

ALL = MemoryCaching(MemoryCachingConfig(slots=5), DIMS)
SOME = MemoryCaching(MemoryCachingConfig(slots=2, selected=1, begins="empty"), DIMS)


def row_of(module):
    def row(params, arrays, documents):
        c = module.config
        settings = {"slots": c.slots, "selected": c.selected, "begins": c.begins}
        return reference.row(arrays, documents, lengths=ragged.LENGTHS, params=params, **settings)

    return row


def expected(module, params, arrays, documents=ragged.DOCUMENTS):
    """(outputs BxTxD, memory of each row)."""
    rows = [row_of(module)(params, [x[row] for x in arrays], of_row) for row, of_row in enumerate(documents)]
    return ragged.projected(params, [values for values, _ in rows]), [memory for _, memory in rows]


def assert_holds(memory, rows) -> None:
    """The newest entries of each row are those of the reference; older ones are of no document that is open."""
    for row, wanted in enumerate(rows):
        held = len(wanted["states"])
        assert memory.held_B[row] == held
        found = {"S": memory.S[row], "states": memory.states[row, -held:], "topics": memory.topics[row, -held:]}
        ragged.assert_close(found, wanted, ragged.EXACT)


def squares(memory):
    """What the loss has of the memory: of entries that are held."""
    is_held_BxN = newest_BxN(memory.topics.shape[1], memory.held_B)
    parts = memory.S, memory.states * is_held_BxN[..., None, None, None], memory.topics * is_held_BxN[..., None, None]
    return sum(jnp.sum(part * part) for part in parts)


@pytest.mark.parametrize("module", [ALL, SOME], ids=["gated", "sparse, each segment from nothing"])
def test_outputs_memory_and_gradients_are_the_reference_s(module):
    """Of fewer segments than slots, and of more."""
    point = (ragged.parameters(module), ragged.inputs())
    weights, direction = ragged.like(point[1][0], seed=5), ragged.like(point, seed=6)
    with jax.enable_x64(True):
        gradient, (outputs, memory, _) = ragged.streamed_with_gradient(module, *point, weights, squares)
    wanted, rows = expected(module, *point)
    ragged.assert_close(outputs, wanted, ragged.EXACT)
    assert_holds(memory, rows)

    def loss(moved):
        outputs, rows = expected(module, *moved)
        return np.sum(outputs * weights) + sum(np.sum(leaf**2) for row in rows for leaf in row.values())

    ragged.assert_slope(gradient, loss, point, direction, idle=())


@settings(max_examples=8, deadline=None)
@given(documents=ragged.documents_cut_anywhere(), seed=st.integers(0, 99))
def test_documents_cut_anywhere_are_the_reference_s(documents, seed):
    params, arrays = ragged.parameters(SOME), ragged.inputs(seed)
    with jax.enable_x64(True):
        outputs, memory, _ = ragged.stream(SOME, params, arrays, documents)
    wanted, rows = expected(SOME, params, arrays, documents)
    ragged.assert_close(outputs, wanted, ragged.EXACT)
    assert_holds(memory, rows)


def test_bytes_grow_by_a_state_and_a_topic_with_each_segment_of_the_document():
    dims = dataclasses.replace(DIMS, segment=256, compute="float32")
    configs = [MemoryCaching.holding(MemoryCachingConfig(), dims, tokens) for tokens in (256, 257, 2**20)]
    found = [memory_bytes(MemoryCaching(config, dims)) for config in configs]
    state, topic = 4 * dims.kv_heads * dims.key_dim * dims.value_dim, 4 * dims.kv_heads * dims.key_dim
    assert found == [state + slots * (state + topic) + 4 for slots in (1, 2, 4096)]


@pytest.mark.parametrize(("changes", "field"), [({"slots": 0}, "slots"), ({"selected": -1}, "selected")])
def test_caches_that_cannot_be_are_refused(changes, field):
    with pytest.raises(ConfigError, match=rf"^memory\.{field}: "):
        ModelConfig(memory=MemoryCachingConfig(**changes))
