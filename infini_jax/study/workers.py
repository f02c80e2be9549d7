"""Workers of a study: processes that do its runs side by side, each run by one, and save them when their end is announced."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from infini_jax.config import RunConfig
from infini_jax.devices.allocator import keep_pages
from infini_jax.devices.side_by_side import SideBySide, tried
from infini_jax.errors import (
    Announced,
    CheckpointError,
    ConfigError,
    EvaluationFailed,
    Stopped,
    TrainingDiverged,
    instance,
    named_line,
    require,
)
from infini_jax.evals.base import Evaluation
from infini_jax.locks import Holder
from infini_jax.records.folder import StudyFolder
from infini_jax.records.rows import Row
from infini_jax.study.desk import Desk, Failure
from infini_jax.study.evaluations import (
    learned_together,
    measure_missing,
    measure_side_by_side,
    measured_alike,
    missing_in,
)
from infini_jax.study.fleets import ALONE, Companions
from infini_jax.study.jobs import Job, execute_job, execute_together
from infini_jax.study.own_code import OwnCode
from infini_jax.study.study import Study, check_same_settings, collect, open_on, part_of, study_in
from infini_jax.training.interrupts import announced

USUAL = "out of memory is the usual cause"
# What Python and the loader of libraries say where there is no room for a thread's stack or a library.
NO_ROOM = ("can't start new thread", "failed to map segment")
GRACE = 30.0  # seconds that runs under way have to be saved when their study is stopped
WAIT = 1.0  # seconds between two looks at what others do, where that may add runs


@dataclasses.dataclass(frozen=True)
class Share:
    """The share that a worker has in a study: where it begins, and with how many runs at once.

    Attributes:
      number: number of the worker.
      count: number of all workers.
      fleet: most runs that train side by side in one program, see `infini_jax.study.fleets`.
    """

    number: int
    count: int
    fleet: int = ALONE


def work(own_code: OwnCode, study: Study, desk: Desk, share: Share, cores: tuple[int, ...]) -> None:
    """Does every run that nobody else does: the body of a worker process. It saves its run when its end is announced.

    `own_code` loads the user's file where it is unpickled, before the runs are. `cores` are the CPU cores that the worker may
    use, all of them where none are given.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=die_with_parent, daemon=True).start()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before JAX starts: it makes one thread per core that it may use
    try:
        with announced():
            do_study(study, desk, share)
    except (Stopped, Announced):  # saved, or nothing was to be saved
        sys.exit(os.EX_TEMPFAIL)


def work_on(folder: Path, number: int, count: int, session: str, fleet: int = ALONE) -> None:
    """Does a study's missing runs, as worker `number` of `count` that a scheduler started.

    `session` is the common mark on the failures of these workers, `fleet` the most runs that train side by side in one
    program, see `infini_jax.study.fleets`. Raises `Stopped` where it was told to end, after the run is saved.
    """
    study = study_in(folder)
    desk = dataclasses.replace(study.desk(folder), session=session)
    do_study(study, desk, Share(number, count, fleet))


def do_study(study: Study, desk: Desk, share: Share) -> None:
    """Does every run of a study that nobody else does, and those that come to its list meanwhile.

    Where the list may grow, a worker that finds nothing to do waits for what others are at: their results may add runs, and
    what they leave when they are killed is done here.
    """
    asked: set[str] = set()
    while runs := open_on(study, desk):
        if asked.issuperset(run.name for run in runs):  # others are at them
            if not study.grows:
                return
            time.sleep(WAIT)
        asked = {run.name for run in runs}
        do_all(desk, part_of(runs, share.number, share.count), share.fleet)


