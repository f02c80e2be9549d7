"""Multi-query associative recall: how many pairs does each mechanism recall with how many bytes, at the same training FLOPs?

Command:   infini-jax study mqar_pareto --scale cpu            (or smoke, accelerator)
Cost:      cpu at least 846 runs and 2.4e14 FLOPs, hours of two cores. Of its parts gated_delta and infini have run to their
           second rung (218 runs, 6.2e13 FLOPs: 41 minutes on one core). `--only MECHANISM` does a part. accelerator 54 runs
           and 1.1e16 FLOPs: at least 50 minutes at the 5 TFLOP/s that width 256 reached on an H100, and 15 s per run to
           compile. It never ran to its end. `--dry-run` counts both.
Expected:  full attention answers all that it was trained on and the window guesses, else task or training is wrong. Slots
           recall no more pairs than they hold, but exactly; matrices recall several times more a byte. Keys that are written
           again with another value, which no model was trained on, tell update rules that replace from those that add.
"""

import dataclasses

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.study import Study
from infini_jax.study.comparison import ONE_LAYER, RATES, SMOKE, SMOKE_STEPS, SMOKE_TRAIN, Comparison
from infini_jax.study.ladder import Ladder

SCALES = {
    "smoke": Comparison(
        RunConfig(
            model=dataclasses.replace(SMOKE, vocab=32),
            data=MqarConfig(pairs=8, symbols=32),
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
            model=dataclasses.replace(ONE_LAYER, vocab=128),
            data=MqarConfig(pairs=32, symbols=128),
            train=TrainConfig(batch=8, sequence=112, evaluation_steps=16),
            budget=Budget("flops", 1.6e11),
        ),
        sizes=(5 << 10, 16 << 10, 48 << 10),
        rates=RATES,
        window=8,
        slots=112,
        seeds=5,
        ladder=Ladder((1.6e11, 4e11, 1e12), tolerance=0.03),
        growths=2,
    ),
    "accelerator": Comparison(
        RunConfig(
            model=ModelConfig(layers=2, d_model=128, heads=1, mlp_dim=256, segment=64, key_taps=2, vocab=8192),
            data=MqarConfig(pairs=64, symbols=8192),
            train=TrainConfig(batch=64, sequence=256, evaluation_steps=16),
            budget=Budget("flops", 2e14),
        ),
        sizes=(20 << 10, 160 << 10),
        rates=(1e-3, 3e-3, 1e-2),
        window=16,
        slots=256,
    ),
}


def study(scale: str) -> Study:
    """Every mechanism at several sizes, asked for as many pairs as in training, for fewer, and with overwriting."""
    found = SCALES[scale]
    most, length = found.base.data.pairs, found.base.train.sequence
    asked = (most // 4, most // 2, most)
    return Study(
        name="mqar_pareto",
        question="How many pairs does each mechanism recall with how many bytes, at the same training FLOPs?",
        runs=found.runs(),
        held_equal=(*found.held_equal, ("pairs", f"{most} in training")),
        ladder=found.ladder,
        rates=found.grids,
        evaluations=(
            MqarEvaluation(lengths=(length,), pairs=asked, overwrites=(0,)),
            MqarEvaluation(lengths=(length,), pairs=(most // 2,), overwrites=(most // 4,)),
        ),
    )
