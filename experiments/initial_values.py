"""Initial values: which start of gates, horizons, key taps and feature scales lets a matrix memory learn at all?

Command:   infini-jax study initial_values --scale cpu         (or smoke, accelerator)
Cost:      cpu 318 runs, 4.0e13 FLOPs: 33 minutes on one core. accelerator never ran. `--dry-run` counts the FLOPs of both.
Expected:  one head of the gated delta rule recalls pairs with a horizon of tens of segments and none with one of a segment,
           where its memory is gone before the question; in language a longer one costs a little. Gates that begin against the
           memory learn later. Taps that begin with the token before bind a value to its key at once. Features are told apart
           more sharply as their scale grows, until most of a key's gradient is lost.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import CARRIED, EvaluationConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.evals.base import Evaluation
from infini_jax.evals.gates import GateEvaluation
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.study import Study
from infini_jax.study.comparison import (
    AT_THE_END,
    ONE_LAYER,
    RATES,
    SMOKE,
    SMOKE_STEPS,
    SMOKE_TRAIN,
    at_ceiling,
    at_window,
    with_memory,
)
from infini_jax.study.factors import Design, Factor
from infini_jax.study.ladder import Rates
from infini_jax.study.trials import seeded


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One task under every combination of initial values, with its floor and its ceiling.

    Attributes:
      base: settings of all runs, without their memory and learning rate.
      horizons: (first, last) horizons of the gated delta rule's heads in segments; one head has the last.
      gates: starts of Infini-attention's gates, before the sigmoid.
      scales: factors of its queries and keys before the feature map.
      own: shares of a key's own token in its taps; None is the mean, and all there is where keys have one tap.
      window: number of tokens that the floor sees.
      slots: number of tokens that the ceiling holds.
      seeds: number of seeds per point.
    """

    base: RunConfig
    horizons: tuple[tuple[float, float], ...]
    gates: tuple[float, ...]
    scales: tuple[float, ...]
    own: tuple[float | None, ...]
    window: int
    slots: int
    seeds: int = 3

    def runs(self) -> tuple[RunConfig, ...]:
        """The runs of all points, each with every seed; the study tries the rates."""
        points = [at_window(self.base, self.window), at_ceiling(self.base, self.slots), *self.points()]
        return tuple(run for point in points for run in seeded(point, self.seeds))

    def points(self) -> Iterator[RunConfig]:
        """The runs of both mechanisms, by their initial values."""
        for own in self.own:
            base = dataclasses.replace(self.base, model=dataclasses.replace(self.base.model, key_taps_own=own))
            taps = () if own is None else (f"own{own:g}",)
            for first, last in self.horizons:
                variant = "-".join((f"horizons{first:g}to{last:g}", *taps))
                yield with_memory(base, GatedDeltaConfig(horizons=(first, last)), variant=variant)
            for gate, scale in itertools.product(self.gates, self.scales):
                variant = "-".join((f"gate{gate:g}", f"scale{scale:g}", *taps))
                yield with_memory(base, InfiniConfig(gate_init=gate, feature_scale=scale), variant=variant)


