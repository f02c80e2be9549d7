"""A study: a list of runs -> finished results. Resumable, with runs side by side in processes of their own.

Results live in `<folder>/runs/<run>/`; a run is finished when its row.parquet is there, and is then never run again. Workers
claim a run by a lock that the system releases when they die, so that two of them, or two studies on one folder, never do the
same run twice.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from infini_jax.config import RunConfig
from infini_jax.cost import budget_steps
from infini_jax.desk import Desk, Failure
from infini_jax.errors import CheckpointError, ConfigError, TrainingDiverged, require
from infini_jax.evals.base import Evaluation
from infini_jax.results import ROW_FILE, Row, read_rows, write_rows

TABLE_FILE, FAILED_FILE, STUDY_FILE = "results.parquet", "failed.json", "study.json"


@dataclasses.dataclass(frozen=True)
class Study:
    """Attributes: name of its folder; question it answers; runs; held_equal, what is the same in all runs, for the report;
    evaluations, what is measured of every run they apply to once it is trained."""

    name: str
    question: str
    runs: tuple[RunConfig, ...]
    held_equal: tuple[tuple[str, str], ...] = ()
    evaluations: tuple[Evaluation, ...] = ()

    def __post_init__(self):
        names = [run.name for run in self.runs]
        twice = {name for name in names if names.count(name) > 1}
        require(bool(names), "study.runs", "there is none", "give at least one run")
        require(not twice, "study.runs", f"two runs are called '{min(twice, default='')}'", "give each its own name")
        for run in self.runs:
            with errors_of(run):
                budget_steps(run)
                for evaluation in self.evaluations_of(run):
                    evaluation.check(run)

    def evaluations_of(self, run: RunConfig) -> tuple[Evaluation, ...]:
        """Those that mean something for a run."""
        return tuple(evaluation for evaluation in self.evaluations if evaluation.applies(run))


def save_study(study: Study, folder: Path) -> None:
    """Leaves study.json, from which the report can be made again."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {**dataclasses.asdict(study), "runs": [run.to_dict() for run in study.runs]}
    (folder / STUDY_FILE).write_text(json.dumps(plain, indent=2) + "\n")


def saved_study(folder: Path) -> tuple[Study, list[Row], list[Failure]]:
    """The study of a folder, its finished rows and its failures. Raises `ConfigError` where there is none."""
    file = folder / STUDY_FILE
    require(file.exists(), "folder", f"{folder} holds no study", "name the folder that `infini-jax study` wrote")
    plain = json.loads(file.read_text())
    runs = tuple(RunConfig.from_dict(run) for run in plain["runs"])
    study = Study(plain["name"], plain["question"], runs, tuple(tuple(pair) for pair in plain["held_equal"]))
    failed = folder / FAILED_FILE
    failures = [Failure(**failure) for failure in json.loads(failed.read_text())] if failed.exists() else []
    return study, finished_rows(study, Desk(folder, study.name)), failures


@contextlib.contextmanager
def errors_of(run: RunConfig) -> Iterator[None]:
    """Puts the run's name in front of a `ConfigError`."""
    try:
        yield
    except ConfigError as error:
        error.args = (f"run {run.name}: {error}",)
        raise


def check_same(study: Study, desk: Desk) -> None:
    """Raises `ConfigError` where a finished run of the same name had other settings: results are never mixed."""
    for run in study.runs:
        if desk.is_finished(run):
            (row,) = read_rows(desk.of(run) / ROW_FILE)
            require(
                row.fingerprint == run.fingerprint(),
                "study",
                f"run {run.name} was finished with other settings",
                f"give the study a new name, or delete {desk.of(run)}",
            )


