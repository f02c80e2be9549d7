"""Head to head: every mechanism of the registry on every task, with one and the same model, bytes and training FLOPs.

Command:   infini-jax study head_to_head --scale cpu           (or smoke, accelerator)
Cost:      cpu 60 runs in 65 min on two cores that other work kept busy; accelerator 60 runs and 1e16 FLOPs:
           at least 50 minutes at the 5 TFLOP/s that width 256 reached on an H100, and 15 s per run to compile. It never
           ran to its end. `--dry-run` counts both.
Expected:  no mechanism wins everywhere: slots win where single tokens must come back exactly and fit, matrices where there are
           many pairs per byte, what adds where there is something to count. Full attention is above all and the window below,
           on every task that asks about more than the window. One learning rate for all: the experiments of single tasks
           choose it; here a mechanism that is added to the registry, with its default settings, is seen on all of them.
"""

import dataclasses

from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import CARRIED, EvaluationConfig
from infini_jax.data.base import DataConfig
from infini_jax.data.haystack import HaystackConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.data.sorting import SortingConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.evals.base import Evaluation
from infini_jax.evals.haystack import HaystackEvaluation
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.evals.passkey import PasskeyEvaluation
from infini_jax.evals.sorting import SortingEvaluation
from infini_jax.memory import class_of
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.study import Study
from infini_jax.study.comparison import SMOKE, SMOKE_STEPS, SMOKE_TRAIN, Comparison, memories


@dataclasses.dataclass(frozen=True)
class Contest:
    """The tasks, sizes and training that all mechanisms meet in.

    Attributes:
      comparison: comparison of one size and one learning rate, with the vocabulary of the largest task.
      tasks: tasks made of examples, all of the base's sequence.
      text: tokens per sequence of the runs on source code, enough for a passkey spelled in bytes; tokens per step stay equal.
      capacity: settings of the memory layer alone, with the model's segment.
    """

    comparison: Comparison
    tasks: tuple[DataConfig, ...]
    text: int
    capacity: CapacityRun

    def runs(self) -> tuple[RunConfig | CapacityRun, ...]:
        """The runs of every mechanism on every task, those that share programs next to each other."""
        base, found = self.comparison.base, self.comparison
        on_tasks = [dataclasses.replace(base, data=data) for data in self.tasks]
        rows = max(1, base.train.batch * base.train.sequence // self.text)
        on_code = dataclasses.replace(
            base, data=StdlibConfig(), train=dataclasses.replace(base.train, batch=rows, sequence=self.text)
        )
        runs = [run for one in (*on_tasks, on_code) for run in dataclasses.replace(found, base=one).runs()]
        (size,) = found.sizes
        found = [pair for pair in memories(self.capacity.segment) if not class_of(pair[1]).works_on_stream()]
        alone = [self.alone(variant, memory).at_bytes(size) for variant, memory in found]
        bounds = [self.alone("", memory) for memory in (LocalConfig(window=1), FullConfig(slots=self.capacity.pairs[1]))]
        return tuple(sorted((*runs, *bounds, *alone), key=lambda run: (run.mechanism, run.variant)))  # they share programs

    def alone(self, variant: str, memory: MemoryConfig) -> CapacityRun:
        """The run of a memory layer without a model around it."""
        run = dataclasses.replace(self.capacity, memory=memory, variant=variant)
        return dataclasses.replace(run, name="-".join(filter(None, ("capacity", run.mechanism, variant))))


def text_tasks(filler_words: int, names: int) -> tuple[DataConfig, ...]:
    """The passkey task as in its papers, but with two digits, and the task of one fact among several."""
    return PasskeyConfig(digits=2, filler_words=filler_words), HaystackConfig(task="facts1", names=names)


SCALES = {
    "smoke": Contest(
        Comparison(
            RunConfig(
                model=dataclasses.replace(SMOKE, vocab=256),
                train=dataclasses.replace(SMOKE_TRAIN, sequence=128),
                budget=Budget("steps", SMOKE_STEPS),
                evaluation=EvaluationConfig(documents=2, tokens=64, rows=2, conditions=(CARRIED,)),
            ),
            sizes=(4 << 10,),
            rates=(1e-2,),
            window=4,
            slots=128,
        ),
        tasks=(MqarConfig(pairs=8, symbols=64), *text_tasks(64, 32), SortingConfig(symbols=8)),
        text=512,
        capacity=CapacityRun(pairs=(2, 16), grid=2, symbols=64, batch=2, budget=Budget("steps", SMOKE_STEPS), rows=4),
    ),
    "cpu": Contest(
        Comparison(
            RunConfig(
                model=ModelConfig(layers=2, d_model=64, heads=2, mlp_dim=128, segment=16, key_taps=2, vocab=256),
                train=TrainConfig(batch=8, sequence=128, evaluation_steps=16),
                budget=Budget("flops", 4e11),
                evaluation=EvaluationConfig(documents=8, tokens=2048, conditions=(CARRIED,)),
            ),
            sizes=(24 << 10,),
            rates=(5e-3,),
            window=6,
            slots=512,
        ),
        tasks=(MqarConfig(pairs=16, symbols=64, repeats=2), *text_tasks(64, 32), SortingConfig(symbols=8)),
        text=512,
        capacity=CapacityRun(budget=Budget("steps", 500)),
    ),
    "accelerator": Contest(
        Comparison(
            RunConfig(
                model=ModelConfig(layers=2, d_model=128, heads=4, mlp_dim=512, segment=64, key_taps=2, vocab=1024),
                train=TrainConfig(batch=64, sequence=256, evaluation_steps=16),
                budget=Budget("flops", 2e14),
                evaluation=EvaluationConfig(documents=32, tokens=8192, rows=32, conditions=(CARRIED,)),
            ),
            sizes=(160 << 10,),
            rates=(3e-3,),
            window=6,
            slots=2048,
        ),
        tasks=(MqarConfig(pairs=64, symbols=1024), *text_tasks(192, 110), SortingConfig(symbols=20)),
        text=2048,
        capacity=CapacityRun(segment=64, symbols=2048, pairs=(8, 512), key_dim=32, value_dim=32, batch=64),
    ),
}


def asked(examples: int, rows: int, windows: tuple[int, ...], documents: int, tokens: int) -> tuple[Evaluation, ...]:
    """The evaluations, at the length that a run was trained at and with as many rows, so that few programs do for all."""
    return (
        MqarEvaluation(examples=examples, rows=rows),
        PasskeyEvaluation(examples=examples, rows=rows),
        HaystackEvaluation(kinds=("facts1",), examples=examples, rows=rows),
        SortingEvaluation(windows=windows, examples=examples, rows=rows),
        LanguageEvaluation(documents=documents, tokens=tokens, rows=min(rows, 8)),
    )


ASKED = {
    "smoke": asked(examples=2, rows=2, windows=(16,), documents=2, tokens=64),
    "cpu": asked(examples=32, rows=16, windows=(16, 32, 64), documents=8, tokens=2048),
    "accelerator": asked(examples=64, rows=64, windows=(64, 128), documents=16, tokens=16_384),
}


def study(scale: str) -> Study:
    """All mechanisms on all tasks."""
    found = SCALES[scale].comparison
    return Study(
        name="head_to_head",
        question="Which mechanism is best at what, with the same model, bytes and training FLOPs?",
        runs=SCALES[scale].runs(),
        held_equal=(
            *found.held_equal[:1],
            ("bytes of memory", f"at most {found.sizes[0]} a sequence, but for full attention"),
            ("learning rate", f"{found.rates[0]:g} for all"),
        ),
        evaluations=ASKED[scale],
    )
