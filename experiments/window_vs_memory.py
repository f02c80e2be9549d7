"""At equal FLOPs per token, is a larger local window worth more than a larger memory?

Command:   infini-jax study window_vs_memory --scale cpu       (or smoke, accelerator)
Cost:      cpu 48 runs in 9 min 41 s on two cores beside other work; accelerator 30 runs and 1.8e16 FLOPs:
           at least 70 minutes at the 5 TFLOP/s that width 256 reached on an H100, and 15 s per run to compile. It never
           ran to its end. `--dry-run` counts both.
Expected:  a best split between the two: little memory beside a long window beats the window alone, and once a memory takes
           most of the FLOPs what is near is no longer read well. Memories of few FLOPs per byte leave most for the window.
"""

import dataclasses

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import CARRIED, EvaluationConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.model.balance import fit_to_flops
from infini_jax.model.cost import run_cost
from infini_jax.study import Study
from infini_jax.study.comparison import AT_THE_END, RATES, SMOKE, SMOKE_STEPS, SMOKE_TRAIN, at_window, memories, with_memory
from infini_jax.study.trials import trials


@dataclasses.dataclass(frozen=True)
class Split:
    """The FLOPs of one token, shared between a window and memories of several sizes.

    Attributes:
      base: settings of all runs; its segment is that of the window alone.
      window: tokens of the window alone, whose FLOPs per token all runs get.
      sizes: bytes per sequence of the memories.
      names: names of the mechanisms; their segment is what is left for a window.
      rates: learning rates, of which validation chooses.
    """

    base: RunConfig
    window: int
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    rates: tuple[float, ...]

    @property
    def flops(self) -> float:
        """Training FLOPs per token of every run."""
        return run_cost(at_window(self.base, self.window)).training_flops

    def runs(self) -> tuple[RunConfig, ...]:
        """The runs of the window alone and of each memory at each size, all with the same FLOPs per token."""
        alone = fit_to_flops(at_window(self.base, self.window), self.flops, "window")
        shared = [
            fit_to_flops(with_memory(self.base, memory, f"{size // 1024}k", variant=variant), self.flops, "window", size)
            for variant, memory in memories(self.base.model.segment, *self.names)
            for size in self.sizes
        ]
        points = [alone, *(filled_up(run, self.flops) for run in shared)]
        return tuple(run for point in points for run in trials(point, self.rates))


def filled_up(run: RunConfig, flops: float) -> RunConfig:
    """The run with an MLP so much wider that it spends the FLOPs per token that are left.

    Segments are divisors of the sequence, too coarse a measure to spend them all.
    """

    def wider(more: int) -> RunConfig:
        return dataclasses.replace(run, model=dataclasses.replace(run.model, mlp_dim=run.model.mlp_dim + more))

    cost = run_cost(run).training_flops
    left, unit = flops - cost, run_cost(wider(1)).training_flops - cost
    return wider(int(left // unit))


MATRICES_AND_SLOTS = ("transformer_xl", "infini", "gated_delta", "memorizing")

# Sequences have many divisors, so that segments can be cut to the FLOPs.
SCALES = {
    "smoke": Split(
        RunConfig(
            model=dataclasses.replace(SMOKE, key_taps=1, vocab=256, segment=24),
            data=StdlibConfig(),
            train=dataclasses.replace(SMOKE_TRAIN, sequence=120),
            budget=Budget("steps", SMOKE_STEPS),
            evaluation=EvaluationConfig(documents=2, tokens=64, rows=2, conditions=(CARRIED,)),
        ),
        window=48,
        sizes=(4 << 10,),
        names=MATRICES_AND_SLOTS,
        rates=RATES[:1],
    ),
    "cpu": Split(
        RunConfig(
            model=ModelConfig(layers=1, d_model=64, heads=1, mlp_dim=128, segment=60, vocab=256),
            data=StdlibConfig(),
            train=TrainConfig(batch=4, sequence=840, evaluation_steps=1),
            budget=Budget("flops", 1.2e11),
            evaluation=AT_THE_END,
        ),
        window=240,
        sizes=(4 << 10, 12 << 10, 32 << 10),
        names=MATRICES_AND_SLOTS,
        rates=RATES,
    ),
    "accelerator": Split(
        RunConfig(
            model=ModelConfig(layers=4, d_model=256, heads=4, mlp_dim=1024, segment=360, vocab=256, compute="bfloat16"),
            data=StdlibConfig(),
            train=TrainConfig(batch=16, sequence=2520, evaluation_steps=1),
            budget=Budget("flops", 6e14),
            evaluation=dataclasses.replace(AT_THE_END, tokens=16_384),
        ),
        window=1080,
        sizes=(256 << 10, 512 << 10, 1 << 20),
        names=("infini", "memorizing"),
        rates=(1e-3, 3e-3, 1e-2),
    ),
}
READ = {
    "smoke": LanguageEvaluation(documents=2, tokens=64, rows=2),
    "cpu": LanguageEvaluation(documents=8, tokens=4096),
    "accelerator": LanguageEvaluation(documents=32, tokens=65_536, rows=32),
}


def study(scale: str) -> Study:
    """A window alone, and memories of several sizes with the window that their FLOPs leave."""
    found = SCALES[scale]
    budget, train = found.base.budget, found.base.train
    return Study(
        name="window_vs_memory",
        question="At equal FLOPs per token, is a larger local window worth more than a larger memory?",
        runs=found.runs(),
        held_equal=(
            ("FLOPs of a token", f"{found.flops:.3g} forward: the segment that fits beside the memory, the rest to the MLP"),
            ("training", f"{budget.amount:.2g} {budget.unit}, {train.batch} rows of {train.sequence} tokens per step"),
            ("learning rates", f"{', '.join(f'{rate:g}' for rate in found.rates)}, chosen on validation"),
        ),
        evaluations=(READ[scale],),
    )
