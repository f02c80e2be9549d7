"""The launcher local: worker processes on this machine side by side, which end with the command that started them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from infini_jax.study.desk import Desk
from infini_jax.study.launch.base import Launcher, cancelled
from infini_jax.study.study import Study, missing_of
from infini_jax.study.workers import run_study


class Local(Launcher):
    """Launches workers as processes of this machine."""

    @property
    def workers(self) -> int:
        """The number of processes."""
        return self.jobs or default_workers()

    def described(self, study: Study, folder: Path) -> str:
        """One line with the number of processes and of runs."""
        return f"{self.workers} processes on this machine for {len(missing_of(study, folder))} runs"

    def run(self, study: Study, folder: Path, watch: Callable[[Desk], None]) -> str:
        """Does the study with processes that end with this call; nothing is left to the user."""
        run_study(study, folder, self.workers, watch, self.fleet)
        return ""

    def cancel(self, folder: Path) -> str:
        """Ends nothing, as processes end with the command that started them."""
        return cancelled([])


def default_workers() -> int:
    """The number of worker processes: one per core, at most four; one where there is an accelerator.

    Asked in a process of its own, which frees the accelerator again.
    """
    found = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.default_backend())"], capture_output=True, text=True, check=True
    )
    return min(4, os.cpu_count() or 1) if found.stdout.strip() == "cpu" else 1
