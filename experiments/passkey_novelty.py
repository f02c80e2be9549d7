"""Passkey: is a number in filler harder to keep the longer the filler is, or the more different words it has?

Command:   infini-jax study passkey_novelty --scale cpu        (or smoke, accelerator)
Cost:      cpu at least 1260 runs and 4.4e14 FLOPs, hours of two cores; not run yet since it has a ladder, five sizes and five
           seeds (one size and two seeds at the first budget, 60 runs: 6 min 28 s). `--only MECHANISM` does a part. accelerator
           54 runs and 5.4e15 FLOPs: at least 30 minutes at the 5 TFLOP/s that width 256 reached on an H100, and 15 s per run
           to compile. It never ran to its end. `--dry-run` counts both.
Expected:  full attention finds the number wherever its filler fits and the window never. A memory that only adds loses it with
           the length. One that overwrites what its keys point at loses it with the number K of different words, once K is
           near its key dimension, whatever the length: the papers' filler has some twenty words.
"""

import dataclasses

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.evals.passkey import PasskeyEvaluation
from infini_jax.study import Study
from infini_jax.study.comparison import ONE_LAYER, RATES, SMOKE, SMOKE_STEPS, SMOKE_TRAIN, Comparison
from infini_jax.study.ladder import Ladder

# Words are one token each, and the number has two digits, so that models of a few seconds learn it.
FEW, MANY = PasskeyConfig(digits=2, novelty=32, filler_words=64), PasskeyConfig(digits=3, novelty=128, filler_words=256)

SCALES = {
    "smoke": Comparison(
        RunConfig(
            model=dataclasses.replace(SMOKE, vocab=FEW.vocab),
            data=FEW,
            train=dataclasses.replace(SMOKE_TRAIN, sequence=112),
            budget=Budget("steps", SMOKE_STEPS),
        ),
        sizes=(4 << 10,),
        rates=RATES[:1],
        window=4,
        slots=112,
    ),
    "cpu": Comparison(
        RunConfig(
            model=dataclasses.replace(ONE_LAYER, vocab=FEW.vocab),
            data=FEW,
            train=TrainConfig(batch=8, sequence=112, evaluation_steps=16),
            budget=Budget("flops", 2e11),
        ),
        sizes=(5 << 10, 10 << 10, 20 << 10, 40 << 10, 80 << 10),
        rates=RATES,
        window=8,
        slots=448,
        seeds=5,
        ladder=Ladder((2e11, 5e11, 1.25e12), tolerance=0.03),
        growths=2,
    ),
    "accelerator": Comparison(
        RunConfig(
            model=ModelConfig(layers=2, d_model=128, heads=2, mlp_dim=256, segment=64, key_taps=2, vocab=MANY.vocab),
            data=MANY,
            train=TrainConfig(batch=64, sequence=256, evaluation_steps=16),
            budget=Budget("flops", 1e14),
        ),
        sizes=(20 << 10, 160 << 10),
        rates=(1e-3, 3e-3, 1e-2),
        window=8,
        slots=4096,
    ),
}
ASKED = {
    "smoke": PasskeyEvaluation(lengths=(112,), depths=(0.5,), novelty=(8, 32), examples=8),
    "cpu": PasskeyEvaluation(lengths=(112, 224, 448), depths=(0.0, 0.5, 1.0), novelty=(4, 16, 32), examples=16, rows=16),
    "accelerator": PasskeyEvaluation(
        lengths=(256, 512, 1024, 4096), depths=(0.0, 0.25, 0.5, 0.75, 1.0), novelty=(8, 32, 128), examples=50, rows=50
    ),
}


def study(scale: str) -> Study:
    """Every mechanism, trained at one length with much novelty, asked at longer ones and with less."""
    found = SCALES[scale]
    data = found.base.data
    return Study(
        name="passkey_novelty",
        question="Is a number in filler harder to keep the longer the filler is, or the more different words it has?",
        runs=found.runs(),
        held_equal=(
            *found.held_equal,
            ("prompts", f"{data.novelty} of {data.filler_words} filler words in each, numbers of {data.digits} digits"),
        ),
        ladder=found.ladder,
        rates=found.grids,
        evaluations=(ASKED[scale],),
    )
