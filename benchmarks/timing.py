"""Fair timings on a noisy machine: programs taken in turn in one process, medians and quartiles of ratios.

A sample that took more than `SPOILT` times its program's median is left out with its whole round, and the count of clean
rounds is printed: a round is spoilt when something else had the cores.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from infini_jax.records.environment import environment

SPOILT = 2.0


@dataclasses.dataclass
class Program:
    """A compiled function with its arguments.

    Attributes: temporary, bytes that XLA plans beside arguments and results; clock, wall time or CPU time in seconds.
    """

    run: Callable[[], Any]
    temporary: int | None = None
    clock: Callable[[], float] = time.perf_counter

    @staticmethod
    def of(function: Callable, *arguments: Any) -> "Program":
        compiled = jax.jit(function).lower(*arguments).compile()
        run = lambda: jax.block_until_ready(compiled(*arguments))  # noqa: E731
        return Program(run, compiled.memory_analysis().temp_size_in_bytes)

    def seconds(self) -> float:
        began = self.clock()
        self.run()
        return self.clock() - began


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each program in the clean rounds. Attributes: seconds, a list a program; rounds, how many were taken."""

    seconds: dict[str, list[float]]
    rounds: int

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float]:
        """How many times as fast `fast` is: (median, lower and upper quartile) of the rounds' ratios."""
        ratios = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        if len(ratios) < 2:
            return (ratios[0],) * 3
        lower, middle, upper = statistics.quantiles(ratios, n=4)
        return middle, lower, upper

    @property
    def clean(self) -> int:
        return len(next(iter(self.seconds.values())))


def interleaved(programs: dict[str, Program], rounds: int) -> Times:
    """Every round takes all programs, one after the other; the first round warms up and is not counted."""
    taken = [{name: program.seconds() for name, program in programs.items()} for _ in range(rounds + 1)][1:]
    usual = {name: statistics.median(one[name] for one in taken) for name in programs}
    clean = [one for one in taken if all(one[name] <= SPOILT * usual[name] for name in programs)]
    return Times({name: [one[name] for one in clean] for name in programs}, rounds)


def machine() -> str:
    """What the figures depend on, in one line; with torch installed, how much faster JAX's own matrix product is."""
    known = environment()
    allocator = os.environ.get("GLIBC_TUNABLES", "default")
    lines = [f"{known['device']}, Python {known['python']}, jax {known['jax']}", f"allocator {allocator}"]
    lines.append(f"{len(os.sched_getaffinity(0))} threads, load {os.getloadavg()[0]:.1f}")
    return ", ".join([*lines, f"matrix product JAX/torch {matmul_ratio()}"])


def matmul_ratio(size: int = 1024) -> str:
    """Speed of a float32 product in JAX over torch's, or why it is not known."""
    try:
        import torch
    except ImportError:
        return "not measured (no torch)"
    x, y = jnp.ones((size, size)), torch.ones(size, size)
    times = interleaved({"jax": Program.of(jnp.matmul, x, x), "torch": Program(lambda: y @ y)}, 9)
    return f"{times.ratio('torch', 'jax')[0]:.2f}"
