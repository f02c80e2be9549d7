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
    """Words in random order, each as often as `counts` says for a list of so many words; filler fills what is left.

    Attributes:
      words: of the list, in the order of `counts`.
      counts: number of words in the list -> times of each (of all `words`), their sum that number.
      least: words without which the task is none.
    """

    words: tuple[str, ...]
    counts: Callable[[int], np.ndarray]
    least: int

    def lay_out(self, random: np.random.Generator, room: Room) -> np.ndarray:
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
    """The first `common` of at least 11 `common` words stand ten times as often as the others.

    As RULER has it a common word stands thirty times and so many rare ones three times as there is room for. In a shorter
    list half of the words are common; in one that is longer than all words allow, all stand more often.
    """
    most = COMMON_TO_RARE * common + words - common

    def counts(number: int) -> np.ndarray:
        each = max(min(TIMES * COMMON_TO_RARE, number // (2 * common)), COMMON_TO_RARE * number // most)
        rare = number - each * common
        times = max(-(-each // COMMON_TO_RARE), -(-rare // (words - common)))
        return np.append(np.full(common, each), np.clip(rare - times * np.arange(words - common), 0, times))

    return counts


def zeta_counts(words: int) -> Callable[[int], np.ndarray]:
    """The word of rank k stands 1 / k^2 of the times; the first, dots that mean nothing, takes what rounding leaves over."""

    def counts(number: int) -> np.ndarray:
        shares = np.arange(1.0, words + 1) ** -EXPONENT
        found = np.floor(number * shares / shares.sum()).astype(np.int64)
        found[0] += number - found.sum()
        return found

    return counts


def least_zeta(asked: int, words: int) -> int:
    """The shortest list in which the words of rank 2 to `asked` + 2 have counts that all differ, for every longer list too."""
    shares = np.arange(1.0, words + 1) ** -EXPONENT
    shares /= shares.sum()
    return int(np.ceil(1 / (shares[asked] - shares[asked + 1])))
