"""How does what a memory layer can recall grow with its bytes, for each mechanism, and what does theory say?

Command:   infini-jax study capacity_law --scale cpu            (or smoke, accelerator)
Cost:      cpu at least 4100 runs and 2e15 FLOPs, a day of two cores; not run yet since it has a ladder, three shapes and
           five seeds (274 runs at the first budget: 45 minutes). `--only MECHANISM` does a part. accelerator not measured.
           `--dry-run` counts both before anything runs.
Expected:  without training, n50 of the sum rule is within 6 % of theory at both sizes; least squares recalls more, delta less
           (old pairs wear off), elu + 1 with its normalizer a few pairs only. Trained codes bring the matrix memories to 0.7
           to 1 bits per scalar, growing linearly with their scalars, and elu + 1 to about half or more of that. Slots recall
           what they hold exactly: linear too, far fewer pairs per byte. The infinity-former stores smooth signals, not pairs,
           and the window guesses.
"""

import contextlib
import dataclasses
import itertools
import math

from infini_jax.analysis.theory import top1_n50_large
from infini_jax.codes.capacity import CapacityRun
from infini_jax.codes.random_codes import RULES, RandomCodesRun
from infini_jax.config import Budget
from infini_jax.config.plain import mechanism_of
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.memory.base import MemoryConfig
from infini_jax.study import Study
from infini_jax.study.comparison import SMOKE_CODES, code_memories
from infini_jax.study.jobs import Job
from infini_jax.study.ladder import Ladder, Rates
from infini_jax.study.trials import seeded

# n50 of each rule in shorter trials: where to put the grid. The elu rules are relative to the dimension, the others to the
# sum rule's large limit.
AROUND = {"least_squares": 1.45, "sum": 1.1, "delta": 0.65, "elu_sum": 0.13, "elu_delta": 0.13}


