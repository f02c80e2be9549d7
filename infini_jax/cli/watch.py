"""`infini-jax watch`: the progress of runs, from the files that they write. Nothing of a run is touched, not even its lock.

What was read of a folder of runs is remembered beside them, see records/inventory.py.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import time
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro
from rich import box
from rich.live import Live
from rich.table import Table

from infini_jax.cli.output import print_table, terminal
from infini_jax.cli.progress import seconds_left
from infini_jax.config import RunConfig
from infini_jax.errors import ConfigError, require
from infini_jax.files import object_or_none
from infini_jax.locks import Holder, holder
from infini_jax.model.cost import budget_steps
from infini_jax.records.folder import EarlyEnd, RunFolder, StudyFolder, runs_below
from infini_jax.records.inventory import NOW, Disk, looked_at
from infini_jax.study.desk import Desk
from infini_jax.study.jobs import Job
from infini_jax.study.standing import climb_on
from infini_jax.study.study import Study, study_in
from infini_jax.training.trained import saved_config
from infini_jax.units import human_time

State = Literal["training", "measuring", EarlyEnd, "waiting", "finished"]
ORDER: tuple[State, ...] = (  # what asks for attention comes first
    "training",
    "measuring",
    *typing.get_args(EarlyEnd),
    "waiting",
    "finished",
)
OVER = (*typing.get_args(EarlyEnd), "finished")
SECONDS = 1.0  # between two looks
AROUND, LINES = 7, 2  # lines around the runs of a table, and of a run whose name is long


@dataclasses.dataclass(frozen=True)
class Watched:
    """A run that is watched.

    Attributes:
      folder: folder of the run.
      desk, job: desk and job of the study that the run belongs to, None for a run alone.
      files: the files of runs as they are now, or as one pass found them.
    """

    folder: RunFolder
    desk: Desk | None = None
    job: Job | None = None
    files: Disk = NOW

    def state(self) -> State:
        if self.files.is_whole(self.folder.row):
            is_over = self.desk is None or self.job is None or self.desk.is_finished(self.job)
            return "finished" if is_over else self.unless_failed("measuring")
        begun = self.newest_line() or self.files.exists(self.folder.lock) or self.desk is None
        return self.unless_failed("training" if begun else "waiting")

    def unless_failed(self, state: State) -> State:
        """The given state, or how the run ended, until a process claims it again by its lock."""
        error, lock, files = self.folder.error, self.folder.lock, self.files
        if files.exists(error) and not (files.exists(lock) and files.modified(lock) > files.modified(error)):
            return self.noted_end()
        if state != "training" or not files.exists(lock) or not is_gone(holder(lock)):
            return state
        return "crashed" if self.desk is None else "stopped"  # a study starts again what crashed

    def noted_end(self) -> State:
        """How the run ended by the note in its folder."""
        note = object_or_none(self.folder.error) or {}
        end = "diverged" if note.get("diverged") is True else note.get("end")
        found: list[State] = [known for known in typing.get_args(EarlyEnd) if known == end]
        return found[0] if found else "failed"

    def newest_line(self) -> dict[str, float]:
        """The last line of the run's log, empty where there is none that can be read."""
        return self.files.newest_line(self.folder.metrics)

    def steps(self) -> int | None:
        """The number of steps of the whole run; None where its settings do not say or are of another version."""
        if isinstance(self.job, RunConfig) and self.job.budget.unit != "seconds":
            return budget_steps(self.job)
        return steps_of(self.folder.path)


def is_gone(who: Holder | None) -> bool:
    """Whether a process of this machine has ended; False for one of another machine, of which nothing is known."""
    if who is None or who.host != Holder.here(0).host:
        return False
    try:
        os.kill(who.pid, 0)  # asks whether the process is there, and sends it nothing
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


@dataclasses.dataclass(frozen=True)
class Seen:
    """A run at one moment; None stands for what is not known.

    Attributes:
      name: name of the run.
      state: state of the run.
      step: last step in its log.
      steps: number of all steps.
      loss: loss of the last step, in nats per scored token.
      tokens_per_second: recent speed.
      left: seconds of training left.
      age: seconds since the log was written.
    """

    name: str
    state: State
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    left: float | None = None
    age: float | None = None


