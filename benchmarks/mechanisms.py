"""Speed of a training step of each mechanism against the sliding window's, interleaved in one process.

Command:  python -m benchmarks.mechanisms
Prints the machine, then tokens/s of forward + backward, the ratio to `local`, and the temporary memory of the program.
Every round times all mechanisms one after another; medians over rounds are shown with the range.
"""

import dataclasses
import statistics
import time

import jax
import tyro

from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.memory import MECHANISMS
from infini_jax.optimiser import make_optimiser
from infini_jax.run import environment
from infini_jax.train import init_state, make_step, rows_of
from infini_jax.units import human_bytes, human_count


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes that public PyTorch code was measured at."""

    d_model: int = 256
    heads: int = 8
    layers: int = 4
    segment: int = 256
    tokens: int = 2048
    batch: int = 2
    rounds: int = 7


def run_of(name: str, sizes: Sizes) -> RunConfig:
    """A run of the mechanism with its default memory."""
    model = ModelConfig(
        memory=MECHANISMS[name].Config(),
        vocab=256,
        layers=sizes.layers,
        d_model=sizes.d_model,
        heads=sizes.heads,
        segment=sizes.segment,
    )
    train = TrainConfig(batch=sizes.batch, sequence=sizes.tokens)
    return RunConfig(name=name, model=model, data=MqarConfig(pairs=64, symbols=256), train=train)


class Timed:
    """A compiled training step that keeps its own state."""

    def __init__(self, run: RunConfig):
        optimiser = make_optimiser(run.train, 100)
        self.run, self.batch = run, run.data.open(rows_of(run, "train")).batch(0)
        self.state = jax.jit(lambda: init_state(run, optimiser))()
        self.step = make_step(run, optimiser).lower(self.state, self.batch).compile()
        self.temporary = self.step.memory_analysis().temp_size_in_bytes

    def seconds(self) -> float:
        began = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.step(self.state, self.batch))
        return time.perf_counter() - began


def main(sizes: Sizes) -> None:
    """Times every registered mechanism."""
    steps = {name: Timed(run_of(name, sizes)) for name in MECHANISMS}
    for step in steps.values():
        step.seconds()
    times = {name: [] for name in steps}
    for _ in range(sizes.rounds):
        for name, step in steps.items():
            times[name].append(step.seconds())
    print(", ".join(f"{key} {value}" for key, value in environment().items()), sizes)
    floor = statistics.median(times["local"])
    print(f"{'mechanism':16} {'tokens/s':>9} {'of local':>9} {'range':>10} {'memory':>10} {'temporary':>10}")
    for name, step in steps.items():
        middle = statistics.median(times[name])
        rate = human_count(step.run.tokens_per_step / middle)
        spread = f"{min(times[name]) / middle:.2f}-{max(times[name]) / middle:.2f}"
        sizes_of = f"{human_bytes(step.run.model.memory_bytes):>10} {human_bytes(step.temporary):>10}"
        print(f"{name:16} {rate:>9} {floor / middle:>9.2f} {spread:>10} {sizes_of}")


if __name__ == "__main__":
    main(tyro.cli(Sizes))
