"""How a stored tensor lies against a parameter, in letters: `(HK)D` is a matrix of H K rows and D columns.

Letters of axes: N vocabulary, D model, H query heads, G key heads, K key dim, V value dim, F MLP width, C learned positions;
K is also P I, two halves of I dimensions; T tells query, key and value apart in a fused tensor. Parentheses join axes.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

AXIS = re.compile(r"\((\w+)\)|(\w)")


def axes_of(letters: str) -> list[str]:
    """The axes of a layout, each as the letters that are joined in it: `(HK)D` is HK and D."""
    return [joined or alone for joined, alone in AXIS.findall(letters)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The stored and the kept form of one parameter.

    Attributes:
      stored: axes of the tensor in the file.
      kept: axes of the parameter, in any order; those of `stored` but T.
      part: place on the axis T, where the tensor has one.
      offset: number that is added to every entry.
    """

    stored: str
    kept: str
    part: int = 0
    offset: float = 0.0

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the tensor in the file."""
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in axes_of(self.stored))

    def kept_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the parameter."""
        return tuple(sizes[letter] for letter in self.kept)

    def put(self, tensor: np.ndarray, parameter: np.ndarray, sizes: Mapping[str, int]) -> None:
        """Writes a tensor of the file into a parameter, which is contiguous: by views, so that nothing is copied twice."""
        theirs, ours = self._as_one(tensor, parameter, sizes)
        ours[...] = theirs
        if self.offset:
            parameter += parameter.dtype.type(self.offset)

    def take(self, parameter: np.ndarray, tensor: np.ndarray, sizes: Mapping[str, int]) -> None:
        """Writes a parameter into a tensor for a file, which is contiguous: the inverse of `put`, in the tensor's type.

        What `put` made comes back bit for bit. Of other scales of norms near 0 the offset rounds the last bits away.
        """
        theirs, ours = self._as_one(tensor, parameter, sizes)
        theirs[...] = ours - ours.dtype.type(self.offset) if self.offset else ours

    def _as_one(self, tensor: np.ndarray, parameter: np.ndarray, sizes: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """Views of the tensor, its part of a fused one, and of the parameter, with the same axes in the same order."""
        letters = "".join(axes_of(self.stored))
        apart = tensor.reshape([sizes[letter] for letter in letters])
        if "T" in letters:
            apart, letters = apart[(slice(None),) * letters.index("T") + (self.part,)], letters.replace("T", "")
        kept = self.kept if "K" in letters else self.kept.replace("K", "PI")
        ours = parameter.reshape([sizes[letter] for letter in kept])
        return apart.transpose([letters.index(letter) for letter in kept]), ours
