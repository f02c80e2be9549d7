"""Does reading a long prompt need more memory or time the longer it gets?

Command:   python -m benchmarks.prompt                      (infini; --mechanisms infini landmark memorizing, or all)
Measured:  resident memory of the process at each doubling of the prompt; tokens per second of the stretch since the last one,
           and CPU time per token, which other programs on the machine disturb less.
           Then the time of segments behind the whole prompt over that behind 64K tokens, taken in turns: what tells on a busy
           machine.
Expected:  memory does not grow from 64K tokens on, and the ratio is 1 within a tenth.

The model is small and untrained and the tokens are drawn piece by piece, as a prompt file is read. Each mechanism has a
process of its own, so that none inherits another's memory. Caches hold 512 tokens.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Program, interleaved, machine
from infini_jax.config import ModelConfig
from infini_jax.memory import MECHANISMS
from infini_jax.model.generate import read_prompt, read_segment
from infini_jax.model.stream import Carry, init_params

FIRST, PIECE, SLOTS = 64 * 1024, 10_000, 512
SEGMENTS, ROUNDS = 32, 31


def resident_bytes() -> int:
    """Of this process, now: what /proc tells, not the peak."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def model_of(name: str, segment: int) -> ModelConfig:
    """d_model 64, two layers; caches hold `SLOTS` tokens, or their mechanism's own default where it is no cache."""
    config = MECHANISMS[name].Config()
    if "slots" in {field.name for field in dataclasses.fields(config)}:
        config = dataclasses.replace(config, slots=SLOTS)
    return ModelConfig(memory=config, vocab=256, layers=2, d_model=64, heads=2, segment=segment)


def pieces(tokens: int, vocab: int) -> Iterator[np.ndarray]:
    """A prompt of so many tokens, made as it is read."""
    random = np.random.default_rng(0)
    for begin in range(0, tokens, PIECE):
        yield random.integers(0, vocab, min(PIECE, tokens - begin))


def measure(name: str, longest: int, segment: int) -> None:
    """Prints a line at each doubling."""
    model = model_of(name, segment)
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    read_prompt(model, params, pieces(3 * segment + 1, model.vocab))  # compiles
    marks = [FIRST * 2**power for power in range(64) if FIRST * 2**power <= longest]
    before, began, began_cpu = 0, time.perf_counter(), time.process_time()

    def watch(done: int) -> None:
        nonlocal before, began, began_cpu
        if marks and done >= marks[0]:
            marks.pop(0)
            now, cpu, tokens = time.perf_counter(), time.process_time(), done - before
            figures = (
                f"{done:>10,} tokens",
                f"{resident_bytes() / 2**20:8.1f} MiB",
                f"{tokens / (now - began):>9,.0f} tokens/s",
                f"{1e6 * (cpu - began_cpu) / tokens:6.2f} CPU us a token",
            )
            print(f"{name:16}", *figures, flush=True)
            before, began, began_cpu = done, now, cpu

    far = read_prompt(model, params, pieces(longest, model.vocab), watch)[0].carry
    near = read_prompt(model, params, pieces(FIRST, model.vocab))[0].carry
    times = interleaved({"far": reading(model, params, far), "near": reading(model, params, near)}, ROUNDS)
    middle, lower, upper = times.ratio("far", "near")
    print(f"{name:16} behind {longest:,} / {FIRST:,} tokens: {middle:.3f} ({lower:.3f}-{upper:.3f}), {times.clean} rounds")


def reading(model: ModelConfig, params: dict, carry: Carry) -> Program:
    """Goes on behind `carry` by `SEGMENTS` segments at each call."""
    tokens_1xS = jnp.zeros((1, model.segment), jnp.int32)

    def run() -> None:
        nonlocal carry
        for _ in range(SEGMENTS):
            carry, logits_1xV = read_segment(model, params, carry, tokens_1xS)
        jax.block_until_ready((carry, logits_1xV))

    return Program(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mechanisms", nargs="+", choices=[*MECHANISMS, "all"], default=["infini"])
    parser.add_argument("--tokens", type=int, default=2**20, help="of the longest prompt")
    parser.add_argument("--segment", type=int, default=256)
    parser.add_argument("--here", action="store_true", help="in this process: one mechanism")
    chosen = parser.parse_args()
    if chosen.here:
        measure(chosen.mechanisms[0], chosen.tokens, chosen.segment)
        return
    print(machine(), flush=True)
    for name in MECHANISMS if "all" in chosen.mechanisms else chosen.mechanisms:
        sizes = ["--tokens", str(chosen.tokens), "--segment", str(chosen.segment)]
        subprocess.run([sys.executable, "-m", "benchmarks.prompt", "--here", "--mechanisms", name, *sizes], check=True)


if __name__ == "__main__":
    main()
