"""The ∞-former's sorting task (Martins, Marinho & Martins 2022, section 4.1): symbols by how often they occurred, most first.

A row is `symbol symbol ... separator answer`; the answer holds all symbols once. Symbols are drawn from a mixture that drifts
from one random distribution to another along the row, so that the last tokens alone do not tell the order: `ceiling_window`
and `ceiling_mean` measure how much they do tell, and how much the true probabilities. The distributions and ties follow the
released generator: weights are integers 1 to 9; of symbols as frequent as each other the one seen first comes first, and
symbols that never occurred come last, in their order.
"""

import dataclasses

import numpy as np

from infini_jax.data.base import Controls
from infini_jax.data.examples import Example, ExampleConfig, example_of
from infini_jax.errors import require

LARGEST_WEIGHT = 9


@dataclasses.dataclass(frozen=True)
class SortingConfig(ExampleConfig):
    """Settings of the sorting task: symbols to be sorted by decreasing count.

    Attributes:
      symbols: number of symbols to be sorted; the separator is one more.
    """

    row_metric, has_ceiling = "teacher_forced", False  # counting is not what full attention is best at
    controls = Controls(evaluation="")  # what is perfect depends on the length, see `ceiling_mean`
    symbols: int = 20

    @property
    def vocab(self) -> int:
        return self.symbols + 1

    def count(self, tokens: int) -> int:
        """Number of symbols before the separator in a row of `tokens`; the answer follows, its last symbol is never read."""
        return tokens - self.symbols

    def check(self, tokens: int) -> None:
        require(self.symbols >= 2, "data.symbols", f"{self.symbols} cannot be sorted", "give at least 2")
        require(
            self.count(tokens) >= self.symbols,
            "train.sequence",
            f"{tokens} tokens leave fewer symbols to count than there are different ones",
            f"give at least {2 * self.symbols}",
        )

    def most_scored(self, tokens: int) -> int:
        """The length of an answer."""
        return self.symbols

    def chance(self) -> dict[str, float]:
        """Score of a random order, by metric. Teacher-forced, symbols that were given are not guessed again."""
        left = np.arange(1, self.symbols + 1)
        return {"free_running": 1 / self.symbols, "teacher_forced": float(np.mean(1 / left)), "kendall_tau": 0.0}

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check(tokens)
        read, _ = self.draw(random, self.count(tokens))
        prompt = np.append(read, self.symbols)
        return example_of(prompt, by_count(read, self.symbols), (("length", tokens),))

    def draw(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(`count` drawn symbols, the mean probability of each symbol over the distributions that they were drawn from)."""
        weights_2xV = random.integers(1, LARGEST_WEIGHT + 1, (2, self.symbols))
        ends_2xV = weights_2xV.cumsum(axis=1) / weights_2xV.sum(axis=1, keepdims=True)
        share_N = np.arange(1, count + 1) / count  # of the second distribution
        place_N = random.random(count)
        first_N, second_N = (np.searchsorted(ends_V, place_N, side="right") for ends_V in ends_2xV)
        read_N = np.where(random.random(count) < share_N, second_N, first_N)
        mean_V = np.array([1 - share_N.mean(), share_N.mean()]) @ np.diff(ends_2xV, axis=1, prepend=0)
        return read_N, mean_V


def by_count(read: np.ndarray, symbols: int) -> np.ndarray:
    """All symbols in order of their count in `read`, the most frequent first; ties by first use."""
    first = np.full(symbols, len(read))
    np.minimum.at(first, read, np.arange(len(read)))
    return np.lexsort((first, -np.bincount(read, minlength=symbols)))


def teacher_forced(score: np.ndarray, answer: np.ndarray) -> float:
    """Share of `answer` found by naming the symbol with the highest `score` of those left, all earlier ones being known."""
    left, right = score.astype(np.float64), 0
    for symbol in answer:
        right += int(left.argmax() == symbol)
        left[symbol] = -np.inf
    return right / len(answer)


def ceiling_window(
    config: SortingConfig, random: np.random.Generator, tokens: int, window: int, sequences: int = 400
) -> float:
    """Teacher-forced accuracy of counting the last `window` symbols, which takes no memory: mean over `sequences` rows."""
    found = []
    for _ in range(sequences):
        read, _ = config.draw(random, config.count(tokens))
        seen = np.bincount(read[-window:], minlength=config.symbols)
        found.append(teacher_forced(seen, by_count(read, config.symbols)))
    return float(np.mean(found))


def ceiling_mean(config: SortingConfig, random: np.random.Generator, tokens: int, sequences: int = 400) -> float:
    """Free-running accuracy of sorting by the true mean probabilities, which takes no counting: mean over `sequences` rows."""
    found = []
    for _ in range(sequences):
        read, mean = config.draw(random, config.count(tokens))
        found.append(np.mean(np.argsort(-mean, kind="stable") == by_count(read, config.symbols)))
    return float(np.mean(found))
