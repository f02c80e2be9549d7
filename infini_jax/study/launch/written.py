"""The base of launchers for machines of a cloud: they write a file and the command that the owner of the account runs.

The worker is `infini-jax study FOLDER`, which does the missing jobs of the study in a folder and goes on from checkpoints, so
that it can simply be started again after a preemption.
"""

import abc
import shlex
from collections.abc import Callable
from pathlib import Path

from infini_jax.files import write_at_once
from infini_jax.study.desk import Desk
from infini_jax.study.fleets import ALONE
from infini_jax.study.launch.base import Launcher, job_name, resolved_folder
from infini_jax.study.study import Study

PLACE = "/study"  # the study's folder on the machines
WORK = f"infini-jax study {PLACE}"


class Written(Launcher):
    """A launcher that starts nothing itself: it writes a file and says the command that the user runs.

    Attributes:
      file: name of the file.
    """

    file: str

    @property
    def work(self) -> str:
        """The command of a worker."""
        return WORK if self.fleet == ALONE else f"{WORK} --fleet {self.fleet or 'auto'}"

    @abc.abstractmethod
    def text(self, study: Study, folder: Path) -> str:
        """The text of the file."""

    @abc.abstractmethod
    def command(self, file: Path, name: str) -> list[str]:
        """The command that starts the workers."""

    @abc.abstractmethod
    def cancel_command(self, name: str) -> list[str]:
        """The command that ends the workers."""

    def described(self, study: Study, folder: Path) -> str:
        """The file's text and the command that starts the workers."""
        return f"{folder / self.file}:\n{self.text(study, folder)}\n{self._said(folder)}"

    def run(self, study: Study, folder: Path, watch: Callable[[Desk], None]) -> str:
        """Writes the file and returns the command that starts the workers."""
        write_at_once(self.text(study, folder), folder / self.file)
        return self._said(folder)

    def cancel(self, folder: Path) -> str:
        """The command that ends the workers, for the user to run."""
        return f"cancel with: {shlex.join(self.cancel_command(job_name(folder)))}"

    def _said(self, folder: Path) -> str:
        return f"start with: {shlex.join(self.command(resolved_folder(folder) / self.file, job_name(folder)))}"
