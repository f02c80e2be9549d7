"""Memorizing Transformer against slow float64 loops: rings that wrap and that do not, grouped heads, an XL cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.memory.memorizing import Memorizing, MemorizingConfig
from tests.reference import memorizing as reference
from tests.support import ragged

CASES = {
    "ring that wraps": MemorizingConfig(slots=8, top_k=3),
    "more neighbours than tokens, short cache": MemorizingConfig(slots=16, top_k=16, cached=4),
    "ring shorter than a segment, long cache": MemorizingConfig(slots=4, top_k=2, cached=8),
}


def layer(case: str, compute: str = "float64") -> Memorizing:
    return Memorizing(CASES[case], dataclasses.replace(ragged.DIMS, compute=compute))


def rows_of(case: str, params, live, held, documents=ragged.DOCUMENTS):
    """What the reference gives for each row."""
    c = CASES[case]
    sizes = {"lengths": ragged.LENGTHS, "slots": c.slots, "k": c.top_k, "cached": c.cached}
    return [
        reference.row(params, [x[row] for x in live], [x[row] for x in held], of_row, **sizes)
        for row, of_row in enumerate(documents)
    ]


def outputs_of(params, rows) -> np.ndarray:
    return ragged.projected(params, [values for values, *_ in rows])


def assert_holds(memory, rows, tolerance: float) -> None:
    """Ring and cache hold the reference's entries in its order."""
    for row, (_, ring, recent, count) in enumerate(rows):
        slots = memory.ring.keys.shape[2]
        assert memory.ring.written[row] == count
        assert memory.ring.held_B[row] == len(ring)
        order = np.arange(count - len(ring), count) % slots
        for array, side in ((memory.ring.keys, 0), (memory.ring.values, 1)):
            for slot, entry in zip(order, ring, strict=True):
                np.testing.assert_allclose(array[row, :, slot], np.array(entry[side]), atol=tolerance)
        if memory.recent is None:
            continue
        assert memory.recent.length[row] == len(recent)
        for array, side in ((memory.recent.keys, 0), (memory.recent.values, 1)):
            for kept, entry in zip(array[row, array.shape[1] - len(recent) :], recent, strict=True):
                np.testing.assert_allclose(kept, np.array(entry[side]), atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_outputs_memory_and_gradients_are_the_reference_s(case):
    """Gradients of queries, own keys and values, scale, gates, bias and output kernel; none through what is remembered."""
    params, arrays = point = ragged.parameters(layer(case)), ragged.inputs()
    weights, direction = ragged.like(arrays[0], seed=5), ragged.like(point, seed=6)
    with jax.enable_x64(True):
        gradient, (outputs, memory, _) = ragged.streamed_with_gradient(layer(case), *point, weights)
    rows = rows_of(case, params, arrays, arrays)
    np.testing.assert_allclose(outputs, outputs_of(params, rows), atol=ragged.EXACT)
    assert_holds(memory, rows, ragged.EXACT)

    def loss(moved):
        return np.sum(weights * outputs_of(moved[0], rows_of(case, *moved, arrays)))

    ragged.assert_slope(gradient, loss, point, direction)


@settings(max_examples=10, deadline=None)
@given(documents=ragged.documents_cut_anywhere(), seed=st.integers(0, 99), case=st.sampled_from(sorted(CASES)))
def test_documents_cut_anywhere_are_the_reference_s(documents, seed, case):
    params, arrays = ragged.parameters(layer(case)), ragged.inputs(seed)
    with jax.enable_x64(True):
        outputs, memory, _ = ragged.stream(layer(case), params, arrays, documents)
    rows = rows_of(case, params, arrays, arrays, documents)
    np.testing.assert_allclose(outputs, outputs_of(params, rows), atol=ragged.EXACT)
    assert_holds(memory, rows, ragged.EXACT)


def test_float32_and_bf16_compute_stay_near_the_reference():
    """float32: its rounding. bf16: the memory is as exact, given the rounded arrays; outputs carry bf16's eight bits."""
    case = "more neighbours than tokens, short cache"  # all are found: rounding cannot change which
    params, arrays = ragged.parameters(layer(case)), ragged.inputs()
    outputs, memory, _ = ragged.stream(layer(case, "float32"), params, arrays)
    rows = rows_of(case, params, arrays, arrays)
    np.testing.assert_allclose(outputs, outputs_of(params, rows), atol=1e-5)
    assert_holds(memory, rows, 1e-5)

    rounded = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    outputs, memory, _ = ragged.stream(layer(case, "bfloat16"), params, rounded)
    exact = [np.asarray(x, np.float64) for x in rounded]
    rows = rows_of(case, params, exact, exact)
    expected = outputs_of(params, rows)
    assert outputs.dtype == jnp.bfloat16
    assert np.abs(np.asarray(outputs, np.float64) - expected).max() < 0.03 * np.abs(expected).max()
    assert memory.ring.keys.dtype == memory.recent.keys.dtype == jnp.float32
    assert_holds(memory, rows, 1e-5)
