"""One file of safetensors: eight bytes of the header's length, little-endian, a JSON header, the tensors' bytes without holes.

The format: https://github.com/huggingface/safetensors. Only the header is read until a tensor is asked for; then it is mapped,
and unmapped when it is no longer used. Writing makes one tensor at a time, too: the package `safetensors` takes all of them at
once from NumPy, and knows no bfloat16 there.
"""

import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from infini_jax.errors import ConfigError, one_line, quoted, require
from infini_jax.files import json_text
from infini_jax.pretrained.tensors import AGAIN, Tensor

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
KINDS = {dtype.name: kind for kind, dtype in DTYPES.items()}


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
    require(isinstance(header, dict), "path", f"the header of {file} is not a JSON object", AGAIN)
    header.pop("__metadata__", None)
    return header


def checked_entry(name: str, said: Any, file: Path) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """(shape, type, first byte, last byte) of a tensor by its header. Raises `ConfigError` where they do not fit together."""
    told = f"{file} is damaged: its header says nothing of {quoted(name)} that can be read"
    try:
        shape, (begin, end), kind = tuple(said["shape"]), said["data_offsets"], str(said["dtype"])
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError("path", told, AGAIN) from error
    require(all(type(one) is int and one >= 0 for one in (*shape, begin, end)), "path", told, AGAIN)
    mend = "convert it to one of F32, F16, BF16"
    require(kind in DTYPES, "path", f"the tensor {quoted(name)} of {file.name} has the type {quoted(kind)}", mend)
    fits = end - begin == math.prod(shape) * DTYPES[kind].itemsize
    require(fits, "path", f"{file} is damaged: {quoted(name)} has another size than its shape says", AGAIN)
    return shape, DTYPES[kind], begin, end


def mapped(file: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """An array in a file: read when it is used, and out of memory when it no longer is."""
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", offset, shape or (1,)).reshape(shape)


def write_safetensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Writes tensors to a file, one at a time: each is read when its turn comes, and forgotten.

    Raises whatever reading one raises, and OSError where the disk cannot take it; what was written then stays.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers reads no file without it
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.size
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json_text(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers lie at multiples of their size
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            opened.write(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)
