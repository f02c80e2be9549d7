"""Settings, parameters and tokenizer of a trained run, read from its folder."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from infini_jax.config import RunConfig
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.devices.sharding import data_mesh, replicated
from infini_jax.errors import ConfigError, require, required
from infini_jax.files import json_object
from infini_jax.memory.base import MemoryConfig
from infini_jax.model.inheritance import grouped, in_words, inheritance, layer_names, layers_apart
from infini_jax.model.parts import parts_of
from infini_jax.records.folder import RunFolder
from infini_jax.training.checkpoint import FinishedCheckpoints, Which, like
from infini_jax.training.frozen import read_frozen, written_frozen


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run at one of its checkpoints.

    Attributes:
      folder: folder of the run.
      run: settings of the run.
      step: step of the checkpoint.
      params: the parameters, those of the moving average if the run has one.
    """

    folder: Path
    run: RunConfig
    step: int
    params: dict

    @staticmethod
    def open(folder: Path, step: Which = None) -> "Trained":
        """Reads the newest checkpoint, that of `step` or the best, without optimizer and carried memory.

        Raises:
          ConfigError: the folder is no run's or has no such checkpoint.
          CheckpointError: the checkpoint is damaged.
        """
        run, everywhere = saved_config(folder), replicated(data_mesh(jax.device_count()))

        def placed(shapes: dict) -> dict:
            return like(shapes, jax.tree.map(lambda _: everywhere, shapes))

        return Trained(folder, run, *read_learned(run, folder, step, placed))

    def with_memory(self, memory: MemoryConfig) -> "Trained":
        """This run read with other settings of its memory. Raises `ConfigError` as `read_with` does."""
        run, params = read_with(self.run, memory), self.params
        if layer_names(run.model) != layer_names(self.run.model):  # layers are stacked in other groups
            params = grouped(run.model, layers_apart(self.run.model, params))
        return dataclasses.replace(self, run=run, params=params)


def read_with(run: RunConfig, memory: MemoryConfig) -> RunConfig:
    """The settings of a trained run with others of its memory, such as a larger one, for its evaluation.

    Raises `ConfigError` where the parameters depend on them: the run has learned others.
    """
    model = dataclasses.replace(run.model, memory=memory)
    found = inheritance(run.model, model, run.name)
    changed = found.fresh | found.left
    problem = f"with these settings {run.name} has other parameters than it has learned ({in_words(changed)})"
    require(not changed, "memory", problem, "leave what decides them as it was trained")
    return dataclasses.replace(run, model=model)


def learned_part(run: RunConfig) -> str:
    """The part of a run's state that is evaluated and begun from: the moving average where there is one."""
    return "average" if run.train.average else "params"


def read_learned(
    run: RunConfig, folder: Path, step: Which, placed: Callable[[dict], dict], asked_by: str = "--step"
) -> tuple[int, dict]:
    """(step, parameters that a run has learned there), those of a plain model: frozen ones are there, and factors are merged.

    Args:
      run: settings of the run.
      folder: folder of the run.
      step: step of the checkpoint, "best" or None for the newest.
      placed: gives `jax.ShapeDtypeStruct`s of parameters the shardings that their arrays shall get.
      asked_by: option by which the user names a checkpoint, for messages.

    Raises as `Trained.open` does.
    """
    parts = parts_of(run)
    trained, frozen = map(placed, parts.shapes)
    with FinishedCheckpoints(run, folder, asked_by) as checkpoints:
        step, learned = checkpoints.restore_part(learned_part(run), trained, step)
    return step, jax.jit(parts.merged)(learned, read_frozen(run, folder, frozen)) if frozen else learned


def written_learned(run: RunConfig, folder: Path, step: Which, asked_by: str) -> tuple[int, dict[str, Any]]:
    """(step, digests by name) of the parameters that a run has learned there, from notes alone; else as `read_learned`."""
    with FinishedCheckpoints(run, folder, asked_by) as checkpoints:
        step, written = checkpoints.written_part(learned_part(run), step)
    return step, written if run.train.trains == "all" else written | written_frozen(run, folder)


def run_tokenizer(run: RunConfig) -> Tokenizer:
    """The tokenizer of a run's corpus.

    Raises `ConfigError` where the run has no text, or its corpus is not here or has another tokenizer now.
    """
    return required(run.data.open_tokenizer(), "run", f"its task {run.task} has no text", "choose a run on a corpus")


def saved_config(folder: Path, field: str = "run") -> RunConfig:
    """The settings in a run's folder.

    Raises `ConfigError` where there are none that can be read; it names `field`, the option that the folder was given by.
    """
    with unreadable_told(folder, field):
        return RunConfig.from_dict(saved_settings(folder, field))


def saved_settings(folder: Path, field: str = "run") -> dict[str, Any]:
    """The settings in the folder of a job of any kind and version, as JSON values.

    Raises `ConfigError` as `saved_config` does.
    """
    file = RunFolder(folder).config
    mend = "give the folder that `infini-jax train` left, such as results/runs/run"
    require(folder.is_dir(), field, f"{folder} is not a folder", mend)
    require(file.is_file(), field, f"{folder} has no {file.name}", mend)
    with unreadable_told(folder, field):
        found = json_object(file.read_bytes())
    problem = f"{folder} holds a model of another program"
    require("model_type" not in found, field, problem, f"import it: infini-jax import {folder}")
    return found


def flattened(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted name."""
    found = {}
    for name, value in settings.items():
        inner = flattened(value) if isinstance(value, dict) else None
        found |= {name: value} if inner is None else {f"{name}.{part}": one for part, one in inner.items()}
    return found


@contextlib.contextmanager
def unreadable_told(folder: Path, field: str) -> Iterator[None]:
    """A context that turns errors of reading settings into a `ConfigError` of one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        mend = "restore it, or train the run again"
        raise ConfigError(field, f"{RunFolder(folder).config} cannot be read ({error})", mend) from error
