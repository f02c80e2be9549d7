"""Haystacks that are lists of words, the most frequent of which are asked: RULER's aggregation (arXiv 2404.06654)."""

import dataclasses
from collections.abc import Callable

import numpy as np

from infini_jax.data.text_task import Room, continued

TIMES, COMMON_TO_RARE = 3, 10  # RULER's: a rare word three times, a common one thirty times
EXPONENT = 2.0  # RULER's, of the zeta distribution
DOTS = "..."


@dataclasses.dataclass(frozen=True)
class WordList:
    """Body of words in random order, each as often as `counts` says for a list of that length; filler takes the rest.

    Attributes:
      words: words of the list, in the order of `counts`.
      counts: function from the number of words in the list to the count of each of `words`; the counts add up to it.
      least: fewest words with which the task makes sense.
    """

    words: tuple[str, ...]
    counts: Callable[[int], np.ndarray]
    least: int

    def lay_out(self, random: np.random.Generator, room: Room) -> np.ndarray:
        """The body in exactly `room.free` tokens. Raises `ConfigError` where they do not hold `least` words."""
        parts = [continued(room.encode, f" {word}") for word in self.words]
        lengths = np.array([len(part) for part in parts])

        def size(number: int) -> int:
            return int(self.counts(number) @ lengths)

        room.hold(size(self.least), f"{self.least} words of a list and the question")
        low, high = self.least, room.free // int(lengths.min()) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(middle) <= room.free else (low, middle)
        order = random.permutation(np.repeat(np.arange(len(parts)), self.counts(low)))
        rest = room.free - size(low)
        hay, _ = room.filler.stream(random, room.encode, rest, begins_line=False)
        return np.concatenate([hay[:rest], *(parts[number] for number in order)])


def common_counts(common: int, words: int) -> Callable[[int], np.ndarray]:
    """Counts of a list in which the first `common` of `words` words stand ten times as often as the others (RULER's CWE).

    As in RULER a common word stands thirty times, and as many rare words as there is room for stand three times. In a shorter
    list half of the words are common; in one that is longer than all words allow, all stand more often. `words` is at least
    11 `common`.
    """
    most = COMMON_TO_RARE * common + words - common

    def counts(number: int) -> np.ndarray:
        each = max(min(TIMES * COMMON_TO_RARE, number // (2 * common)), COMMON_TO_RARE * number // most)
        rare = number - each * common
        times = max(-(-each // COMMON_TO_RARE), -(-rare // (words - common)))
        return np.append(np.full(common, each), np.clip(rare - times * np.arange(words - common), 0, times))

    return counts


def zeta_counts(words: int) -> Callable[[int], np.ndarray]:
    """Counts of a list in which the word of rank k stands in proportion to 1 / k^2 (RULER's FWE).

    The first word, dots that mean nothing, takes the rest that rounding leaves.
    """

    def counts(number: int) -> np.ndarray:
        shares = np.arange(1.0, words + 1) ** -EXPONENT
        found = np.floor(number * shares / shares.sum()).astype(np.int64)
        found[0] += number - found.sum()
        return found

    return counts


def least_zeta(asked: int, words: int) -> int:
    """Length of the shortest list from which on the words of rank 2 to `asked` + 2 have different counts."""
    shares = np.arange(1.0, words + 1) ** -EXPONENT
    shares /= shares.sum()
    return int(np.ceil(1 / (shares[asked] - shares[asked + 1])))
