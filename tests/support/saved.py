"""Runs as training leaves them, with random numbers for parameters: nothing is trained or compiled."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.config import RunConfig
from infini_jax.records.folder import RunFolder
from infini_jax.training.checkpoint import Checkpoints, Progress
from infini_jax.training.program import Training


def drawn(shapes: Any, seed: int) -> Any:
    """Random numbers in these shapes."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.1, leaf.shape), leaf.dtype), shapes)


def saved_run(run: RunConfig, folder: Path, steps: tuple[int, ...] = (1, 2)) -> Path:
    """The folder of a run with checkpoints of these steps, each with its own numbers: the same for runs of the same shapes."""
    shapes = Training(run).shapes
    with Checkpoints(run, folder) as checkpoints:
        for step in steps:
            state = drawn(shapes.saved, step) | {"step": jnp.int32(step)}
            checkpoints.save(Progress(step), state, drawn(shapes.carry, step))
    RunFolder(folder).write_config(run.to_dict())
    return folder
