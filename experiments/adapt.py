"""What is a memory worth to a model that was trained without one, beside its attention or in the place of it?

One checkpoint is given every mechanism that can be added, in some of its layers: `add` keeps attention within a window and
adds what the memory reads, `replace` puts the memory in attention's place, with a cache that reaches as far as that window.
Memories that work on the residual stream (rmt, armt) cannot be added and are left out. All runs train
low-rank factors and what the mechanism adds, with the same FLOPs. Controls, trained alike: the window without a memory, and
the model's own attention to its whole context. Matrices have one size, that of the model's heads; slots also have more.

Command:   infini-jax import smollm2
           infini-jax corpus prepare python_stdlib --tokenizer json --model results/models/smollm2/tokenizer.json
           infini-jax study adapt --scale cpu        (or accelerator; or smoke, which makes a tiny model and needs neither)
           The model untrained is no run, as a run has steps; it is evaluated by itself:
           infini-jax evaluate results/models/smollm2 --data python_stdlib-tokenizer --documents 4 --tokens 4096
           infini-jax evaluate results/models/smollm2 --task blimp --pairs 100      (and --task passkey --lengths 1k,8k)
Corpora:   code is the standard library's. accelerator also reads books where a folder of texts is prepared in the model's
           tokens, in measures.parquet with the label `data`, and asks BLiMP where that is here (docs/corpora.md).
Cost:      smoke 24 runs; 18 of them took 11 minutes of one busy core. cpu 8 runs, 1.6e14 FLOPs of training and 1.9e14 of
           evaluations: 87 minutes on two shared cores. accelerator at least 504 runs of 2e15 and 6e15 FLOPs,
           2e18 in all and 12.3e18 at most, and 1.4e15 of evaluations each: at the 25 % MFU that a larger model had on an H100
           half a minute a run and 3 hours in all; it has not run yet. `--dry-run` counts both, `--only MECHANISM` does a part.
Expected:  the window loses to the model's own attention where the context is longer than it, and a memory wins back a part of
           that. `add` is never much worse than the window, `replace` begins worse and needs more steps. Names gain most.
           cpu shows first steps: 30 of 1024 tokens with one seed, budget and rate. It can tell whether what a memory holds is
           read at all (carried against reset and another, paired by document), what the window costs by position, and how far
           `replace` has healed; it cannot tell which mechanism is better, nor what one is worth once trained.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.attach import Attachment, attached
from infini_jax.config.evaluation import CARRIED, EvaluationConfig
from infini_jax.data.base import DataConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.minimal_pairs import blimp_place
from infini_jax.data.prepared import only_preparer, prepared_folders, read_manifest
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import require
from infini_jax.evals.base import Evaluation
from infini_jax.evals.blimp import Blimp
from infini_jax.evals.gains import Gains
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.passkey import PasskeyEvaluation
from infini_jax.files import data_folder
from infini_jax.memory import class_of
from infini_jax.memory.base import Neighborhood
from infini_jax.memory.full import FullConfig
from infini_jax.model.stream import parameter_shapes
from infini_jax.records.folder import MODELS, RunFolder
from infini_jax.study import Ladder, Rates, Study
from infini_jax.study.comparison import SMOKE_STEPS, SMOKE_TRAIN, at_ceiling, at_window, memories
from infini_jax.study.factors import Design, Factor
from infini_jax.study.trials import seeded
from infini_jax.training.imported import save_imported
from infini_jax.training.origin import begun_from
from infini_jax.training.trained import saved_config

MODEL = "smollm2"
# how, and the memory's own neighborhood
ATTACHED: tuple[tuple[Attachment, Neighborhood], ...] = (("add", "own"), ("replace", "cache"))
TINY = ModelConfig(FullConfig(slots=256), vocab=256, layers=2, d_model=32, heads=2, kv_heads=1, mlp_dim=32, segment=16)
DESIGN = Design(
    (Factor("attached", words=("add", "replace")), Factor("update", words=("linear", "delta"))),
    tolerance=0.01,  # nats per token
)


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """The sizes of the experiment at one scale.

    Attributes:
      train: settings of training.
      budget: budget of every run.
      read: reading of held-out documents by which the learning rate is chosen.
      layers: layers that get a memory.
      segment: number of tokens per segment; the window and what replaces attention see two.
      slots: number of tokens that the ceiling holds, at most the model's context.
      sizes: bytes per sequence of the memories, the first that of matrices.
      rates: learning rates, of which validation chooses.
      compared: (mechanism, variant) of the memories, all where there are none.
      seeds: number of seeds.
      compute: type of activations.
      ladder: budgets that all points climb, None for the one of all.
      growths: rates that a point's grid may get at each edge.
    """

    train: TrainConfig
    budget: Budget
    read: EvaluationConfig
    layers: tuple[int, ...]
    segment: int
    slots: int
    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    compared: tuple[tuple[str, str], ...] = ()
    seeds: int = 1
    compute: str = "float32"
    ladder: Ladder | None = None
    growths: int = 0

    def runs(self, folder: Path, data: DataConfig) -> tuple[RunConfig, ...]:
        """The runs of all points, every seed of each, which begin at the model in `folder`."""
        train = dataclasses.replace(self.train, learning_rate=self.rates[0])
        model = dataclasses.replace(saved_config(folder).model, segment=self.segment, compute=self.compute)
        given = RunConfig(model=model, data=data, train=train, budget=self.budget, evaluation=self.read)
        base = begun_from(given, folder)
        return tuple(run for point in self.points(base) for run in seeded(point, self.seeds))

    def points(self, base: RunConfig) -> Iterator[RunConfig]:
        """The floor, the model's own attention, and each memory at each size, attached in both ways."""
        window = 2 * self.segment
        yield at_window(base, window)
        yield at_ceiling(base, self.slots)
        for how, local in ATTACHED:
            for variant, memory in memories(self.segment, *{name for name, _ in self.compared}, local=local):
                if class_of(memory).works_on_stream():  # which cannot be added
                    continue
                chosen = dataclasses.replace(memory, layers=self.layers)
                model = attached(base.model, chosen, how, window)
                if self.compared and (model.mechanism, variant) not in self.compared:
                    continue
                for size in self.sizes:
                    if grown := at_size(model, size, is_least=size == self.sizes[0]):
                        words = "-".join(filter(None, (variant, how)))
                        name = f"{base.task}-{model.mechanism}-{words}-{size >> 10}k"
                        yield dataclasses.replace(base, name=name, variant=words, model=grown)


