"""The launcher slurm, by submitit: an array of workers that SLURM queues again when their time is up or they are preempted.

A worker that is told to end saves the run it is at; queued again, it goes on from there. SLURM sends SIGTERM where it preempts
and queues again itself. Some time before the limit it sends the signal that submitit asked for, at which submitit queues the
worker again: a worker that is training answers once the run is saved. submitit cannot tell a job's state without SLURM's
accounting, so that what is done is read from the study's folder, and who is left from squeue.
"""

import dataclasses
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infini_jax.errors import ConfigError, Stopped, installs, quoted, require
from infini_jax.files import read_object, write_json
from infini_jax.locks import only_writer
from infini_jax.study.desk import Desk
from infini_jax.study.fleets import ALONE
from infini_jax.study.launch.base import Launcher, Resources, cancelled, job_name, resolved_folder
from infini_jax.study.study import Study, collect, missing_of
from infini_jax.study.workers import work_on

JOBS_FILE, LOCK_FILE = "slurm.json", "slurm.lock"  # in the study's folder: ids of the newest array, and who queues it
LOGS = "slurm"
POLL = 2.0  # seconds
REQUEUES = 100  # after a time limit
SAVING = 120  # seconds before the limit at which workers are told to save
SHARE = 0.25  # of the time there is, at most, for that
WORDS = ("partition", "account", "qos", "constraint")  # resources that submitit and sbatch know by the same names
TAKEN = {  # options of sbatch that the launcher or submitit sets, or lives by: the resource that sets them, or ""
    **{word: word for word in (*WORDS, "reservation")},
    **{"time": "minutes", "cpus-per-task": "cpus", "gpus-per-node": "gpus", "mem": "memory_gb"},
    **dict.fromkeys(("array", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "error", "signal", "wckey"), ""),
    **dict.fromkeys(("requeue", "no-requeue", "clusters", "parsable", "quiet", "wait", "wrap", "test-only"), ""),
    **dict.fromkeys(("help", "usage", "version"), ""),
}
OPTION = re.compile(r"(?:#SBATCH\s+)?(?:--)?([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?:=(.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Worker:
    """The call that submitit makes on a node.

    Attributes:
      folder: folder of the study.
      number: number of this worker.
      count: number of all workers.
      session: mark of the workers on their failures.
      fleet: most runs that it trains side by side in one program.
    """

    folder: Path
    number: int
    count: int
    session: str
    fleet: int = ALONE

    def __call__(self) -> None:
        """Does the runs that are missing. What tells of the time limit is answered once the run is saved: by submitit."""
        try:
            work_on(self.folder, self.number, self.count, self.session, self.fleet)
        except Stopped as stopped:
            if stopped.signal in (None, signal.SIGTERM) or not callable(signal.getsignal(stopped.signal)):
                raise
            signal.raise_signal(stopped.signal)

    def checkpoint(self) -> Any:
        """The submission that follows when the time is up, which submitit asks for: this worker again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Slurm(Launcher):
    """Launches an array of workers on a SLURM cluster."""

    uses = ("cpus", "gpus", "memory_gb", "minutes", *WORDS, "reservation", "extra")

    def __init__(self, jobs: int, resources: Resources, fleet: int = ALONE):
        """Checks the resources as every launcher does, and the further options of sbatch."""
        super().__init__(jobs, resources, fleet)
        self.options = sbatch_options(resources.extra)

    def workers(self, missing: int) -> int:
        """The size of the array for `missing` runs."""
        return min(max(1, self.jobs), missing)

    def settings(self, folder: Path, missing: int) -> dict[str, Any]:
        """The array's settings in submitit's words."""
        r = self.resources
        reservation: dict[str, str | bool] = {"reservation": r.reservation} if r.reservation else {}
        found = {
            "slurm_job_name": job_name(folder),
            "slurm_time": r.minutes,
            "slurm_cpus_per_task": r.cpus,
            "slurm_ntasks_per_node": 1,
            "slurm_array_parallelism": self.workers(missing),
            "slurm_signal_delay_s": round(min(SAVING, SHARE * 60 * r.minutes)),
            "slurm_additional_parameters": {"requeue": True, **reservation, **self.options},
            "slurm_srun_args": [f"--cpus-per-task={r.cpus}"],
        }
        found |= {f"slurm_{word}": value for word in WORDS if (value := getattr(r, word))}
        if r.gpus:
            found["slurm_gpus_per_node"] = r.gpus
        if r.memory_gb:
            found["slurm_mem"] = f"{r.memory_gb}GB"
        return found

    def described(self, study: Study, folder: Path) -> str:
        """The array and its settings, in lines."""
        missing = len(missing_of(study, folder))
        first = f"a SLURM array of {self.workers(missing)} workers for {missing} runs, logs in {folder / LOGS}"
        settings = (f"  {name.removeprefix('slurm_')}: {value}" for name, value in self.settings(folder, missing).items())
        return "\n".join((first, *settings))

    def run(self, study: Study, folder: Path, watch: Callable[[Desk], None]) -> str:
        """Queues the array unless one is queued, and waits until no worker is left; nothing is left to the user.

        Raises `ConfigError` where SLURM or submitit is not here.
        """
        require(shutil.which("sbatch") is not None, "launch", "sbatch is not installed", "log in to a SLURM machine")
        with only_writer(folder / LOCK_FILE, "launch", str(folder), "wait until its workers are queued"):
            if not queued(folder) and (missing := missing_of(study, folder)):
                self.submit(folder, len(missing))
        desk = dataclasses.replace(study.desk(folder), session=noted(folder)["session"])
        while queued(folder):
            watch(desk)
            time.sleep(POLL)
        watch(desk)
        collect(study, desk)
        return ""

    def submit(self, folder: Path, missing: int) -> None:
        """Queues the array, and notes its ids. Raises `ConfigError` where submitit is not installed."""
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("launch", "submitit is not installed", installs("slurm")) from error
        place = resolved_folder(folder)
        executor = submitit.AutoExecutor(folder=place / LOGS, cluster="slurm", slurm_max_num_timeout=REQUEUES)
        executor.update_parameters(**self.settings(folder, missing))
        count, session = self.workers(missing), uuid.uuid4().hex
        with executor.batch():
            jobs = [executor.submit(Worker(place, number, count, session, self.fleet)) for number in range(count)]
        note = {"session": session, "jobs": [job.job_id for job in jobs]}
        write_json(note, folder / JOBS_FILE, indent=None)

    def cancel(self, folder: Path) -> str:
        """Cancels the folder's workers and returns a line with their ids."""
        found = queued(folder)
        if found:
            subprocess.run(["scancel", *found], check=True)
        return cancelled(found)


def sbatch_options(extra: tuple[str, ...]) -> dict[str, str | bool]:
    """Further options of sbatch by their long names; True where one has no value.

    Raises `ConfigError` for what is no option, for one that is given twice, and for those in `TAKEN`, also where sbatch would
    take an abbreviation for one of them.
    """
    found: dict[str, str | bool] = {}
    for text in extra:
        option = OPTION.fullmatch(text.strip())
        mend = "give the long name of an option of sbatch, such as exclusive or mail-type=END"
        name, value = (option[1], option[2]) if option and len(option[1]) > 1 else ("", None)
        require(name != "", "resources.extra", f"'{quoted(text)}' is not an option", mend)
        taken = min((one for one in TAKEN if one.startswith(name)), key=len, default=None)
        if taken is not None:
            problem = f"'{name}' " + (f"may be short for '{taken}', which " if taken != name else "") + "is the launcher's own"
            mend = f"give resources.{TAKEN[taken]}" if TAKEN[taken] else "leave it out"
            raise ConfigError("resources.extra", problem, mend)
        require(name not in found, "resources.extra", f"'{name}' is given twice", "give it once")
        found[name] = True if value is None else value
    return found


def noted(folder: Path) -> dict[str, Any]:
    """The note about the newest array: the mark on its failures, and its ids. Raises `ConfigError` where it is damaged."""
    file = folder / JOBS_FILE
    if not file.exists():
        return {"session": "", "jobs": []}
    mend = "end the study's workers by scancel, where squeue shows any, and delete it"
    found = read_object(file, "launch", mend)
    is_whole = isinstance(found.get("session"), str) and isinstance(found.get("jobs"), list)
    require(is_whole and all(isinstance(one, str) for one in found["jobs"]), "launch", f"{file} is damaged", mend)
    return found


def queued(folder: Path) -> list[str]:
    """The ids of the folder's workers that SLURM still has, waiting or running."""
    arrays = sorted({one.split("_")[0] for one in noted(folder)["jobs"]})
    if not arrays:
        return []
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(arrays)}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # an id that is long gone is an error
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]
