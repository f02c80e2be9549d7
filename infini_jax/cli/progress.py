"""Progress bars: the work done, the work at hand, the time left."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from infini_jax.config import RunConfig
from infini_jax.data.prepare import TokenizerSettings, load_packages
from infini_jax.model.cost import budget_steps
from infini_jax.study.desk import Desk
from infini_jax.study.evaluations import measure_file
from infini_jax.study.jobs import Job
from infini_jax.study.spending import Spending, spendings
from infini_jax.study.study import Study
from infini_jax.training.trained import saved_config
from infini_jax.units import human_count, human_time, ratio

_NAME = TextColumn("{task.description}", markup=False)
_LINE = TextColumn("{task.fields[line]}", markup=False, table_column=Column(ratio=1, no_wrap=True))  # what room is left


@contextlib.contextmanager
def study_progress(study: Study, console: Console) -> Iterator[Callable[[Desk], None]]:
    """A context with a bar of the whole study in FLOPs, evaluations included, from the files that the runs write.

    Where a run's FLOPs are not known before its device is timed, every run counts the same instead. Runs that results add make
    the bar longer.
    """
    plans = Plans(study)
    with _bars(console, TextColumn("{task.fields[runs]}", markup=False)) as bars:
        task = bars.add_task(study.label, total=plans.flops_of(study.jobs_now({})), runs="")

        def watch(desk: Desk) -> None:
            with desk.looked_at() as now:
                jobs = study.jobs_on(now)
                ended = sum(now.is_finished(run) or now.error(run) is not None for run in jobs)
                total = plans.flops_of(jobs)
                done = sum(flops_done(now, run, plans.known[run.name]) for run in jobs)
            bars.update(task, total=total, completed=done, runs=f"{ended}/{len(jobs)} runs")

        yield watch


class Plans:
    """The planned spending of the runs of a study, each counted once.

    Attributes:
      known: spending by run name.
    """

    def __init__(self, study: Study):
        self.study, self.known = study, dict[str, Spending]()
        self.is_counted = all(plan.flops is not None for plan in spendings(study, study.jobs_now({})))

    def flops_of(self, jobs: Sequence[Job]) -> float:
        """FLOPs of the runs together; the number of runs where not all are known."""
        fresh = [job for job in jobs if job.name not in self.known]
        plans = spendings(self.study, fresh) if self.is_counted else [Spending(None, None, 1.0, ())] * len(fresh)
        self.known.update({job.name: plan for job, plan in zip(fresh, plans, strict=True)})
        return sum(self.known[job.name].all_flops for job in jobs)


def flops_done(desk: Desk, job: Job, plan: Spending) -> float:
    """The planned FLOPs that are done: all for a job that ended, else its share of training and the evaluations made."""
    if desk.is_finished(job) or desk.error(job) is not None:
        return plan.all_flops
    folder, files = desk.of(job), desk.files
    measured = [flops for evaluation, flops in plan.evaluations if files.is_whole(measure_file(folder, evaluation))]
    share = 1.0 if desk.is_done(job) else share_logged(files.newest_line(folder.metrics), job)
    return (plan.flops or 0.0) * share + sum(measured)


def share_logged(line: dict[str, float], job: Job) -> float:
    """The share of a job that is done by the last line of its metrics, 0 to 1."""
    if not isinstance(job, RunConfig):
        return line.get("share", 0.0)
    if job.budget.unit == "seconds":
        return min(1.0, line.get("seconds", 0.0) / job.budget.amount)
    return line.get("step", 0) / budget_steps(job)


@contextlib.contextmanager
def train_progress(run: RunConfig, folder: Path, console: Console) -> Iterator[Callable[[dict[str, float]], None]]:
    """A context with a bar of one run in steps and its newest metric line; in a log file, one plain line per metric line.

    The number of steps of a budget in seconds stands in the run's `folder` once it trains.
    """

    @functools.cache
    def steps() -> int:
        return budget_steps(saved_config(folder) if run.budget.unit == "seconds" else run)

    if not console.is_terminal:

        def say(text: str) -> None:
            console.print(f"{run.name}: {text}", highlight=False, soft_wrap=True)

        yield lambda line: say(f"step {line['step']:,}/{steps():,}, {live_line(line, steps())}")
        return
    with Progress(_NAME, BarColumn(10), MofNCompleteColumn(), _LINE, console=console, expand=True) as bars:
        task = bars.add_task(run.name, total=None, line="compiling")
        yield lambda line: bars.update(task, total=steps(), completed=line["step"], line=live_line(line, steps()))


def live_line(line: dict[str, float], steps: int) -> str:
    """A metric line for people: loss, time left, speed (recent, and of the whole run), MFU where it is known, gates.

    The most wanted comes first, as a narrow terminal cuts the end off.
    """
    parts = [f"loss {line['loss']:.3f}", f"{human_time(seconds_left(line, steps))} left"]
    parts.append(f"{line['recent_tokens_per_second']:,.0f} tokens/s ({line['tokens_per_second']:,.0f} overall)")
    if "mfu" in line:
        parts.append(f"MFU {100 * line['mfu']:.1f} %")
    if "gate_spread" in line:
        parts.append(f"gates {line['gate_mean']:.2f} over {line['gate_spread']:.2f}")
    return ", ".join(parts)


def seconds_left(line: dict[str, float], steps: int) -> float:
    """Seconds that the remaining tokens take at the recent speed."""
    return (ratio(steps, line["step"]) - 1) * ratio(line["tokens"], line["recent_tokens_per_second"])


@contextlib.contextmanager
def corpus_progress(name: str, settings: TokenizerSettings, console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A context with a bar of the preparation of a corpus, in documents where they are counted; a thread of its own draws it.

    Raises `ConfigError` where a package is missing: all are imported before there is a thread.
    """
    load_packages(name, settings)
    with _bars(console, MofNCompleteColumn()) as bars:
        tasks = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in bars.tasks:
                    bars.update(task.id, total=task.total or 1, completed=task.total or 1)
                tasks[what] = bars.add_task(f"{name}: {what}", total=total or None)
            bars.update(tasks[what], completed=done)

        yield watch


