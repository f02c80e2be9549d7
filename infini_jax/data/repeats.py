"""Repetition in a text: the earlier place of each symbol, and the symbols that could be copied from far back.

How much a corpus offers to a memory does not depend on any model. The measure is that of a copier: it looks for the newest
earlier place where the same three symbols stood, and predicts the symbol that followed them there.
"""

from collections.abc import Iterable, Sequence

import numpy as np

CONTEXT = 3  # symbols that a copier compares
NOWHERE = -1


def previous_use(symbols_T: np.ndarray) -> np.ndarray:
    """Place of the newest earlier symbol that is equal, int64 T; `NOWHERE` at a symbol's first use."""
    order_T = np.argsort(symbols_T, kind="stable")
    sorted_T, found_T = symbols_T[order_T], np.full(len(symbols_T), NOWHERE, np.int64)
    again = np.flatnonzero(sorted_T[1:] == sorted_T[:-1])
    found_T[order_T[again + 1]] = order_T[again]
    return found_T


def numbered_grams(symbols_T: np.ndarray, length: int) -> np.ndarray:
    """A number for the `length` symbols that end at each place, equal for equal symbols; int64 T.

    The first places, which have fewer symbols before them, get numbers of their own.
    """
    kinds, symbols_T = np.unique(symbols_T, return_inverse=True)
    gram_T = symbols_T
    for count in range(1, min(length, len(symbols_T))):
        pair_T = np.concatenate([[0], gram_T[:-1]]) * len(kinds) + symbols_T
        pair_T[:count] = -1 - np.arange(count)
        gram_T = np.unique(pair_T, return_inverse=True)[1]
    return gram_T


def copy_sources(symbols_T: np.ndarray, context: int = CONTEXT) -> np.ndarray:
    """The place that a copier takes each symbol from, int64 T; `NOWHERE` where it has nothing to copy or would be wrong.

    It compares the `context` symbols before, and only ever looks at their newest earlier occurrence.
    """
    source_T = np.full(len(symbols_T), NOWHERE, np.int64)
    before_T = previous_use(numbered_grams(symbols_T, context))[context - 1 : -1]  # of the symbols before place t
    places_T = np.arange(context, len(symbols_T))
    right_T = (before_T != NOWHERE) & (symbols_T[before_T + 1] == symbols_T[places_T])
    source_T[places_T[right_T]] = before_T[right_T] + 1
    return source_T


def copy_opportunity(
    documents: Iterable[np.ndarray], gaps: Sequence[int] = (512, 8192), context: int = CONTEXT
) -> dict[int, float]:
    """Share of all tokens that a copier rightly takes from more than `gap` tokens back in their document, by gap.

    `documents` are arrays of tokens. The figure depends on the tokenizer: three bytes find much more than three words.
    Raises ValueError where there is no token.
    """
    tokens, found = 0, dict.fromkeys(gaps, 0)
    for tokens_T in documents:
        source_T = copy_sources(np.asarray(tokens_T), context)
        gap_T = (np.arange(len(source_T)) - source_T)[source_T != NOWHERE]
        tokens += len(source_T)
        for gap in found:
            found[gap] += int((gap_T > gap).sum())
    if not tokens:
        raise ValueError("there is no token")
    return {gap: count / tokens for gap, count in found.items()}
