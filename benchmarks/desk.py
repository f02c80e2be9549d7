"""Scale of the desk: seconds that commands take on a study of many finished runs, nothing of which is trained.

Command:  python -m benchmarks.desk --runs 500 1000 2000 5000       (about a minute per thousand runs, most of it to make them)
Makes a study's folder with the package's own writers: settings, a log, a row, one file of figures for each evaluation and run.
Every number in them is made up. Prints the machine, then for each size and path the seconds of a first call, when nothing is
remembered of the folder, and of a later one; imports are outside, the report's drawing is counted apart. `--profile` prints
where the time of one path goes.
"""

import concurrent.futures
import contextlib
import cProfile
import dataclasses
import functools
import importlib
import io
import multiprocessing
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import tyro

from experiments import mqar_pareto
from infini_jax.cli import report as report_command
from infini_jax.cli import study as study_command
from infini_jax.cli import watch as watch_command
from infini_jax.errors import lookup
from infini_jax.files import json_text
from infini_jax.model.cost import budget_steps, planned_flops
from infini_jax.records.environment import environment
from infini_jax.records.folder import REMEMBERED_FILE, StudyFolder
from infini_jax.records.measures import Measure, write_measures
from infini_jax.records.rows import Row, write_rows
from infini_jax.report import page, sections
from infini_jax.results.load import load
from infini_jax.study.study import Study, collect, save_study

LINES = 20  # of each log
AGE = 3  # seconds after which a file may be remembered
DRAWING = ((page, "drawing"), (page, "save_pdf"), (sections, "score_against_bytes"), (sections, "training_curves"))


