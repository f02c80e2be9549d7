"""How hard XLA tries with a program for a CPU, where compiling takes longer than many small runs do.

At level 1 of LLVM's optimizations a training step of the quick study's size compiles in 0.85 of the default's time and runs as
fast; at level 0 in 0.56, but takes 3 times as long to run, which pays for what runs once (docs/performance.md).
"""

import os

from infini_jax.layers.platforms import platform

ONCE, OFTEN = 0, 1  # levels for programs that run once, and for those that run often
OPTION = "xla_backend_optimization_level"


def effort(level: int) -> dict[str, int] | None:
    """Options of `jax.jit` and of `compile` for a program; None off a CPU, and where XLA_FLAGS has the user's own level."""
    return {OPTION: level} if platform() == "cpu" and OPTION not in os.environ.get("XLA_FLAGS", "") else None
