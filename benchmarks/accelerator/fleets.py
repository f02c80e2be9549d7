"""Speed of many runs in one program: steps of a fleet against those of one of its runs alone.

Command:  python -m benchmarks.accelerator.fleets --size study --mechanism infini --members 8
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np
import tyro

from benchmarks.accelerator.speed import SIZES, quartiles, run_of
from infini_jax.config import RunConfig
from infini_jax.devices.peaks import peak_flops
from infini_jax.errors import lookup
from infini_jax.files import json_text
from infini_jax.memory import MECHANISMS
from infini_jax.model.cost import training_flops_per_step
from infini_jax.records.environment import environment
from infini_jax.training.fleet import Fleet
from infini_jax.training.loop import Alone, Seat, Steps

WARM = 2  # steps that find buffers and choose kernels


def timed_steps(seat: Seat, rounds: int, steps: int) -> Steps[list[float]]:
    """Steps on one batch; their value are the seconds per step of each round."""
    seat.take(seat.training.fresh())
    batch, seconds = seat.training.source.batch(0), []
    for number in range(rounds + 1):
        began = time.perf_counter()
        for _ in range(steps if number else WARM):
            measured = yield [batch]
        np.asarray(measured["loss"])  # waits for the device
        seconds.append((time.perf_counter() - began) / steps)
    return seconds[1:]


def alone(run: RunConfig, rounds: int, steps: int) -> list[float]:
    """Seconds per step of a run alone, of each round."""
    seat = Alone(run)
    return seat.drive(timed_steps(seat, rounds, steps))


def together(runs: Sequence[RunConfig], rounds: int, steps: int) -> list[float]:
    """Seconds per step of all runs in one program, of each round. Raises what any of them raised."""
    fleet, found = Fleet(runs), dict[int, list[float] | Exception]()
    fleet.drive([timed_steps(seat, rounds, steps) for seat in fleet.seats], found.__setitem__)
    for result in found.values():
        if isinstance(result, Exception):
            raise result
    return [max(of_round) for of_round in zip(*found.values(), strict=True)]


def main(size: str, mechanism: str, members: int, rounds: int = 5, steps: int = 10) -> None:
    """Prints the speed of a fleet of a size's runs, which differ in seed and rate, and of one alone before and behind it."""
    of_size = lookup("size", size, SIZES)
    lookup("mechanism", mechanism, MECHANISMS)
    run = run_of(of_size, mechanism)
    rates = [dataclasses.replace(run.train, learning_rate=1e-3 / (1 + number % 4)) for number in range(members)]
    runs = [dataclasses.replace(run, name=f"speed-{seed}", seed=seed, train=train) for seed, train in enumerate(rates)]
    before, all_of_them, behind = alone(run, rounds, steps), together(runs, rounds, steps), alone(run, rounds, steps)
    seconds, one = quartiles(all_of_them), quartiles([*before, *behind])
    peak = peak_flops(jax.devices())
    found = {
        "size": size,
        "mechanism": mechanism,
        "members": members,
        "tokens": run.tokens_per_step,
        "seconds": seconds,
        "alone_seconds": one,
        "faster": [members * one[1] / of_all for of_all in reversed(seconds)],
        "mfu": members * training_flops_per_step(run) / statistics.median(all_of_them) / peak if peak else None,
        "alone_mfu": training_flops_per_step(run) / one[1] / peak if peak else None,
    }
    print(json_text(found | environment()))


if __name__ == "__main__":
    tyro.cli(main)
