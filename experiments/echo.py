"""Echo: what is each mechanism's memory worth where text quotes itself from far back, by distance?

Command:   infini-jax study echo --scale cpu                   (or smoke, accelerator)
Cost:      cpu 126 runs and 1.8e14 FLOPs; accelerator 126 runs and 2.6e17 FLOPs; neither has run. Of both, most are the
           ceiling's. Copying is learned late (docs/corpora.md), so that a budget may well decide nothing
Expected:  full attention reads quotations at a loss far below that of other text at every distance that its slots hold, else
           the task decided nothing. A window gains nothing outside its reach. Caches gain up to the tokens that they hold and
           nothing beyond; matrices gain less with each distance. Only "carried" gains: neither an empty memory nor another
           document's does.
"""

import dataclasses

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import CARRIED, EvaluationConfig
from infini_jax.data.echo import EchoConfig
from infini_jax.evals.echo import EchoEvaluation
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.memory.positions import PositionedConfig
from infini_jax.model.cost import budget_steps
from infini_jax.study import Study
from infini_jax.study.comparison import AT_THE_END, BOUNDS, RATES, SMOKE, SMOKE_STEPS, SMOKE_TRAIN, Comparison, at_window

SCALES = {
    "smoke": Comparison(
        RunConfig(
            model=dataclasses.replace(SMOKE, vocab=256),
            data=EchoConfig(distances=(32, 96), span=16, lead=4),
            train=dataclasses.replace(SMOKE_TRAIN, sequence=48),
            budget=Budget("steps", SMOKE_STEPS),
            evaluation=EvaluationConfig(documents=2, tokens=64, rows=2, conditions=(CARRIED,)),
        ),
        sizes=(4 << 10,),
        rates=RATES[:1],
        window=4,
        slots=192,
    ),
    "cpu": Comparison(
        RunConfig(
            # two layers, to find what followed the same bytes; key taps, so that a key knows some bytes before it
            model=ModelConfig(layers=2, d_model=32, heads=2, mlp_dim=64, segment=64, key_taps=4, vocab=256),
            data=EchoConfig(distances=(256, 1024, 4096), share=0.5),
            train=TrainConfig(batch=4, sequence=512, evaluation_steps=1),
            budget=Budget("flops", 7e11),
            evaluation=AT_THE_END,
        ),
        sizes=(32 << 10, 128 << 10),
        rates=RATES,
        window=64,
        slots=4608,
        seeds=3,
    ),
    "accelerator": Comparison(
        RunConfig(
            model=ModelConfig(layers=4, d_model=256, heads=4, mlp_dim=1024, segment=256, vocab=256, compute="bfloat16"),
            data=EchoConfig(),
            train=TrainConfig(batch=16, sequence=4096, evaluation_steps=1),
            budget=Budget("flops", 6e14),
            evaluation=dataclasses.replace(AT_THE_END, tokens=16_384),
        ),
        sizes=(320 << 10, 2 << 20),
        rates=(1e-3, 3e-3, 1e-2),
        window=256,
        slots=66_560,
        seeds=3,
    ),
}
SOME = ("transformer_xl", "infini", "gated_delta", "memorizing", "landmark")
COMPARED = {"cpu": SOME, "accelerator": SOME}
READ = {
    "smoke": (EchoEvaluation(documents=2, tokens=256, rows=2), LanguageEvaluation(documents=2, tokens=64, rows=2)),
    "cpu": (EchoEvaluation(documents=8, tokens=16_384), LanguageEvaluation(documents=8, tokens=4096)),
    "accelerator": (EchoEvaluation(rows=16), LanguageEvaluation(documents=16, tokens=65_536, rows=16)),
}


def as_control(run: RunConfig, steps: int) -> RunConfig:
    """The floor or the ceiling: with positions that carry beyond a training row, and so many steps.

    The ceiling is no competitor but must be trained for the task to decide anything, so that it takes as many steps as the
    floor, whatever FLOPs they cost.
    """
    if run.mechanism not in BOUNDS or not isinstance(run.model.memory, PositionedConfig):
        return run
    model = dataclasses.replace(run.model, memory=dataclasses.replace(run.model.memory, positions="t5"))
    return dataclasses.replace(run, model=model, budget=Budget("steps", steps))


def study(scale: str) -> Study:
    """Every mechanism at several sizes between a window that reaches no quotation and attention that reaches all."""
    found = SCALES[scale]
    steps = budget_steps(at_window(found.base, found.window))
    return Study(
        name="echo",
        question="What is each mechanism's memory worth where text quotes itself, by distance?",
        runs=tuple(as_control(run, steps) for run in found.runs(*COMPARED.get(scale, ()))),
        held_equal=(
            *found.held_equal,
            ("floor and ceiling", f"{steps} steps each, positions t5, which carry beyond a training row"),
            ("quoted from", f"{', '.join(map(str, found.base.data.distances))} tokens back"),
        ),
        evaluations=READ[scale],
    )
