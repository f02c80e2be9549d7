"""The form of a program that streams through a model: what runs side by side, what in loops, what is kept for the gradient."""

import dataclasses
from typing import Literal

Rematerialise = Literal["none", "segment", "layer"]


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of a program; the results are the same in each.

    Attributes:
      segments: number of segments that every layer takes at once on one device.
      rematerialise: part that is made again for the gradient, as in `TrainConfig`.
      layer_loop: form of the layers, as in `TrainConfig`.
    """

    segments: int = 1
    rematerialise: Rematerialise = "segment"
    layer_loop: Literal["scan", "unroll"] = "scan"

    def __str__(self) -> str:
        return f"segments {self.segments}, rematerialise {self.rematerialise}, layers {self.layer_loop}"


IN_TURN = Form()
"""One segment after the other, one layer after the other, with the activations of one segment at a time."""
