"""GGUF files by the package `gguf`: metadata as plain values, tensors dequantized one at a time to float32.

The package's own words for axes are turned around: shapes here are NumPy's, rows first.
Tensors in half precision stay what they are.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from infini_jax.errors import ConfigError, installs, one_line, require
from infini_jax.pretrained.fields import Fields
from infini_jax.pretrained.tensors import AGAIN, Tensor

HALVES = {"F16": "float16", "BF16": "bfloat16"}  # what is stored in half precision stays so


def open_gguf(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a file. Raises `ConfigError` where it is damaged or in parts, or the package is missing."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("path", f"reading {file.name} needs the package gguf", installs("pretrained")) from error
    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:  # a damaged header makes it raise whatever its arithmetic finds
        raise ConfigError("path", f"{file} is damaged, cut off or no GGUF ({one_line(error)})", AGAIN) from error
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    parts = Fields(metadata).whole("split.count", 1)
    require(parts <= 1, "path", f"{file} is one of {parts} parts", "join them: llama-gguf-split --merge")
    found: dict[str, Tensor] = {}
    size = file.stat().st_size
    for one in reader.tensors:
        whole = one.data_offset + one.n_bytes <= size
        require(whole, "path", f"{file} is cut off: {one.name} is not all there", AGAIN)
        require(one.name not in found, "path", f"{file} has the tensor {one.name} twice", AGAIN)
        shape = tuple(int(size) for size in reversed(one.shape))
        kept = HALVES.get(one.tensor_type.name, "float32")
        found[one.name] = Tensor(shape, kept, functools.partial(dequantized, one, shape, kept))
    return found, metadata


def dequantized(tensor: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The numbers of a tensor. Raises `ConfigError` for a quantization that the package cannot undo."""
    import gguf

    try:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        mend = "give a file in F16, BF16, Q8_0 or Q4_1"
        raise ConfigError("path", f"the tensor {tensor.name} has the type {kind}, which gguf cannot read", mend) from error
    return np.asarray(numbers, np.dtype(dtype)).reshape(shape)