SCALES = {
    "smoke": (
        Sweep(
            RunConfig(
                model=dataclasses.replace(SMOKE, vocab=32),
                data=MqarConfig(pairs=8, symbols=32),
                train=dataclasses.replace(SMOKE_TRAIN, sequence=48),
                budget=Budget("steps", SMOKE_STEPS),
            ),
            horizons=((64.0, 64.0),),
            gates=(-2.0,),
            scales=(2.0,),
            own=(None, 0.1),
            window=4,
            slots=48,
            seeds=1,
        ),
        Sweep(
            RunConfig(
                model=dataclasses.replace(SMOKE, key_taps=1, vocab=256),
                data=StdlibConfig(),
                train=dataclasses.replace(SMOKE_TRAIN, sequence=48),
                budget=Budget("steps", SMOKE_STEPS),
                evaluation=EvaluationConfig(documents=2, tokens=64, rows=2, conditions=(CARRIED,)),
            ),
            horizons=((1.0, 1.0),),
            gates=(0.0,),
            scales=(1.0,),
            own=(None,),
            window=4,
            slots=48,
            seeds=1,
        ),
    ),
    "cpu": (
        Sweep(
            RunConfig(
                model=dataclasses.replace(ONE_LAYER, vocab=128),
                data=MqarConfig(pairs=32, symbols=128),
                train=TrainConfig(batch=8, sequence=112, evaluation_steps=16),
                budget=Budget("flops", 1.6e11),
            ),
            horizons=((1.0, 1.0), (8.0, 8.0), (64.0, 64.0)),
            gates=(-2.0, 0.0, 2.0),
            scales=(0.5, 1.0, 3.0),
            own=(None, 0.1),
            window=8,
            slots=112,
        ),
        Sweep(
            RunConfig(
                model=dataclasses.replace(ONE_LAYER, segment=64, key_taps=1, vocab=256),
                data=StdlibConfig(),
                train=TrainConfig(batch=4, sequence=512, evaluation_steps=1),
                budget=Budget("flops", 5e10),
                evaluation=AT_THE_END,
            ),
            horizons=((1.0, 1.0), (8.0, 8.0), (64.0, 64.0)),
            gates=(-2.0, 0.0, 2.0),
            scales=(0.5, 1.0, 3.0),
            own=(None,),
            window=64,
            slots=1024,
        ),
    ),
    "accelerator": (
        Sweep(
            RunConfig(
                model=ModelConfig(layers=2, d_model=128, heads=4, mlp_dim=256, segment=64, key_taps=2, vocab=1024),
                data=MqarConfig(pairs=64, symbols=1024),
                train=TrainConfig(batch=64, sequence=256, evaluation_steps=16),
                budget=Budget("flops", 6e13),
            ),
            horizons=((1.0, 1.0), (1.0, 64.0), (64.0, 64.0), (512.0, 512.0)),
            gates=(-2.0, 0.0, 2.0),
            scales=(0.5, 1.0, 3.0),
            own=(None, 0.1),
            window=32,
            slots=256,
        ),
        Sweep(
            RunConfig(
                model=ModelConfig(layers=4, d_model=256, heads=4, mlp_dim=1024, segment=256, vocab=256, compute="bfloat16"),
                data=StdlibConfig(),
                train=TrainConfig(batch=16, sequence=2048, evaluation_steps=1),
                budget=Budget("flops", 2e14),
                evaluation=dataclasses.replace(AT_THE_END, tokens=16_384),
            ),
            horizons=((1.0, 1.0), (1.0, 64.0), (64.0, 64.0), (512.0, 512.0)),
            gates=(-2.0, 0.0, 2.0),
            scales=(0.5, 1.0, 3.0),
            own=(None,),
            window=256,
            slots=8192,
        ),
    ),
}
GRIDS = {
    "smoke": Rates(RATES[:1], growths=0),
    "cpu": Rates(RATES, growths=2),
    "accelerator": Rates((1e-3, 3e-3, 1e-2), growths=2),
}
DESIGN = Design(
    (
        Factor("horizons", "model.memory.horizons"),
        Factor("gate", "model.memory.gate_init"),
        Factor("feature scale", "model.memory.feature_scale"),
        Factor("own share of a key", "model.key_taps_own"),
    ),
    tolerance=0.02,  # a share, or nats per byte
)
READ: dict[str, tuple[Evaluation, ...]] = {
    "smoke": (LanguageEvaluation(documents=2, tokens=64, rows=2),),
    "cpu": (LanguageEvaluation(documents=8, tokens=4096),),
    "accelerator": (LanguageEvaluation(documents=32, tokens=65_536, rows=32),),
}


def study(scale: str) -> Study:
    """Both tasks under every combination of initial values, each with its floor and its ceiling."""
    recall, language = SCALES[scale]
    return Study(
        name="initial_values",
        question="Which start of gates, horizons, key taps and feature scales lets a matrix memory learn?",
        runs=(*recall.runs(), *language.runs()),
        held_equal=(
            ("training of recall", f"{recall.base.budget.amount:.2g} {recall.base.budget.unit}"),
            ("training of language", f"{language.base.budget.amount:.2g} {language.base.budget.unit}"),
            ("memory", "matrices of the model's own key and value dimension"),
            ("learning rates", f"{', '.join(f'{rate:g}' for rate in GRIDS[scale].start)} and beyond, chosen on validation"),
        ),
        rates=GRIDS[scale],
        evaluations=(MqarEvaluation(), GateEvaluation(), *READ[scale]),
        design=DESIGN,
    )
