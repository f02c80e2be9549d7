"""How does compressive memory scale with its size, by its key dimension and by the width of the whole model?

A matrix grows by its key dimension alone, or by more heads in a wider model (the axis `d_model`: residual stream, heads and
MLP in proportion). Both axes are taken to the same bytes. They cross at the base model, whose bytes are left out: there both
are one model. The Compressive Transformer has entries for tokens and no matrix: its axes are the number of its entries, and
the width at a constant number. Capacity is asked by capacity_law, whose axes are the key dimension and the heads.

Command:   infini-jax study compressive_scaling --scale cpu    (or smoke, accelerator)
           infini-jax study capacity_law --scale cpu --only infini,gated_delta,compressive
Corpora:   text is the standard library's source code, which needs nothing. accelerator reads a prepared corpus `books` in its
           place where it is here, and asks BLiMP where that is here (docs/corpora.md).
Cost:      cpu at least 3600 runs and 1e15 FLOPs, 5.3e15 at most; accelerator at least 3600 runs and 9e17 FLOPs, 7.1e18 at
           most. Neither was run yet. `--only MECHANISM` does a part; `--dry-run` counts all before anything runs.
Expected:  recall grows with bytes along both axes. At equal bytes d_model has the better loss on text, because the model grows
           and not its memory alone: the floor of the same width gains as well. The delta rules are ahead of the sum where keys
           are many. One passkey is found at any size, several keys need as many times the bytes. Every memory has the same
           cache of one segment beside it, and the floor sees as far back as that.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import CARRIED, EvaluationConfig
from infini_jax.data.base import DataConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.haystack import HaystackConfig
from infini_jax.data.minimal_pairs import blimp_place
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.data.prepared import prepared_folders
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.evals.base import Evaluation
from infini_jax.evals.blimp import Blimp
from infini_jax.evals.gains import Gains
from infini_jax.evals.haystack import HaystackEvaluation
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.evals.passkey import PasskeyEvaluation
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.compressive import CompressiveConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.study import Ladder, Rates, Study
from infini_jax.study.comparison import AT_THE_END, ONE_LAYER, RATES, SMALL_READ, SMOKE, SMOKE_STEPS, SMOKE_TRAIN, with_memory
from infini_jax.study.factors import Design, Factor
from infini_jax.study.trials import seeded

WIDTH, KEYS, ENTRIES = "d_model", "key_dim", "entries"  # axes
MATRICES: tuple[tuple[str, MemoryConfig], ...] = (
    ("linear", InfiniConfig(local="cache")),
    ("delta", InfiniConfig(update="delta", local="cache")),
    ("", GatedDeltaConfig(local="cache")),
)
SLOTS = CompressiveConfig(slots=0, local="cache")
DESIGN = Design(
    (Factor("axis", words=(KEYS, ENTRIES, WIDTH)), Factor("update", "model.memory.update")),
    tolerance=0.02,  # a share, or nats per byte
)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The sizes of the experiment at one scale.

    Attributes:
      tasks: base run of each task; all have heads of the same size.
      sizes: bytes of memory, as multiples of those that Infini-attention has in the base model.
      rates: learning rates, of which validation chooses.
      seeds: number of seeds.
      ladder: budgets that all points climb, None for the one of the base runs.
      growths: rates that a point's grid may get at each edge.
    """

    tasks: tuple[RunConfig, ...]
    sizes: tuple[float, ...]
    rates: tuple[float, ...]
    seeds: int
    ladder: Ladder | None = None
    growths: int = 0

    def runs(self) -> tuple[RunConfig, ...]:
        """The runs of every task: floor and ceiling at every width, and each memory at every size along both of its axes."""
        return tuple(run for base in self.tasks for point in self.points(base) for run in seeded(point, self.seeds))

    def points(self, base: RunConfig) -> Iterator[RunConfig]:
        """The points of one task."""
        unit = with_memory(base, MATRICES[0][1]).memory_bytes
        fewest = with_memory(base, SLOTS).model.at_bytes(unit).memory
        for size in (round(share * unit) for share in self.sizes):
            wide = with_memory(base, MATRICES[0][1]).model.at_bytes(size, WIDTH)
            for memory in (LocalConfig(window=2 * wide.segment), FullConfig(slots=2 * base.train.sequence)):
                yield named(base, dataclasses.replace(wide, memory=memory), WIDTH, size)
            for (variant, memory), axis in itertools.product(MATRICES, (KEYS, WIDTH)):
                model = with_memory(base, memory).model.at_bytes(size, axis)
                yield named(base, model, "-".join(filter(None, (variant, axis))), size)
            yield named(base, with_memory(base, SLOTS).model.at_bytes(size), ENTRIES, size)
            yield named(base, dataclasses.replace(wide, memory=fewest), WIDTH, size)


