"""The launcher sky, by SkyPilot: one machine of any cloud or Kubernetes cluster, started again when it is preempted.

It is one machine because a bucket has no locks between machines; its local workers share the study.
"""

import shlex
from pathlib import Path
from typing import Any

import yaml

from infini_jax.study.launch.base import Resources, job_name, resolved_folder
from infini_jax.study.launch.written import PLACE, Written
from infini_jax.study.study import Study


class Sky(Written):
    """Launches workers as a SkyPilot task.

    The bucket `storage` begins as a copy of the study's folder and is mounted in its place.
    """

    file = "sky.yaml"
    uses = ("cpus", "memory_gb", "accelerator", "storage", "package")
    needs = ("storage", "package")

    def text(self, study: Study, folder: Path) -> str:
        """The task as YAML."""
        task = {
            "name": job_name(folder),
            "resources": machine(self.resources),
            "file_mounts": {PLACE: {"name": self.resources.storage, "source": str(resolved_folder(folder)), "mode": "MOUNT"}},
            "setup": shlex.join(["pip", "install", self.resources.package]),
            "run": self.work + (f" --jobs {self.jobs}" if self.jobs else ""),
        }
        return yaml.safe_dump(task, sort_keys=False)

    def command(self, file: Path, name: str) -> list[str]:
        """The command `sky jobs launch` for the task."""
        return ["sky", "jobs", "launch", "--name", name, str(file)]

    def cancel_command(self, name: str) -> list[str]:
        """The command `sky jobs cancel` for the task."""
        return ["sky", "jobs", "cancel", "--name", name]


def machine(resources: Resources) -> dict[str, Any]:
    """The requirements for a machine in SkyPilot's words; a spot machine, as the job survives its loss."""
    asked: dict[str, Any] = {"cpus": f"{resources.cpus}+", "use_spot": True}
    if resources.memory_gb:
        asked["memory"] = f"{resources.memory_gb}+"
    if resources.accelerator:
        asked["accelerators"] = resources.accelerator
    return asked
