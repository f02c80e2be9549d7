"""Tensors that were not read yet, and the files of a model that hold them."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

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

    @property
    def size(self) -> int:
        """The bytes of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


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
