"""Does memory beat a window, and do more bytes recall more, when every mechanism has the same FLOPs?

Command:   infini-jax study quick            (`make study` does this)
Cost:      at most 8 minutes on 2 CPU cores
Expected:  on MQAR, with the pairs out of the window's reach, mechanisms with memory answer and the window guesses; more bytes
           answer more. On the source code of the standard library, after seconds of training, differences are small. One seed,
           one budget and one learning rate a point: it shows what these runs scored, and its page says first that nothing is a
           conclusion.
"""

import dataclasses

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.study import Study
from infini_jax.study.comparison import ONE_LAYER, at_bytes, at_window, memories

MECHANISMS = ("transformer_xl", "infini", "memorizing", "landmark", "infinite_former")
MEMORY_BYTES = (5 * 1024, 16 * 1024, 32 * 1024)

RECALL = RunConfig(
    model=dataclasses.replace(ONE_LAYER, vocab=64),
    data=MqarConfig(pairs=16, symbols=64, repeats=2),
    train=TrainConfig(batch=8, sequence=80, learning_rate=1e-2, log_every=20, evaluation_steps=32),
    budget=Budget("flops", 1.6e11),
)
CODE = RunConfig(
    model=dataclasses.replace(ONE_LAYER, vocab=256, segment=64, key_taps=1),
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
        compared = memories(base.model.segment, *MECHANISMS)
        runs += [at_window(base, window) for window in WINDOWS[base.task]]
        runs += [at_bytes(base, variant, memory, size) for variant, memory in compared for size in MEMORY_BYTES]
    return Study(
        name="quick",
        question="Does memory beat a window, and do more bytes recall more, at the same FLOPs?",
        runs=tuple(runs),
        held_equal=(
            ("training FLOPs of a task", f"MQAR {RECALL.budget.amount:.1e}, code {CODE.budget.amount:.1e}"),
            ("model", "one layer, width 64, one head, MLP 128; on MQAR keys of two taps"),
            ("optimizer", "AdamW, warm-up and cosine, one learning rate for all"),
        ),
    )
