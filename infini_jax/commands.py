"""What `infini-jax evaluate` and `infini-jax generate` do: they read a run and change nothing of it."""

import dataclasses
import datetime
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from infini_jax.data.base import Split
from infini_jax.errors import ConfigError, require
from infini_jax.evals.perplexity import Perplexity, Reader
from infini_jax.evals.settings import CONDITIONS, Condition, EvaluationConfig
from infini_jax.generate import Sampling, continuation, read_prompt
from infini_jax.progress import reading_progress
from infini_jax.prompt import PromptTokens, read_text
from infini_jax.run import environment
from infini_jax.sharding import use_cores
from infini_jax.trained import Trained, saved_config, tokenizer_of

EVALUATION_FILE = "evaluation.json"


def evaluate(
    run: tyro.conf.Positional[Path],
    step: int | None = None,
    split: Split = "validation",
    documents: int = 0,
    tokens: int = 0,
    rows: int = 8,
    conditions: tuple[Condition, ...] = CONDITIONS,
    output: Path | None = None,
) -> None:
    """Streaming perplexity of a run over whole held-out documents: memory carried, reset, and of another document.

    Example: `infini-jax evaluate results/runs/run --documents 20`

    Args:
      run: the folder that `infini-jax train` left.
      step: of the checkpoint; by default the newest.
      split: whose documents are read.
      documents: so many, spread evenly over the split; 0 is all.
      tokens: of a document, from its first on; 0 is all.
      rows: documents that are read side by side.
      conditions: of the memory; each one costs as much again.
      output: file that gets the figures as JSON; by default evaluation.json in the run's folder.
    """
    settings = EvaluationConfig(documents, tokens, rows, conditions)
    config = saved_config(run)
    found = config.data.whole(split)
    require(found is not None, "run", f"its task {config.task} has no documents", "choose a run on a corpus")
    reader = Reader(config.model, *found, settings)
    use_cores(reader.rows)
    trained, began = Trained.open(run, step), time.perf_counter()
    with reading_progress(f"{split}, step {trained.step}", reader.tokens, Console(stderr=True)) as watch:
        perplexity = reader.read(trained.params, lambda done: watch(done, done))
    seconds = time.perf_counter() - began
    Console().print(figures_table(perplexity, f"{config.name}, step {trained.step}, {split}"), position_table(perplexity))
    record = {
        "run": config.name,
        "fingerprint": config.fingerprint(),
        "step": trained.step,
        "split": split,
        "corpus": found[0].described,
        "settings": dataclasses.asdict(settings),
        **environment(),
        "seconds": seconds,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **perplexity.to_plain(),
    }
    file = output or run / EVALUATION_FILE
    write_json(record, file)
    print(f"{file}: {perplexity.tokens / seconds:,.0f} tokens/s, compiling included")


def figures_table(found: Perplexity, title: str) -> Table:
    """A line a condition."""
    table = Table("memory", title=title, box=box.SIMPLE_HEAD)
    for name in ("nats a token", "word perplexity", "bits a byte"):
        table.add_column(name, justify="right")
    for condition in found.conditions:
        figures = found.figures(condition)
        numbers = (f"{figures['loss']:.4f}", f"{figures['word_perplexity']:.5g}", f"{figures['bits_per_byte']:.4f}")
        table.add_row(condition, *numbers)
    cut = f", {found.cut} of them cut" if found.cut else ""
    table.caption = f"{len(found.documents)} documents{cut}\n{found.tokens:,} tokens, accuracy {100 * found.accuracy:.2f} %"
    return table


def position_table(found: Perplexity) -> Table:
    """A line a range of places in the document."""
    table = Table(title="nats a token by place in the document", box=box.SIMPLE_HEAD)
    for name in ("from", "tokens", *found.conditions):
        table.add_column(name, justify="right")
    for place in found.by_position():
        losses = (f"{place[condition]:.4f}" for condition in found.conditions)
        table.add_row(f"{place['from']:,}", f"{place['tokens']:,}", *losses)
    return table


def write_json(record: dict[str, Any], file: Path) -> None:
    """At once or not at all. Raises `ConfigError` where there can be no such file."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(file)
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
    tokenizer, trained = tokenizer_of(saved_config(run)), Trained.open(run, step)
    size, done = prompt_file.stat().st_size if prompt_file and prompt_file.is_file() else None, [0, 0]
    with reading_progress("prompt", size, Console(stderr=True)) as watch:

        def watch_bytes(count: int) -> None:
            done[0] = count

        texts = read_text(prompt_file, watch_bytes) if prompt_file else iter([prompt])
        pieces = PromptTokens(tokenizer, texts)
        decoder, logits = read_prompt(trained.run.model, trained.params, pieces, lambda count: watch(done[0], count))
    sampling = Sampling(temperature, top_p, seed, tokenizer.vocab)
    new = itertools.islice(continuation(trained.run.model, trained.params, decoder, logits, sampling), tokens)
    for text in tokenizer.decode_each(new, pieces.begins_line):
        sys.stdout.write(text)
        sys.stdout.flush()
    print()
