"""Tasks of symbols without words, the base of those of MAD and Zoology: rows drawn afresh, some places of which are asked."""

import abc
import dataclasses
from typing import ClassVar

import numpy as np

from infini_jax.data.examples import Example, ExampleConfig, Label
from infini_jax.errors import require


@dataclasses.dataclass(frozen=True)
class SymbolTask(ExampleConfig):
    """Settings of a task of symbols, the base of frozen dataclasses.

    Attributes:
      axes: settings, the length apart, along which a trained model can be asked harder examples.
      symbols: number of tokens in the vocabulary.
    """

    axes: ClassVar[tuple[str, ...]] = ()
    symbols: int = 16

    @property
    def vocab(self) -> int:
        return self.symbols

    @property
    @abc.abstractmethod
    def least(self) -> int:
        """Tokens of the shortest row."""

    @abc.abstractmethod
    def check_settings(self) -> None:
        """Checks the settings apart from the length: raises `ConfigError` where no length would do."""

    def check(self, tokens: int) -> None:
        self.check_settings()
        require(tokens >= self.least, "train.sequence", f"{tokens} tokens hold no example", f"give at least {self.least}")

    def labels(self, tokens: int) -> tuple[tuple[str, Label], ...]:
        """Labels of an example: its length, and the settings along which examples become harder."""
        return (*((name, getattr(self, name)) for name in self.axes), ("length", tokens))

    def row(self, read_T: np.ndarray, places: np.ndarray, answers: np.ndarray) -> Example:
        """The example of tokens that are read, of which those at `places` ask for `answers`."""
        targets_T, weights_T = np.zeros(len(read_T), np.int32), np.zeros(len(read_T), np.float32)
        targets_T[places], weights_T[places] = answers, 1.0
        return Example(read_T.astype(np.int32), targets_T, weights_T, labels=self.labels(len(read_T)))


def require_symbols(symbols: int, least: int) -> None:
    """Checks the size of a vocabulary: raises `ConfigError` where it has fewer symbols than a task needs."""
    require(symbols >= least, "data.symbols", f"{symbols} are too few", f"give at least {least}")