def watch(path: tyro.conf.Positional[Path], once: bool = False) -> None:
    """Show the progress of a study or a run until every run has ended.

    Only files are read: no run is touched, and Ctrl-C stops nothing but the display.
    Examples: `infini-jax watch results/quick`, `infini-jax watch results/runs/code --once`

    Args:
      path: folder of a study, of a run, or of several runs.
      once: print one table and exit.
    """
    watchlist, console = watchlist_of(path), terminal()
    if once:
        watchlist = watchlist.now()
        print_table(console, seen_table(all_seen(watchlist.runs), note=watchlist.note))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, transient=False) as live:
        for now, found in looks(watchlist):
            live.update(seen_table(found, (console.height - AROUND) // LINES, now.note), refresh=True)


@dataclasses.dataclass(frozen=True)
class Watchlist:
    """The runs that are watched.

    Attributes:
      runs: the runs.
      note: line about the rungs and the learning rates of a study whose list of runs grows, or "".
      study, desk: the study whose runs they are, and its desk; None for runs without one.
    """

    runs: list[Watched]
    note: str = ""
    study: Study | None = None
    desk: Desk | None = None

    def now(self) -> "Watchlist":
        """The list as the results of this moment make it."""
        if self.study is None or self.desk is None or (self.runs and not self.study.grows):
            return self
        with self.desk.looked_at() as now:
            stands = climb_on(self.study.plan, now) if self.study.grows else None
        jobs = stands.jobs if stands else self.study.runs
        runs = [Watched(self.desk.of(job), self.desk, job) for job in jobs]
        return dataclasses.replace(self, runs=runs, note=stands.described() if stands else "")


def looks(watchlist: Watchlist) -> Iterator[tuple[Watchlist, list[Seen]]]:
    """The runs and their states, once per second, until all are finished or have failed."""
    while True:
        watchlist = watchlist.now()
        found = all_seen(watchlist.runs)
        yield watchlist, found
        if all(one.state in OVER for one in found):
            return
        time.sleep(SECONDS)


def watchlist_of(path: Path) -> Watchlist:
    """The runs of a study, a run alone, or the runs in a folder. Raises `ConfigError` where there is none."""
    mend = "name a study's folder, such as results/quick, or a run's"
    require(path.is_dir(), "path", f"there is no folder {path}", mend)
    if StudyFolder(path).study.exists():
        study = study_in(path)
        return Watchlist([], study=study, desk=study.desk(path)).now()
    runs = [Watched(folder) for folder in runs_below(path)]
    require(bool(runs), "path", f"{path} holds no runs", mend)
    return Watchlist(runs)


def all_seen(runs: list[Watched]) -> list[Seen]:
    """The states of runs, whose folders are looked at in one pass; a run alone is looked at by itself."""
    beside = Counter(run.folder.path.parent for run in runs)
    with contextlib.ExitStack() as stack:
        passes: dict[Path, Disk] = {
            folder: stack.enter_context(looked_at(folder)) for folder, count in beside.items() if count > 1
        }
        desks = {id(run.desk): run.desk for run in runs}
        found = []
        for run in runs:
            files = passes.get(run.folder.path.parent, NOW)
            desk = desks[id(run.desk)]
            if desk is not None and desk.files is not files:
                desk = desks[id(run.desk)] = dataclasses.replace(desk, files=files)
            found.append(seen(dataclasses.replace(run, desk=desk, files=files)))
        return found


def seen(run: Watched) -> Seen:
    """The state of a run by what its files say."""
    name = run.job.name if run.job is not None else run.folder.path.resolve().name
    state, log, line = run.state(), run.folder.metrics, run.newest_line()
    if not line:
        return Seen(name, state)
    step, share, speed = int(line["step"]), line.get("share"), line.get("recent_tokens_per_second")
    steps = round(step / share) if share else run.steps()
    left = seconds_left(line, steps) if steps and speed and state == "training" else None
    return Seen(name, state, step, steps, line.get("loss"), speed, left, time.time() - run.files.modified(log))


@functools.cache
def steps_of(folder: Path) -> int | None:
    """The number of steps of a whole run; None where its settings do not say or are of another version."""
    with contextlib.suppress(ConfigError):
        return budget_steps(saved_config(folder))
    return None


def seen_table(found: list[Seen], most: int | None = None, note: str = "") -> Table:
    """A table of at most `most` runs, those that ask for attention first, with the number of runs in each state and a note
    below."""
    ordered = sorted(found, key=lambda one: ORDER.index(one.state))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for head in ("step", "loss", "tokens/s", "left", "log age"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in ordered[:most]:
        table.add_row(
            one.name,
            one.state,
            "" if one.step is None else f"{one.step:,}/{one.steps:,}" if one.steps else f"{one.step:,}",
            "" if one.loss is None else f"{one.loss:.3f}",
            "" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}",
            "" if one.left is None else human_time(one.left),
            "" if one.age is None or one.state in OVER else human_time(one.age),
        )
    counts = {state: sum(one.state == state for one in found) for state in ORDER}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    table.caption = "; ".join(filter(None, (said, note)))
    return table
