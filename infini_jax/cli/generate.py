"""`infini-jax generate`, which reads a prompt with a run, keeps what it remembers of it, and prints what follows."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import tyro

from infini_jax.cli.memory_options import AS_TRAINED, MemoryOptions, chosen_memory, opened_run, tell_window
from infini_jax.cli.output import terminal
from infini_jax.cli.progress import reading_progress
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import quoted, require, require_utf8, required
from infini_jax.model.generate import Sampling
from infini_jax.model.prompt import STANDARD_INPUT, read_text
from infini_jax.model.stopping import Stopping
from infini_jax.training.checkpoint import Which
from infini_jax.training.memory_file import check_new
from infini_jax.training.text_generator import TOKENS, TextGenerator, check_sampling
from infini_jax.training.trained import read_with, run_tokenizer, saved_config
from infini_jax.units import human_bytes


def generate(
    run: tyro.conf.Positional[Path],
    prompt_file: Path | None = None,
    prompt: str | None = None,
    tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    stop_token: str | None = None,
    memory_file: Annotated[Path | None, tyro.conf.arg(name="memory")] = None,
    save_memory: Path | None = None,
    memory: MemoryOptions = AS_TRAINED,
    step: Which = None,
) -> None:
    """Read a prompt of any length in constant memory and print its continuation.

    Examples: `infini-jax generate results/runs/run --prompt-file book.txt --tokens 500 --temperature 0.8 --top-p 0.95`,
    `infini-jax generate results/runs/run --prompt-file book.txt --save-memory book.memory`,
    `infini-jax generate results/runs/run --memory book.memory --prompt "It was a dark"`

    Args:
      run: folder of a run, as `infini-jax train` or `infini-jax import` writes it.
      prompt_file: file with the prompt, as UTF-8 text, read in chunks; - for standard input.
      prompt: prompt.
      tokens: maximum number of new tokens. Default: 200, or none with --save-memory.
      temperature: temperature of the softmax; 0 is greedy decoding.
      top_p: nucleus sampling threshold; 1 samples from all tokens.
      seed: seed of the sampling.
      stop: stop before this text; may be repeated.
      stop_token: stop before this token: its number, or end for the tokenizer's end-of-document token.
      memory_file: file written by --save-memory; the prompt continues from it. The file is not changed.
      save_memory: new file for the memory after the prompt, which any number of prompts may continue from.
      memory: memory settings to read the run with, such as more slots. Default: as trained.
      step: checkpoint, by step, or best for the lowest validation loss. Default: the newest.
    """
    require(prompt_file is None or prompt is None, "prompt", "there are two", "give either --prompt or --prompt-file")
    require(prompt_file is not None or prompt is not None, "prompt", "there is none", "give --prompt or --prompt-file")
    require_utf8("prompt", prompt or "", "give text, or a file with --prompt-file")
    sampling, wanted = Sampling(temperature, top_p, seed), (0 if save_memory else TOKENS) if tokens is None else tokens
    check_sampling(sampling, wanted)
    if save_memory:
        check_new(save_memory)
    saved = saved_config(run)
    config, tokenizer = read_with(saved, chosen_memory(saved, memory)), run_tokenizer(saved)
    generator = TextGenerator(opened_run(run, step, config), tokenizer)
    stopping = Stopping(stop, stop_token_of(stop_token, generator.tokenizer))
    stopping.check(generator.tokenizer.vocab)
    after = generator.load(memory_file) if memory_file else None
    with reading(prompt_file, prompt, lambda count: tell_window(config.model, count + wanted)) as (text, watch):
        if save_memory:
            found = generator.read(text, after, watch)
            generator.save(found, save_memory)
            new = generator.go_on(found, sampling, wanted, stopping, watch) if wanted else None
        else:
            found, new = None, generator.answer(text, after, sampling, wanted, stopping, watch)
    if save_memory and found:
        size = human_bytes(save_memory.stat().st_size)
        print(f"{save_memory}: {found.state.tokens:,} tokens are remembered in {size}", file=sys.stderr)
    if new is not None:
        print_each(new)


@contextlib.contextmanager
def reading(
    prompt_file: Path | None, prompt: str | None, tell: Callable[[int], None]
) -> Iterator[tuple[Iterable[str], Callable[[int], None]]]:
    """A context with the texts of a prompt, and a bar of them that is fed with numbers of tokens; `tell` gets the last one."""
    is_file = prompt_file is not None and prompt_file != STANDARD_INPUT and prompt_file.is_file()
    size, read, tokens = prompt_file.stat().st_size if prompt_file and is_file else None, 0, 0
    with reading_progress("prompt", size, terminal(stderr=True)) as show:

        def watch_bytes(count: int) -> None:
            nonlocal read
            read = count

        def watch_tokens(count: int) -> None:
            nonlocal tokens
            tokens = count
            show(read, count)

        yield read_text(prompt_file, watch_bytes) if prompt_file else [prompt or ""], watch_tokens
    tell(tokens)


def stop_token_of(text: str | None, tokenizer: Tokenizer) -> int | None:
    """The token of --stop-token; None where none is given. Raises `ConfigError` where there is no such token."""
    if text is None:
        return None
    if text == "end":
        problem = f"the tokenizer {tokenizer.name} declares no end of a document"
        return required(tokenizer.end, "stop_token", problem, "give the number of a token, or a text with --stop")
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    require(is_number, "stop_token", f"'{quoted(text)}' is not a token", "give its number, or end")
    return int(text)


def print_each(texts: Iterator[str]) -> None:
    """Prints texts as they come, and a line end behind the last."""
    for text in texts:
        sys.stdout.write(text)
        sys.stdout.flush()
    print()
