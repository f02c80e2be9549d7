"""Sliding window, full attention and Transformer-XL, streamed in segments, against one long attention in float64 NumPy."""

import dataclasses

import jax
import numpy as np
import pytest

from infini_jax.errors import ConfigError
from infini_jax.memory.full import Full, FullConfig
from infini_jax.memory.local import Local, LocalConfig
from infini_jax.memory.transformer_xl import TransformerXL, TransformerXLConfig
from tests import ragged
from tests.reference import attention as reference
from tests.reference.attention import in_cache, in_window

# Windows shorter and longer than segments; a cache that forgets and one that holds everything. `held`: no gradient.
CASES = {
    "window of 1": (Local(LocalConfig(window=1), ragged.DIMS), in_window(1), False),
    "window of 4": (Local(LocalConfig(window=4), ragged.DIMS), in_window(4), False),
    "window of 9": (Local(LocalConfig(window=9), ragged.DIMS), in_window(9), False),
    "full, all of it": (Full(FullConfig(slots=19), ragged.DIMS), in_cache(19), False),
    "full, oldest dropped": (Full(FullConfig(slots=5), ragged.DIMS), in_cache(5), False),
    "transformer-xl": (TransformerXL(TransformerXLConfig(slots=8), ragged.DIMS), in_cache(8), True),
}


def expected(out, live, held, sees, **options) -> np.ndarray:
    """Outputs BxTxD of the reference."""
    rows = [
        reference.stream([x[row] for x in live], [x[row] for x in held], documents, ragged.LENGTHS, sees, **options)
        for row, documents in enumerate(ragged.DOCUMENTS)
    ]
    return np.einsum("bthv,hvd->btd", np.array(rows), out)


def holds_the_newest(memory, arrays, slots: int) -> None:
    """The valid entries of a cache are the newest of the open document."""
    for row, documents in enumerate(ragged.DOCUMENTS):
        for kept, source in ((memory.keys, arrays[2]), (memory.values, arrays[3])):
            newest = reference.last_of_document(source[row], documents, slots) if slots else source[row][:0]
            assert memory.length[row] == len(newest)
            np.testing.assert_array_equal(kept[row][kept.shape[1] - len(newest) :], newest)


@pytest.mark.parametrize("case", CASES)
def test_outputs_memory_and_gradients_are_those_of_one_long_attention(case):
    module, sees, is_held = CASES[case]
    with jax.enable_x64(True):
        params, arrays = ragged.parameters(module), ragged.inputs()
        out = params["out"]["kernel"]
        weights, direction = ragged.like(arrays[0], seed=5), ragged.like((params, arrays), seed=6)
        outputs, memory, _, slope = ragged.streamed_with_slope(module, params, arrays, weights, direction)
        np.testing.assert_allclose(outputs, expected(out, arrays[1:], arrays[1:], sees), atol=ragged.EXACT)
        holds_the_newest(memory, arrays, module.slots)

        def loss(moved):
            return np.sum(weights * expected(moved[0], moved[1:], arrays[1:] if is_held else moved[1:], sees))

        wanted = reference.slope(loss, [out, *arrays[1:]], [direction[0]["out"]["kernel"], *direction[1][1:]])
        assert slope == pytest.approx(wanted, rel=ragged.SLOPE)


def test_a_cache_of_no_slots_is_refused():
    with pytest.raises(ConfigError, match=r"^memory.slots: 0 slots remember nothing"):
        dataclasses.replace(FullConfig(), slots=0).check(ragged.DIMS)
