"""What a text repeats, against slow definitions."""

import numpy as np
import pytest

from infini_jax.data.repeats import NOWHERE, copy_opportunity, copy_sources, previous_use


def copied(symbols: list[int], context: int) -> list[int]:
    """The copier, symbol by symbol: a dictionary of where each context was last followed by something."""
    newest, sources = {}, []
    for place, symbol in enumerate(symbols):
        before = tuple(symbols[place - context : place]) if place >= context else None
        source = newest.get(before, NOWHERE) if before else NOWHERE
        sources.append(source if source != NOWHERE and symbols[source] == symbol else NOWHERE)
        if before:
            newest[before] = place
    return sources


@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize(("length", "kinds"), [(0, 2), (1, 2), (3, 1), (4, 1), (5, 2), (300, 2), (300, 4), (1000, 9)])
def test_the_copier_finds_what_a_dictionary_finds(length, kinds, context):
    symbols = np.random.default_rng(length + kinds).integers(0, kinds, length).astype(np.uint16)
    np.testing.assert_array_equal(copy_sources(symbols, context), copied(symbols.tolist(), context))


def test_the_last_use_is_the_newest_earlier_one():
    symbols = np.random.default_rng(0).integers(0, 7, 100)
    slow = [max((i for i in range(t) if symbols[i] == symbols[t]), default=NOWHERE) for t in range(100)]
    np.testing.assert_array_equal(previous_use(symbols), slow)


def test_only_the_newest_occurrence_of_a_context_counts():
    """1 2 3 was followed by 8 first and by 9 then: the copier says 9."""
    text = np.array([1, 2, 3, 8, 0, 1, 2, 3, 9, 5, 1, 2, 3, 8, 6, 1, 2, 3, 8])
    assert copy_sources(text).tolist() == [NOWHERE] * 18 + [13]


def test_opportunity_is_the_share_of_all_tokens_that_is_copied_from_further_back():
    """A random part of 50 tokens, 100 that are all different, and the part again: 47 of 200 come from 150 back."""
    part, between = np.arange(50), np.arange(100, 200)
    text = np.concatenate([part, between, part])
    assert copy_opportunity([text], gaps=(0, 149, 150)) == {0: 47 / 200, 149: 47 / 200, 150: 0.0}
    assert copy_opportunity([text, between], gaps=(10,)) == {10: 47 / 300}
    assert copy_opportunity([part, part], gaps=(0,)) == {0: 0.0}  # another document is not looked into


def test_without_tokens_there_is_no_share():
    with pytest.raises(ValueError, match="no token"):
        copy_opportunity([np.zeros(0, np.uint8)])
