"""The interface of an evaluation: what is measured of a trained run, from examples that do not know the model."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

from infini_jax.config import RunConfig
from infini_jax.records.measures import Measure


def unwatched(done: int, total: int) -> None:
    """Nobody watches."""


Watch = Callable[[int, int], None]  # gets how much is done, of how much


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured. Attributes: run, its settings; params, what it learned."""

    run: RunConfig
    params: dict


class Evaluation(abc.ABC):
    """Settings of one evaluation: frozen dataclasses with these members, in the registry of evals/registry.py."""

    name: ClassVar[str]

    @abc.abstractmethod
    def applies(self, run: RunConfig) -> bool:
        """Whether it means something for a run of this task, vocabulary and text."""

    @abc.abstractmethod
    def check(self, run: RunConfig) -> None:
        """Raises `ConfigError` where these settings cannot work with this run."""

    @abc.abstractmethod
    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of the evaluation, counted."""

    @abc.abstractmethod
    def measure(self, subject: Subject, watch: Watch = unwatched) -> list[Measure]:
        """The figures; the same for the same settings and parameters."""
