"""`infini-jax evaluate`, which reads a run and changes nothing of it."""

import dataclasses
import datetime
import time
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from infini_jax.cli.evaluation_options import Options, chosen_evaluation
from infini_jax.cli.evaluation_tables import figures_table, measure_tables, position_table
from infini_jax.cli.memory_options import AS_TRAINED, MemoryOptions, chosen_memory, labels, opened_run, suffix, tell_window
from infini_jax.cli.output import AsJson, print_json, terminal
from infini_jax.cli.progress import evaluation_progress, reading_progress
from infini_jax.config import ModelConfig, RunConfig
from infini_jax.config.plain import to_plain
from infini_jax.data.given import given_name
from infini_jax.devices.sharding import use_cores
from infini_jax.errors import ConfigError, require
from infini_jax.evals.base import Evaluation, Subject
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.files import write_json
from infini_jax.records.environment import environment
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure, write_measures
from infini_jax.training.checkpoint import Which
from infini_jax.training.trained import Trained, read_with, saved_config

DEFAULTS = Options()


def evaluate(
    run: tyro.conf.Positional[Path],
    task: str = LanguageEvaluation.name,
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    memory: MemoryOptions = AS_TRAINED,
    step: Which = None,
    output: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained run on a task; by default, the streaming perplexity of its held-out documents.

    Examples: `infini-jax evaluate results/runs/run --documents 20`,
    `infini-jax evaluate results/models/smollm2 --data book.txt --tokens 8k`,
    `infini-jax evaluate results/runs/run --task passkey --lengths 4k,64k,1m --depths 0,0.5,1`

    Args:
      run: folder of a run, as `infini-jax train` or `infini-jax import` writes it.
      task: name of the evaluation.
      options: settings of the evaluation.
      memory: memory settings to read the run with, such as more slots. Default: as trained.
      step: checkpoint, by step, or best for the lowest validation loss. Default: the newest.
      output: JSON file for the figures; a Parquet file is written beside it. Default: evaluation.json (evaluation-TASK.json
        for other tasks) and measures/TASK.parquet in the run's folder; another memory, or other documents, are part of the
        name.
      as_json: print the content of the JSON file instead of tables.
    """
    evaluation, saved = chosen_evaluation(task, options), saved_config(run)
    config = read_with(saved, chosen_memory(saved, memory))
    other = suffix(saved.model, config.model) + data_suffix(evaluation)
    figures = output.with_suffix(".parquet") if output else RunFolder(run).measures_of(task + other)
    require(output != figures, "output", f"{output} is to be JSON", "give a name that ends in .json")
    evaluation.check(config)
    if rows := getattr(evaluation, "rows", 0):  # most read rows side by side
        use_cores(rows)
    trained, began = opened_run(run, step, config), time.perf_counter()
    is_language = isinstance(evaluation, LanguageEvaluation)
    measures, tables, details = read_documents(evaluation, trained) if is_language else ask(evaluation, trained)
    seconds = time.perf_counter() - began
    file = output or RunFolder(run).evaluation("" if is_language and not other else task + other)
    record = record_of(trained, saved, evaluation, seconds) | details
    write_record(record, file)
    write_measures(config.name, with_labels(measures, labels(saved.model, config.model)), figures)
    if as_json:
        print_json(record)
        return
    terminal().print(*tables)
    print(f"{file}: {evaluation.cost(config):.2g} FLOPs in {seconds:.1f} s, compiling included")


def data_suffix(evaluation: Evaluation) -> str:
    """What tells the files of an evaluation on other documents from those of the run's own, such as -data-book.txt."""
    given = getattr(evaluation, "data", "")
    return f"-data-{given_name(given)}" if given else ""


def with_labels(measures: list[Measure], more: dict[str, float | str]) -> list[Measure]:
    """Figures with more labels."""
    return [dataclasses.replace(one, labels={**one.labels, **more}) for one in measures]


def record_of(trained: Trained, saved: RunConfig, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """The record of an evaluation as JSON values: run, checkpoint, memory, settings, time, machine and versions."""
    return {
        "run": saved.name,
        "fingerprint": saved.fingerprint(),
        "step": trained.step,
        "origin": to_plain(saved.origin),
        "memory": {side: memory_record(model) for side, model in (("trained", saved.model), ("used", trained.run.model))},
        "task": evaluation.name,
        "settings": to_plain(evaluation),
        **environment(),
        "seconds": seconds,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def memory_record(model: ModelConfig) -> dict[str, Any]:
    """Settings and bytes per sequence of a model's memory as JSON values."""
    return {**to_plain(model.memory), "bytes": model.memory_bytes}


Found = tuple[list[Measure], list[Table], dict[str, Any]]  # figures, what is shown of them, what else is written


def read_documents(evaluation: LanguageEvaluation, trained: Trained) -> Found:
    """The perplexity of held-out documents as tables, figures and JSON values, with the loss of each document."""
    title = f"{trained.run.name}, step {trained.step}, {given_name(evaluation.data) if evaluation.data else evaluation.split}"
    reader = evaluation.reader(trained.run)
    with reading_progress(title, reader.tokens, terminal(stderr=True)) as watch:
        found = reader.read(trained.params, lambda done: watch(done, done))
    details = {"split": evaluation.split, "corpus": reader.described, **found.to_plain()}
    tell_window(trained.run.model, int(reader.lengths_D[0]))
    return evaluation.figures_of(trained.run, found), [figures_table(found, title), position_table(found)], details


def ask(evaluation: Evaluation, trained: Trained) -> Found:
    """The figures of a task other than perplexity, as tables, figures and JSON values."""
    title = f"{trained.run.name}, step {trained.step}, {evaluation.name}"
    with evaluation_progress(title, terminal(stderr=True)) as watch:
        measures = evaluation.measure(Subject(trained.run, trained.params), watch)
    return measures, measure_tables(measures, title), {"measures": list(map(dataclasses.asdict, measures))}


def write_record(record: dict[str, Any], file: Path) -> None:
    """Writes a record to a file at once or not at all. Raises `ConfigError` where there can be no such file."""
    try:
        write_json(record, file, indent=1)
    except OSError as error:
        raise ConfigError("output", f"{file}: {error.strerror}", "give a file that can be written with --output") from error
