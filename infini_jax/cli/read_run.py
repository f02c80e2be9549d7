"""`infini-jax evaluate` and `infini-jax generate`, which read a run and change nothing of it."""

import dataclasses
import datetime
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from infini_jax.cli.evaluation_options import Options, chosen_evaluation
from infini_jax.cli.evaluation_tables import figures_table, measure_tables, position_table
from infini_jax.cli.memory_options import MemoryOptions, chosen_memory, labels, said, suffix
from infini_jax.cli.output import AsJson, print_json, terminal
from infini_jax.cli.progress import evaluation_progress, reading_progress
from infini_jax.config import ModelConfig, RunConfig
from infini_jax.config.plain import to_plain
from infini_jax.devices.sharding import use_cores
from infini_jax.errors import ConfigError, check_value, require, require_not_negative
from infini_jax.evals.base import Evaluation, Subject
from infini_jax.evals.language import LanguageEvaluation, language_measures
from infini_jax.files import write_json
from infini_jax.model.generate import Sampling, continuation, read_prompt
from infini_jax.model.prompt import PromptTokens, read_text
from infini_jax.records.environment import environment
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure, write_measures
from infini_jax.training.checkpoint import Which
from infini_jax.training.trained import Trained, read_with, run_tokenizer, saved_config

DEFAULTS, AS_TRAINED = Options(), MemoryOptions()


def evaluate(
    run: tyro.conf.Positional[Path],
    task: str = LanguageEvaluation.name,
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    memory: MemoryOptions = AS_TRAINED,
    step: Which = None,
    output: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Measures a trained run on a task; by default the streaming perplexity of its held-out documents.

    Examples: `infini-jax evaluate results/runs/run --documents 20`,
    `infini-jax evaluate results/runs/run --task passkey --lengths 4k,64k,1m --depths 0,0.5,1`

    Args:
      run: the folder that `infini-jax train` left.
      task: name of the task in the registry of evaluations.
      options: settings of the task.
      memory: settings of the memory with which the run is read, such as more slots; by default as it was trained.
      step: step of the checkpoint, or best for that of the lowest validation loss; by default the newest.
      output: file that gets the figures as JSON, with the same as Parquet beside it; by default evaluation.json (of other
        tasks evaluation-TASK.json) and measures/TASK.parquet in the run's folder; with another memory their names say it.
      as_json: prints the content of the JSON file instead of tables.
    """
    evaluation, saved = chosen_evaluation(task, options), saved_config(run)
    config = read_with(saved, chosen_memory(saved, memory))
    other = suffix(saved.model, config.model)
    figures = output.with_suffix(".parquet") if output else RunFolder(run).measures_of(task + other)
    require(output != figures, "output", f"{output} is to be JSON", "give a name that ends in .json")
    evaluation.check(config)
    if rows := getattr(evaluation, "rows", 0):  # most read rows side by side
        use_cores(rows)
    trained, began = opened(run, step, config), time.perf_counter()
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


def opened(folder: Path, step: Which, config: RunConfig) -> Trained:
    """A trained run, to be read with the memory in `config`; one line says where that is another than it was trained with."""
    trained = Trained.open(folder, step)
    if trained.run == config:
        return trained
    terminal(stderr=True).print(said(trained.run.model, config.model), highlight=False, soft_wrap=True)
    return trained.with_memory(config.model.memory)


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
    title = f"{trained.run.name}, step {trained.step}, {evaluation.split}"
    reader = evaluation.reader(trained.run)
    with reading_progress(title, reader.tokens, terminal(stderr=True)) as watch:
        found = reader.read(trained.params, lambda done: watch(done, done))
    details = {"split": evaluation.split, "corpus": reader.described, **found.to_plain()}
    return language_measures(found), [figures_table(found, title), position_table(found)], details


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


def generate(
    run: tyro.conf.Positional[Path],
    prompt_file: Path | None = None,
    prompt: str | None = None,
    tokens: int = 200,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    memory: MemoryOptions = AS_TRAINED,
    step: Which = None,
) -> None:
    """Reads a prompt of any length at constant memory and prints what the model makes of it.

    Example: `infini-jax generate results/runs/run --prompt-file book.txt --tokens 500 --temperature 0.8 --top-p 0.95`

    Args:
      run: the folder that `infini-jax train` left.
      prompt_file: file with the prompt, UTF-8 text that is read in pieces.
      prompt: the text of the prompt.
      tokens: number of tokens to sample.
      temperature: temperature of the softmax; 0 takes the likeliest token.
      top_p: probability mass of the likeliest tokens that may be drawn (nucleus sampling); 1 is all.
      seed: seed of the draws.
      memory: settings of the memory with which the run is read, such as more slots; by default as it was trained.
      step: step of the checkpoint, or best for that of the lowest validation loss; by default the newest.
    """
    require((prompt_file is None) != (prompt is None), "prompt", "there must be one", "give --prompt-file or --prompt")
    is_text = prompt is None or all(not 0xD800 <= ord(character) < 0xE000 for character in prompt)
    require(is_text, "prompt", "it is no UTF-8", "give text, or a file with --prompt-file")
    check_value("tokens", tokens, int)
    require_not_negative("", tokens=tokens)
    Sampling(temperature, top_p, seed).check()
    saved = saved_config(run)
    config, tokenizer = read_with(saved, chosen_memory(saved, memory)), run_tokenizer(saved)
    trained = opened(run, step, config)
    size, done = prompt_file.stat().st_size if prompt_file and prompt_file.is_file() else None, [0, 0]
    with reading_progress("prompt", size, terminal(stderr=True)) as watch:

        def watch_bytes(count: int) -> None:
            done[0] = count

        texts = read_text(prompt_file, watch_bytes) if prompt_file else iter([prompt or ""])
        pieces = PromptTokens(tokenizer, texts)
        decoder, logits = read_prompt(trained.run.model, trained.params, pieces, lambda count: watch(done[0], count))
    sampling = Sampling(temperature, top_p, seed, tokenizer.vocab)
    new = itertools.islice(continuation(trained.run.model, trained.params, decoder, logits, sampling), tokens)
    for text in tokenizer.decode_each(new, pieces.begins_line):
        sys.stdout.write(text)
        sys.stdout.flush()
    print()