def study_of(count: int) -> Study:
    """The study mqar_pareto with as many seeds as it takes for `count` runs."""
    small = mqar_pareto.SCALES["cpu"]
    seeds = -(-count // len(small.runs()))
    runs = dataclasses.replace(small, seeds=seeds).runs()
    asked = mqar_pareto.study("cpu")
    return dataclasses.replace(asked, name="desk", runs=tuple(sorted(runs, key=lambda run: run.seed)[:count]))


def row_of(run, flops: float, steps: int, same: dict[str, str], number: int) -> Row:
    """A made-up row of a run."""
    accuracy = 0.1 + 0.8 * (number * 0.618 % 1)
    return Row(
        run=run.name,
        version=run.version,
        fingerprint=run.fingerprint(),
        seed=run.seed,
        study="desk",
        task=run.task,
        mechanism=run.mechanism,
        variant=run.variant,
        memory_bytes=run.memory_bytes,
        parameters=50_000,
        learning_rate=run.train.learning_rate,
        flops_per_token=flops / (3 * steps * run.tokens_per_step),
        budget_unit=run.budget.unit,
        budget_amount=run.budget.amount,
        gives=run.budget.gives,
        flops_planned=flops,
        flops_actual=flops,
        flops_counted=flops,
        flops_executed=1.2 * flops,
        steps=steps,
        tokens=steps * run.tokens_per_step,
        seconds=10.0,
        compile_seconds=2.0,
        train_loss=3.0 - accuracy,
        loss=3.1 - accuracy,
        accuracy=accuracy,
        test_loss=None,
        test_accuracy=None,
        gate_mean=0.5,
        gate_spread=0.1,
        corpus="mqar",
        finished="2026-01-01T00:00:00+00:00",
        **same,
    )


def log_of(row: Row) -> str:
    """A made-up log, with the metrics of a real one."""
    lines = []
    for number in range(1, LINES + 1):
        share = number / LINES
        line = {"step": max(1, round(row.steps * share)), "tokens": round(row.tokens * share), "seconds": row.seconds * share}
        line |= {"tokens_per_second": 5e4, "recent_tokens_per_second": 5e4 + number, "loss": row.loss + 1 - share}
        lines.append(
            line | {"accuracy": row.accuracy * share, "gradient_norm": 1.0 + share, "gate_mean": 0.5, "gate_spread": 0.1}
        )
    return "".join(json_text(line) + "\n" for line in lines)


def make(folder: Path, count: int) -> None:
    """Fills the folder of a study whose runs are all finished, with its two tables."""
    study = study_of(count)
    save_study(study, folder)
    desk, same = study.desk(folder), environment()
    for number, run in enumerate(study.runs):
        place, row = desk.of(run), row_of(run, planned_flops(run) or 0.0, budget_steps(run), same, number)
        place.write_config(run.to_dict())
        place.metrics.write_text(log_of(row))
        labels = [{"pairs": pairs, "length": 112, "overwrites": 0} for pairs in (8, 16, 32)]
        for file in desk.measure_files(run):
            found = [
                Measure("mqar", "accuracy", row.accuracy, 64, row.accuracy - 0.1, row.accuracy + 0.1, one) for one in labels
            ]
            write_measures(run.name, found, file)
        place.lock.write_text("")
        write_rows([row], place.row)
    collect(study, desk)


def paths(folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    name = str(folder)
    return {
        "study --dry-run": lambda: study_command.study(name, jobs=2, dry_run=True),
        "watch --once": lambda: watch_command.watch(folder, once=True),
        "load(study)": lambda: load(folder),
        "load(study/runs)": lambda: load(folder / "runs"),
        "report": lambda: report_command.report((folder,)),
    }


class Spent(NamedTuple):
    """Seconds of a call, those of the processor, and those of drawing among the processor's."""

    wall: float
    cpu: float
    drawing: float


class Drawing:
    """Seconds of the processor spent in matplotlib, by which a report is longer than its reading and counting."""

    seconds = 0.0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """A context in which the functions that draw are timed."""
        with contextlib.ExitStack() as stack:
            for module, name in DRAWING:
                stack.enter_context(mock.patch.object(module, name, self.timed(getattr(module, name))))
            yield

    def timed(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def inner(*arguments, **options):
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.process_time() - began

        return inner


def spent_by(call: Callable[[], object]) -> Spent:
    """The seconds of a call, whose output is thrown away."""
    drawing, began, cpu = Drawing(), time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), drawing.counted():
        call()
    return Spent(time.perf_counter() - began, time.process_time() - cpu, drawing.seconds)


def timed(folder: Path, only: tuple[str, ...]) -> None:
    """Prints a line for each path: a first call, with nothing remembered, and a later one, each in a process of its own."""
    for name in only or tuple(paths(folder)):
        forget(folder)
        both = []
        for when in ("first", "later"):
            spent = in_new_process(folder, name)
            drawing = f" + drawing {spent.drawing:.1f}" if spent.drawing else ""
            both.append(f"{when} {spent.wall:6.2f} s (CPU {spent.cpu - spent.drawing:.2f}{drawing})")
        print(f"  {name:<16} {', '.join(both)}", flush=True)


def forget(folder: Path) -> None:
    """Removes what is remembered of the folder."""
    (StudyFolder(folder).all_runs / REMEMBERED_FILE).unlink(missing_ok=True)


def in_new_process(folder: Path, name: str) -> Spent:
    """The seconds of a path in a new process, imports left out."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(in_this_process, folder, name).result()


def in_this_process(folder: Path, name: str) -> Spent:
    """The seconds of a path of a folder. Whoever loads tables has imported their library."""
    importlib.import_module("pandas")
    return spent_by(paths(folder)[name])


def profiled(folder: Path, name: str, lines: int = 45) -> None:
    """Prints where the time of a path goes."""
    profile = cProfile.Profile()
    call = paths(folder)[name]
    with contextlib.redirect_stdout(io.StringIO()):
        profile.runcall(call)
    pstats.Stats(profile).sort_stats("cumulative").print_stats(lines)


def main(
    runs: tuple[int, ...] = (500, 1000, 2000, 5000),
    only: tuple[str, ...] = (),
    profile: bool = False,
    keep: Path | None = None,
) -> None:
    """Times the desk's paths.

    Args:
      runs: numbers of runs.
      only: names of the paths that are timed, by default all: "study --dry-run", "watch --once", "load(study)",
        "load(study/runs)", report.
      profile: prints where the time goes, instead.
      keep: folder in which made studies are kept and used again, by default a temporary one.
    """
    for name in only:
        lookup("only", name, paths(Path()))
    with contextlib.ExitStack() as stack:
        place = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        known = environment()
        print(f"{known['device']}, Python {known['python']}, load {os.getloadavg()[0]:.1f}")
        for count in runs:
            folder = place / f"desk-{count}"
            if not StudyFolder(folder).table.exists():
                began = time.perf_counter()
                make(folder, count)
                time.sleep(AGE)
                print(f"{count} runs, made in {time.perf_counter() - began:.0f} s", flush=True)
            else:
                print(f"{count} runs")
            if profile:
                for name in only or tuple(paths(folder)):
                    profiled(folder, name)
            else:
                timed(folder, only)


if __name__ == "__main__":
    tyro.cli(main)
