"""Budgets in seconds as optimizer steps: timed once on the device at hand, kept in the run's folder for every restart.

Schedules of the learning rate need the number of steps before the first one, so that a run cannot simply stop when its time
is up. Seconds are those of `Row.seconds`: training with its data, without compiling and without scoring held-out data.
"""

import dataclasses
import itertools
import time
from pathlib import Path

import jax

from infini_jax.config import Budget, RunConfig
from infini_jax.devices.processes import is_first, of_the_first
from infini_jax.devices.sharding import ROWS_ALONE, Sharding
from infini_jax.errors import LARGEST, ConfigError, require
from infini_jax.files import object_or_none
from infini_jax.records.folder import RunFolder
from infini_jax.training.loop import TIMED, Alone, Seat, Steps

FEW, MANY = 4, 256  # steps that are timed, at least and at most
SHARE = 0.05  # of the budget that timing may take where a few steps take less


def with_steps(run: RunConfig, folder: Path, sharding: Sharding = ROWS_ALONE) -> RunConfig:
    """The run with its budget of seconds as steps: those of an earlier call in `folder`, or timed now.

    A run with another budget is returned unchanged. Raises `ConfigError` where the seconds do not pay for one step.
    """
    if run.budget.unit != "seconds" or run.budget.steps:
        return run
    steps = of_the_first(kept_steps(run, folder) if is_first() else 0)
    if not steps:
        seconds = seconds_per_step(run, sharding)
        steps = of_the_first(min(int(run.budget.amount // seconds), LARGEST))
        require(
            steps >= 1,
            "budget.amount",
            f"{run.budget.amount:g} seconds do not pay for one step of {seconds:.3g} s on this device",
            "raise it, or lower train.batch or train.sequence",
        )
    return dataclasses.replace(run, budget=dataclasses.replace(run.budget, steps=steps))


def kept_steps(run: RunConfig, folder: Path) -> int:
    """The steps that config.json in `folder` has for the same run; 0 where there are none.

    Raises `ConfigError` where the file is damaged and there are checkpoints, which are of these steps.
    """
    place = RunFolder(folder)
    plain = object_or_none(place.config)
    if plain is None:
        is_saved = place.checkpoints.is_dir() and any(place.checkpoints.iterdir())
        mend = f"restore it, or delete it and {place.checkpoints} to begin the run again"
        require(
            not (place.config.exists() and is_saved),
            "run",
            f"{place.config} is damaged, and the steps that its seconds buy stood there",
            mend,
        )
        return 0
    try:
        kept = RunConfig.from_dict(plain)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return 0  # of another version: whoever reads checkpoints says more
    return kept.budget.steps if kept.fingerprint() == run.fingerprint() else 0


def seconds_per_step(run: RunConfig, sharding: Sharding) -> float:
    """Mean seconds of some training steps from a fresh state, after compiling and a first step; their results are dropped."""
    many = dataclasses.replace(run, budget=Budget("steps", MANY))  # its schedule costs the same whatever the number of steps
    seat = Alone(many, sharding)
    return seat.drive(timed_steps(seat, SHARE * run.budget.amount))


def timed_steps(seat: Seat, most_seconds: float) -> Steps[float]:
    """Steps as a run takes them, whose value is the mean of their seconds."""
    seat.take(seat.training.fresh())
    batches = seat.training.read(range(TIMED + FEW + MANY))

    def seconds_of(count: int) -> Steps[float]:
        began = time.perf_counter()
        while count:
            taken = list(itertools.islice(batches, min(count, seat.most)))
            yield taken
            count -= len(taken)
        jax.block_until_ready(seat.state)
        return time.perf_counter() - began

    yield from seconds_of(TIMED)
    roughly = (yield from seconds_of(FEW)) / FEW
    count = of_the_first(min(max(int(most_seconds / roughly), FEW), MANY))
    return (yield from seconds_of(count)) / count