def do_all(desk: Desk, runs: tuple[Job, ...], fleet: int = ALONE) -> None:
    """Does every run that nobody else does, one after the other, or those that share a program side by side."""
    import jax

    keep_pages()
    settings: Any = jax.config  # its options are attributes made at run time
    if settings.jax_compilation_cache_dir is None:  # a user's own is kept
        jax.config.update("jax_compilation_cache_dir", str(StudyFolder(desk.folder).compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    before, companions = None, Companions(runs, fleet)
    for run in runs:
        with desk.claim(run) as ours:
            if not ours:
                continue
            memory = (run.mechanism, run.variant, run.memory_bytes)
            if memory != before:  # trials and tasks share their programs; all programs of a study would fill the memory
                jax.clear_caches()
            before = memory
            with companions.claimed(desk, run) as others:
                if others:
                    do_together(desk, (run, *others))
                    continue
            with failures_noted(desk, run):
                do(desk, run)


@contextlib.contextmanager
def failures_noted(desk: Desk, run: Job) -> Iterator[None]:
    """A context that notes how a run fails inside, because the other runs must finish whatever went wrong in this one."""
    try:
        yield
    except TrainingDiverged as error:
        desk.fail(run, str(error), diverged=True)
    except (ConfigError, CheckpointError) as error:
        desk.fail(run, str(error))
    except Stopped:  # nothing failed
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        cause = f" ({USUAL})" if any(words in said for words in NO_ROOM) else ""
        desk.fail(run, said + cause, "".join(traceback.format_exception(error)))


def do(desk: Desk, run: Job) -> None:
    """Does what is missing of a run: the run itself, then its evaluations."""
    do_missing(desk, run, functools.partial(execute_job, run, desk.of(run).path, desk.study))


def do_missing(desk: Desk, run: Job, execute: Callable[[], Any]) -> None:
    """Does what is missing of a run: what `execute` does, then its evaluations."""
    wrong = Wrong()
    if not desk.is_done(run):
        try:
            execute()
        except EvaluationFailed as error:  # the run is trained: its other evaluations are made
            wrong.note(str(error), error)
    measure_missing(desk.of(run), run, desk.evaluations, wrong.note_evaluation)
    wrong.tell(desk, run)


class Wrong:
    """What went wrong in a run that goes on, told as one failure in the end."""

    def __init__(self):
        self._noted: list[tuple[str, str]] = []

    def note(self, said: str, error: Exception) -> None:
        """Notes an error, and the line that says it."""
        self._noted.append((said, "".join(traceback.format_exception(error))))

    def note_evaluation(self, evaluation: Evaluation, error: Exception) -> None:
        """Notes an evaluation that ended with an error."""
        self.note(f"evaluation {evaluation.name}: {named_line(error)}", error)

    def tell(self, desk: Desk, run: Job) -> None:
        """Notes the failure of the run on the desk, if anything went wrong."""
        if self._noted:
            (error, details), *others = self._noted
            desk.fail(run, error + (f" (and {len(others)} more)" if others else ""), details)


def do_together(desk: Desk, jobs: tuple[Job, ...]) -> None:
    """Does what is missing of runs that share a program, all of which are trained or none: training, then their evaluations.

    Both are done side by side. A failure is noted at once.
    """
    runs = [instance(job, RunConfig, "a fleet is of runs") for job in jobs]
    wrong = [Wrong() for _ in runs]
    if not desk.is_done(runs[0]):
        train_together(desk, runs, wrong)
    sound = {number: run for number, run in enumerate(runs) if desk.error(run) is None}
    for group in measured_alike(sound):
        measure_together(desk, [runs[number] for number in group], [wrong[number] for number in group])


def train_together(desk: Desk, runs: Sequence[RunConfig], wrong: Sequence[Wrong]) -> None:
    """Trains runs that share a program side by side; notes how each fails, or what is wrong with one that is trained."""
    has_ended: set[int] = set()

    def ended(number: int, result: Any) -> None:
        has_ended.add(number)
        if isinstance(result, EvaluationFailed):  # the run is trained: its other evaluations are made
            wrong[number].note(str(result), result)
        elif isinstance(result, Exception):
            with failures_noted(desk, runs[number]):
                raise result

    try:
        execute_together(runs, [desk.of(run).path for run in runs], desk.study, ended)
    except Stopped:
        raise
    except Exception as error:  # of all runs that have not ended by themselves
        for number in range(len(runs)):
            if number not in has_ended:
                ended(number, error)


def measure_together(desk: Desk, runs: Sequence[RunConfig], wrong: Sequence[Wrong]) -> None:
    """Makes the missing evaluations of trained runs that are measured alike, side by side; tells what went wrong in each run.

    Where the parameters of one cannot be read, each is evaluated by itself, and fails by itself.
    """
    lacking = [number for number, run in enumerate(runs) if missing_in(desk.of(run), run, desk.evaluations)]
    folders, of_them = [desk.of(runs[number]) for number in lacking], [runs[number] for number in lacking]

    def fail(number: int, evaluation: Evaluation, error: Exception) -> None:
        wrong[lacking[number]].note_evaluation(evaluation, error)

    learned = tried(functools.partial(learned_together, folders)) if len(lacking) > 1 else None
    if isinstance(learned, SideBySide):
        measure_side_by_side(learned, folders, of_them, desk.evaluations, fail)
    else:
        for number, folder in zip(lacking, folders, strict=True):
            with failures_noted(desk, runs[number]):
                measure_missing(folder, runs[number], desk.evaluations, wrong[number].note_evaluation)
    for run, own in zip(runs, wrong, strict=True):
        if desk.error(run) is None:
            own.tell(desk, run)


def die_with_parent() -> None:
    """Ends this process when its parent process is gone, however that ended, as nobody would stop it any more.

    The run under way has `GRACE` seconds to be saved.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
    os._exit(1)


def run_study(
    study: Study, folder: Path, jobs: int, watch: Callable[[Desk], None] = lambda desk: None, fleet: int = ALONE
) -> tuple[list[Row], list[Failure]]:
    """Does what is missing of a study, writes results.parquet, measures.parquet and failed.json, and returns (rows, failures).

    Args:
      study: the study.
      folder: folder of the study.
      jobs: number of worker processes; on a CPU the cores are dealt to them.
      watch: function that is called twice per second with the desk, for progress.
      fleet: most runs that a worker trains side by side in one program, see `infini_jax.study.fleets`.

    Raises:
      ConfigError: finished runs have other settings, or `jobs` is below one.
      Announced: a signal announced the end; the runs under way are saved.
    """
    require(jobs >= 1, "jobs", f"{jobs} workers do nothing", "give at least 1")
    desk = study.desk(folder)
    check_same_settings(study, desk)
    missing, workers = open_on(study, desk), {}
    shares = [Share(number, jobs, fleet) for number in range(min(jobs, len(missing)) if not study.grows else jobs)]
    with announced():
        try:
            for share in shares if missing else ():
                workers[share.number] = start(study, desk, share)
            while any(worker.is_alive() for worker in workers.values()):
                watch(desk)
                for number, worker in workers.items():
                    worker.join(0.5 / len(workers))
                    if worker.exitcode and note_death(desk, study.jobs_on(desk), worker):
                        workers[number] = start(study, desk, shares[number])
            watch(desk)
        finally:
            stop(list(workers.values()))
    return collect(study, desk)


def start(study: Study, desk: Desk, share: Share) -> BaseProcess:
    """Starts a worker on a study."""
    arguments = (OwnCode(study.own_code), study, desk, share, dealt_cores(share.number, share.count))
    worker = multiprocessing.get_context("spawn").Process(target=work, args=arguments, daemon=True)
    worker.start()
    return worker


def stop(workers: list[BaseProcess]) -> None:
    """Ends workers; the runs under way have `GRACE` seconds to be saved, unless Ctrl-C comes again."""
    under_way = [worker for worker in workers if worker.is_alive()]
    end = time.monotonic() + GRACE
    try:
        if under_way:
            with contextlib.suppress(OSError):  # of a terminal that is gone
                print("saving the runs under way; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        for worker in under_way:
            worker.terminate()
        for worker in under_way:
            worker.join(max(0.0, end - time.monotonic()))
    finally:
        for worker in under_way:
            worker.kill()
            worker.join()


def dealt_cores(number: int, jobs: int) -> tuple[int, ...]:
    """Every `jobs`-th CPU core from `number` on; none where there are fewer cores than workers."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return tuple(cores[number::jobs])


def note_death(desk: Desk, runs: tuple[Job, ...], worker: BaseProcess) -> bool:
    """Notes a dead worker's run as failed; False where it had none, so that a new worker could not start either."""
    dead = Holder.here(worker.pid or 0)
    at = [run for run in runs if desk.claimed_by(run) == dead and not desk.is_finished(run) and desk.error(run) is None]
    for run in at:
        code = worker.exitcode or 0
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        desk.fail(run, f"the process died ({why}; {USUAL})")
    return bool(at)
