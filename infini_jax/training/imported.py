"""The folder of an imported model: that of a run which has taken no step, so that all that reads runs reads it.

Its data are a prepared corpus without documents, which holds the tokenizer only: one for all models that share it.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.prepared import MANIFEST_FILE, MODEL_FILE, Manifest, only_preparer, prepared_folder
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import require, require_no_pattern
from infini_jax.files import new_folder, write_at_once, write_json
from infini_jax.records.folder import RunFolder
from infini_jax.training.notes import Progress
from infini_jax.training.unread import UnreadCheckpoints

TOKENIZER_FILES = {
    "json": "tokenizer.json",
    "sentencepiece": "tokenizer.model",
}  # by the kind that a tokenizer's name begins with


def tokenizer_file(tokenizer: Tokenizer) -> str:
    """The name that the file of a tokenizer has beside a model; "" for one that has no file, as that of bytes."""
    return TOKENIZER_FILES.get(tokenizer.name.partition(":")[0], "")


def tokenizer_corpus(tokenizer: Tokenizer) -> CorpusConfig:
    """Settings of the prepared corpus that holds a tokenizer and no documents; it is made where it is not there."""
    model = tokenizer.model
    folder = prepared_folder(f"tokenizer-{hashlib.sha256(model).hexdigest()[:12] if model else tokenizer.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_preparer(folder):
        if not (folder / MANIFEST_FILE).is_file():
            folder.mkdir(exist_ok=True)
            if model:
                (folder / MODEL_FILE).write_bytes(model)
            manifest = Manifest("tokenizer", "", tokenizer.name, tokenizer.name, tokenizer.vocab, {})
            write_at_once(manifest.to_json(), folder / MANIFEST_FILE)
    return CorpusConfig(folder.name)


def imported_run(name: str, model: ModelConfig, tokenizer: Tokenizer) -> RunConfig:
    """The run that an imported model is, of no step. Raises `ConfigError` where model and tokenizer do not go together."""
    train = TrainConfig(batch=1, sequence=model.segment)
    return RunConfig(name=name, model=model, data=tokenizer_corpus(tokenizer), train=train, budget=Budget("steps", 1))


def imported_again(name: str, run: RunConfig, model: ModelConfig) -> RunConfig:
    """The run that an exported model is whose task has no text, such as pairs: it is read on that task."""
    train = TrainConfig(batch=1, sequence=run.train.sequence)
    return RunConfig(name=name, model=model, data=run.data, train=train, budget=Budget("steps", 1))


def save_imported(run: RunConfig, params: dict, tokenizer: Tokenizer | None, folder: Path, source: dict[str, Any]) -> None:
    """Writes the folder of an imported model, whole or not at all: its settings, step 0, tokenizer and source.

    Args:
      run: the model as a run.
      params: parameters of the model, as nested dicts of arrays, or of `Tensor`s, of which one at a time is read.
      tokenizer: tokenizer of the model; None where it reads no text.
      folder: new folder, which ends in the model's name.
      source: where the model is from, as JSON values.

    Raises:
      ConfigError: the folder is there already, or its path is one in which checkpoints are not found again.
      CheckpointError: the disk cannot take it.
    """
    require(not folder.exists(), "name", f"{folder} is there already", "give another --name, or remove it")
    require_no_pattern("results", folder)
    with new_folder(folder) as partial:
        place = RunFolder(partial)
        place.write_config(run.to_dict())
        write_json(source, place.source)
        if tokenizer and (name := tokenizer_file(tokenizer)):
            (partial / name).write_bytes(tokenizer.model or b"")
        state, nothing = {"step": np.zeros((), np.int32), "params": params}, {"nothing": np.zeros(1, np.int32)}
        with UnreadCheckpoints(run, partial) as checkpoints:
            checkpoints.save(Progress(), state, nothing)
