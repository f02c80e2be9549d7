"""Does memory beat a window, and do more bytes recall more, when every mechanism has the same FLOPs?

Command:   infini-jax study quick            (`make study` does this)
Cost:      at most 8 minutes on 2 CPU cores
Expected:  on MQAR, with the pairs out of the window's reach, mechanisms with memory answer and the window guesses; more bytes
           answer more. On the source code of the standard library, after seconds of training, differences are small.
"""

import dataclasses

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.evals.settings import EvaluationConfig
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.infinite_former import InfiniteFormerConfig
from infini_jax.memory.landmark import LandmarkConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.memory.transformer_xl import TransformerXLConfig
from infini_jax.study import Study

MEMORIES: tuple[tuple[str, MemoryConfig], ...] = (
    ("", TransformerXLConfig()),
    ("linear", InfiniConfig()),
    ("delta", InfiniConfig(update="delta")),
    ("", MemorizingConfig(top_k=8)),
    ("", LandmarkConfig(block=8, retrieved=4)),
    ("", InfiniteFormerConfig(samples=64)),
)
MEMORY_BYTES = (5 * 1024, 16 * 1024, 32 * 1024)

# One layer and one head, so that a recall is one memory's doing; with key taps of two, one layer can bind a value to its key.
MODEL = ModelConfig(layers=1, d_model=64, heads=1, mlp_dim=128)
RECALL = RunConfig(
    model=dataclasses.replace(MODEL, vocab=64, segment=16, key_taps=2),
    data=MqarConfig(pairs=16, symbols=64, repeats=2),
    train=TrainConfig(batch=8, sequence=80, learning_rate=1e-2, log_every=20, evaluation_steps=32),
    budget=Budget("flops", 1.6e11),
)
CODE = RunConfig(
    model=dataclasses.replace(MODEL, vocab=256, segment=64),
    data=StdlibConfig(),
    train=TrainConfig(batch=4, sequence=512, learning_rate=1e-2, log_every=5),
    budget=Budget("flops", 1.0e11),
    evaluation=EvaluationConfig(tokens=4096),
)
# The floor stays within a segment: a window with the bytes of a cache is a cache, which is transformer_xl's row.
WINDOWS = {"mqar": (2, 4, 8), "python_stdlib": (16, 32, 64)}


def study() -> Study:
    """Every mechanism at three memory sizes on both tasks."""
    runs = []
    for base in (RECALL, CODE):
        runs += [at_window(base, window) for window in WINDOWS[base.task]]
        runs += [at_bytes(base, variant, memory, size) for variant, memory in MEMORIES for size in MEMORY_BYTES]
    return Study(
        name="quick",
        question="Does memory beat a window, and do more bytes recall more, at the same FLOPs?",
        runs=tuple(runs),
        held_equal=(
            ("training FLOPs of a task", f"MQAR {RECALL.budget.amount:.1e}, code {CODE.budget.amount:.1e}"),
            ("model", "one layer, width 64, one head, MLP 128; on MQAR keys of two taps"),
            ("optimiser", "AdamW, warm-up and cosine, one learning rate for all"),
        ),
    )


def at_window(base: RunConfig, window: int) -> RunConfig:
    """`base` with a sliding window of `window` tokens."""
    model = dataclasses.replace(base.model, memory=LocalConfig(window=window))
    return dataclasses.replace(base, name=f"{base.task}-local-{window}", model=model)


def at_bytes(base: RunConfig, variant: str, memory: MemoryConfig, size: int) -> RunConfig:
    """`base` with the largest memory of at most `size` bytes a sequence."""
    model = dataclasses.replace(base.model, memory=memory).at_bytes(size)
    names = [base.task, model.mechanism, variant, f"{size // 1024}k"]
    return dataclasses.replace(base, name="-".join(filter(None, names)), variant=variant, model=model)