@contextlib.contextmanager
def reading_progress(what: str, total: int | None, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A context with a bar of what is read and its rate, fed with (number done of `total`, tokens).

    It shows nothing without a terminal.
    """
    if not console.is_terminal:
        yield lambda done, tokens: None
        return
    began = time.perf_counter()
    with _bars(console, TextColumn("{task.fields[rate]}", markup=False)) as bars:
        task = bars.add_task(what, total=total, rate="compiling")

        def watch(done: int, tokens: int) -> None:
            rate = ratio(tokens, time.perf_counter() - began)
            bars.update(task, completed=done, rate=f"{tokens:,} tokens, {rate:,.0f}/s")

        yield watch


@contextlib.contextmanager
def waiting(what: str, console: Console) -> Iterator[None]:
    """A context with a spinner and the time so far, for work of unknown length; nothing without a terminal."""
    if not console.is_terminal:
        yield
        return
    with Progress(SpinnerColumn(), _NAME, TimeElapsedColumn(), console=console) as bars:
        bars.add_task(what, total=None)
        yield


@contextlib.contextmanager
def evaluation_progress(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A context with a bar of an evaluation in tokens, or of a report in figures, fed with (number done, number of all).

    It shows nothing without a terminal.
    """
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with _bars(console) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class RateColumn(ProgressColumn):
    """The recent speed of a bar: units counted per second."""

    def render(self, task: Task) -> str:
        return "" if task.finished or not task.speed else f"{human_count(task.speed)}/s"


def _bars(console: Console, *columns) -> Progress:
    return Progress(
        _NAME,
        BarColumn(None),
        *columns,
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
