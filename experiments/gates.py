"""Gates: do their learning rate, weight decay and the number of segments of a sequence decide whether a memory is used?

Command:   infini-jax study gates --scale cpu                  (or smoke, accelerator)
Cost:      cpu 48 runs in 7 min 13 s on two cores beside other work; accelerator 48 runs and 2.9e15 FLOPs:
           at least 22 minutes at the 5 TFLOP/s that width 256 reached on an H100, and 15 s per run to compile. It never
           ran to its end. `--dry-run` counts both.
Expected:  at the common learning rate gates hardly leave 0.5 and memory is read as it was at first; a rate of their own, ten
           times as high, lets heads take sides. Sequences of few segments give the gate little to learn from.
"""

import dataclasses
import itertools

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.evals.gates import GateEvaluation
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.memory.infini import InfiniConfig
from infini_jax.study import Study
from infini_jax.study.comparison import ONE_LAYER, SMOKE, SMOKE_STEPS, SMOKE_TRAIN, at_ceiling, at_window, with_memory


@dataclasses.dataclass(frozen=True)
class Grid:
    """Infini-attention's gate under settings of its training.

    Attributes:
      base: settings of all runs; the number of segments sets the sequence, and the rows, so that tokens per step stay equal.
      gate_rates: learning rates of the gates.
      decays: weight decays of matrices.
      segments: numbers of segments per sequence, most of them filler between pairs and questions.
      rates: learning rates of all other parameters, of which validation chooses.
    """

    base: RunConfig
    gate_rates: tuple[float, ...]
    decays: tuple[float, ...]
    segments: tuple[int, ...]
    rates: tuple[float, ...]

    def runs(self) -> tuple[RunConfig, ...]:
        """The runs of every combination, with the window and full attention at the same lengths."""
        found = []
        for segments, rate in itertools.product(self.segments, self.rates):
            base = self.at_length(segments).with_learning_rate(rate)
            names = (f"{segments}segments", f"lr{rate:g}")
            found += [
                named(at_window(base, base.model.segment // 2), *names),
                named(at_ceiling(base, base.train.sequence), *names),
            ]
            found += [gated(base, gate, decay, *names) for gate, decay in itertools.product(self.gate_rates, self.decays)]
        return tuple(found)

    def at_length(self, segments: int) -> RunConfig:
        """`base` with sequences of so many segments, and rows so that a step has as many tokens."""
        train, sequence = self.base.train, segments * self.base.model.segment
        rows = max(1, train.batch * train.sequence // sequence)
        return dataclasses.replace(self.base, train=dataclasses.replace(train, batch=rows, sequence=sequence))


def gated(base: RunConfig, gate: float, decay: float, *names: str) -> RunConfig:
    """Infini-attention with another learning rate of its gates and another weight decay of its matrices."""
    train = dataclasses.replace(base.train, gate_learning_rate=gate, weight_decay=decay)
    return named(
        dataclasses.replace(with_memory(base, InfiniConfig()), train=train), f"gate{gate:g}", f"decay{decay:g}", *names
    )


def named(run: RunConfig, *names: str) -> RunConfig:
    """The run with `names` in its name and, but for the last one, as its variant.

    The last one is the learning rate, which is a trial and not a variant.
    """
    return dataclasses.replace(run, name="-".join((run.name, *names)), variant=" ".join(names[:-1]))


SCALES = {
    "smoke": Grid(
        RunConfig(
            model=dataclasses.replace(SMOKE, vocab=32),
            data=MqarConfig(pairs=8, symbols=32),
            train=dataclasses.replace(SMOKE_TRAIN, sequence=48),
            budget=Budget("steps", SMOKE_STEPS),
        ),
        gate_rates=(1e-2,),
        decays=(0.1,),
        segments=(3, 6),
        rates=(1e-2,),
    ),
    "cpu": Grid(
        RunConfig(
            model=dataclasses.replace(ONE_LAYER, vocab=64),
            data=MqarConfig(pairs=16, symbols=64, repeats=2),
            train=TrainConfig(batch=8, sequence=80, evaluation_steps=16),
            budget=Budget("flops", 1e11),
        ),
        gate_rates=(1e-3, 1e-2, 1e-1),
        decays=(0.0, 0.1),
        segments=(5, 20),
        rates=(5e-3, 1e-2, 2e-2),
    ),
    "accelerator": Grid(
        RunConfig(
            model=ModelConfig(layers=2, d_model=128, heads=4, mlp_dim=256, segment=64, key_taps=2, vocab=1024),
            data=MqarConfig(pairs=64, symbols=1024),
            train=TrainConfig(batch=64, sequence=256, evaluation_steps=16),
            budget=Budget("flops", 6e13),
        ),
        gate_rates=(1e-3, 1e-2, 1e-1),
        decays=(0.0, 0.1),
        segments=(4, 16),
        rates=(1e-3, 3e-3, 1e-2),
    ),
}


def study(scale: str) -> Study:
    """Every combination, and beside it the window and full attention at the same lengths."""
    found = SCALES[scale]
    return Study(
        name="gates",
        question="Do gate learning rate, weight decay and segments of a sequence decide whether a memory is used?",
        runs=found.runs(),
        held_equal=(
            ("training", f"{found.base.budget.amount:.2g} {found.base.budget.unit}, as many tokens per step"),
            ("memory", "Infini-attention, linear update, of the model's own key dimension"),
            ("learning rates", f"{', '.join(f'{rate:g}' for rate in found.rates)}, chosen on validation"),
        ),
        evaluations=(MqarEvaluation(), GateEvaluation()),
    )
