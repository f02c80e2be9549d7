"""`infini-jax babylm`: BLiMP, its supplement and fine-tuning on (Super)GLUE, as one table."""

import dataclasses
import time
from pathlib import Path

import tyro
from rich import box
from rich.table import Table

from infini_jax.analysis.classification import mean_interval
from infini_jax.cli.finetune import EVERY, RECIPE, ReadRun, TuningOptions, macro_score, tunings
from infini_jax.cli.memory_options import AS_TRAINED, MemoryOptions, chosen_memory, opened_run
from infini_jax.cli.output import AsJson, print_json, terminal
from infini_jax.cli.read_run import ask
from infini_jax.data.classification import GET, task_place
from infini_jax.data.minimal_pairs import blimp_place, evaluation_folders, supplement_place
from infini_jax.devices.sharding import use_cores
from infini_jax.errors import require
from infini_jax.evals.blimp import Blimp, BlimpSupplement
from infini_jax.finetuning.evaluation import FineTuning
from infini_jax.records.measures import Measure
from infini_jax.training.checkpoint import Which
from infini_jax.training.trained import read_with, saved_config

NAME, ROWS = "babylm", 16  # rows that every core shares, of whatever is read
TITLES = {Blimp.name: "BLiMP", BlimpSupplement.name: "BLiMP supplement", FineTuning.name: "(Super)GLUE"}


def babylm(
    run: tyro.conf.Positional[Path],
    path: str = "",
    task: str = EVERY,
    pairs: int = 0,
    options: tyro.conf.OmitArgPrefixes[TuningOptions] = RECIPE,
    memory: MemoryOptions = AS_TRAINED,
    step: Which = None,
    as_json: AsJson = False,
) -> None:
    """Measures a run by BabyLM's evaluation: BLiMP, its supplement and fine-tuning on (Super)GLUE, in one table.

    What is not here is left out, and the table names it. What was measured before with the same settings is not done again.

    Examples: `infini-jax babylm results/runs/run --path evaluation_data`,
    `infini-jax babylm results/models/smollm2 --pairs 20 --task rte,wsc --train-examples 64 --epochs 1`

    Args:
      run: the folder that `infini-jax train`, or `infini-jax import`, left.
      path: BabyLM's folder evaluation_data, unpacked; by default what the data folder has of it, of BLiMP, and of TFDS.
      task: tasks of fine-tuning, separated by commas, as of `infini-jax finetune`.
      pairs: number of minimal pairs per paradigm, spread evenly; 0 is all.
      options: settings of fine-tuning.
      memory: settings of the memory with which texts are read, such as more slots; by default as it was trained.
      step: step of the checkpoint, or best for that of the lowest validation loss; by default the newest.
      as_json: prints the record as JSON instead of the table.
    """
    saved, asked = saved_config(run), tunings(task.split(","), path, options)
    used = read_with(saved, chosen_memory(saved, memory))
    here = [one for one in asked if task_place(one.task, path)]
    grammar, missing = minimal_pairs(path, pairs)
    missing += [one.task for one in asked if one not in here]
    require(bool(grammar or here), "path", "nothing of BabyLM's evaluation is here", GET)
    for one in (*grammar, *here):
        one.check(used)
    use_cores(ROWS)
    began, read = time.perf_counter(), ReadRun(saved, opened_run(run, step, used))
    lines = {one.name: mean_of_paradigms(measured(read, one)) for one in grammar}
    tuned = read.tuned_on_all(here) if here else []
    scores = {one.task: next(figure for figure in tuned if figure.labels.get("task") == one.task) for one in here}
    if scores:
        lines[FineTuning.name] = macro_score(NAME, scores)
    parts, whole = [score_of(part, one) for part, one in lines.items()], macro_score(NAME, lines)
    record = read.record(asked[0], time.perf_counter() - began)
    record["settings"] |= {"task": task, "pairs": pairs}
    record |= {"task": NAME, "parts": [*map(dataclasses.asdict, (*parts, *scores.values(), whole))], "missing": missing}
    read.written(NAME, [*parts, whole], record)
    if as_json:
        print_json(record)
        return
    terminal().print(babylm_table(read.title(""), parts, scores, whole, missing))


def minimal_pairs(path: str, pairs: int) -> tuple[list[Blimp], list[str]]:
    """(BLiMP and its supplement where they are here, what is not here)."""
    found, missing = [], []
    for kind, name, place in (
        (Blimp, "blimp_filtered", blimp_place),
        (BlimpSupplement, "supplement_filtered", supplement_place),
    ):
        inside = [str(one) for one in evaluation_folders(Path(path), name)[:1]] if path else []
        if inside or place():
            found.append(kind("".join(inside), pairs))
        else:
            missing.append(TITLES[kind.name])
    return found, missing


def measured(read: ReadRun, evaluation: Blimp) -> list[Measure]:
    """The figures of an evaluation: those that are there, or new ones, which are written as `infini-jax evaluate` does."""
    if made := read.made_before(evaluation, evaluation.name):
        return made
    began = time.perf_counter()
    measures, _, details = ask(evaluation, read.trained)
    return read.written(evaluation.name, measures, read.record(evaluation, time.perf_counter() - began) | details)


def mean_of_paradigms(measures: list[Measure]) -> Measure:
    """The mean accuracy over paradigms, as BabyLM has it, whose interval is over pairs."""
    found = [one for one in measures if "paradigm" in one.labels]
    value, low, high = mean_interval([(one.value, one.low, one.high) for one in found])
    return Measure(NAME, "score", value, sum(one.count for one in found), low, high)


def score_of(part: str, one: Measure) -> Measure:
    """The score of a part of BabyLM's evaluation."""
    return dataclasses.replace(one, eval=NAME, metric="score", labels={"part": part})


def babylm_table(title: str, parts: list[Measure], scores: dict[str, Measure], whole: Measure, missing: list[str]) -> Table:
    """The table: a line for each part, for each task of fine-tuning, and for the mean of the parts."""
    table = Table("", "score", title=title, box=box.SIMPLE_HEAD)
    for name in ("95 % interval", "of"):
        table.add_column(name, justify="right")
    for part in parts:
        name = str(part.labels["part"])
        add_line(table, TITLES[name], part, f"{part.count:,} {'tasks' if name == FineTuning.name else 'pairs'}")
        for task, one in scores.items() if name == FineTuning.name else ():
            add_line(table, f"  {task}, {one.metric}", one, f"{one.count:,} texts")
    add_line(table, "mean of the parts", whole, f"{whole.count} parts")
    table.caption = f"not here: {', '.join(missing)}" if missing else None
    return table


def add_line(table: Table, name: str, one: Measure, count: str) -> None:
    """Adds a figure in percent to the table, with its interval and what it is of."""
    table.add_row(name, f"{100 * one.value:.1f}", f"{100 * one.low:.1f} to {100 * one.high:.1f}", count)
