"""Does the matrix memory of this project retrieve what its inventors say: six points of Schlag et al. 2021, number for number?

Command:   infini-jax study fast_weights --scale cpu            (or smoke, accelerator)
Cost:      cpu 18 runs, about 12 minutes on one core: 2 s for a run of 60 pairs, 2 minutes for one of 300. Training
           ends by its loss, mostly after 2000 to 6000 of 100 000 steps: `--dry-run` counts what is never spent
Expected:  the lowest validation loss of each point within 0.01 of the published one. A memory with F features per key cannot
           retrieve more than F unrelated pairs (rank law, 1/2 (1 - F/S)); keys that learn do a little better.
"""

import dataclasses

from infini_jax.codes.retrieval import RetrievalRun
from infini_jax.config import Budget
from infini_jax.memory.infini import InfiniConfig
from infini_jax.study import Study
from infini_jax.study.factors import Design, Factor
from infini_jax.study.trials import seeded

ELU, DPFP = InfiniConfig(), InfiniConfig(feature_map="dpfp")
# (variant, memory, S, published loss): the lowest "eval-loss" in the authors' logs, which are the curves of the paper's
# figure 2: github.com/ischlag/fast-weight-transformers, synthetic/logs, d64_linear_sum and d64_dpfp1_sum, setting 1 (R0).
PUBLISHED = (
    ("elu", ELU, 60, 0.0245),
    ("elu", ELU, 100, 0.1642),
    ("elu", ELU, 200, 0.3420),
    ("dpfp1", DPFP, 140, 0.0510),
    ("dpfp1", DPFP, 200, 0.1732),
    ("dpfp1", DPFP, 300, 0.2856),
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of the experiment at one scale.

    Attributes:
      points: (variant, memory, pairs, published loss or None) of each point.
      base: settings of all runs.
      seeds: number of seeds.
    """

    points: tuple[tuple[str, InfiniConfig, int, float | None], ...]
    base: RetrievalRun
    seeds: int


SCALES = {
    "smoke": Scale((("elu", ELU, 8, None),), RetrievalRun(key_dim=4, sequences=2, budget=Budget("steps", 200)), 1),
    "cpu": Scale(PUBLISHED, RetrievalRun(), 3),
    "accelerator": Scale(PUBLISHED, RetrievalRun(), 5),
}

# The published points are no whole design: two maps meet at 200 pairs only, and the report names what is left out.
DESIGN = Design((Factor("features", "memory.feature_map"), Factor("pairs", "pairs")), tolerance=0.005)


def study(scale: str) -> Study:
    """Every point with every seed, by the authors' protocol."""
    found = SCALES[scale]
    points = [
        dataclasses.replace(
            found.base, name=f"retrieval-{variant}-{pairs}", variant=variant, memory=memory, pairs=pairs, published=published
        )
        for variant, memory, pairs, published in found.points
    ]
    return Study(
        name="fast_weights",
        question="Does the matrix memory retrieve as many pairs as its inventors report?",
        runs=tuple(run for point in points for run in seeded(point, found.seeds)),
        held_equal=(
            ("protocol", "setting 1 of arXiv 2102.11174: S keys, S values, all S pairs written, one asked"),
            ("training", "Adam at 1e-3, 32 sequences per step, until the loss has not fallen in 11 examinations"),
        ),
        design=DESIGN,
    )
