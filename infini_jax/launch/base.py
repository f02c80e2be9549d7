"""The interface of a launcher, and what its workers get."""

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path

from infini_jax.desk import Desk
from infini_jax.errors import require
from infini_jax.study import Study


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a scheduler gives each worker of a study.

    Attributes:
      cpus; gpus; memory_gb, 0 leaves it to the scheduler.
      minutes: that a worker may take; one whose time is up is queued again and goes on.
      partition: of the scheduler, "" for its default.
    """

    cpus: int = 1
    gpus: int = 0
    memory_gb: int = 0
    minutes: int = 240
    partition: str = ""

    def __post_init__(self):
        for name in ("gpus", "memory_gb"):
            require(getattr(self, name) >= 0, f"resources.{name}", f"{getattr(self, name)} is below zero", "give 0 or more")
        for name in ("cpus", "minutes"):
            require(getattr(self, name) >= 1, f"resources.{name}", f"{getattr(self, name)} is below one", "give 1 or more")


class Launcher(abc.ABC):
    """Starts workers on a study's folder. Attributes: jobs, workers side by side, 0 for as many as suit; resources of each."""

    def __init__(self, jobs: int, resources: Resources):
        self.jobs, self.resources = jobs, resources

    @abc.abstractmethod
    def described(self, study: Study, folder: Path) -> str:
        """What would be submitted, in lines."""

    @abc.abstractmethod
    def run(self, study: Study, folder: Path, watch: Callable[[Desk], None]) -> None:
        """Has everything done that is missing, and returns when no worker is left; `watch` is called now and then.

        Called again, it starts workers for what is missing still. Raises `ConfigError` where it cannot start any.
        """

    @abc.abstractmethod
    def cancel(self, folder: Path) -> list[str]:
        """Ends the workers that an earlier call left on a folder; their names."""
