"""Runs that begin at another run's parameters, instead of at fresh ones."""

import dataclasses
from pathlib import Path

from infini_jax.config import Origin, RunConfig
from infini_jax.config.plain import digest_of
from infini_jax.devices.sharding import Layout, sharding_like
from infini_jax.errors import CheckpointError, ConfigError, require
from infini_jax.files import object_or_none
from infini_jax.model.inheritance import Inheritance, inheritance
from infini_jax.records.folder import RunFolder
from infini_jax.training.checkpoint import Which, like
from infini_jax.training.trained import read_learned, saved_config, written_learned

ASKED_BY = "--from-step"  # the option that names the checkpoint


def begun_from(run: RunConfig, folder: Path, step: Which = None, own: Path | None = None) -> RunConfig:
    """The run, beginning at what another run has learned: its parameters, or their moving average where it has one.

    Optimizer, schedule, memory and place in the data begin anew.

    Args:
      run: settings of the run that begins.
      folder: folder of the other run, finished or not.
      step: step of the other run's checkpoint, or "best" for that of its lowest validation loss; by default the newest.
      own: the run's own folder. Where it was begun there and saved, its origin is the one it was begun from: the other run may
        have gone on or be gone.

    Raises:
      ConfigError: the folder is no run's or is the run's own, has no such checkpoint, or its parameters do not fit the run.
      CheckpointError: the checkpoint is damaged.
    """
    kept = kept_origin(own) if own else None
    if kept and kept.folder == str(folder) and (not isinstance(step, int) or step == kept.step):
        return dataclasses.replace(run, origin=kept)
    is_other = own is None or folder.resolve() != own.resolve()
    require(is_other, "from", f"{folder} is the folder of this run itself", "give it another --name")
    other = saved_config(folder, "from")
    step, written = written_learned(other, folder, step, ASKED_BY)
    check_origin(run, other)
    origin = Origin(str(folder), other.name, other.fingerprint(), step, digest_of(written), other.model)
    return dataclasses.replace(run, origin=origin)


def kept_origin(folder: Path) -> Origin | None:
    """The origin of the run that was begun and saved in a folder; None where there is none that can be read."""
    place = RunFolder(folder)
    if not (place.checkpoints.is_dir() and any(place.checkpoints.iterdir())):
        return None
    try:
        return RunConfig.from_dict(object_or_none(place.config) or {}).origin
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None  # of another version: whoever reads checkpoints says more


def check_origin(run: RunConfig, other: RunConfig) -> Inheritance:
    """The parameters that a run takes from another, found on shapes alone.

    Raises `ConfigError` with the setting at fault where they do not fit: sizes, tokenizer, or the memory's own parameters.
    """
    theirs, ours = other.data.tokenizer_name, run.data.tokenizer_name
    require(
        not theirs or not ours or theirs == ours,
        "data.tokenizer",
        f"{ours} is not the tokenizer of {other.name}, which is {theirs}",
        "prepare the text with that one, or begin from another run",
    )
    return inheritance(other.model, run.model, other.name)


def inheritance_of(run: RunConfig) -> Inheritance | None:
    """The parameters that a run takes from its origin; None where it has none, or it is no longer there."""
    if run.origin is None or not RunFolder(Path(run.origin.folder)).config.is_file():
        return None
    return check_origin(run, saved_config(Path(run.origin.folder)))


def read_origin(run: RunConfig, origin: Origin, layout: Layout | None) -> tuple[RunConfig, dict]:
    """(the other run, what it has learned), with the places on devices that `layout` gives to its parameters.

    Raises:
      ConfigError: the other run is gone, lacks the checkpoint, or does not fit.
      CheckpointError: the checkpoint is damaged, or has other parameters than the origin says.
    """
    other = origin_there(origin)
    check_origin(run, other)

    def placed(shapes: dict) -> dict:
        return shapes if layout is None else like(shapes, sharding_like(shapes, other.model, layout))

    return other, read_learned(other, Path(origin.folder), origin.step, placed, ASKED_BY)[1]


def origin_there(origin: Origin) -> RunConfig:
    """The settings of the other run, whose notes say that the origin is what it was; raises as `read_origin` otherwise."""
    folder = Path(origin.folder)
    other = saved_config(folder, "from")
    _, written = written_learned(other, folder, origin.step, ASKED_BY)
    if digest_of(written) != origin.digest:
        raise CheckpointError(
            f"origin: step {origin.step} of {folder} has other parameters than this run was to begin from; "
            "restore them, or begin the run anew under another name"
        )
    return other
