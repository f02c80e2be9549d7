"""Parameters that a run does not train, saved once in its folder, so that checkpoints hold only what steps change."""

from pathlib import Path
from typing import Any

import numpy as np

from infini_jax.config import RunConfig
from infini_jax.errors import ConfigError
from infini_jax.records.folder import RunFolder
from infini_jax.training.checkpoint import Checkpoints, FinishedCheckpoints
from infini_jax.training.notes import Progress

PARAMS = "params"  # the part of the saved state


def save_frozen(run: RunConfig, folder: Path, frozen: dict) -> None:
    """Saves the frozen parameters of a run that begins in its folder; does nothing where there are none.

    Behind those of a start that came to nothing, as the newest are read. Raises `CheckpointError` where the disk cannot take
    them.
    """
    if not frozen:
        return
    with Checkpoints(run, RunFolder(folder).frozen) as store:
        start = Progress(1 + max(store.steps(), default=-1))
        store.save(start, {"step": np.zeros((), np.int32), PARAMS: frozen}, {"nothing": np.zeros(1, np.int32)})


def read_frozen(run: RunConfig, folder: Path, shapes: dict) -> dict:
    """The frozen parameters in a run's folder, like `shapes`; none where there are none in `shapes`.

    Raises:
      ConfigError: they are gone.
      CheckpointError: they are damaged.
    """
    if not shapes:
        return {}
    with opened(run, folder) as store:
        return store.restore_part(PARAMS, shapes)[1]


def written_frozen(run: RunConfig, folder: Path) -> dict[str, Any]:
    """The digests of the frozen parameters in a run's folder, by name; as `read_frozen` otherwise."""
    with opened(run, folder) as store:
        return {f"frozen/{name}": digest for name, digest in store.written_part(PARAMS)[1].items()}


def opened(run: RunConfig, folder: Path) -> FinishedCheckpoints:
    """The place where a run's frozen parameters were saved. Raises `ConfigError` where it is gone."""
    place = RunFolder(folder).frozen
    if not RunFolder(place).checkpoints.is_dir():
        raise ConfigError(
            "run", f"{place}, the parameters that it does not train, is gone", "restore it, or begin the run anew"
        )
    return FinishedCheckpoints(run, place)
