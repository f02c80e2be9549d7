"""Why did replications of Infini-attention fail to use its memory: gates, rollouts, updates or segments?

Two published replications disagree with the paper and with each other. Hugging Face's (2024, a Llama 3 8B, contexts of 1024
in segments of 64) saw 95 % of the gates stay at 0.5 until they had a rate of 0.01 of their own and no decay, and its memory
did not find the needle even then. arXiv 2512.23862 (300M) gained 31 % at 16K, less the more often the memory was rewritten.
Each varied one thing at a time; here every level of every factor meets every level of the others.

Command:   infini-jax study infini_factors --scale cpu         (or smoke, accelerator)
Cost:      cpu 540 runs and 8.6e13 FLOPs, accelerator 324 runs and 9.7e16. Neither was run yet; `--dry-run` counts both.
Expected:  longer rollouts and longer segments raise recall most, as both decide how many compressions a gradient sees. The
           gate's own rate moves the gate and not what is recalled. Decay of the gate does nothing at these rates. The delta
           rule is behind the sum.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.evals.gates import GateEvaluation
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.memory.infini import InfiniConfig
from infini_jax.study import Study
from infini_jax.study.comparison import ONE_LAYER, SMOKE, SMOKE_STEPS, SMOKE_TRAIN, at_ceiling, at_window, with_memory
from infini_jax.study.factors import Design, Factor
from infini_jax.study.trials import seeded, trials

Update = Literal["linear", "delta"]


@dataclasses.dataclass(frozen=True)
class Factors:
    """The levels of every factor at one scale.

    Attributes:
      base: settings of all runs.
      gate_rates: learning rates of the gates, as multiples of the others'.
      gate_decays: weight decays of the gates.
      rollouts: numbers of segments that gradients flow through; 0 is all of a sequence.
      updates: update rules.
      segments: tokens of a segment.
      rates: learning rates, of which validation chooses.
      seeds: number of seeds.
    """

    base: RunConfig
    gate_rates: tuple[float, ...]
    gate_decays: tuple[float, ...]
    rollouts: tuple[int, ...]
    updates: tuple[Update, ...]
    segments: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int

    def runs(self) -> Iterator[RunConfig]:
        """Every level of every factor with every level of the others, and the window and full attention per segment length."""
        for segment in self.segments:
            base = dataclasses.replace(self.base, model=dataclasses.replace(self.base.model, segment=segment))
            for point in (at_window(base, 8), at_ceiling(base, base.train.sequence)):
                yield from self._trials(named(point, f"s{segment}"), 1.0)
            for update, rollout, decay, times in itertools.product(
                self.updates, self.rollouts, self.gate_decays, self.gate_rates
            ):
                train = dataclasses.replace(base.train, bptt=rollout, gate_weight_decay=decay)
                point = dataclasses.replace(with_memory(base, InfiniConfig(update=update)), train=train)
                names = (update, f"s{segment}", f"roll{rollout or 'all'}", f"decay{decay:g}", f"gate{times:g}x")
                yield from self._trials(named(point, *names), times)

    def _trials(self, point: RunConfig, times: float) -> Iterator[RunConfig]:
        """The runs of a point: each seed at each rate, the gates at `times` the rate of the rest."""
        for run in (run for one in seeded(point, self.seeds) for run in trials(one, self.rates)):
            train = dataclasses.replace(run.train, gate_learning_rate=times * run.train.learning_rate)
            yield dataclasses.replace(run, train=train)


def named(run: RunConfig, *names: str) -> RunConfig:
    """The run with `names` in its name, and as its variant."""
    return dataclasses.replace(run, name="-".join((run.name, *names)), variant=" ".join(names))


SCALES = {
    "smoke": Factors(
        RunConfig(
            model=dataclasses.replace(SMOKE, vocab=32),
            data=MqarConfig(pairs=8, symbols=32),
            train=dataclasses.replace(SMOKE_TRAIN, sequence=48),
            budget=Budget("steps", SMOKE_STEPS),
        ),
        gate_rates=(1.0,),
        gate_decays=(0.0, 0.1),
        rollouts=(1, 0),
        updates=("linear",),
        segments=(16,),
        rates=(1e-2,),
        seeds=1,
    ),
    "cpu": Factors(
        RunConfig(
            model=dataclasses.replace(ONE_LAYER, vocab=64),
            data=MqarConfig(pairs=16, symbols=64, repeats=2),
            train=TrainConfig(batch=8, sequence=96, evaluation_steps=16),
            budget=Budget("flops", 1.6e11),
        ),
        gate_rates=(1.0, 10.0),
        gate_decays=(0.0, 0.1),
        rollouts=(2, 0),
        updates=("linear", "delta"),
        segments=(8, 32),
        rates=(3e-3, 1e-2, 3e-2),
        seeds=5,
    ),
    "accelerator": Factors(
        RunConfig(
            model=ModelConfig(layers=4, d_model=256, heads=4, segment=64, key_taps=2, vocab=1024),
            data=MqarConfig(pairs=64, symbols=1024),
            train=TrainConfig(batch=32, sequence=1024, evaluation_steps=16),
            budget=Budget("flops", 3e14),
        ),
        gate_rates=(1.0, 10.0),
        gate_decays=(0.0, 0.1),
        rollouts=(4, 0),
        updates=("linear", "delta"),
        segments=(64, 256),
        rates=(3e-4, 1e-3, 3e-3),
        seeds=3,
    ),
}

DESIGN = Design(
    (
        Factor("segment", "model.segment"),
        Factor("update", "model.memory.update"),
        Factor("rollout (0: all segments)", "train.bptt"),
        Factor("gate decay", "train.gate_weight_decay"),
        Factor("gate rate", "train.gate_learning_rate", per="train.learning_rate"),
    ),
    tolerance=0.03,  # a share
)


def study(scale: str) -> Study:
    """The factorial design, between the window and full attention."""
    found = SCALES[scale]
    budget = found.base.budget
    return Study(
        name="infini_factors",
        question="Which of gate rate, gate decay, rollout, update and segment decides whether the memory is used?",
        runs=tuple(found.runs()),
        held_equal=(
            ("training", f"{budget.amount:.2g} {budget.unit}, as many tokens per step"),
            ("memory", "Infini-attention of the model's own key dimension"),
            ("learning rates", f"{', '.join(f'{rate:g}' for rate in found.rates)}, chosen on validation"),
        ),
        evaluations=(MqarEvaluation(), GateEvaluation()),
        design=DESIGN,
    )
