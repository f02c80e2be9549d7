"""Speed of whole models: a training step's forward and backward pass with each mechanism, against the sliding window's.

Command:  python -m benchmarks.models                     (about ten minutes on two free cores)
Prints the machine, then for each mechanism tokens/s, the ratio to `local` (median and quartiles of the rounds' ratios), the
same with all segments of a step taken at once where that has a form of its own, temporary memory per device, and at the
default sizes what public code reached (PyTorch, on another two-core machine: compare the ratios, not the numbers).
"""

import dataclasses
from typing import Literal

import jax
import tyro

from benchmarks.timing import Program, interleaved, machine
from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import batch_sharding, carry_sharding, layout_of, replicated, use_cores
from infini_jax.errors import require, suggestion
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.compressive import CompressiveConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.infinite_former.mechanism import InfiniteFormerConfig
from infini_jax.memory.landmark.mechanism import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.model.stream import init_carry, init_params
from infini_jax.training.gradient import gradient_function
from infini_jax.training.program import rows_of
from infini_jax.units import human_bytes


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes that public PyTorch code was measured at; it computed in float32."""

    d_model: int = 256
    heads: int = 8
    layers: int = 4
    segment: int = 256
    tokens: int = 2048
    batch: int = 2
    compute: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 9
    only: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """Attributes: memory settings; public, tokens/s of public code, forward and backward, None where none was run."""

    memory: MemoryConfig
    public: int | None = None


CASES = {
    "local": Case(LocalConfig(window=256)),
    "transformer_xl": Case(TransformerXLConfig(slots=256), 3500),
    "transformer_xl relative": Case(TransformerXLConfig(slots=256, positions="relative"), 3500),
    "full": Case(FullConfig(slots=2048), 4900),
    "compressive": Case(CompressiveConfig(slots=256, compressed=256), 3700),
    "infini linear": Case(InfiniConfig(), 6400),
    "infini delta": Case(InfiniConfig(update="delta"), 6400),
    "gated_delta": Case(GatedDeltaConfig()),
    "memorizing, one layer": Case(MemorizingConfig(slots=8192, layers=(3,)), 3900),
    "landmark": Case(LandmarkConfig(block=64, blocks=32, retrieved=2), 2600),
    "infinite_former": Case(InfiniteFormerConfig(), 1400),
}


def chosen_cases(only: tuple[str, ...]) -> dict[str, Case]:
    """The cases of these names, or all of them. Raises `ConfigError` for a name that is none."""
    for name in only:
        require(name in CASES, "only", f"'{name}' is not known", suggestion(name, CASES))
    return {name: case for name, case in CASES.items() if not only or name in only}


def run_of(case: Case, sizes: Sizes, segments_per_step: int) -> RunConfig:
    model = ModelConfig(
        memory=case.memory,
        vocab=256,
        layers=sizes.layers,
        d_model=sizes.d_model,
        heads=sizes.heads,
        segment=sizes.segment,
        compute=sizes.compute,
    )
    train = TrainConfig(batch=sizes.batch, sequence=sizes.tokens, segments_per_step=segments_per_step)
    return RunConfig(name="benchmark", model=model, data=MqarConfig(pairs=64, symbols=256), train=train)


def program_of(run: RunConfig) -> Program:
    """Loss and gradients of one batch, as `train` takes them, without the optimizer."""
    batch = run.data.open(rows_of(run, "train")).batch(0)
    params = jax.jit(lambda: init_params(run.model, jax.random.key(0)))()

    layout = layout_of(run)
    carry = jax.device_put(init_carry(run.model, run.train.batch), carry_sharding(run.model, layout.mesh))
    batch = jax.device_put(batch, batch_sharding(layout.mesh))
    params = jax.device_put(params, replicated(layout.mesh))
    return Program.of(gradient_function(run, layout), params, carry, batch)


def main(sizes: Sizes) -> None:
    """Times every case."""
    use_cores(sizes.batch)
    print(machine())
    print(sizes)
    cases = {"local": CASES["local"]} | chosen_cases(sizes.only)
    comparable = dataclasses.replace(sizes, rounds=0, only=()) == Sizes(rounds=0)
    together = sizes.tokens // sizes.segment
    programs = {}
    for name, case in cases.items():
        for count in (1, together):
            programs[f"{name}/{count}"] = program_of(run_of(case, sizes, count))
    times = interleaved(programs, sizes.rounds)
    print(f"{times.clean} clean rounds of {times.rounds}")
    print(f"{'mechanism':24}{'tokens/s':>9} {'of local':>18} {'temporary':>10}", end="")
    print(f" {f'{together} at once':>10} {'temporary':>10} {'public':>7}")
    for name, case in cases.items():
        one, all_ = f"{name}/1", f"{name}/{together}"
        rate, rate_all = (sizes.batch * sizes.tokens / times.median(key) for key in (one, all_))
        middle, lower, upper = times.ratio("local/1", one)
        spare, spare_all = (human_bytes(programs[key].temporary) for key in (one, all_))
        share = f"{middle:.2f} ({lower:.2f}-{upper:.2f})"
        public = (comparable and case.public) or "-"
        print(f"{name:24}{rate:>9.0f} {share:>18} {spare:>10} {rate_all:>10.0f} {spare_all:>10} {public:>7}")


if __name__ == "__main__":
    main(tyro.cli(Sizes))
