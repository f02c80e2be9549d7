"""The folder of an exported model: tensors, config.json, tokenizer and card, all of it or nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infini_jax.data.byte_level import ByteLevel
from infini_jax.data.tokenizers import SentencePiece, Tokenizer
from infini_jax.errors import require
from infini_jax.files import new_folder, read_object, write_at_once, write_json
from infini_jax.pretrained.exporting import Exported
from infini_jax.pretrained.formats import CONFIG, INDEX, SINGLE
from infini_jax.pretrained.safetensors_file import write_safetensors
from infini_jax.pretrained.tensors import Tensor
from infini_jax.pretrained.tokens import CONFIG as TOKENIZER_CONFIG
from infini_jax.records.folder import RunFolder
from infini_jax.training.imported import tokenizer_file
from infini_jax.training.trained import Trained, saved_config

LARGEST_FILE = 5_000_000_000  # bytes of tensors in one file; more are spread over several
CARD = "README.md"


def save_exported(model: Exported, tokenizer: Tokenizer | None, card: str, folder: Path, largest: int = LARGEST_FILE) -> int:
    """Writes the folder of an exported model, whole or not at all, one tensor at a time.

    Args:
      model: the model as it is written.
      tokenizer: tokenizer of its text; None where it reads none.
      card: text of README.md.
      folder: new folder.
      largest: bytes of tensors in one file at most, unless a single one is larger.

    Returns:
      The bytes of all tensors.

    Raises:
      ConfigError: the folder is there already, or a number is too large for the type of the tensors.
      OSError: the disk cannot take it.
    """
    require(not folder.exists(), "folder", f"{folder} is there already", "give another folder, or remove it")
    begin, end = (tokenizer.begin, tokenizer.end) if tokenizer else (None, None)
    settings = model.settings | {"bos_token_id": begin, "eos_token_id": end}
    with new_folder(folder) as partial:
        write_json(settings, partial / CONFIG)
        write_at_once(card, partial / CARD)
        if tokenizer and (name := tokenizer_file(tokenizer)):
            (partial / name).write_bytes(tokenizer.model or b"")
            if said := tokenizer_settings(tokenizer):
                write_json(said, partial / TOKENIZER_CONFIG)
        write_shards(model.tensors, partial, largest)
    return sum(tensor.size for tensor in model.tensors.values())


def tokenizer_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `transformers` has to know of a tokenizer's file to make the same tokens; empty where it has no class for one."""
    if isinstance(tokenizer, ByteLevel):
        own = {"tokenizer_class": "PreTrainedTokenizerFast"}
    elif isinstance(tokenizer, SentencePiece) and tokenizer.is_bpe:
        own = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_prefix_space": tokenizer.takes_space}
        own |= {"unk_token": tokenizer.spelled(tokenizer.unknown)}
    else:
        return {}
    named = {"bos_token": tokenizer.begin, "eos_token": tokenizer.end}
    names = {name: None if token is None else tokenizer.spelled(token) for name, token in named.items()}
    adds = {"add_bos_token": tokenizer.begin is not None, "add_eos_token": False}
    return own | names | adds | {"clean_up_tokenization_spaces": False}


def write_shards(tensors: Mapping[str, Tensor], folder: Path, largest: int) -> None:
    """Writes tensors to one file, or to several with an index where they have more than `largest` bytes."""
    parts = shards_of(tensors, largest)
    if len(parts) == 1:
        write_safetensors(parts[0], folder / SINGLE)
        return
    placed: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = SINGLE.replace(".", f"-{number:05}-of-{len(parts):05}.")
        write_safetensors(part, folder / name)
        placed |= dict.fromkeys(part, name)
    total = sum(tensor.size for tensor in tensors.values())
    write_json({"metadata": {"total_size": total}, "weight_map": placed}, folder / INDEX)


def shards_of(tensors: Mapping[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """The tensors of each file, in their order: as many as have at most `largest` bytes, at least one."""
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if parts[-1] and filled + tensor.size > largest:
            parts.append({})
            filled = 0
        parts[-1][name] = tensor
        filled += tensor.size
    return parts


def imported_source(trained: Trained) -> dict[str, Any] | None:
    """What is known of the imported model that a run is, or began at, directly or by way of other runs.

    None where it began at fresh parameters, or the folder of a run in between is gone.
    """
    folder, run = trained.folder, trained.run
    seen: set[Path] = set()
    while not (file := RunFolder(folder).source).is_file():
        seen.add(folder)
        if run.origin is None or not RunFolder(folder := Path(run.origin.folder)).config.is_file() or folder in seen:
            return None
        run = saved_config(folder)
    return read_object(file, "run", "import the model again")
