"""Interface between a mechanism and the model: the methods of a memory, and the count of its bytes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import default_kernel_init

from infini_jax.errors import LATER, check_fields, require
from infini_jax.layers.low_rank import Projection
from infini_jax.layers.segment import Boundaries, Segment, by_turn, reset_where_new
from infini_jax.memory.costs import Cost
from infini_jax.memory.dims import Dims
from infini_jax.memory.rewind import rewinding_scan
from infini_jax.memory.sizes import largest_size, memory_bytes

LONGEST_SEGMENT = 1 << 20  # tokens, all of which attend to each other
Promise = Literal[
    "reads_without_a_copy",
    "charges_where_computed",
    "costs_grow_with_bytes",
    "key_heads_apart",
    "reads_alike_in_any_segments",
]
Part = Literal["inputs", "keys", "values"]
Honored = Literal["attention_scale", "rotary", "score_cap"]
Neighborhood = Literal["own", "segment", "window", "cache"]


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Settings that every mechanism has.

    Attributes:
      layers: layers that carry this memory, numbered from 0; the others attend to the neighborhood only. None is all.
      local: attention beside the memory, the same for every mechanism: the segment; a window of the last tokens, as long as a
        segment; a cache of one segment, without gradient as in Transformer-XL; or the mechanism's own.
    """

    layers: tuple[int, ...] | None = None
    local: Neighborhood = dataclasses.field(default="own", metadata=LATER)

    def __post_init__(self):
        check_fields("memory", self)

    @property
    def landmark_every(self) -> int | None:
        """Raw tokens after which a landmark token is inserted into the stream; None inserts nothing."""
        return None

    @property
    def memory_tokens(self) -> tuple[int, int]:
        """Number of memory tokens (before, after) the tokens of every segment, see `Memory.enter`."""
        return 0, 0

    @property
    def inserts_tokens(self) -> bool:
        """Whether tokens of its own stand in the segments: landmarks or memory tokens."""
        return self.landmark_every is not None or any(self.memory_tokens)

    @property
    def mutual_tokens(self) -> tuple[int, int]:
        """Number of memory tokens (before, after) that see all of their group, later ones too; by default none does."""
        return 0, 0

    @property
    def positions_elsewhere(self) -> Any:
        """Kind of positions of the layers that `layers` leaves out, which attend inside the segment only."""
        return "rotary"

    @property
    def covers_document(self) -> bool:
        """Whether the memory is attention to the whole document, so that learned positions count its tokens."""
        return False

    @property
    def parts(self) -> tuple["MemoryConfig", ...]:
        """Settings of the mechanisms that these are made of, the one that is compared behind the others; these alone."""
        return (self,)

    @property
    def main(self) -> "MemoryConfig":
        """Settings of the mechanism whose memory is compared, grown and counted."""
        return self.parts[-1]

    def with_main(self, settings: "MemoryConfig") -> "MemoryConfig":
        """These settings with others in the place of `main`."""
        return settings

    def places(self, segment: int) -> int:
        """Number of places that positions tell apart, a query's own included, where segments have so many raw tokens."""
        return segment + self.neighbors(segment)[0]

    def neighbors(self, segment: int) -> tuple[int, int | None]:
        """(tokens carried beside the memory, places that a query sees or None for all) where segments have so many."""
        return {"window": (segment - 1, segment), "cache": (segment, None)}.get(self.local, (0, None))

    def with_local(self, local: Neighborhood) -> "MemoryConfig":
        """These settings with another neighborhood, in the place of any cache that they have for the same purpose."""
        return dataclasses.replace(self, local=local)

    def check(self, dims: Dims) -> None:
        """Checks the settings: raises `ConfigError` where they cannot work with these sizes."""


def output_projection(dims: Dims, has_bias: bool = False) -> Projection:
    """A projection of what all heads read to the residual stream, zero before training where `dims.closed`."""
    drawn = nn.initializers.zeros if dims.closed else default_kernel_init
    return Projection(dims.d_model, axis=(-2, -1), use_bias=has_bias, kernel_init=drawn, dtype=dims.dtype)


