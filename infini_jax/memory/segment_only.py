"""No memory: attention to the neighborhood, by default the segment, for the layers that `MemoryConfig.layers` leaves out."""

import dataclasses

import jax

from infini_jax.layers.segment import Segment
from infini_jax.memory.base import Cost
from infini_jax.memory.positions import Positioned, PositionedConfig, local_cost
from infini_jax.memory.window import view


@dataclasses.dataclass(frozen=True)
class SegmentOnlyConfig(PositionedConfig):
    """Settings of a layer without a memory: the positions of its attention."""


class SegmentOnly(Positioned):
    """Causal attention to the neighborhood alone; the state is an empty tuple."""

    Config = SegmentOnlyConfig
    summary = "no memory"
    paper = "Vaswani et al. 2017, arXiv 1706.03762"
    splits_sequence = True
    neighborhoods = ("segment", "window", "cache")
    honors = ("attention_scale", "rotary", "score_cap")

    def init_memory(self, batch: int) -> tuple[()]:
        return ()

    def attend(self, memory: tuple[()], segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self.out(self.attention(segment.queries, view(segment))), {}

    def write(self, memory: tuple[()], segment: Segment) -> tuple[()]:
        return ()

    def advance(self, memory: tuple[()], segments: Segment) -> tuple[jax.Array, tuple[()], dict[str, jax.Array]]:
        y_BxSxD, metrics = self.attend(memory, segments)
        return y_BxSxD, memory, metrics

    def logical_axes(self) -> tuple[()]:
        return ()

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        return local_cost(self.config, self.dims, segment_length, segments=segments)

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        return self.cost(segment_length, segments)
