"""`infini-jax compare`: the settings and the results of two runs side by side."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from infini_jax.cli.output import AsJson, print_json, terminal
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import measures_in
from infini_jax.records.parquet import read_table
from infini_jax.records.rows import rows_in
from infini_jax.records.training_log import read_metrics
from infini_jax.training.trained import flattened, saved_settings

SideBySide = dict[str, tuple[Any, Any]]  # name -> its value in the first run and in the second, None where one has none

ASKED = ("version", "seed", "learning_rate", "budget_amount")  # of a row's numbers: settings, which have a table of their own


@dataclasses.dataclass(frozen=True)
class TwoRuns:
    """A comparison of two runs; values are (first, second) by name.

    Attributes:
      runs: folders of the two runs.
      settings: settings that differ.
      results: numbers of the runs' rows, where a run is finished.
      step: last step that both runs logged, 0 without one.
      log: metrics at that step.
      figures: figures of evaluations that both have, by evaluation, metric and labels; those by place are left out.
    """

    runs: tuple[str, str]
    settings: SideBySide
    results: SideBySide
    step: int
    log: SideBySide
    figures: SideBySide


def compare(
    first: tyro.conf.Positional[Path],
    second: tyro.conf.Positional[Path],
    as_json: AsJson = False,
) -> None:
    """Show the settings in which two runs differ, and their results and metrics side by side. Runs may be unfinished.

    Examples: `infini-jax compare results/runs/first results/runs/second`,
    `infini-jax compare results/quick/runs/mqar-local-8 results/quick/runs/mqar-infini-8 --json`

    Args:
      first: folder of a run, alone or in a study's runs/.
      second: folder of the other run.
      as_json: print one JSON object instead of tables.
    """
    found = compared(first, second)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    console = terminal()
    console.print(f"first: {first}", f"second: {second}", sep="\n", highlight=False, soft_wrap=True)
    console.print(settings_table(found) if found.settings else "the settings are the same")
    titled = (("results", found.results), (f"log, step {found.step}", found.log), ("evaluations", found.figures))
    for title, pairs in titled:
        if pairs:
            console.print(numbers_table(title, pairs))
    if not found.log:
        console.print("no step is in the logs of both")


def compared(first: Path, second: Path) -> TwoRuns:
    """The comparison of the runs in two folders. Raises `ConfigError` where a folder is no run's, or its files are damaged."""
    settings = paired(*(flattened(saved_settings(run)) for run in (first, second)))
    logs, figures = [by_step(run) for run in (first, second)], [figures_of(run) for run in (first, second)]
    step = max(logs[0].keys() & logs[1].keys(), default=0)
    return TwoRuns(
        (str(first), str(second)),
        {name: pair for name, pair in settings.items() if pair[0] != pair[1]},
        paired(results_of(first), results_of(second)),
        step,
        paired(*(log.get(step, {}) for log in logs)),
        {name: pair for name, pair in paired(*figures).items() if None not in pair},
    )


def paired(first: dict[str, Any], second: dict[str, Any]) -> SideBySide:
    """(value in first, value in second) by name, for the names of both, in the order of the first."""
    return {name: (first.get(name), second.get(name)) for name in dict.fromkeys((*first, *second))}


def results_of(run: Path) -> dict[str, float]:
    """The numbers of a finished run's row, and its speed; empty for one that is not finished."""
    table = read_table(RunFolder(run).row)
    if table is None:
        return {}
    (row,) = rows_in(table)
    numbers: dict[str, float] = {
        name: value for name, value in dataclasses.asdict(row).items() if isinstance(value, int | float)
    }
    speed: dict[str, float] = {"tokens_per_second": row.tokens / row.seconds} if row.seconds else {}
    return {name: value for name, value in numbers.items() if name not in ASKED} | speed


def figures_of(run: Path) -> dict[str, float]:
    """The figures of a run's evaluations but for those by place in a document, by evaluation, metric and labels."""
    tables = [read_table(file) for file in sorted(RunFolder(run).all_measures.glob("*.parquet"))]
    found = [one for table in tables if table is not None for _, one in measures_in(table)]
    named = {" ".join([one.eval, one.metric, *(f"{k}={v}" for k, v in sorted(one.labels.items()))]): one for one in found}
    return {name: one.value for name, one in named.items() if not one.metric.endswith("_by_position")}


def by_step(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of a run by step, in the log of its folder."""
    steps: dict[int, dict[str, float]] = {}
    for line in read_metrics(RunFolder(run).metrics):
        steps.setdefault(int(line["step"]), {}).update({name: value for name, value in line.items() if name != "step"})
    return steps


def settings_table(found: TwoRuns) -> Table:
    """A table with one line per setting that differs."""
    table = Table(title="settings that differ")
    for head in ("setting", "first", "second"):
        table.add_column(head, overflow="fold")
    for name, pair in found.settings.items():
        table.add_row(name, *("–" if value is None else str(value) for value in pair))
    return table


def numbers_table(title: str, pairs: SideBySide) -> Table:
    """A table with one line per number, with the difference of the second from the first, also as a share of it."""
    table = Table(title=title)
    table.add_column("name", overflow="fold")
    for head in ("first", "second", "second - first"):
        table.add_column(head, justify="right")
    for name, (first, second) in pairs.items():
        table.add_row(name, shown(first), shown(second), difference(first, second))
    return table


def shown(value: float | None) -> str:
    """A number as text, with a dash for a missing one."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def difference(first: float | None, second: float | None) -> str:
    """The difference of two numbers as text, "" where one is missing or they are equal."""
    if first is None or second is None or first == second:
        return ""
    share = f" ({100 * (second - first) / abs(first):+.1f} %)" if first else ""
    return f"{second - first:+.4g}{share}"