def named(base: RunConfig, model: ModelConfig, variant: str, size: int) -> RunConfig:
    """The run `base` with another model, named after its task, mechanism, variant and bytes."""
    run = dataclasses.replace(base, model=model, variant=variant)
    return dataclasses.replace(run, name="-".join((run.task, run.model.mechanism, variant, f"{size}b")))


def on(model: ModelConfig, data: DataConfig, train: TrainConfig, budget: Budget) -> RunConfig:
    """The base run of a task: a model with the task's vocabulary."""
    return RunConfig(model=dataclasses.replace(model, vocab=data.vocab), data=data, train=train, budget=budget)


def on_text(model: ModelConfig, train: TrainConfig, budget: Budget, read: EvaluationConfig) -> RunConfig:
    """The base run on text, with what of held-out documents is read at its end."""
    return dataclasses.replace(on(model, StdlibConfig(), train, budget), evaluation=read)


SIZES = (0.5, 0.75, 1.5, 2.0, 3.0)
TINY, SMALL = dataclasses.replace(SMOKE, d_model=16, heads=2), dataclasses.replace(ONE_LAYER, heads=8)  # heads of 8
LARGE = ModelConfig(layers=2, d_model=256, heads=16, mlp_dim=1024, segment=32, key_taps=2)  # heads of 16
STEPS, CPU, LONG = Budget("steps", SMOKE_STEPS), Budget("flops", 1.6e11), Budget("flops", 1e14)
SHORT = EvaluationConfig(documents=2, tokens=64, rows=2, conditions=(CARRIED,))


def rows_of(batch: int, tokens: int, steps: int = 16) -> TrainConfig:
    """Settings of training with so many rows of so many tokens, and so many batches for validation."""
    return TrainConfig(batch=batch, sequence=tokens, evaluation_steps=steps)