class Memory(nn.Module):
    """One layer's memory: declares parameters, holds no state.

    The state is a pytree of fixed shapes whose outermost axis is the batch; it is an argument and a return value.
    `attend` reads the memory of EARLIER segments, and may be called many times while a segment is open (decoding); `write` is
    called once, when it is full. A memory that declares `reads_own` reads the open segment too, causally and by its own rule:
    of each query's document, the tokens up to the query. It never sees what comes later, and changes nothing that is carried.

    What a subclass must declare has no default, and the registry refuses a class without it: `Config`, `summary` (one
    line for tables), `paper`, `axes` (settings or dims along which the memory grows, the default first), and the methods
    `init_memory`, `attend`, `write`, `logical_axes` and `cost`. Values in the metrics whose names begin with `AUXILIARY` are
    added to the loss as they are.

    What it declares where the default is not true of it; the contract tests tell which, and what they found:
      learns: parts of a written segment that a later segment's loss trains through the memory, with default settings; by
        default keys and values. () where the memory is without gradient.
      holds: what is remembered in, for predictions of how capacity grows with bytes: a matrix of key dim x value dim; slots
        that hold tokens as they are; or other, about which nothing is predicted, by default.
      reads_own: whether `attend` reads the tokens of its own segment by the memory's rule; what of its writes it then
        makes, too, is in `Cost.write_again`. By default local attention alone sees the own segment.
      splits_sequence: whether `advance` works where devices share a sequence; by default not.
      usual_layers: the layers that carry it in its paper's models; by default all of them.
      neighborhoods: values of `MemoryConfig.local` that it can have beside its own. Its queries must see `Segment.near`, as
        those of `memory.window.view` do, and its `cost` count it (`positions.local_cost`); by default none.
      honors: parts of the model's attention, other than the defaults, that its reading has: attention_scale, where scores are
        linear in the queries, which bring the scale along; rotary, where it turns queries and keys by `Dims.rotary`;
        score_cap, where every softmax over scores has `Dims.score_cap`. A model that asks for another is refused.
      keeps_bfloat16: whether its memory may be kept at bfloat16 between segments: numbers are written once and never added to,
        so that each is rounded once, however long a document is; by default not. Reports give the bytes of such a memory, too.

    The model has to know some of a mechanism's own parameters. They are declared by path below the memory; a path may exist
    for some settings only; by default there are none:
      parameter_axes: logical axes of the large ones.
      gates: those that weigh the memory's output against local attention. They train at `train.gate_learning_rate` without
        weight decay, and `attend` reports the weights in (0, 1) that they stand for in its metrics under `GATE`, whatever the
        parameters are called. They depend on no text.
      no_decay: matrices that are tables of biases or positions, without weight decay; vectors and scalars never have any.
      auxiliary: those that only the mechanism's own terms of the loss train, where segments are taken in turn; the FLOPs of
        these terms and their gradient are in `Cost.write` and `Cost.write_saved`.
    A promise of the contract tests that a mechanism cannot keep is declared in `exempt`, with the reason:
      reads_without_a_copy: reading a token of a donated decoder copies no memory.
      charges_where_computed: `cost` has in `read` what `attend` computes, and in `write` what `write` does.
      costs_grow_with_bytes: a memory that has grown along an axis costs more to read and write, never less.
      reads_alike_in_any_segments: what a memory that `reads_own` reads does not depend on where segments end.
      key_heads_apart: a key head's memory depends on that head alone, so that it may be repeated for its query heads.

    Two things a mechanism may add. A memory that begins from parameters overrides `initial`, and `begun` puts it where a
    document is new. A memory that works on the residual stream overrides `enter`, `leave` or `finish`, and may have memory
    tokens around the segment (`MemoryConfig.memory_tokens`); it takes the segments of a stream in turn.

    Attributes:
      config: settings of the mechanism.
      dims: sizes of the layer.
    """

    config: Any
    dims: Dims

    Config: ClassVar[type[MemoryConfig]]
    summary: ClassVar[str]
    paper: ClassVar[str]
    parameter_axes: ClassVar[Mapping[tuple[str, ...], tuple[str | None, ...]]] = {}
    gates: ClassVar[tuple[tuple[str, ...], ...]] = ()
    no_decay: ClassVar[tuple[tuple[str, ...], ...]] = ()
    auxiliary: ClassVar[tuple[tuple[str, ...], ...]] = ()
    exempt: ClassVar[Mapping[Promise, str]] = {}
    axes: ClassVar[tuple[str, ...]]
    learns: ClassVar[tuple[Part, ...]] = ("keys", "values")
    holds: ClassVar[Literal["matrix", "slots", "other"]] = "other"
    reads_own: ClassVar[bool] = False
    splits_sequence: ClassVar[bool] = False
    neighborhoods: ClassVar[tuple[Neighborhood, ...]] = ()
    honors: ClassVar[tuple[Honored, ...]] = ("attention_scale",)
    keeps_bfloat16: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        writes = {"init_memory", "write", "leave", "finish"} & vars(cls).keys()
        if writes and "lost" not in vars(cls):  # what it inherits may be wrong
            cls.lost, cls.restored = Memory.lost, Memory.restored
        if {"cost", "advance"} & vars(cls).keys() and "cost_at_once" not in vars(cls):
            cls.cost_at_once = Memory.cost_at_once

    def setup(self):
        self.out = output_projection(self.dims, self.dims.output_bias)

    def init_memory(self, batch: int) -> Any:
        """An empty memory for `batch` rows, made without parameters."""
        raise NotImplementedError

    def remembered(self, memory: Any) -> Any:
        """The part of what is carried that is the memory: all of it but a neighborhood."""
        return memory

    def initial(self, batch: int) -> Any:
        """The memory of `batch` documents that begin, from parameters; by default that of `init_memory`."""
        return self.init_memory(batch)

    def begun(self, memory: Any, goes_on_B: jax.Array) -> Any:
        """`memory`, or `initial` in the rows whose document does not go on; a new stream has no document either.

        `write` asks whether the document of the segment's last token goes on (`bounds.keeps_B`), `enter` whether that of its
        first token does (`bounds.continues_B`); in `attend`, tokens outside `bounds.reads_BxS` are of documents that begin
        with `initial`.
        """
        return reset_where_new(goes_on_B, memory, self.initial(goes_on_B.shape[0]))

    def enter(self, memory: Any, x_BxSxD: jax.Array, bounds: Boundaries) -> jax.Array:
        """The residual stream BxSxD as the layer takes it, in front of its norms and projections.

        The first memory tokens of the segment belong to its first token's document, which sees them; the last ones to its last
        token's, and no token sees them. `at_places` puts something there. While a segment is decoded, S are the tokens at
        `bounds.start` only, and like `attend` this must not depend on later ones.
        """
        return x_BxSxD

    def leave(self, memory: Any, x_BxTxD: jax.Array, bounds: Boundaries) -> Any:
        """The memory after `write`, updated from the residual stream at the layer's end, BxTxD for the whole segment."""
        return memory

    def finish(self, memory: Any, x_BxTxD: jax.Array, bounds: Boundaries) -> Any:
        """The memory after `leave`, updated from the model's features BxTxD behind all layers and the last norm."""
        return memory

    @classmethod
    def usual_layers(cls, layers: int) -> tuple[int, ...] | None:
        """The layers that carry this memory in a model of `layers`, as in its paper; None for all."""
        return None

    @classmethod
    def works_on_stream(cls) -> bool:
        """Whether the mechanism sees the residual stream, which exists for one segment of a stream after the other only."""
        return (cls.enter, cls.leave, cls.finish) != (Memory.enter, Memory.leave, Memory.finish)

    @classmethod
    def finishes(cls) -> bool:
        """Whether the mechanism sees the features behind the last layer."""
        return cls.finish is not Memory.finish

    def attend(self, memory: Any, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(output BxSxD, metrics): the attention of the segment's queries, locally and over `memory`, projected."""
        raise NotImplementedError

    def write(self, memory: Any, segment: Segment) -> Any:
        """The memory after the whole segment, honoring document boundaries."""
        raise NotImplementedError

    def advance(self, memory: Any, segments: Segment) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """(outputs BWxSxD, the memory after the last segment, metrics) of W consecutive segments of each of B streams.

        The rows of `segments` are all segments, those of one stream next to each other, where `memory` has one row per stream.
        By default they are taken in turn, and metrics are means over them; mechanisms whose memories before every segment can
        be found at once do better.
        """
        count = segments_of_a_stream(memory, segments)
        if count == 1:
            y_BxSxD, metrics = self.attend(memory, segments)
            return y_BxSxD, self.write(memory, segments), metrics
        module, variables = self.clone(parent=None), self.variables  # a raw scan must not see the bound module

        def step(variables: Any, memory: Any, segment: Segment) -> tuple[Any, tuple]:
            y_BxSxD, metrics = module.apply(variables, memory, segment, method="attend")
            return module.apply(variables, memory, segment, method="write"), (y_BxSxD, metrics)

        def lost(before: Any, after: Any, segment: Segment) -> Any:
            return module.lost(before, after, 1, segment.bounds.phase)

        def restored(after: Any, gone: Any, segment: Segment) -> Any:
            return module.restored(after, gone, 1, segment.bounds.phase)

        turns = by_turn(segments, count)
        memory, (y_WxBxSxD, metrics) = rewinding_scan(step, variables, memory, turns, lost, restored)
        metrics = jax.tree.map(lambda leaf: leaf.mean(axis=0), metrics)
        return jnp.swapaxes(y_WxBxSxD, 0, 1).reshape(-1, *y_WxBxSxD.shape[2:]), memory, metrics

    def lost(self, before: Any, after: Any, segments: int, phase_B: jax.Array | None) -> Any:
        """What of the memory `before` so many segments is not in the memory `after` them; all of it by default.

        For gradients through a stream it is kept of every step, and `restored` finds the memory before from it. A cache need
        keep only what a segment pushes out. Both are called without parameters; `phase_B` is that of `Boundaries`, before.
        """
        return before

    def restored(self, after: Any, lost: Any, segments: int, phase_B: jax.Array | None) -> Any:
        """The memory before the segments, the same to the bit, from the memory after them and what was `lost`."""
        return lost

    def logical_axes(self) -> Any:
        """A tuple of axis names (batch, heads, slots, ...) for each array of the memory, in the structure of `init_memory`."""
        raise NotImplementedError

    @classmethod
    def holding(cls, config: Any, dims: Dims, tokens: int) -> Any:
        """Settings with which the memory holds a document of so many tokens as its paper has it.

        By default the settings as they are: the memory has one size, whatever it reads. Mechanisms whose memory grows with
        what they read say which setting does; bytes at a length follow from it.
        """
        return config

    def cost(self, segment_length: int) -> Cost:
        """FLOPs and bytes moved per token at this segment length, those of `enter`, `leave` and `finish` included."""
        raise NotImplementedError

    def cost_at_once(self, segment_length: int, segments: int) -> Cost:
        """`cost` where `advance` takes so many consecutive segments of a stream; by default that of segments in turn.

        Mechanisms override it whose `advance` makes other products than `attend` and `write` do. For one segment it is `cost`.
        """
        return self.cost(segment_length)

    @classmethod
    def resized(cls, config: Any, dims: Dims, size: int, axis: str = "") -> tuple[Any, Dims]:
        """(settings, dims) with the memory's size along `axis` (the first where none is named) set to `size`.

        A size that cannot be is rounded down to one that can, or is the smallest; bytes never fall as `size` grows. By default
        an axis is a setting of that name; mechanisms whose axes are dims, or move other settings too, say so.
        """
        return dataclasses.replace(config, **{axis or cls.axes[0]: size}), dims

    @classmethod
    def at_bytes(cls, config: Any, dims: Dims, layer_bytes: int, axis: str = "") -> tuple[Any, Dims]:
        """(settings, dims) of the largest memory of at most `layer_bytes` bytes per sequence and layer.

        It grows along `axis`, or else the first one. Raises `ConfigError` where even the smallest does not fit, or the memory
        does not grow along `axis`.
        """
        axis = axis or cls.axes[0]
        require(
            axis in cls.axes,
            "memory axis",
            f"{cls.__name__} does not grow along '{axis}'",
            f"choose {' or '.join(cls.axes)}",
        )

        def bytes_at(size: int) -> int:
            return memory_bytes(cls(*cls.resized(config, dims, size, axis)))

        return cls.resized(config, dims, largest_size(bytes_at, layer_bytes, cls.__name__, axis), axis)


AUXILIARY = "aux/"
"""Beginning of the names of metrics that are added to the loss."""
GATE = "gate"
"""Name of the metric with a mechanism's gates, between 0 and 1."""
KEPT = "kept"  # `checkpoint_name` of what rematerialization keeps for the backward pass, because it is costly to find again


def reported_gates(metrics: Mapping[str, jax.Array]) -> jax.Array | None:
    """The gates in the metrics of `Memory.attend`, with whatever axes were stacked in front; None without any."""
    return metrics.get(GATE)


def segments_of_a_stream(memory: Any, segments: Segment) -> int:
    """Number W of consecutive segments per stream: rows of `segments` for each row of a memory that is not empty."""
    return segments.inputs.shape[0] // jax.tree.leaves(memory)[0].shape[0]
