"""Sorting symbols by how often they occurred: does a mechanism count what is out of its window?

Command:   infini-jax study sorting --scale cpu                (or smoke, accelerator)
Cost:      cpu at least 306 runs and 2.1e14 FLOPs, hours of two cores; not run yet since it has a ladder and five seeds (30
           runs at the first budget: 7 min 48 s). accelerator 30 runs and 9e15 FLOPs: at least 40 minutes at the 5 TFLOP/s
           that width 256 reached on an H100, and 15 s per run to compile. It never ran to its end. `--dry-run` counts both.
Expected:  a sum over all tokens is what this task asks for, so memories that add or average (Infini-attention, the ∞-former)
           need few bytes for it, and those that keep single tokens count no more than they hold. Scores stand beside the
           ceilings of counting in a window and of knowing the true probabilities; near them nothing more can be learned.
"""

import dataclasses

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.sorting import SortingConfig
from infini_jax.evals.sorting import SortingEvaluation
from infini_jax.study import Study
from infini_jax.study.comparison import RATES, SMOKE, SMOKE_STEPS, SMOKE_TRAIN, Comparison
from infini_jax.study.ladder import Ladder

FEW, MANY = SortingConfig(symbols=8), SortingConfig(symbols=20)
TWO_LAYERS = ModelConfig(layers=2, d_model=64, heads=2, mlp_dim=128, segment=16, key_taps=2)  # counting, then sorting

SCALES = {
    "smoke": Comparison(
        RunConfig(
            model=dataclasses.replace(SMOKE, vocab=FEW.vocab),
            data=FEW,
            train=dataclasses.replace(SMOKE_TRAIN, sequence=48),
            budget=Budget("steps", SMOKE_STEPS),
        ),
        sizes=(4 << 10,),
        rates=RATES[:1],
        window=4,
        slots=48,
    ),
    "cpu": Comparison(
        RunConfig(
            model=dataclasses.replace(TWO_LAYERS, vocab=FEW.vocab),
            data=FEW,
            train=TrainConfig(batch=8, sequence=96, evaluation_steps=16),
            budget=Budget("flops", 4e11),
        ),
        sizes=(16 << 10,),
        rates=RATES,
        window=8,
        slots=384,
        seeds=5,
        ladder=Ladder((4e11, 1e12, 2.5e12), tolerance=0.03),
        growths=2,
    ),
    "accelerator": Comparison(
        RunConfig(
            model=ModelConfig(layers=3, d_model=128, heads=4, mlp_dim=512, segment=128, key_taps=2, vocab=MANY.vocab),
            data=MANY,
            train=TrainConfig(batch=32, sequence=1024, evaluation_steps=16),
            budget=Budget("flops", 3e14),
        ),
        sizes=(192 << 10,),
        rates=(3e-4, 1e-3, 3e-3),
        window=64,
        slots=4096,
    ),
}
ASKED = {
    "smoke": SortingEvaluation(lengths=(48,), windows=(16,), examples=8),
    "cpu": SortingEvaluation(lengths=(96, 192, 384), windows=(16, 32, 64), examples=48, rows=16),
    "accelerator": SortingEvaluation(lengths=(1024, 2048, 4096), windows=(128, 512, 1024), examples=64, rows=32),
}


def study(scale: str) -> Study:
    """Every mechanism at one size, trained at one length and asked at longer ones."""
    found = SCALES[scale]
    return Study(
        name="sorting",
        question="Does a mechanism count what is out of its window?",
        runs=found.runs(),
        held_equal=(*found.held_equal, ("bytes of memory", f"at most {found.sizes[0]} a sequence")),
        evaluations=(ASKED[scale],),
        ladder=found.ladder,
        rates=found.grids,
    )
