"""One neighborhood for all mechanisms: what a token sees exactly, beside the memory (`MemoryConfig.local`).

  segment   the tokens of its segment up to itself
  window    the last S tokens, itself included, across the segment's edge, S being a segment's length (arXiv 2004.05150)
  cache     all of the segment before, and its own up to itself: Transformer-XL's cache of one segment (arXiv 1901.02860)
A mechanism is composed with it: what is carried is the mechanism's memory and beside it a cache of the last tokens' keys and
values, which the segment brings along as `Segment.near`. Local attention sees it through `window.view`, whatever is done with
it then. So comparisons with one neighborhood compare what the memories hold of the far past. The cache is counted apart
(`neighborhood_bytes`): bytes of memory are those of the mechanism alone. As in Transformer-XL no gradient enters a cache; one
enters a window, which streams as one long banded attention. Entries are carried without positions; the mechanism gives them.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from flax import struct

from infini_jax.errors import require
from infini_jax.layers.segment import Segment
from infini_jax.memory import window
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig, segments_of_a_stream
from infini_jax.memory.sizes import bytes_of_shapes, memory_bytes
from infini_jax.memory.window import Recent


@struct.dataclass
class FarAndNear:
    """What a layer carries with a neighborhood.

    Attributes:
      far: the mechanism's memory.
      near: cache of the last tokens' keys and values.
    """

    far: Any
    near: Recent


def neighborhood_bytes(memory: Memory) -> int:
    """Bytes per sequence of what one layer carries beside its memory, measured on shapes; 0 with the mechanism's own."""
    return bytes_of_shapes(jax.eval_shape(lambda: memory.init_memory(1))) - memory_bytes(memory)


def composed(mechanism: type[Memory], config: MemoryConfig, dims: Dims) -> Memory:
    """The memory of a mechanism, with a neighborhood beside it where the settings ask for one that is carried.

    Raises `ConfigError` where the mechanism cannot have it.
    """
    check_local(mechanism, config)
    carried, _ = config.neighbors(dims.segment)
    return WithNeighborhood(config, dims, mechanism) if carried else mechanism(config, dims)


def check_local(mechanism: type[Memory], config: MemoryConfig) -> None:
    """Checks the neighborhood of a mechanism: raises `ConfigError` where it cannot have it."""
    choices = ("own", *mechanism.neighborhoods)
    problem = f"{mechanism.__name__} has no neighborhood '{config.local}' beside its memory"
    require(config.local in choices, "memory.local", problem, f"choose {' or '.join(choices)}")


class Around(Memory):
    """A memory that carries more around one mechanism, whose declarations and parameters are its own, under the same names.

    Attributes:
      mechanism: class of the mechanism.
    """

    mechanism: type[Memory]

    def setup(self):
        self.inner = self.mechanism(*self.inside)
        nn.share_scope(self, self.inner)

    @property
    def inside(self) -> tuple[MemoryConfig, Dims]:
        """Settings and sizes of the mechanism."""
        return self.config, self.dims

    @property
    def alone(self) -> Memory:
        """The mechanism without parameters, for what needs none."""
        return self.mechanism(*self.inside, parent=None)

    @property
    def gates(self) -> Any:
        return self.mechanism.gates

    @property
    def no_decay(self) -> Any:
        return self.mechanism.no_decay

    @property
    def auxiliary(self) -> Any:
        return self.mechanism.auxiliary

    @property
    def parameter_axes(self) -> Any:
        return self.mechanism.parameter_axes

    @property
    def honors(self) -> Any:
        return self.mechanism.honors

    @property
    def reads_own(self) -> Any:
        return self.mechanism.reads_own

    def remembered(self, memory: FarAndNear) -> Any:
        return memory.far


class WithNeighborhood(Around):
    """A mechanism and the cache beside its memory."""

    @property
    def keeps_bfloat16(self) -> Any:
        return self.mechanism.keeps_bfloat16

    def init_memory(self, batch: int) -> FarAndNear:
        return FarAndNear(self.alone.init_memory(batch), self._no_neighbors(batch))

    def initial(self, batch: int) -> FarAndNear:
        return FarAndNear(self.inner.initial(batch), self._no_neighbors(batch))

    def _no_neighbors(self, batch: int) -> Recent:
        return window.empty(batch, self.config.neighbors(self.dims.segment)[0], self.dims)

    def attend(self, memory: FarAndNear, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self.inner.attend(memory.far, self._beside(memory.near, segment))

    def write(self, memory: FarAndNear, segment: Segment) -> FarAndNear:
        far = self.inner.write(memory.far, self._beside(memory.near, segment))
        return FarAndNear(far, window.append(memory.near, segment))

    def advance(self, memory: FarAndNear, segments: Segment) -> tuple[jax.Array, FarAndNear, dict[str, jax.Array]]:
        """(outputs BWxSxD, memory, metrics) of W segments, as `Memory.advance`.

        The neighborhoods of all are found at once, and the mechanism takes the segments as it does without any.
        """
        near, after = window.before_each(memory.near, segments, segments_of_a_stream(memory.near, segments))
        y_BxSxD, far, metrics = self.inner.advance(memory.far, self._beside(near, segments))
        return y_BxSxD, FarAndNear(far, after), metrics

    def _beside(self, near: Recent, segment: Segment) -> Segment:
        """The segment with its neighborhood."""
        return dataclasses.replace(segment, near=near, sees=self.config.neighbors(self.dims.segment)[1])

    def lost(self, before: FarAndNear, after: FarAndNear, segments: int, phase_B: jax.Array | None) -> FarAndNear:
        far = self.alone.lost(before.far, after.far, segments, phase_B)
        return FarAndNear(far, window.pushed_out(before.near, segments * self.dims.segment))

    def restored(self, after: FarAndNear, lost: FarAndNear, segments: int, phase_B: jax.Array | None) -> FarAndNear:
        far = self.alone.restored(after.far, lost.far, segments, phase_B)
        return FarAndNear(far, window.shifted_back(after.near, lost.near))

    def logical_axes(self) -> FarAndNear:
        return FarAndNear(self.alone.logical_axes(), window.LOGICAL_AXES)

    def cost(self, segment_length: int) -> Cost:
        """FLOPs and bytes moved per token: the mechanism's, whose local part has the neighborhood, and the cache's bytes."""
        return self._with_cache(self.alone.cost(segment_length), segment_length)

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        return self._with_cache(self.alone.cost_at_once(segment_length, segments), segment_length)

    def _with_cache(self, alone: Cost, segment_length: int) -> Cost:
        moved = 3.0 * neighborhood_bytes(self) / segment_length  # read by attend, read and written by write
        return dataclasses.replace(alone, bytes_moved=alone.bytes_moved + moved)
