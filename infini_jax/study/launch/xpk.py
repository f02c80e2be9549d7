"""The launcher xpk: slices of TPUs in a GKE cluster as a JobSet, one worker per slice.

The study's folder lies on a storage that all slices see and that has locks, such as Filestore, which the cluster mounts at
/study.
"""

import shlex
from pathlib import Path

from infini_jax.study.launch.base import job_name, resolved_folder
from infini_jax.study.launch.written import Written
from infini_jax.study.study import Study

RESTARTS = 100  # of a slice that was preempted


class Xpk(Written):
    """Launches workers by a script of one xpk command. Slices must have one host each, as a worker is one process."""

    file = "xpk.sh"
    uses = ("partition", "accelerator", "storage", "package")
    needs = ("partition", "accelerator", "storage", "package")

    def text(self, study: Study, folder: Path) -> str:
        """The text of the script."""
        asked, name = self.resources, job_name(folder)
        command = ["xpk", "workload", "create", "--cluster", asked.partition, "--workload", name]
        command += ["--tpu-type", asked.accelerator, "--num-slices", str(max(1, self.jobs)), "--max-restarts", str(RESTARTS)]
        command += ["--docker-image", asked.package, "--storage", asked.storage, "--command", self.work]
        where = f"# {resolved_folder(folder)} must lie on {asked.storage}, which the cluster mounts at /study\n"
        return f'#!/bin/sh\n{where}{shlex.join(command)} "$@"\n'

    def command(self, file: Path, name: str) -> list[str]:
        """The command that runs the script."""
        return ["sh", str(file)]

    def cancel_command(self, name: str) -> list[str]:
        """The command `xpk workload delete` for the workload."""
        return ["xpk", "workload", "delete", "--cluster", self.resources.partition, "--workload", name]
