"""A model in files as settings and parameters of ours, whatever it is: of a family, in a GGUF, or of this package."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from infini_jax.config import ModelConfig
from infini_jax.model.inheritance import layer_names
from infini_jax.pretrained.formats import open_weights
from infini_jax.pretrained.importing import described, read_all, unread_parameters
from infini_jax.pretrained.own_format import is_own, own_parameters, run_in
from infini_jax.pretrained.settings import model_settings
from infini_jax.pretrained.tensors import Weights


def load(path: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Any]]:
    """(settings, parameters as nested dicts of float32 arrays) of the model in a folder, or in a file of tensors.

    Raises `ConfigError` in one line where its files are damaged or incomplete, or it is no model that is supported.
    """
    weights = open_weights(Path(path))
    model = settings_in(weights)
    return model, read_all(parameters_in(weights, model, "float32"))


def settings_in(weights: Weights, segment: int = 0) -> ModelConfig:
    """The settings of a model, as it is.

    Args:
      weights: the files of the model.
      segment: tokens per segment; 0 is that of the run that was exported, for other models the context, at most 512.

    Raises `ConfigError` that names a setting which is not supported.
    """
    run = run_in(weights.settings)
    if run and is_own(weights.settings):
        return dataclasses.replace(run.model, segment=segment) if segment else run.model
    return model_settings(described(weights), segment or (run.model.segment if run else 0))


def parameters_in(weights: Weights, model: ModelConfig, dtype: str = "") -> dict[str, Any]:
    """The parameters of a model whose settings are `model`, as nested dicts of tensors that are read when they are asked for.

    Args:
      weights: the files of the model.
      model: its settings.
      dtype: type of the parameters; "" is that of each tensor in the files.

    Raises `ConfigError` where tensors do not fit the settings.
    """
    if is_own(weights.settings):
        return own_parameters(weights, model, dtype)
    groups = {group: len(names) for group, names in layer_names(model).items()}
    return unread_parameters(weights, described(weights), groups, dtype)
