"""Tensors in files, opened lazily: safetensors, alone or in shards, and GGUF (`infini_jax.pretrained.gguf_file`).

Nothing is read but the headers until a tensor is asked for; then it is mapped, and unmapped when it is no longer used.
Pickles are refused: reading one may run any program. The format of safetensors: eight bytes of the header's length,
little-endian, a JSON header, and the tensors' bytes without holes (https://github.com/huggingface/safetensors).
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from infini_jax.errors import ConfigError, one_line, quoted, require
from infini_jax.files import read_object

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
CONVERT = (
    'convert it where it comes from someone you trust: python -c "import torch; from safetensors.torch import save_file; '
    "save_file({k: v.clone() for k, v in torch.load('{}', weights_only=True).items()}, 'model.safetensors')\""
)
LARGEST_HEADER = 100 << 20  # bytes, as the format says
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
WEIGHTS = ("float32", "float16", "bfloat16")  # types of weights
AGAIN = "copy or download it again"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that was not read yet.

    Attributes:
      shape: shape of the array.
      dtype: name of the type that `read` gives.
      read: reads the tensor; the array may be mapped from the file.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The files of a model.

    Attributes:
      form: format of the files, which names the tensors.
      files: the files that hold tensors.
      tensors: tensors by name.
      settings: the plain settings that come with them: config.json, or a GGUF's metadata under its own names.
      folder: folder with what else belongs to the model, such as a tokenizer.
    """

    form: Literal["safetensors", "gguf"]
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    folder: Path

    @property
    def size(self) -> int:
        """The bytes of all files of tensors."""
        return sum(file.stat().st_size for file in self.files)

    def digest(self) -> str:
        """SHA-256 of the files, one behind the other, in the order of their names."""
        found = hashlib.sha256()
        for file in sorted(self.files):
            with file.open("rb") as opened:
                while part := opened.read(1 << 20):
                    found.update(part)
        return found.hexdigest()


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
        from infini_jax.pretrained.gguf_file import open_gguf

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
        require(Path(name).name == name, "path", f"{index} names {quoted(name)}, which is no file beside it", AGAIN)
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


def safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises `ConfigError` where it is damaged or cut off."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        whole = 8 + length <= size and length <= LARGEST_HEADER
        require(whole, "path", f"{file} is cut off or no safetensors", AGAIN)
        header = header_of(opened.read(length), file)
    found: dict[str, Tensor] = {}
    spans, first = [], 8 + length
    for name, said in header.items():
        shape, dtype, begin, end = checked_entry(name, said, file)
        require(first + end <= size, "path", f"{file} is cut off: {name} ends at byte {first + end} of {size}", AGAIN)
        found[name] = Tensor(shape, dtype.name, functools.partial(mapped, file, dtype, shape, first + begin))
        spans.append((begin, end))
    begins, ends = zip(*sorted(spans), strict=True) if spans else ((), ())
    fill = (*begins, size - first) == (0, *ends)
    require(fill, "path", f"{file} is damaged: its tensors do not fill it", AGAIN)
    return found


def header_of(text: bytes, file: Path) -> dict[str, Any]:
    """The header of a file without its free text. Raises `ConfigError` where it is no JSON object, or has a name twice."""

    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"it has {quoted(name)} twice")
            found[name] = value
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ConfigError("path", f"the header of {file} is damaged ({one_line(error)})", AGAIN) from error
    require(isinstance(header, dict), "path", f"the header of {file} is no JSON object", AGAIN)
    header.pop("__metadata__", None)
    return header


def checked_entry(name: str, said: Any, file: Path) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """(shape, type, first byte, last byte) of a tensor by its header. Raises `ConfigError` where they do not fit together."""
    try:
        shape, (begin, end), kind = tuple(said["shape"]), said["data_offsets"], said["dtype"]
        is_plain = all(type(one) is int and one >= 0 for one in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        is_plain, kind = False, None
    require(is_plain, "path", f"{file} is damaged: its header says nothing of {quoted(name)} that can be read", AGAIN)
    mend = f"convert it to one of {', '.join(('F32', 'F16', 'BF16'))}"
    require(kind in DTYPES, "path", f"the tensor {quoted(name)} of {file.name} has the type {quoted(kind)}", mend)
    fits = end - begin == math.prod(shape) * DTYPES[kind].itemsize
    require(fits, "path", f"{file} is damaged: {quoted(name)} has another size than its shape says", AGAIN)
    return shape, DTYPES[kind], begin, end


def mapped(file: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """An array in a file: read when it is used, and out of memory when it no longer is."""
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", offset, shape or (1,)).reshape(shape)