def at_size(model: ModelConfig, size: int, is_least: bool) -> ModelConfig | None:
    """The model with a memory of at most `size` bytes.

    A matrix grows with the heads alone, which the model has already: it is left as it is at the least size, None at others. So
    is a memory of several matrices, where they are not larger than that.
    """
    grown = model.at_bytes(size)
    sizes = [(one.heads, one.kv_heads, one.key_dim, one.value_dim) for one in (model.dims, grown.dims)]
    if sizes[0] == sizes[1]:
        return grown
    return model if is_least and model.memory_bytes <= size else None


SCALES = {
    "smoke": Adaptation(
        train=dataclasses.replace(SMOKE_TRAIN, sequence=48, trains="lora", lora_rank=2),
        budget=Budget("steps", SMOKE_STEPS),
        read=EvaluationConfig(documents=2, tokens=64, rows=2, conditions=(CARRIED,)),
        layers=(1,),
        segment=16,
        slots=64,
        sizes=(1200,),
        rates=(1e-2,),
    ),
    "cpu": Adaptation(
        train=TrainConfig(batch=1, sequence=1024, trains="lora", lora_rank=8, evaluation_steps=1, log_every=5),
        budget=Budget("flops", 2e13),
        read=EvaluationConfig(documents=4, tokens=1024, rows=4, conditions=(CARRIED,)),
        layers=(9, 19, 29),
        segment=128,
        slots=2048,
        sizes=(150 << 10, 2400 << 10),
        rates=(1e-3,),
        compared=(("infini", "linear"), ("memorizing", "")),
    ),
    "accelerator": Adaptation(
        train=TrainConfig(batch=16, sequence=4096, trains="lora", lora_rank=8, evaluation_steps=1),
        budget=Budget("flops", 2e15),
        read=EvaluationConfig(documents=16, tokens=16_384, rows=16, conditions=(CARRIED,)),
        layers=(9, 19, 29),
        segment=256,
        slots=8192,
        sizes=(150 << 10, 2400 << 10),
        rates=(3e-4, 1e-3, 3e-3),
        seeds=5,
        compute="bfloat16",
        ladder=Ladder((2e15, 6e15, 1.8e16), tolerance=DESIGN.tolerance),
        growths=2,
    ),
}
READ: dict[str, tuple[Evaluation, ...]] = {
    "smoke": (
        LanguageEvaluation(documents=2, tokens=64, rows=2),
        Gains(documents=2, tokens=64, rows=2, counted=1 << 12, draws=8),
        PasskeyEvaluation(lengths=(384,), depths=(0.5,), formats=("landmark",), examples=1, rows=1),
    ),
    "cpu": (
        LanguageEvaluation(documents=4, tokens=4096, rows=4),
        Gains(documents=4, tokens=2048, rows=4, counted=1 << 20, draws=200),
        PasskeyEvaluation(lengths=(1024, 8192), depths=(0.5,), formats=("landmark",), examples=2, rows=2),
    ),
    "accelerator": (
        LanguageEvaluation(documents=16, tokens=65_536, rows=16),
        Gains(documents=16, tokens=65_536, rows=16),
        PasskeyEvaluation(lengths=(1024, 4096, 16_384, 32_768), formats=("landmark",), examples=10, rows=10),
    ),
}


