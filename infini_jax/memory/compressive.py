"""Compressive Transformer (Rae et al. 2020, arXiv 1911.05507): old entries of the Transformer-XL cache are compressed.

Per layer, with f_c a convolution of width and stride `ratio` (algorithm 1 of the paper):
  h~    = [cm ; m ; h]                                        compressed memory, cache, segment: one softmax over all three
  cm'   = last entries of [cm ; f_c(oldest of [m ; h])],  m' = last entries of [m ; h]             no gradient into either
  L     = MSE(attn(h, old), attn(h, f_c(old)))                algorithm 2: trains f_c alone, by content, every query sees all
DEVIATION: keys and values are cached and compressed, each by its own f_c over all heads, where the paper compresses layer
inputs and projects them again: a mechanism here sees no projections, and a cached token costs no second one.
DEVIATION: f_c starts as the mean of its `ratio` entries (the paper's mean pooling), so that compressed entries make sense from
the first step on. DEVIATION: the loss is a mean over queries, heads and value dims, not a sum; `loss_weight` scales it.
DEVIATION: a compressed entry stands one place before the next, as in the paper, and positions are rotary by default.

With the neighborhood `segment` or `cache` (`local`) instead of its own, m is that neighborhood and no part of the memory: what
leaves it is compressed. A window is refused: what slides out of it inside a segment would be in neither.

Each segment's evicted entries are compressed by themselves: if they are no multiple of `ratio` the oldest group is filled up
with zeros at its old end. So are entries of an older document, which happens in a document's first eviction only.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.errors import require, require_not_negative, require_positive
from infini_jax.layers.attention import attention_flops, dense
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import Segment
from infini_jax.memory import window
from infini_jax.memory.base import AUXILIARY, Cost, Dims, Neighborhood, memory_bytes
from infini_jax.memory.positions import Positioned, PositionedConfig, Positions, local_cost, require_own_cache
from infini_jax.memory.window import Recent


@struct.dataclass
class CompressiveMemory:
    """State of the Compressive Transformer, of the open document only.

    Attributes:
      recent: cache of the last tokens, None where it is the neighborhood.
      compressed: cache of older entries, each compressed from `ratio` tokens.
    """

    recent: Recent | None
    compressed: Recent


@struct.dataclass
class Entries:
    """Keys and values that leave the cache, or their compression.

    Attributes:
      keys: BxExGxK, zero where not valid.
      values: BxExGxV, zero where not valid.
      count: B, number of the last entries that are valid.
    """

    keys: jax.Array
    values: jax.Array
    count: jax.Array

    @property
    def valid_BxE(self) -> jax.Array:
        """Whether each entry is valid."""
        return window.newest_BxN(self.keys.shape[1], self.count)


def evicted(recent: Recent, segment: Segment, ratio: int) -> Entries:
    """Entries that have no room in the cache after the segment, with zeros in front to make a multiple of `ratio`."""
    filling = -segment.keys.shape[1] % ratio

    def oldest(carried: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.pad(window.leaving(carried, new), [(0, 0), (filling, 0), (0, 0), (0, 0)])

    count_B = window.leaving_B(recent, segment.bounds)
    entries = Entries(oldest(recent.keys, segment.keys), oldest(recent.values, segment.values), count_B)
    mask = entries.valid_BxE[:, :, None, None]
    return dataclasses.replace(entries, keys=jnp.where(mask, entries.keys, 0), values=jnp.where(mask, entries.values, 0))


def f_c(x_BxExGxK: jax.Array, kernel_RxFxF: jax.Array, bias_F: jax.Array | float = 0.0) -> jax.Array:
    """Convolution of width and stride R over E entries, F = G K features, E a multiple of R: BxE/RxGxK."""
    batch, _, heads, size = x_BxExGxK.shape
    groups_BxCxRxF = x_BxExGxK.reshape(batch, -1, *kernel_RxFxF.shape[:2])
    compressed_BxCxF = jnp.einsum("bcrf,rfg->bcg", groups_BxCxRxF, kernel_RxFxF) + bias_F
    return compressed_BxCxF.reshape(batch, -1, heads, size)


def append(memory: CompressiveMemory, segment: Segment, compressed: Entries) -> CompressiveMemory:
    """The memory with the segment shifted into the recent cache, and its compressed leavings into the compressed cache.

    Valid entries stay a suffix of both: a document evicts less than a whole segment only when nothing is compressed yet.
    """
    older = window.shift_in(memory.compressed, compressed.keys, compressed.values, segment.bounds.keeps_B, compressed.count)
    return CompressiveMemory(memory.recent and window.append(memory.recent, segment), older)


def reconstruction(q_BxSxHxK: jax.Array, asks_BxS: jax.Array, old: Entries, compressed: Entries) -> jax.Array:
    """Loss L of algorithm 2, a scalar: mean squared difference of attention over `compressed` from attention over `old`.

    0 without old entries. Every query of `asks_BxS` sees all valid entries. The gradient reaches `compressed` only.
    """
    q_BxSxHxK, old = jax.lax.stop_gradient((q_BxSxHxK.astype(old.keys.dtype), old))
    asks_BxS &= old.count[:, None] > 0

    def attn(entries: Entries) -> jax.Array:
        return dense(q_BxSxHxK, entries.keys, entries.values, asks_BxS[:, :, None] & entries.valid_BxE[:, None, :])[0]

    squares_BxS = jnp.mean((attn(old) - attn(compressed)) ** 2, axis=(2, 3))
    return jnp.sum(jnp.where(asks_BxS, squares_BxS, 0.0)) / jnp.maximum(jnp.sum(asks_BxS), 1)


@dataclasses.dataclass(frozen=True)
class CompressiveConfig(PositionedConfig):
    """Settings of the Compressive Transformer.

    Attributes:
      slots: cached tokens without compression; 0 with a neighborhood (`local`) other than its own.
      compressed: entries of the compressed cache, which holds older tokens.
      ratio: tokens per compressed entry.
      positions: kind of positions; relative are the paper's.
      loss_weight: weight of the reconstruction loss, which trains the compression; with 0 the compression stays a mean.
    """

    slots: int = 64
    compressed: int = 64
    ratio: int = 4
    positions: Positions = "rotary"
    loss_weight: float = 1.0

    def with_local(self, local: Neighborhood) -> "CompressiveConfig":
        return dataclasses.replace(self, local=local, slots=self.slots if local == "own" else 0)

    def places(self, segment: int) -> int:
        return super().places(segment) + self.slots + self.compressed

    def check(self, dims: Dims) -> None:
        own = {"slots": self.slots} if self.local == "own" else {}
        require_positive("memory", **own, compressed=self.compressed, ratio=self.ratio)
        require_not_negative("memory", slots=self.slots)
        require_own_cache(self, slots=self.slots)
        require(self.loss_weight >= 0, "memory.loss_weight", f"{self.loss_weight:g} is negative", "give 0 or more")


class Compression(nn.Module):
    """f_c for keys or values, the mean of `ratio` entries before training.

    Keys have no offset: it would add the same to all logits of a query over the compression, so the loss could not train it.

    Attributes:
      ratio: entries that become one.
      features: F, heads times their dim.
      has_offset: whether a learned offset is added.
    """

    ratio: int
    features: int
    has_offset: bool

    @nn.compact
    def __call__(self, x_BxExGxK: jax.Array) -> jax.Array:
        def mean(_: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return jnp.broadcast_to(jnp.eye(self.features, dtype=dtype) / self.ratio, shape)

        kernel_RxFxF = self.param("kernel", mean, (self.ratio, self.features, self.features), PARAMETERS)
        offset = self.param("offset", nn.initializers.zeros, (self.features,), PARAMETERS) if self.has_offset else 0.0
        return f_c(x_BxExGxK, kernel_RxFxF, offset)


class Compressive(Positioned):
    """Memory of two caches: recent keys and values, and compressed older ones."""

    Config = CompressiveConfig
    summary = "cache, and a second one of compressed entries"
    paper = "arXiv 1911.05507"
    exempt: ClassVar = {
        "reads_without_a_copy": "XLA copies its two caches, which have one shape; they are short by design",
        "charges_where_computed": "its loss is charged with the writes, once a segment, though attend makes it",
        "key_heads_apart": "its convolution mixes all key heads; tests/reference/compressive.py has grouped ones",
    }
    learns = ()
    axes = ("entries", "slots", "compressed")  # entries of both caches together, or of one
    neighborhoods = ("segment", "cache")
    auxiliary = (("compress_keys", "kernel"), ("compress_values", "kernel"), ("compress_values", "offset"))
    keeps_bfloat16 = True
    honors = ("attention_scale", "rotary")
    parameter_axes: ClassVar = {
        **Positioned.parameter_axes,
        ("compress_keys", "kernel"): (None, "embed", None),
        ("compress_values", "kernel"): (None, "embed", None),
    }

    def setup(self):
        super().setup()
        d, c = self.dims, self.config
        self.compress_keys = Compression(c.ratio, d.kv_heads * d.key_dim, has_offset=False)
        self.compress_values = Compression(c.ratio, d.kv_heads * d.value_dim, has_offset=True)

    def init_memory(self, batch: int) -> CompressiveMemory:
        c, d = self.config, self.dims
        recent = window.empty(batch, c.slots, d) if c.local == "own" else None
        return CompressiveMemory(recent, window.empty(batch, c.compressed, d))

    def _recent(self, memory: CompressiveMemory, segment: Segment) -> Recent:
        """The cache in front of the segment, its own or the neighborhood's."""
        recent = segment.near if memory.recent is None else memory.recent
        return window.empty(segment.keys.shape[0], 0, self.dims) if recent is None else recent

    def attend(self, memory: CompressiveMemory, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(output BxSxD, metrics with the loss) of attention over both caches and the segment.

        The loss is the reconstruction loss (algorithm 2) of the entries that the segment will push out, for its queries.
        """
        memory = jax.lax.stop_gradient(memory)
        own = () if memory.recent is None else (memory.recent,)
        y_BxSxHxV = self.attention(segment.queries, window.view(segment, memory.compressed, *own))
        old = jax.lax.stop_gradient(evicted(self._recent(memory, segment), segment, self.config.ratio))
        asks_BxS = segment.bounds.query_documents == segment.bounds.key_documents[:, -1:]
        loss = reconstruction(segment.queries, asks_BxS, old, self.compress(old))
        return self.out(y_BxSxHxV), {AUXILIARY + "reconstruction": self.config.loss_weight * loss}

    def compress(self, old: Entries) -> Entries:
        """The compression of entries, one entry per `ratio` entries; it is valid if any of them is."""
        count_B = -(-old.count // self.config.ratio)
        return Entries(self.compress_keys(old.keys), self.compress_values(old.values), count_B)

    def write(self, memory: CompressiveMemory, segment: Segment) -> CompressiveMemory:
        compressed = self.compress(evicted(self._recent(memory, segment), segment, self.config.ratio))
        return jax.lax.stop_gradient(append(memory, segment, compressed))

    def lost(
        self, before: CompressiveMemory, after: CompressiveMemory, segments: int, phase_B: jax.Array | None
    ) -> CompressiveMemory:
        tokens, entries = self.dims.segment, -(-self.dims.segment // self.config.ratio)
        recent = before.recent and window.pushed_out(before.recent, segments * tokens)
        return CompressiveMemory(recent, window.pushed_out(before.compressed, segments * entries))

    def restored(
        self, after: CompressiveMemory, lost: CompressiveMemory, segments: int, phase_B: jax.Array | None
    ) -> CompressiveMemory:
        recent = after.recent and lost.recent and window.shifted_back(after.recent, lost.recent)
        return CompressiveMemory(recent, window.shifted_back(after.compressed, lost.compressed))

    def logical_axes(self) -> CompressiveMemory:
        return CompressiveMemory(window.LOGICAL_AXES if self.config.local == "own" else None, window.LOGICAL_AXES)

    def cost(self, segment_length: int) -> Cost:
        """FLOPs and bytes moved per token.

        Writing is the compression, made once for the loss and once for the memory, and the loss's two attentions.
        """
        d, c = self.dims, self.config
        groups = -(-segment_length // c.ratio)
        squares = (d.kv_heads * d.key_dim) ** 2 + (d.kv_heads * d.value_dim) ** 2
        attention = local_cost(c, d, segment_length, c.slots + c.compressed)
        compression = 2.0 * groups * c.ratio * squares / segment_length
        over_old = attention_flops(groups * c.ratio, d.heads, d.key_dim, d.value_dim)
        # no gradient reaches the memory's compression, the attention over old entries, their compression's input, the queries
        stopped = 2 * compression + 2 * over_old + compression + 2.0 * groups * d.heads * d.key_dim
        return dataclasses.replace(
            attention,
            write=2 * compression + over_old + attention_flops(groups, d.heads, d.key_dim, d.value_dim),
            write_saved=stopped,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,
        )

    @classmethod
    def resized(
        cls, config: CompressiveConfig, dims: Dims, size: int, axis: str = "entries"
    ) -> tuple[CompressiveConfig, Dims]:
        """(settings, dims) of `size` entries.

        Along `entries` both caches hold half of them, the odd one goes to `slots`; along one cache the other stays. Where the
        recent cache is the neighborhood, all entries are compressed ones.
        """
        if config.local != "own":
            return super().resized(config, dims, size, "compressed")
        if axis == "entries":
            return dataclasses.replace(config, slots=max(size - size // 2, 1), compressed=max(size // 2, 1)), dims
        return super().resized(config, dims, size, axis)
