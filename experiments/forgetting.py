"""What is forgotten with age, and what with the number of times that the memory was rewritten since?

Command:   infini-jax study forgetting --scale cpu            (or smoke, accelerator)
Cost:      cpu 48 runs in 2 min 24 s on two cores beside other work; `--dry-run` counts it before anything runs
Expected:  the sum forgets nothing by age: all pairs blur alike. The delta rule with random codes keeps e^(-age / d_k); with
           trained codes its newest pairs are exact and old ones fade more slowly. Slots are a step: all, then nothing. At
           equal age, a memory written in short segments was rewritten more often: where recall then differs, it is the
           writing, not age.
"""

import dataclasses

from infini_jax.analysis.theory import top1_n50_large
from infini_jax.codes.capacity import CapacityRun
from infini_jax.codes.random_codes import RandomCodesRun
from infini_jax.config import Budget
from infini_jax.study import Study
from infini_jax.study.comparison import SMOKE_CODES, code_memories
from infini_jax.study.jobs import Job
from infini_jax.study.trials import seeded, trials


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of the experiment at one scale.

    Attributes:
      base: settings of the trained runs.
      segments: pairs that are written at once.
      rates: learning rates, of which validation chooses.
      seeds: number of seeds.
      size: bytes of memory.
      dims: key and value dimensions of the random codes.
      symbols: candidates for a value, of the random codes.
      questions: number of questions to the random codes at each n.
    """

    base: CapacityRun
    segments: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int
    size: int
    dims: tuple[int, ...]
    symbols: int
    questions: int


SCALES = {
    "smoke": Scale(
        dataclasses.replace(SMOKE_CODES, grid=2),
        segments=(4,),
        rates=(3e-2,),
        seeds=1,
        size=400,
        dims=(8,),
        symbols=64,
        questions=64,
    ),
    "cpu": Scale(
        CapacityRun(budget=Budget("steps", 1200), grid=4, rows=64),
        segments=(4, 16),
        rates=(3e-2,),
        seeds=2,
        size=1536,
        dims=(32, 64),
        symbols=8192,
        questions=4096,
    ),
    "accelerator": Scale(
        CapacityRun(symbols=4096, key_dim=32, value_dim=32, batch=64, rows=256, grid=4, budget=Budget("steps", 6000)),
        segments=(8, 32, 128),
        rates=(1e-2, 3e-2, 1e-1),
        seeds=3,
        size=8 << 10,
        dims=(32, 64, 128),
        symbols=8192,
        questions=8192,
    ),
}


def study(scale: str) -> Study:
    """Every mechanism at one size, written in segments of several lengths."""
    found = SCALES[scale]
    return Study(
        name="forgetting",
        question="What is forgotten with age, and what with the number of times the memory was rewritten?",
        runs=(*random_codes(found), *trained_codes(found)),
        held_equal=(("memory", f"at most {found.size} bytes"), ("steps", f"{found.base.budget.amount:g}")),
    )


def random_codes(scale: Scale) -> list[Job]:
    """The runs of the rules that add and that overwrite, with up to four times as many pairs as dimensions."""
    return [
        RandomCodesRun(
            name=f"random-{rule}-{dim}",
            rule=rule,
            key_dim=dim,
            value_dim=dim,
            symbols=scale.symbols,
            pairs=(dim, 2 * dim, 4 * dim),
            questions=scale.questions,
        )
        for dim in scale.dims
        for rule in ("sum", "delta")
    ]


def trained_codes(scale: Scale) -> list[Job]:
    """The runs of every mechanism, written in segments of every length.

    n reaches three times what theory gives a matrix of this size, so that most of it must be forgotten.
    """
    most = min(scale.base.symbols, round(3 * top1_n50_large(scale.size / 4, 1, scale.base.symbols)))
    runs = []
    for variant, memory in code_memories():
        for segment in scale.segments:
            variants = "-".join(filter(None, (variant, f"segments-of-{segment}")))
            base = dataclasses.replace(scale.base, memory=memory, segment=segment, variant=variants, pairs=(most // 8, most))
            point = base.at_bytes(scale.size)
            point = dataclasses.replace(point, name=f"codes-{point.mechanism}-{variants}")
            runs += [run for one in seeded(point, scale.seeds) for run in trials(one, scale.rates)]
    return runs
