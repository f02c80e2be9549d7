"""The files of a model: a folder or a file of safetensors, alone or in shards, or a GGUF. Pickles are refused.

Reading a pickle may run any program, whoever made it.
"""

from collections.abc import Mapping
from pathlib import Path

from infini_jax.errors import ConfigError, quoted, require
from infini_jax.files import read_object
from infini_jax.pretrained.gguf_file import open_gguf
from infini_jax.pretrained.safetensors_file import safetensors
from infini_jax.pretrained.tensors import AGAIN, Tensor, Weights

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
CONVERT = (
    'convert it where it comes from someone you trust: python -c "import torch; from safetensors.torch import save_file; '
    "save_file({k: v.clone() for k, v in torch.load('{}', weights_only=True).items()}, 'model.safetensors')\""
)


def open_weights(path: Path) -> Weights:
    """The files of a model: a folder with config.json and safetensors or with one GGUF, or a file of either.

    Raises `ConfigError` in one line where there are none, or they are damaged, incomplete, or pickles.
    """
    if path.is_dir():
        path = chosen_file(path)
    require(path.is_file(), "path", f"there is no {path}", "give a folder with config.json and safetensors, or a .gguf file")
    require(
        path.suffix not in PICKLES, "path", f"{path} is a pickle, which may run any program", CONVERT.replace("{}", path.name)
    )
    if path.suffix == ".gguf":
        tensors, metadata = open_gguf(path)
        return Weights("gguf", (path,), tensors, metadata, path.parent)
    known = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
    require(known, "path", f"{path} is of no known format", "give .safetensors or .gguf")
    files = shards(path) if path.suffix == ".json" else {path: None}
    mend = "put the model's config.json beside its tensors"
    settings = read_object(path.parent / CONFIG, "path", mend)
    return Weights("safetensors", tuple(files), joined(files), settings, path.parent)


def chosen_file(folder: Path) -> Path:
    """The file in a folder that is to be opened. Raises `ConfigError` where there is none, or more than one."""
    for name in (INDEX, SINGLE):
        if (folder / name).is_file():
            return folder / name
    for pattern in ("*.safetensors", "*.gguf"):
        if found := sorted(folder.glob(pattern)):
            names = ", ".join(file.name for file in found[:3])
            mend = f"name one of them, or restore {INDEX}"
            require(len(found) == 1, "path", f"{folder} holds {len(found)} files of tensors ({names})", mend)
            return found[0]
    for file in sorted(folder.iterdir()):
        if file.suffix in PICKLES:
            return file
    raise ConfigError("path", f"{folder} holds neither safetensors nor a GGUF", "give another folder")


def shards(index: Path) -> dict[Path, set[str]]:
    """The files that an index names, with the names of their tensors. Raises `ConfigError` where one is missing."""
    placed = read_object(index, "path", AGAIN).get("weight_map")
    is_map = isinstance(placed, dict) and placed and all(isinstance(name, str) for name in placed.values())
    require(bool(is_map), "path", f"{index} maps no tensors to files", AGAIN)
    found: dict[Path, set[str]] = {}
    for tensor, name in (placed or {}).items():
        require(Path(name).name == name, "path", f"{index} names {quoted(name)}, which is not a file beside it", AGAIN)
        found.setdefault(index.parent / name, set()).add(tensor)
    missing = sorted(file.name for file in found if not file.is_file())
    told = f"{len(missing)} of {len(found)} shards are missing ({', '.join(missing[:3])})"
    require(not missing, "path", told, "download them, too")
    return found


def joined(files: Mapping[Path, set[str] | None]) -> dict[str, Tensor]:
    """The tensors of several files. Raises `ConfigError` for a name that two have, and where one lacks what it should have."""
    found: dict[str, Tensor] = {}
    for file, wanted in files.items():
        tensors = safetensors(file)
        twice = sorted(found.keys() & tensors.keys())
        require(not twice, "path", f"{file} has the tensor {twice[:1]}, as another file does", "leave one of them out")
        lacking = sorted((wanted or set()) - tensors.keys())
        require(not lacking, "path", f"{file} lacks the tensor {lacking[:1]}, which the index says is there", AGAIN)
        found |= tensors
    return found