MATRIX_AXES = ("key_dim", "value_dim", "heads")
SMALL_HEAD = 8  # key and value dimension of a head where heads grow: of 16 there would be none in the smallest memory


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of the experiment at one scale.

    Attributes:
      base: settings of the trained runs.
      sizes: bytes of memory.
      rates: learning rates with which a point's grid begins, of which validation chooses.
      seeds: number of seeds.
      dims: key and value dimensions of the random codes.
      symbols: candidates for a value, of the random codes.
      questions: number of questions to the random codes at each n.
      axes: along what a matrix grows.
      heads: key and value dimensions of a head of a memory of slots, which grows by its slots.
      ladder: training steps, None for those of `base`.
      growths: rates that a grid may get at each edge.
    """

    base: CapacityRun
    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int
    dims: tuple[int, ...]
    symbols: int
    questions: int
    axes: tuple[str, ...] = ("key_dim",)
    heads: tuple[int, ...] = (16,)
    ladder: Ladder | None = None
    growths: int = 0


SCALES = {
    "smoke": Scale(
        SMOKE_CODES,
        sizes=(400,),
        rates=(3e-2,),
        seeds=1,
        dims=(8,),
        symbols=64,
        questions=64,
        axes=MATRIX_AXES,
        heads=(8,),
    ),
    "cpu": Scale(
        CapacityRun(budget=Budget("steps", 1200)),
        sizes=(384, 768, 1536, 3072, 6144),
        rates=(1e-2, 3e-2, 1e-1),
        seeds=5,
        dims=(32, 64),
        symbols=8192,
        questions=2048,
        axes=MATRIX_AXES,
        heads=(8, 16, 32),
        ladder=Ladder((1200, 4800, 14_400), tolerance=2.0),
        growths=2,
    ),
    "accelerator": Scale(
        CapacityRun(symbols=4096, key_dim=32, value_dim=32, segment=64, batch=64, rows=64, budget=Budget("steps", 6000)),
        sizes=(2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10),
        rates=(1e-2, 3e-2, 1e-1),
        seeds=5,
        dims=(32, 64, 128),
        symbols=8192,
        questions=4096,
        axes=MATRIX_AXES,
        heads=(16, 32, 64),
        ladder=Ladder((6000, 24_000, 72_000), tolerance=4.0),
        growths=2,
    ),
}


def study(scale: str) -> Study:
    """Random codes for every rule, trained codes for every mechanism at every size, shape and seed."""
    found = SCALES[scale]
    steps = ", ".join(f"{amount:g}" for amount in (found.ladder.rungs if found.ladder else (found.base.budget.amount,)))
    return Study(
        name="capacity_law",
        question="How many pairs does a memory layer recall, by its bytes, and what does theory predict?",
        runs=(*random_codes(found), *trained_codes(found)),
        held_equal=(
            ("trained codes", f"{found.base.symbols} symbols, {steps} steps of Adam"),
            ("shapes", "matrices grow by key dimension, value dimension or heads; slots have heads of several dimensions"),
        ),
        ladder=found.ladder,
        rates=Rates(found.rates, growths=found.growths),
    )


def random_codes(scale: Scale) -> list[Job]:
    """The runs of random codes: every rule at every dimension, n within a factor of 2.5 of where its n50 is."""
    runs = []
    for dim in scale.dims:
        for rule in RULES:
            middle = AROUND[rule] * (dim if rule.startswith("elu") else top1_n50_large(dim, dim, scale.symbols))
            grid = log_grid(middle / 2.5, middle * 2.5, 11)
            name = f"random-{rule.replace('_', '-')}-{dim}"
            sizes = {"key_dim": dim, "value_dim": dim, "symbols": scale.symbols}
            runs.append(RandomCodesRun(name=name, rule=rule, pairs=grid, questions=scale.questions, **sizes))
    return runs


def log_grid(low: float, high: float, count: int) -> tuple[int, ...]:
    """Different whole numbers, evenly spread in the logarithm."""
    ratio = math.log(high / low) / (count - 1)
    return tuple(sorted({max(1, round(low * math.exp(ratio * i))) for i in range(count)}))


def trained_codes(scale: Scale) -> list[Job]:
    """The runs of trained codes: every mechanism at every size, shape and seed; the study tries the rates.

    A size in which not even the smallest memory of a shape fits has no run.
    """
    runs: list[Job] = []
    for variant, memory in code_memories():
        shapes = scale.axes if MECHANISMS[mechanism_of(memory)].holds == "matrix" else scale.heads
        for shape, size in itertools.product(shapes, scale.sizes):
            with contextlib.suppress(ConfigError):
                begun = shaped(scale.base, memory, variant, shape)
                runs += seeded(at_bytes(begun, size, shape if isinstance(shape, str) else ""), scale.seeds)
    return runs


def shaped(base: CapacityRun, memory: MemoryConfig, variant: str, shape: str | int) -> CapacityRun:
    """`base` with a memory and the head that it begins with.

    `shape` is the axis of a matrix, or the dimensions of a head of a memory of slots.
    """
    dim = shape if isinstance(shape, int) else SMALL_HEAD if shape == "heads" else base.key_dim
    said = f"D{shape}" if isinstance(shape, int) else shape
    return dataclasses.replace(
        base, memory=memory, variant="-".join(filter(None, (variant, said))), key_dim=dim, value_dim=dim
    )


def at_bytes(base: CapacityRun, size: int, axis: str = "") -> CapacityRun:
    """`base` with the largest memory of at most `size` bytes; n reaches three times what theory gives a matrix so large."""
    most = min(base.symbols, round(3 * top1_n50_large(size / 4, 1, base.symbols)))
    run = dataclasses.replace(base, pairs=(max(1, most // 24), most)).at_bytes(size, axis)
    return dataclasses.replace(run, name="-".join(filter(None, ("codes", run.mechanism, run.variant, f"{size}b"))))
