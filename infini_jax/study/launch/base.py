"""The interface of a launcher, and the resources of its workers."""

import abc
import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from infini_jax.errors import check_fields, check_value, require, require_not_negative, require_one_line
from infini_jax.study.desk import Desk
from infini_jax.study.fleets import ALONE
from infini_jax.study.study import Study


@dataclasses.dataclass(frozen=True)
class Resources:
    """The resources that a scheduler gives each worker of a study.

    Attributes:
      cpus, gpus: numbers of CPU cores and of GPUs per worker.
      memory_gb: memory per worker in GB; 0 leaves it to the scheduler.
      minutes: time limit per worker in minutes; a worker that reaches it is queued again and continues.
      partition: partition of the scheduler, or the cluster with xpk; "" for the default.
      account, qos, constraint, reservation: SLURM options of these names; "" for the default.
      extra: further sbatch options as in an #SBATCH line, such as exclusive or mail-type=END; those set by the launcher are
        refused.
      accelerator: accelerator of a cloud machine in the cloud's own words, such as tpu-v5e-8, H100:8 or (xpk) v5litepod-8.
      storage: storage through which cloud machines share the study: a bucket (sky) or an attached storage (xpk).
      package: package for pip on a cloud machine, with its extras (sky), or a container image (xpk).

    Raises:
      ConfigError: a count is too small, or a text has a control character or would be read as an option by a command.
    """

    cpus: int = 1
    gpus: int = 0
    memory_gb: int = 0
    minutes: int = 240
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    extra: tuple[str, ...] = ()
    accelerator: str = ""
    storage: str = ""
    package: str = ""

    def __post_init__(self):
        check_fields("resources", self)
        for name in ("gpus", "memory_gb"):
            require(getattr(self, name) >= 0, f"resources.{name}", f"{getattr(self, name)} is below zero", "give 0 or more")
        for name in ("cpus", "minutes"):
            require(getattr(self, name) >= 1, f"resources.{name}", f"{getattr(self, name)} is below one", "give 1 or more")
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), str):
                require_one_line(f"resources.{field.name}", value)
                problem = f"'{value}' begins with '-', as options do"
                require(not value.startswith("-"), f"resources.{field.name}", problem, "give a name")
        for option in self.extra:
            require_one_line("resources.extra", option)


def resolved_folder(folder: Path) -> Path:
    """The whole path of a study's folder, as scripts and schedulers get it.

    Raises `ConfigError` for control characters in it: a newline would begin another command.
    """
    require_one_line("results", str(folder))
    place = folder.resolve()
    require_one_line("results", str(place))  # where a link leads
    return place


LONGEST_JOB = 40  # letters that xpk and Kubernetes take
MARK = 8  # hex digits that tell folders of like names apart


def job_name(folder: Path) -> str:
    """The name of a folder's job for schedulers and clouds, another one for every folder.

    Small letters, digits and hyphens, at most `LONGEST_JOB`, begun by a letter.

    Raises `ConfigError` as `resolved_folder` does.
    """
    place = resolved_folder(folder)
    mark = hashlib.sha256(str(place).encode()).hexdigest()[:MARK]
    words = re.sub(r"[^a-z0-9]+", "-", f"infini-jax-{place.name.lower()}")
    return f"{words[: LONGEST_JOB - MARK - 1].strip('-')}-{mark}"


def cancelled(names: list[str]) -> str:
    """One line about the workers `names` that were ended."""
    return f"cancelled: {', '.join(names) or 'there was none'}"


class Launcher(abc.ABC):
    """Starts workers on a study's folder.

    Attributes:
      jobs: number of workers side by side, 0 for as many as suit.
      resources: resources of each worker.
      fleet: most runs that a worker trains side by side in one program, see `infini_jax.study.fleets`.
      uses: names of the resources that the launcher has a use for.
      needs: names of the resources without which it cannot work.
    """

    uses: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, jobs: int, resources: Resources, fleet: int = ALONE):
        """Checks the resources: raises `ConfigError` for negative jobs and a resource without use or missing."""
        check_value("jobs", jobs, int)
        require_not_negative("", jobs=jobs)
        self.jobs, self.resources, self.fleet = jobs, resources, fleet
        name = type(self).__name__.lower()
        for field in dataclasses.fields(resources):
            given, asked = getattr(resources, field.name) != field.default, f"resources.{field.name}"
            require(field.name in self.uses or not given, asked, f"{name} has no use for it", "leave it out")
            require(field.name not in self.needs or given, asked, f"{name} needs it", "name one")

    @abc.abstractmethod
    def described(self, study: Study, folder: Path) -> str:
        """A description of what would be submitted, in lines."""

    @abc.abstractmethod
    def run(self, study: Study, folder: Path, watch: Callable[[Desk], None]) -> str:
        """Starts workers for all missing jobs, and returns when no worker is left; `watch` is called now and then.

        Called again, it starts workers for what is still missing. Returns what is left to the user to do, or "". Raises
        `ConfigError` where it cannot start any worker.
        """

    @abc.abstractmethod
    def cancel(self, folder: Path) -> str:
        """Ends the workers that an earlier call left on a folder; returns a line that says which, or how the user does it."""
