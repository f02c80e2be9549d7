"""Logits at scored places against logits at all places: whole training steps of MQAR, interleaved in one process.

Command:  python -m benchmarks.scored                     (about ten minutes on two free cores)
Prints the machine, then for each size and mechanism how many times as fast a step is with logits at scored places (median and
quartiles of the rounds' ratios), by wall time and by CPU time of all threads, and the bytes of temporary memory of both.
"""

import dataclasses
import time

import jax
import tyro

from benchmarks.timing import Program, interleaved, machine
from experiments.quick import RECALL
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.memory import MECHANISMS
from infini_jax.training.program import Training
from infini_jax.units import human_bytes


@dataclasses.dataclass(frozen=True)
class Everywhere(MqarConfig):
    """The same task with logits at all places."""

    def most_scored(self, tokens: int) -> int:
        return tokens


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes: rounds of each pair; steps of a program in a round; sizes and mechanisms that are measured."""

    rounds: int = 15
    steps: int = 4
    sizes: tuple[str, ...] = ("quick study", "vocabulary of 8192")
    mechanisms: tuple[str, ...] = ("local", "infini", "landmark")


SIZES = {
    "quick study": RECALL,
    "vocabulary of 8192": RunConfig(
        model=ModelConfig(layers=2, d_model=128, heads=1, mlp_dim=256, segment=64, key_taps=2, vocab=8192),
        data=MqarConfig(pairs=64, symbols=8192),
        train=TrainConfig(batch=4, sequence=256),
    ),
}


def program_of(run: RunConfig, steps: int) -> Program:
    """So many training steps on one device, each on the state that the one before left."""
    training = Training(run)
    state, batch = training.fresh(), jax.device_put(training.source.batch(0))
    step = training.step.lower(state, batch).compile()

    def several() -> None:
        nonlocal state
        for _ in range(steps):
            state, measured = step(state, batch)
        jax.block_until_ready((state, measured))

    return Program(several, step.memory_analysis().temp_size_in_bytes)


def pair_of(run: RunConfig, options: Options) -> dict[str, Program]:
    everywhere = Everywhere(**dataclasses.asdict(run.data))
    return {
        "scored": program_of(run, options.steps),
        "all": program_of(dataclasses.replace(run, data=everywhere), options.steps),
    }


def main(options: Options) -> None:
    """Measures every pair."""
    print(machine())
    print(f"{'size':20}{'mechanism':16}{'wall':>18} {'CPU time':>18} {'temporary: scored':>18} {'all':>10} clean rounds")
    for size in options.sizes:
        for name in options.mechanisms:
            model = dataclasses.replace(SIZES[size].model, memory=MECHANISMS[name].Config())
            pair = pair_of(dataclasses.replace(SIZES[size], model=model, budget=Budget("steps", 1000)), options)
            found = []
            for clock in (time.perf_counter, time.process_time):
                programs = {key: dataclasses.replace(program, clock=clock) for key, program in pair.items()}
                times = interleaved(programs, options.rounds)
                found.append("{:.2f} ({:.2f}-{:.2f})".format(*times.ratio("all", "scored")))
            bytes_of = [human_bytes(pair[key].temporary) for key in ("scored", "all")]
            print(f"{size:20}{name:16}{found[0]:>18} {found[1]:>18} {bytes_of[0]:>18} {bytes_of[1]:>10} {times.clean}")


if __name__ == "__main__":
    main(tyro.cli(Options))
