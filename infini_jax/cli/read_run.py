"""What `infini-jax evaluate` and `infini-jax generate` do: they read a run and change nothing of it."""

import dataclasses
import datetime
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from infini_jax.cli.evaluation_options import Options, chosen_evaluation
from infini_jax.cli.evaluation_tables import figures_table, measure_tables, position_table
from infini_jax.cli.output import AsJson, print_json
from infini_jax.cli.progress import evaluation_progress, reading_progress
from infini_jax.config.plain import to_plain
from infini_jax.devices.sharding import use_cores
from infini_jax.errors import ConfigError, require
from infini_jax.evals.base import Evaluation, Subject
from infini_jax.evals.language import LanguageEvaluation, language_measures
from infini_jax.files import write_at_once
from infini_jax.model.generate import Sampling, continuation, read_prompt
from infini_jax.model.prompt import PromptTokens, read_text
from infini_jax.records.environment import environment
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure, write_measures
from infini_jax.training.trained import Trained, run_tokenizer, saved_config

DEFAULTS = Options()


def evaluate(
    run: tyro.conf.Positional[Path],
    task: str = LanguageEvaluation.name,
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    step: int | None = None,
    output: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Measures a trained run on a task; by default the streaming perplexity of its held-out documents.

    Examples: `infini-jax evaluate results/runs/run --documents 20`,
    `infini-jax evaluate results/runs/run --task passkey --lengths 4k,64k,1m --depths 0,0.5,1`

    Args:
      run: the folder that `infini-jax train` left.
      task: what is asked, by its name in the registry of evaluations.
      options: settings of the task.
      step: of the checkpoint; by default the newest.
      output: file that gets the figures as JSON, with the same as Parquet beside it; by default evaluation.json (of other
        tasks evaluation-TASK.json) and measures/TASK.parquet in the run's folder.
      as_json: prints what the JSON file holds instead of tables.
    """
    evaluation, config = chosen_evaluation(task, options), saved_config(run)
    figures = output.with_suffix(".parquet") if output else RunFolder(run).measures_of(task)
    require(output != figures, "output", f"{output} is to be JSON", "give a name that ends in .json")
    evaluation.check(config)
    if rows := getattr(evaluation, "rows", 0):  # most read rows side by side
        use_cores(rows)
    trained, began = Trained.open(run, step), time.perf_counter()
    is_language = isinstance(evaluation, LanguageEvaluation)
    measures, tables, details = read_documents(evaluation, trained) if is_language else ask(evaluation, trained)
    seconds = time.perf_counter() - began
    file = output or RunFolder(run).evaluation("" if is_language else task)
    record = record_of(trained, evaluation, seconds) | details
    write_json(record, file)
    write_measures(config.name, measures, figures)
    if as_json:
        print_json(record)
        return
    Console().print(*tables)
    print(f"{file}: {evaluation.cost(config):.2g} FLOPs in {seconds:.1f} s, compiling included")


def record_of(trained: Trained, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """What was measured, of what, where and when, as JSON values."""
    return {
        "run": trained.run.name,
        "fingerprint": trained.run.fingerprint(),
        "step": trained.step,
        "task": evaluation.name,
        "settings": to_plain(evaluation),
        **environment(),
        "seconds": seconds,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


Found = tuple[list[Measure], list[Table], dict[str, Any]]  # figures, what is shown of them, what else is written


def read_documents(evaluation: LanguageEvaluation, trained: Trained) -> Found:
    """The perplexity, with what JSON holds beyond the figures: documents, and each one's loss."""
    title = f"{trained.run.name}, step {trained.step}, {evaluation.split}"
    reader = evaluation.reader(trained.run)
    with reading_progress(title, reader.tokens, Console(stderr=True)) as watch:
        found = reader.read(trained.params, lambda done: watch(done, done))
    details = {"split": evaluation.split, "corpus": reader.described, **found.to_plain()}
    return language_measures(found), [figures_table(found, title), position_table(found)], details


def ask(evaluation: Evaluation, trained: Trained) -> Found:
    """Any other task."""
    title = f"{trained.run.name}, step {trained.step}, {evaluation.name}"
    with evaluation_progress(title, Console(stderr=True)) as watch:
        measures = evaluation.measure(Subject(trained.run, trained.params), watch)
    return measures, measure_tables(measures, title), {"measures": [plain_measure(one) for one in measures]}


def plain_measure(one: Measure) -> dict[str, Any]:
    """A figure as JSON values, which have neither NaN nor infinity."""
    plain = dataclasses.asdict(one)
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in plain.items()}


def write_json(record: dict[str, Any], file: Path) -> None:
    """At once or not at all. Raises `ConfigError` where there can be no such file."""
    try:
        write_at_once(json.dumps(record, indent=1) + "\n", file)
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
    step: int | None = None,
) -> None:
    """Reads a prompt of any length at constant memory and prints what the model makes of it.

    Example: `infini-jax generate results/runs/run --prompt-file book.txt --tokens 500 --temperature 0.8 --top-p 0.95`

    Args:
      run: the folder that `infini-jax train` left.
      prompt_file: UTF-8 text, read in pieces.
      prompt: the text itself.
      tokens: to sample.
      temperature: of the draws; 0 takes the likeliest token.
      top_p: the likeliest tokens that have so much probability together may be drawn; 1 is all.
      seed: of the draws.
      step: of the checkpoint; by default the newest.
    """
    require((prompt_file is None) != (prompt is None), "prompt", "there must be one", "give --prompt-file or --prompt")
    is_text = prompt is None or all(not 0xD800 <= ord(character) < 0xE000 for character in prompt)
    require(is_text, "prompt", "it is no UTF-8", "give text, or a file with --prompt-file")
    require(tokens >= 0, "tokens", f"{tokens} is negative", "give 0 or more")
    Sampling(temperature, top_p, seed).check()
    tokenizer, trained = run_tokenizer(saved_config(run)), Trained.open(run, step)
    size, done = prompt_file.stat().st_size if prompt_file and prompt_file.is_file() else None, [0, 0]
    with reading_progress("prompt", size, Console(stderr=True)) as watch:

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
