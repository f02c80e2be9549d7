"""MQAR by the protocol of Based's figure 2: what does a recurrent state of so many bytes recall of 4 to 64 pairs?

Command:   infini-jax study zoology_mqar --scale cpu           (or smoke, accelerator)
Cost:      cpu (the smallest cell: rows of 64 tokens, 4 pairs) 54 runs and 1.5e14 FLOPs; accelerator 128 runs of 32 epochs,
           1.6e18 FLOPs. Neither was run yet; `--dry-run` counts both.
Expected:  as published (arXiv 2402.18668, figure 2): attention answers all, a window what it reaches, and matrix memories more
           the larger their state, whatever makes them larger. Feature maps of second order need a small key.
DEVIATION: learned positions of the original's attention are rotary here, and every layer has a memory and key taps of three
           tokens where the original alternates a convolution with a mixer. Segments are the memory's, 32 tokens.
"""

import dataclasses

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MixedMqarConfig
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.study import Study
from infini_jax.study.comparison import SMOKE_STEPS, with_memory
from infini_jax.study.trials import seeded, trials

EPOCH = 100_000 * 64 + 20_000 * 128 + 60_000 * 256  # tokens of the original's 180 000 examples
EASIEST = MixedMqarConfig(pairs=4, mixture=((64, 4, 1),))
BASED = InfiniConfig(feature_map="taylor2")


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of the experiment at one scale.

    Attributes:
      base: settings of all runs.
      widths: widths of the model.
      features: key dimensions of Based's feature map.
      windows: windows of the floor.
      rates: learning rates, of which validation chooses.
      seeds: number of seeds.
      pairs: numbers of pairs that are asked, each with the length of its rows in training.
    """

    base: RunConfig
    widths: tuple[int, ...]
    features: tuple[int, ...]
    windows: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int
    pairs: tuple[tuple[int, int], ...]


def run_of(data: MixedMqarConfig, tokens: int, batch: int, budget: Budget) -> RunConfig:
    """A run of two layers and one head on rows of `tokens`, by the original's settings of training."""
    model = ModelConfig(layers=2, d_model=64, heads=1, segment=32, key_taps=3, vocab=data.vocab)
    train = TrainConfig(batch=batch, sequence=tokens, weight_decay=0.1, evaluation_steps=4)
    return RunConfig(model=model, data=data, train=train, budget=budget)


SCALES = {
    "smoke": Scale(run_of(EASIEST, 64, 2, Budget("steps", SMOKE_STEPS)), (16,), (4,), (4,), (1e-2,), 1, ((4, 64),)),
    "cpu": Scale(run_of(EASIEST, 64, 64, Budget("tokens", 3e6)), (64,), (8, 16), (16,), (1e-3, 3.2e-3, 1e-2), 3, ((4, 64),)),
    "accelerator": Scale(
        run_of(MixedMqarConfig(), 256, 128, Budget("tokens", 32 * EPOCH)),
        (64, 128, 256, 512),
        (8, 16, 24),
        (16, 64),
        (1e-3, 3.2e-3, 1e-2, 3.2e-2),
        1,
        ((4, 64), (8, 128), (16, 256), (32, 256), (64, 256)),
    ),
}


def study(scale: str) -> Study:
    """Every mixer at every width, each at the rates of the original."""
    found = SCALES[scale]
    points = [run for width in found.widths for run in of_width(found, width)]
    return Study(
        name="zoology_mqar",
        question="What does a recurrent state of so many bytes recall, by the protocol of Based's figure 2?",
        runs=tuple(run for point in points for one in seeded(point, found.seeds) for run in trials(one, found.rates)),
        held_equal=(
            ("training", f"{found.base.budget.amount:.3g} tokens, as in the original, whatever a token costs"),
            ("learning rates", f"{', '.join(f'{rate:g}' for rate in found.rates)}, chosen on validation"),
        ),
        evaluations=tuple(MqarEvaluation(lengths=(length,), pairs=(pairs,), examples=256) for pairs, length in found.pairs),
    )


def of_width(scale: Scale, width: int) -> list[RunConfig]:
    """The mixers at one width: full attention, windows, Based's features, Infini-attention and the gated delta rule."""
    base = dataclasses.replace(scale.base, model=dataclasses.replace(scale.base.model, d_model=width))
    tokens = base.train.sequence
    mixers: list[tuple[str, MemoryConfig, int]] = [
        ("", FullConfig(slots=tokens), 0),
        *((f"window{window}", LocalConfig(window=window), 0) for window in scale.windows),
        *((f"based{features}", BASED, features) for features in scale.features),
        ("", InfiniConfig(), 0),
        ("", GatedDeltaConfig(), 0),
    ]
    return [sized(with_memory(base, memory, f"d{width}", variant=variant), features) for variant, memory, features in mixers]


def sized(run: RunConfig, key_dim: int) -> RunConfig:
    """The run with keys of `key_dim`, or its own where 0."""
    return dataclasses.replace(run, model=dataclasses.replace(run.model, key_dim=key_dim))
