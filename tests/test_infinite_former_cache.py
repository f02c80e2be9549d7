"""∞-former with a cache, whose leaving tokens are written: against the slow reference, over ragged lengths and documents."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.memory.base import AUXILIARY, memory_bytes
from infini_jax.memory.infinite_former.mechanism import InfiniteFormer, InfiniteFormerConfig
from tests.reference import infinite_former as reference
from tests.support import ragged
from tests.support.former import plain


def module_of(cached: int) -> InfiniteFormer:
    config = InfiniteFormerConfig(basis=6, widths=(0.1, 0.2), samples=5, tau=0.6, ridge=0.5, kl_weight=0.1, cached=cached)
    return InfiniteFormer(config, ragged.DIMS)


def expected(config, params, arrays, held_params, held, documents=ragged.DOCUMENTS, lengths=ragged.LENGTHS):
    """(outputs BxTxD, rows of (B, cached inputs), auxiliary losses per segment) of the reference."""
    rows = [
        reference.stream(
            *([x[row] for x in inputs] for inputs in (arrays, held)),
            documents[row],
            lengths,
            *(plain({"params": p}) for p in (params, held_params)),
            config,
        )
        for row in range(len(documents))
    ]
    losses = [config.kl_weight * np.mean(parts) for parts in zip(*(row[3] for row in rows), strict=True)]
    return np.array([row[0] for row in rows]), [row[1:3] for row in rows], losses


def holds(memory, rows) -> None:
    """The memory's signal and cache are those of the reference; rounding grows with the regression's condition."""
    for row, (B, cached) in enumerate(rows):
        np.testing.assert_allclose(memory.B[row], np.zeros_like(memory.B[row]) if B is None else B, atol=1e-10)
        assert (memory.writes[row] > 0) == (B is not None)
        if memory.cache is not None:
            assert memory.cache.recent.length[row] == len(cached)
            kept = memory.cache.inputs[row]
            np.testing.assert_array_equal(kept[len(kept) - len(cached) :], cached)


@pytest.mark.parametrize(("cached", "idle"), [(4, ()), (8, (ragged.INPUTS,))])
def test_outputs_memory_losses_and_gradients_are_those_of_the_reference(cached, idle):
    """Segments of 6: a smaller cache, tokens of the segment leave at once; and a larger one, which detaches them."""
    module = module_of(cached)
    params, arrays = point = ragged.parameters(module), ragged.inputs()
    weights, direction = ragged.like(arrays[0], seed=5), ragged.like(point, seed=6)
    with jax.enable_x64(True):
        gradient, (outputs, memory, metrics) = ragged.streamed_with_gradient(module, *point, weights)
    wanted, rows, losses = expected(module.config, params, arrays, params, arrays)
    np.testing.assert_allclose(outputs, wanted, atol=1e-10)
    np.testing.assert_allclose([m[AUXILIARY + "kl"] for m in metrics], losses, atol=1e-10)
    assert losses[-1] > 0
    holds(memory, rows)

    def loss(moved):
        outputs, _, losses = expected(module.config, *moved, params, arrays)
        return np.sum(weights * outputs) + sum(losses)

    ragged.assert_slope(gradient, loss, point, direction, idle)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    cached=st.sampled_from([0, 3]),
    lengths=st.sampled_from([ragged.LENGTHS, (1, 4, 4, 1, 4, 5)]),
    documents=ragged.documents_cut_anywhere(),
)
def test_any_lengths_and_document_edges(cached, lengths, documents):
    module = module_of(cached)
    params, arrays = ragged.parameters(module), ragged.inputs()
    with jax.enable_x64(True):
        outputs, memory, _ = ragged.stream(module, params, arrays, documents, lengths)
    wanted, rows, _ = expected(module.config, params, arrays, params, arrays, documents, lengths)
    np.testing.assert_allclose(outputs, wanted, atol=1e-10)
    holds(memory, rows)


def test_nothing_is_written_until_the_cache_is_full():
    """Then what leaves has its fit; a row without a signal has none."""
    module = module_of(8)
    with jax.enable_x64(True):
        params, arrays = ragged.parameters(module), ragged.inputs()
        one_document = np.zeros_like(ragged.DOCUMENTS)
        for segments, writes in ((1, 0), (2, 1), (3, 2)):
            part = [x[:, : 6 * segments] for x in arrays]
            _, memory, _ = ragged.stream(module, params, part, one_document[:, : 6 * segments], (6,) * segments)
            assert np.all(memory.writes == writes)
            assert np.all((memory.fit != 0) == (writes > 0))


def test_cached_tokens_count_in_the_bytes():
    d = ragged.DIMS
    a_token = d.d_model + d.kv_heads * (d.key_dim + d.value_dim)
    with jax.enable_x64(True):
        empty, full = memory_bytes(module_of(0)), memory_bytes(module_of(8))
    assert full == empty + 8 * 8 * a_token + 4  # float64, and the int32 that counts the valid ones
