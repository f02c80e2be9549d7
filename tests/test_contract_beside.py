"""Mechanisms beside native attention keep the whole contract."""

import jax
import pytest

from infini_jax.memory import memory_of
from infini_jax.memory.base import memory_bytes
from infini_jax.memory.neighborhood import neighborhood_bytes
from tests import test_contract, test_contract_forms
from tests.support.beside import CHOICES, registered
from tests.support.streams import tiny

pytestmark = [pytest.mark.parametrize("name", CHOICES), pytest.mark.slow]


@pytest.fixture(autouse=True)
def in_the_registry():
    with registered():
        yield


for tests in (test_contract, test_contract_forms):  # every promise, those added later too
    globals().update({name: one for name, one in vars(tests).items() if name.startswith("test_")})
# The native attention beside the memory has no gate that closes it, and what it sees ends with the segment.
del globals()["test_a_memory_that_reads_its_own_segment_reads_the_same_wherever_segments_end"]


def test_bytes_are_those_of_the_arrays(name):
    """The added memory's, and apart from them those of the native window."""
    model = tiny(name)
    module, alone = memory_of(model.memory, model.dims), memory_of(model.memory.added, model.dims)
    assert memory_bytes(module) == memory_bytes(alone) > 0
    real = sum(leaf.nbytes for leaf in jax.tree.leaves(module.init_memory(1)))
    assert memory_bytes(module) + neighborhood_bytes(module) == real