def work(desk: Desk, runs: tuple[RunConfig, ...], cores: tuple[int, ...]) -> None:
    """Does every run that nobody else does; the body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=die_with_parent, daemon=True).start()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before JAX starts: it makes one thread a core it may use
    import jax

    from infini_jax.run import execute

    jax.config.update("jax_compilation_cache_dir", str(desk.folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    for run in runs:
        with desk.claim(run) as ours:
            if not ours:
                continue
            try:
                execute(run, desk.of(run), desk.study)
            except (ConfigError, TrainingDiverged, CheckpointError) as error:
                desk.fail(run, str(error))
            except Exception as error:  # the other runs must finish whatever went wrong in this one
                desk.fail(
                    run, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", traceback.format_exc()
                )
        jax.clear_caches()


def die_with_parent() -> None:
    """Ends this process when the one that started it is gone, however that one ended: nobody would stop it any more."""
    multiprocessing.parent_process().join()
    os._exit(1)


def run_study(study: Study, folder: Path, jobs: int, watch=lambda desk: None) -> tuple[list[Row], list[Failure]]:
    """Does what is missing and writes results.parquet and failed.json.

    Args:
      jobs: worker processes; on a CPU the cores are dealt to them.
      watch: called twice a second with the desk, for progress.

    Raises `ConfigError` where finished runs have other settings or jobs is below one.
    """
    require(jobs >= 1, "jobs", f"{jobs} workers do nothing", "give at least 1")
    desk = Desk(folder, study.name)
    check_same(study, desk)
    missing = tuple(run for run in study.runs if not desk.is_finished(run))
    with contextlib.ExitStack() as stack:
        workers = {}
        for number in range(min(jobs, len(missing))):
            workers[number] = start(desk, missing, dealt_cores(number, jobs))
            stack.callback(lambda number=number: stop(workers[number]))
        while any(worker.is_alive() for worker in workers.values()):
            watch(desk)
            for number, worker in workers.items():
                worker.join(0.5 / len(workers))
                if worker.exitcode and note_death(desk, missing, worker):
                    workers[number] = start(desk, missing, dealt_cores(number, jobs))
        watch(desk)
    return collect(study, desk)


def start(desk: Desk, runs: tuple[RunConfig, ...], cores: tuple[int, ...]) -> multiprocessing.Process:
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(desk, runs, cores), daemon=True)
    worker.start()
    return worker


def stop(worker: multiprocessing.Process) -> None:
    worker.kill()
    worker.join()


def dealt_cores(number: int, jobs: int) -> tuple[int, ...]:
    """Every `jobs`-th core from `number` on; none dealt where there are fewer cores than workers."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return tuple(cores[number::jobs])


def note_death(desk: Desk, runs: tuple[RunConfig, ...], worker: multiprocessing.Process) -> bool:
    """Notes as failed what a dead worker was at; False where it was at nothing (it cannot start at all)."""
    at = [run for run in runs if desk.claimed_by(run) == worker.pid and not desk.is_finished(run) and desk.error(run) is None]
    for run in at:
        why = f"signal {-worker.exitcode}" if worker.exitcode < 0 else f"exit code {worker.exitcode}"
        desk.fail(run, f"the process died ({why}; out of memory is the usual cause)")
    return bool(at)


def collect(study: Study, desk: Desk) -> tuple[list[Row], list[Failure]]:
    """Writes and returns the table of finished runs and the list of the others."""
    rows = finished_rows(study, desk)
    missing = [run for run in study.runs if not desk.is_finished(run)]
    failures = [
        Failure(run.name, desk.error(run) or "not done: its worker could not start, or another runner is at it")
        for run in missing
    ]
    if rows:
        write_rows(rows, desk.folder / TABLE_FILE)
    (desk.folder / FAILED_FILE).write_text(json.dumps([dataclasses.asdict(failure) for failure in failures], indent=2) + "\n")
    return rows, failures


def finished_rows(study: Study, desk: Desk) -> list[Row]:
    """The rows of the runs that are finished, in the study's order."""
    return [row for run in study.runs if desk.is_finished(run) for row in read_rows(desk.of(run) / ROW_FILE)]
