"""The interface of an evaluation: what is measured of a trained run, from examples that do not know the model."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

from infini_jax.config import RunConfig
from infini_jax.errors import check_fields
from infini_jax.records.measures import Measure


def unwatched(done: int, total: int) -> None:
    """The `Watch` of a call whose progress nobody follows: it does nothing."""


Watch = Callable[[int, int], None]  # gets how much is done, of how much


@dataclasses.dataclass(frozen=True)
class Subject:
    """The trained run that an evaluation measures.

    Attributes:
      run: settings of the run.
      params: its trained parameters.
    """

    run: RunConfig
    params: dict


class Evaluation(abc.ABC):
    """Interface of an evaluation: a frozen dataclass of its settings, with a row in `infini_jax.evals.registry.EVALUATIONS`.

    Attributes:
      name: name in the registry and in the figures' column `eval`.
    """

    name: ClassVar[str]

    def __post_init__(self):
        check_fields(self.name, self)

    @abc.abstractmethod
    def applies(self, run: RunConfig) -> bool:
        """Whether the evaluation means something for a run, given its task, vocabulary and text."""

    @abc.abstractmethod
    def check(self, run: RunConfig) -> None:
        """Checks the settings against a run: raises `ConfigError` where the two cannot work together.

        Runs that differ in nothing but name, version, variant and seed are alike here and in `cost`; one of them is asked.
        """

    @abc.abstractmethod
    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of the whole evaluation of a run, counted from the settings alone."""

    @abc.abstractmethod
    def measure(self, subject: Subject, watch: Watch = unwatched) -> list[Measure]:
        """The figures of a run, determined by settings and parameters; `watch` gets how much is done, of how much."""
