"""A memory beside the attention that a pretrained model has: what it reads is added, and adds nothing before training.

  y = A(x) + M(x)     A is the attention as it was, with its own W_O; M is all that the mechanism reads, with a W_O of zeros
So the model's function is unchanged at the first step, to rounding, and a gradient reaches the W_O of M there. M has the same
queries, keys and values, and parameters of its own, which lie below `added`; the others are those that the layer had. What a
mechanism reads has its local attention in it, which many mix with their memory by a gate, so the segment is attended to twice.

Tokens that a mechanism inserts into segments (landmarks) take no part in A: it reads raw tokens at their own places, and adds
nothing at inserted ones (`Native`), so that distances are those that the model knows. So do layers without M.
What A carries is a neighborhood, counted apart from the memory; controls empty the memory and leave it (`model/controls.py`).
Letters: R rows of segments, C queries of raw tokens, X rows of indices: R, or 1 for all.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.errors import require
from infini_jax.layers.segment import Segment
from infini_jax.memory.base import Cost, Dims, Memory, MemoryConfig
from infini_jax.memory.neighborhood import Around, FarAndNear

OUTPUT_AXES = {("out", "kernel"): ("heads", "head_dim", "embed")}


@dataclasses.dataclass(frozen=True)
class NativeConfig(MemoryConfig):
    """Settings of the attention that a pretrained model has in a layer, beside tokens that another layer's memory inserts.

    Attributes:
      attention: the attention, a window as a rule.
      every: raw tokens after which a landmark stands in the layer's segments; None where there are none.
    """

    attention: MemoryConfig = dataclasses.field(kw_only=True)
    every: int | None = None

    @property
    def parts(self) -> tuple[MemoryConfig, ...]:
        return (self.attention,)

    def with_main(self, settings: MemoryConfig) -> "NativeConfig":
        return dataclasses.replace(self, attention=settings)

    def check(self, dims: Dims) -> None:
        require(self.every is None or self.every > 0, "memory.every", f"{self.every} tokens are not a block", "give 1 or more")
        check_plain("attention", self.attention)
        self.attention.check(native_dims(dims, self.every))


@dataclasses.dataclass(frozen=True)
class BesideConfig(MemoryConfig):
    """Settings of a memory beside a layer's native attention.

    Attributes:
      native: the attention that the layer has, a window as a rule.
      added: the memory whose reading is added.
    """

    native: MemoryConfig = dataclasses.field(kw_only=True)
    added: MemoryConfig = dataclasses.field(kw_only=True)

    @property
    def parts(self) -> tuple[MemoryConfig, ...]:
        return self.native, self.added

    def with_main(self, settings: MemoryConfig) -> "BesideConfig":
        return dataclasses.replace(self, added=settings)

    @property
    def landmark_every(self) -> int | None:
        return self.added.landmark_every

    @property
    def positions_elsewhere(self) -> Any:
        return self.native.positions_elsewhere

    @property
    def kept(self) -> NativeConfig:
        """Settings of the attention that the layer has, beside what the added memory inserts."""
        return NativeConfig(attention=self.native, every=self.landmark_every)

    def check(self, dims: Dims) -> None:
        self.kept.check(dims)
        require(self.local == "own", "memory.local", "the native attention is the neighborhood", "leave it out")
        problem = "the added memory has layers of its own"
        require(self.added.layers is None, "memory.layers", problem, "name them beside both, not in memory.added")
        carried, _ = self.added.neighbors(dims.segment)
        require(carried == 0, "memory.local", "the native attention is the neighborhood already", "leave it out")
        tokens = any(self.added.memory_tokens)
        require(not tokens, "memory.added", "it has memory tokens, which attention would see", "let it replace the attention")
        self.added.check(dims)


def check_plain(field: str, attention: MemoryConfig) -> None:
    """Raises `ConfigError` for native attention that has layers of its own or inserts tokens."""
    require(
        not attention.inserts_tokens, f"memory.{field}", "it inserts tokens into segments", "give a window, or full attention"
    )
    require(attention.layers is None, f"memory.{field}", "it has layers of its own", "leave its layers out")


def native_dims(dims: Dims, every: int | None) -> Dims:
    """The sizes of the attention to raw tokens in a layer whose segments have a landmark after `every` of them."""
    return dims if every is None else dataclasses.replace(dims, segment=raw_tokens(dims.segment, every))


def raw_tokens(places: int, every: int) -> int:
    """Number of raw tokens in a segment of `places`, a landmark after `every` of them and a dead place included."""
    return places - math.ceil(places / (every + 1))


@struct.dataclass
class RawTokens:
    """The raw tokens of a segment with landmarks, and where they stood.

    Attributes:
      segment: the segment without landmarks: all of it, or as many queries as there were while it is decoded.
      index: XxS, the query of `segment` for each query that there was.
      is_raw: XxS, whether that was a raw token.
    """

    segment: Segment
    index: jax.Array
    is_raw: jax.Array

    @classmethod
    def of(cls, segment: Segment, every: int) -> "RawTokens":
        """The raw tokens of whole segments, one or several of each stream, or of the queries of an open one."""
        bounds, places = segment.bounds, segment.keys.shape[1]
        phase_Xx1 = jnp.zeros((1, 1), jnp.int32) if bounds.phase is None else bounds.phase[:, None]
        raw, queries = raw_tokens(places, every), segment.queries.shape[1]
        count = raw if queries == places else queries

        def place_of(token: jax.Array) -> jax.Array:
            return token + (phase_Xx1 + token) // every

        def token_of(place: jax.Array) -> jax.Array:
            return place - (phase_Xx1 + place) // (every + 1)

        first = token_of(bounds.start)[0, 0]  # the same in all rows while a segment is open, and 0 for whole ones
        place_S = bounds.start + jnp.arange(queries)
        asked = jnp.clip(place_of(first + jnp.arange(count)) - bounds.start, 0, queries - 1)
        kept = place_of(jnp.arange(raw))
        documents = (taken(bounds.query_documents, asked), taken(bounds.key_documents, kept))
        without = dataclasses.replace(
            bounds, query_documents=documents[0], key_documents=documents[1], start=first, phase=None
        )
        segment = Segment(
            inputs=taken(segment.inputs, kept),
            queries=taken(segment.queries, asked),
            keys=taken(segment.keys, kept),
            values=taken(segment.values, kept),
            bounds=without,
        )
        is_raw = (phase_Xx1 + place_S) % (every + 1) != every
        return cls(segment, jnp.clip(token_of(place_S) - first, 0, count - 1), is_raw)

    def put_back(self, y_RxCxD: jax.Array) -> jax.Array:
        """Outputs RxSxD: those of the raw tokens where they stood, zero at landmarks."""
        return jnp.where(self.is_raw[..., None], taken(y_RxCxD, self.index), 0)


def taken(x_RxNx: jax.Array, index_XxM: jax.Array) -> jax.Array:
    """The entries of each row at `index_XxM` along the second axis; one row of indices is for all."""
    if index_XxM.shape[0] == 1:
        return jnp.take(x_RxNx, index_XxM[0], axis=1, mode="clip")
    index_XxMx = index_XxM.reshape(*index_XxM.shape, *(1,) * (x_RxNx.ndim - 2))
    return jnp.take_along_axis(x_RxNx, index_XxMx, axis=1, mode="clip")


class Native(Around):
    """The attention of a pretrained layer, under its own parameters, blind to inserted tokens. It remembers nothing more."""

    keeps_bfloat16 = True  # nothing

    @property
    def inside(self) -> tuple[MemoryConfig, Dims]:
        return self.config.attention, native_dims(self.dims, self.config.every)

    def init_memory(self, batch: int) -> FarAndNear:
        return FarAndNear((), self.alone.init_memory(batch))

    def initial(self, batch: int) -> FarAndNear:
        return FarAndNear((), self.inner.initial(batch))

    def attend(self, memory: FarAndNear, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        if self.config.every is None:
            return self.inner.attend(memory.near, segment)
        raw = RawTokens.of(segment, self.config.every)
        y_BxCxD, metrics = self.inner.attend(memory.near, raw.segment)
        return raw.put_back(y_BxCxD), metrics

    def write(self, memory: FarAndNear, segment: Segment) -> FarAndNear:
        every = self.config.every
        segment = segment if every is None else RawTokens.of(segment, every).segment
        return FarAndNear((), self.inner.write(memory.near, segment))

    def advance(self, memory: FarAndNear, segments: Segment) -> tuple[jax.Array, FarAndNear, dict[str, jax.Array]]:
        if self.config.every is None:
            y_RxSxD, near, metrics = self.inner.advance(memory.near, segments)
            return y_RxSxD, FarAndNear((), near), metrics
        raw = RawTokens.of(segments, self.config.every)
        y_RxCxD, near, metrics = self.inner.advance(memory.near, raw.segment)
        return raw.put_back(y_RxCxD), FarAndNear((), near), metrics

    def lost(self, before: FarAndNear, after: FarAndNear, segments: int, phase_B: jax.Array | None) -> FarAndNear:
        return FarAndNear((), self.alone.lost(before.near, after.near, segments, None))

    def restored(self, after: FarAndNear, lost: FarAndNear, segments: int, phase_B: jax.Array | None) -> FarAndNear:
        return FarAndNear((), self.alone.restored(after.near, lost.near, segments, None))

    def logical_axes(self) -> FarAndNear:
        return FarAndNear((), self.alone.logical_axes())

    def cost(self, segment_length: int) -> Cost:
        return self.cost_at_once(segment_length, 1)

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        """FLOPs and bytes moved per token of the layer, landmarks included, of the attention of raw ones.

        The model counts an output projection for every token, and landmarks have none.
        """
        d, every = self.dims, self.config.every
        raw = segment_length if every is None else raw_tokens(segment_length, every)
        share = raw / segment_length
        spared = Cost(local=2.0 * d.heads * d.value_dim * d.d_model)
        return summed((self.alone.cost_at_once(raw, segments), share), (spared, share - 1.0))


class Beside(Memory):
    """Native attention, and the reading of a memory added to it.

    Attributes:
      native: class of the attention.
      mechanism: class of the memory.
    """

    native: type[Memory]
    mechanism: type[Memory]

    def setup(self):
        c = self.config
        self.kept = Native(c.kept, self.dims, self.native)
        nn.share_scope(self, self.kept)
        self.added = self.mechanism(c.added, self._dims_added)

    @property
    def _dims_added(self) -> Dims:
        return dataclasses.replace(self.dims, closed=True, output_bias=False)

    @property
    def _both(self) -> tuple[Memory, Memory]:
        """(the attention, the added memory) without parameters, for what needs none."""
        added = self.mechanism(self.config.added, self._dims_added, parent=None)
        return Native(self.config.kept, self.dims, self.native, parent=None), added

    @property
    def gates(self) -> Any:
        return (*self.native.gates, *(("added", *path) for path in self.mechanism.gates))

    @property
    def no_decay(self) -> Any:
        return (*self.native.no_decay, *(("added", *path) for path in self.mechanism.no_decay))

    @property
    def auxiliary(self) -> Any:
        return (*self.native.auxiliary, *(("added", *path) for path in self.mechanism.auxiliary))

    @property
    def parameter_axes(self) -> Any:
        added = {**OUTPUT_AXES, **self.mechanism.parameter_axes}
        return {**self.native.parameter_axes, **{("added", *path): axes for path, axes in added.items()}}

    @property
    def honors(self) -> Any:
        return tuple(part for part in self.native.honors if part in self.mechanism.honors)

    @property
    def keeps_bfloat16(self) -> Any:
        return self.mechanism.keeps_bfloat16

    def remembered(self, memory: FarAndNear) -> Any:
        return self._both[1].remembered(memory.far)

    def init_memory(self, batch: int) -> FarAndNear:
        kept, added = self._both
        return FarAndNear(added.init_memory(batch), kept.init_memory(batch).near)

    def initial(self, batch: int) -> FarAndNear:
        return FarAndNear(self.added.initial(batch), self.kept.initial(batch).near)

    def attend(self, memory: FarAndNear, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        y_BxSxD, of_kept = self.kept.attend(FarAndNear((), memory.near), segment)
        more_BxSxD, metrics = self.added.attend(memory.far, segment)
        return y_BxSxD + more_BxSxD, of_kept | metrics

    def write(self, memory: FarAndNear, segment: Segment) -> FarAndNear:
        near = self.kept.write(FarAndNear((), memory.near), segment).near
        return FarAndNear(self.added.write(memory.far, segment), near)

    def advance(self, memory: FarAndNear, segments: Segment) -> tuple[jax.Array, FarAndNear, dict[str, jax.Array]]:
        y_RxSxD, kept, of_kept = self.kept.advance(FarAndNear((), memory.near), segments)
        more_RxSxD, far, metrics = self.added.advance(memory.far, segments)
        return y_RxSxD + more_RxSxD, FarAndNear(far, kept.near), of_kept | metrics

    def lost(self, before: FarAndNear, after: FarAndNear, segments: int, phase_B: jax.Array | None) -> FarAndNear:
        kept, added = self._both
        far = added.lost(before.far, after.far, segments, phase_B)
        return FarAndNear(far, kept.lost(before, after, segments, phase_B).near)

    def restored(self, after: FarAndNear, lost: FarAndNear, segments: int, phase_B: jax.Array | None) -> FarAndNear:
        kept, added = self._both
        far = added.restored(after.far, lost.far, segments, phase_B)
        return FarAndNear(far, kept.restored(after, lost, segments, phase_B).near)

    def logical_axes(self) -> FarAndNear:
        kept, added = self._both
        return FarAndNear(added.logical_axes(), kept.logical_axes().near)

    def cost(self, segment_length: int) -> Cost:
        return self.cost_at_once(segment_length, 1)

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        """FLOPs and bytes moved per token of both, and the FLOPs of the second output projection."""
        kept, added = self._both
        projected = Cost(read=2.0 * self.dims.heads * self.dims.value_dim * self.dims.d_model)
        costs = (kept.cost_at_once(segment_length, segments), added.cost_at_once(segment_length, segments), projected)
        return summed(*((cost, 1.0) for cost in costs))


def summed(*costs: tuple[Cost, float]) -> Cost:
    """The sum of costs, each times a factor."""
    names = [field.name for field in dataclasses.fields(Cost)]
    return Cost(**{name: sum(times * getattr(cost, name) for cost, times in costs) for name in names})
