"""This machine: worker processes side by side, which end with the command that started them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from infini_jax.study.desk import Desk
from infini_jax.study.launch.base import Launcher, cancelled
from infini_jax.study.study import Study, missing_of, run_study


class LocalProcesses(Launcher):
    """Processes of this machine."""

    @property
    def workers(self) -> int:
        return self.jobs or default_workers()

    def described(self, study: Study, folder: Path) -> str:
        return f"{self.workers} processes on this machine for {len(missing_of(study, folder))} runs"

    def run(self, study: Study, folder: Path, watch: Callable[[Desk], None]) -> str:
        run_study(study, folder, self.workers, watch)
        return ""

    def cancel(self, folder: Path) -> str:
        return cancelled([])


def default_workers() -> int:
    """One a core, at most four; one where there is an accelerator. Asked in a process of its own, which frees it again."""
    found = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.default_backend())"], capture_output=True, text=True, check=True
    )
    return min(4, os.cpu_count() or 1) if found.stdout.strip() == "cpu" else 1