SCALES = {
    "smoke": Scaling(
        tasks=(
            on(TINY, MqarConfig(pairs=4, symbols=32), dataclasses.replace(SMOKE_TRAIN, sequence=48), STEPS),
            on(
                TINY,
                PasskeyConfig(digits=2, novelty=8, filler_words=16),
                dataclasses.replace(SMOKE_TRAIN, sequence=112),
                STEPS,
            ),
            on(
                TINY,
                HaystackConfig(task="multi_key", items=2, names=16),
                dataclasses.replace(SMOKE_TRAIN, sequence=128),
                STEPS,
            ),
            on_text(TINY, dataclasses.replace(SMOKE_TRAIN, sequence=1024), STEPS, SHORT),
        ),
        sizes=(0.5, 1.5),
        rates=RATES[:1],
        seeds=1,
    ),
    "cpu": Scaling(
        tasks=(
            on(SMALL, MqarConfig(pairs=16, symbols=64, repeats=2), rows_of(8, 112), CPU),
            on(SMALL, PasskeyConfig(digits=2, novelty=32, filler_words=64), rows_of(8, 112), CPU),
            on(SMALL, HaystackConfig(task="multi_key", items=4, names=32), rows_of(8, 192), CPU),
            on_text(dataclasses.replace(SMALL, segment=64, key_taps=1), rows_of(2, 1024, 1), CPU, AT_THE_END),
        ),
        sizes=SIZES,
        rates=RATES,
        seeds=5,
        ladder=Ladder((1.6e11, 4e11, 1e12), tolerance=DESIGN.tolerance),
        growths=2,
    ),
    "accelerator": Scaling(
        tasks=(
            on(LARGE, MqarConfig(pairs=32, symbols=1024), rows_of(64, 256), LONG),
            on(LARGE, PasskeyConfig(digits=3, novelty=128, filler_words=256), rows_of(64, 256), LONG),
            on(LARGE, HaystackConfig(task="multi_key", items=8), rows_of(32, 512), LONG),
            on_text(
                dataclasses.replace(LARGE, layers=4, segment=256, key_taps=1, compute="bfloat16"),
                rows_of(16, 2048, 1),
                LONG,
                dataclasses.replace(AT_THE_END, tokens=16_384),
            ),
        ),
        sizes=SIZES,
        rates=(1e-3, 3e-3, 1e-2),
        seeds=5,
        ladder=Ladder((1e14, 4e14, 1.6e15), tolerance=DESIGN.tolerance),
        growths=2,
    ),
}
EXAMPLES = {"smoke": 2, "cpu": 32, "accelerator": 64}
TEXT: dict[str, tuple[Evaluation, ...]] = {
    "smoke": (LanguageEvaluation(documents=2, tokens=64, rows=2),),
    "cpu": SMALL_READ,
    "accelerator": (LanguageEvaluation(documents=32, tokens=65_536, rows=32), Gains(documents=32, tokens=65_536, rows=32)),
}


def asked(scale: str) -> tuple[Evaluation, ...]:
    """The evaluations: of each task as trained, of one key beside several, of text, and of grammar where BLiMP is here."""
    count, rows = EXAMPLES[scale], min(16, EXAMPLES[scale])
    blimp = (Blimp(pairs=100),) if scale == "accelerator" and blimp_place() else ()
    return (
        MqarEvaluation(examples=count, rows=rows),
        PasskeyEvaluation(examples=count, rows=rows),
        HaystackEvaluation(kinds=("single", "multi_key"), examples=count, rows=rows),
        *TEXT[scale],
        *blimp,
    )


def text_of(scale: str) -> DataConfig:
    """The text of a scale: a prepared corpus of books where there is one and an accelerator, else source code."""
    has_books = scale == "accelerator" and "books" in {folder.name for folder in prepared_folders()}
    return CorpusConfig("books") if has_books else StdlibConfig()


def study(scale: str) -> Study:
    """Every memory at every size along both of its axes, on recall, passkeys and text."""
    found, data = SCALES[scale], text_of(scale)
    *examples, text = found.tasks
    text = dataclasses.replace(text, data=data, model=dataclasses.replace(text.model, vocab=data.vocab))
    scaled = dataclasses.replace(found, tasks=(*examples, text))
    amounts = ", ".join(f"{amount:.2g}" for amount in (found.ladder.rungs if found.ladder else (text.budget.amount,)))
    return Study(
        name="compressive_scaling",
        question="How does compressive memory scale with its size, by key dimension and by the width of the model?",
        runs=scaled.runs(),
        held_equal=(
            ("training", f"{amounts} {text.budget.unit}"),
            (
                "axes",
                "the key dimension of a matrix or the entries of a cache, and the width of the whole model, at equal bytes",
            ),
            ("neighborhood beside each memory", "a cache of one segment; the floor reaches as far"),
            ("learning rates", f"{', '.join(f'{rate:g}' for rate in found.rates)} and more at an edge, chosen on validation"),
        ),
        evaluations=asked(scale),
        ladder=found.ladder,
        rates=Rates(found.rates, growths=found.growths) if found.growths else None,
        design=DESIGN,
    )