def study(scale: str) -> Study:
    """Every mechanism, attached in both ways, between a window and the model's own attention.

    Raises `ConfigError` where the model or its corpus is not here, with the command that makes it.
    """
    found = SCALES[scale]
    folder = tiny_model() if scale == "smoke" else MODELS / MODEL
    get = f"get it in the folder where results/ is: infini-jax import {MODEL}"
    require(RunFolder(folder).config.is_file(), "from", f"there is no model in {folder}", get)
    data = StdlibConfig() if scale == "smoke" else code_of(folder)
    amounts = ", ".join(f"{amount:.2g}" for amount in (found.ladder.rungs if found.ladder else (found.budget.amount,)))
    return Study(
        name="adapt",
        question="What is a memory worth to a model that was trained without one, beside its attention or in its place?",
        runs=found.runs(folder, data),
        held_equal=(
            ("beginning", "one checkpoint"),
            ("trained", f"factors of rank {found.train.lora_rank} beside all matrices, and what the mechanism adds"),
            ("training", f"{amounts} {found.budget.unit}, {found.train.batch} rows of {found.train.sequence} tokens per step"),
            ("learning rates", ", ".join(f"{rate:g}" for rate in found.rates)),
            ("layers with a memory", ", ".join(map(str, found.layers))),
            ("attention elsewhere and beside it", f"a window of {2 * found.segment} tokens, that of the floor"),
        ),
        evaluations=(*READ[scale], *(more_of(folder) if scale == "accelerator" else ())),
        ladder=found.ladder,
        rates=Rates(found.rates, growths=found.growths) if found.growths else None,
        design=DESIGN,
    )


def prepared_in(folder: Path, corpus: str) -> str:
    """The name of the first prepared corpus of a kind in the tokens of a model; "" where there is none."""
    tokenizer = saved_config(folder).data.tokenizer_name
    manifests = {one.name: read_manifest(one) for one in prepared_folders()}
    return next((name for name, one in manifests.items() if (one.corpus, one.tokenizer) == (corpus, tokenizer)), "")


def code_of(folder: Path) -> DataConfig:
    """The standard library's source code in the tokens of a model. Raises `ConfigError` where it is not prepared."""
    name = prepared_in(folder, "python_stdlib")
    told = f"no prepared corpus python_stdlib is in the tokens of {folder}"
    get = f"infini-jax corpus prepare python_stdlib --tokenizer json --model {folder / 'tokenizer.json'}"
    require(bool(name), "data", told, f"make it: {get}")
    return CorpusConfig(name)


def more_of(folder: Path) -> tuple[Evaluation, ...]:
    """What is read beside code where it is here: books in the model's tokens, and grammar."""
    books = prepared_in(folder, "text_folder")
    read = (LanguageEvaluation(documents=16, tokens=65_536, rows=16, data=books),) if books else ()
    return read + ((Blimp(pairs=100),) if blimp_place() else ())


def tiny_model() -> Path:
    """The folder of a model of random numbers that reads bytes, made where it is not there: it stands in for a trained one."""
    folder = data_folder() / "models" / "tiny"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_preparer(folder):
        if not folder.exists():
            write_random(TINY, folder)
    return folder


def write_random(model: ModelConfig, folder: Path) -> None:
    """Writes a model of random numbers that reads bytes, the same at every call, as the folder of an imported one."""
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(leaf.dtype), parameter_shapes(model))
    train = dataclasses.replace(SMOKE_TRAIN, sequence=model.segment)
    run = RunConfig(folder.name, model=model, data=StdlibConfig(), train=train, budget=Budget("steps", 1))
    save_imported(run, params, None, folder, {"source": "random numbers"})
