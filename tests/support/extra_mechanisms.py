"""Two small mechanisms outside the registry that need what few do: a memory of parameters, and the layer's residual stream."""

import contextlib
import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.errors import require
from infini_jax.layers.attention import attend_flops, attend_segment
from infini_jax.layers.grouped_heads import by_key_head
from infini_jax.layers.segment import at_places
from infini_jax.memory.base import Cost, Memory, MemoryConfig, memory_bytes
from infini_jax.memory.infini import with_size
from tests.support.registering import in_the_registry
from tests.support.streams import losses_of, tiny

# ---- a memory that learns by gradient descent while it reads (Sun et al. 2024, arXiv 2407.04620, TTT-Linear, batch form)


def squares(W_BxGxKxV: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxV: jax.Array) -> jax.Array:
    """1/2 ||K W - V||^2, summed over rows and heads."""
    return 0.5 * jnp.sum((jnp.einsum("btgk,bgkv->btgv", k_BxTxGxK, W_BxGxKxV) - v_BxTxGxV) ** 2)


@dataclasses.dataclass(frozen=True)
class DescentConfig(MemoryConfig):
    """Attributes: rate, of the step of gradient descent that writes a segment."""

    rate: float = 0.05


class Descent(Memory):
    """A linear map from keys to values that begins as a parameter; each segment is one step of gradient descent."""

    Config = DescentConfig
    summary, paper, axes = "a linear map, a gradient step a segment", "arXiv 2407.04620", ("key_dim",)

    def setup(self):
        super().setup()
        d = self.dims
        self.start = self.param("start", nn.initializers.normal(0.3), (d.kv_heads, d.key_dim, d.value_dim))

    def init_memory(self, batch):
        d = self.dims
        return jnp.zeros((batch, d.kv_heads, d.key_dim, d.value_dim), d.memory_dtype)

    def initial(self, batch):
        start_GxKxV = self.start.astype(self.dims.memory_dtype)
        return jnp.broadcast_to(start_GxKxV, (batch, *start_GxKxV.shape))

    def attend(self, memory, segment):
        q_BxSxGxRxK = by_key_head(segment.queries.astype(memory.dtype), memory.shape[1])

        def read(W_BxGxKxV):
            return jnp.einsum("bsgrk,bgkv->bsgrv", q_BxSxGxRxK, W_BxGxKxV).reshape(*segment.queries.shape[:3], -1)

        reads = segment.bounds.reads_BxS[..., None, None]
        gathered = jnp.where(reads, read(memory), read(self.initial(memory.shape[0]))) + attend_segment(segment)
        return self.out(gathered.astype(self.dims.dtype)), {}

    def write(self, memory, segment):
        W, writes = self.begun(memory, segment.bounds.keeps_B), segment.bounds.writes_BxT[..., None, None]
        keys, values = (jnp.where(writes, x.astype(W.dtype), 0.0) for x in (segment.keys, segment.values))
        return W - self.config.rate * jax.grad(squares)(W, keys, values)

    def logical_axes(self):
        return ("batch", "kv_heads", "key_dim", "value_dim")

    def cost(self, segment_length):
        d = self.dims
        product = 2.0 * d.key_dim * d.value_dim
        return Cost(
            local=attend_flops(segment_length, d.heads, d.key_dim, d.value_dim),
            read=2 * d.heads * product,  # of the memory and of the one a document begins with
            write=2 * d.kv_heads * product,  # K W, and K^T with its error
            bytes_moved=3.0 * memory_bytes(self) / segment_length,
        )

    @classmethod
    def resized(cls, config, dims, size, axis=""):
        return config, with_size(dims, size, "key_dim")


# ---- memory tokens (after Bulatov, Kuratov, Burtsev 2022, arXiv 2207.06881, with a memory of each layer's own)


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(MemoryConfig):
    """Attributes: tokens, of memory in front of a segment and as many behind it."""

    tokens: int = 4

    @property
    def memory_tokens(self):
        return self.tokens, self.tokens

    def check(self, dims):
        require(self.tokens >= 1, "memory.tokens", f"{self.tokens} tokens remember nothing", "give at least 1")


class Recurrent(Memory):
    """What comes out at the tokens behind a segment stands at those in front of the next one, in every layer."""

    Config = RecurrentConfig
    summary, paper, axes = "memory tokens around the segment", "arXiv 2207.06881", ("tokens",)
    parameter_axes: ClassVar = {("start",): (None, "embed")}
    no_decay = (("start",),)

    def setup(self):
        super().setup()
        shape = (self.config.tokens, self.dims.d_model)
        self.start = self.param("start", nn.initializers.normal(1.0), shape)

    def init_memory(self, batch):
        return jnp.zeros((batch, self.config.tokens, self.dims.d_model), self.dims.memory_dtype)

    def initial(self, batch):
        start_NxD = self.start.astype(self.dims.memory_dtype)
        return jnp.broadcast_to(start_NxD, (batch, *start_NxD.shape))

    def enter(self, memory, x_BxSxD, bounds):
        return at_places(self.begun(memory, bounds.continues_B), x_BxSxD, bounds, 0)

    def attend(self, memory, segment):
        return self.out(attend_segment(segment)), {}

    def write(self, memory, segment):
        return memory

    def leave(self, memory, x_BxTxD, bounds):
        return x_BxTxD[:, -self.config.tokens :].astype(memory.dtype)

    def logical_axes(self):
        return ("batch", "slots", "embed")

    def cost(self, segment_length):
        d = self.dims
        local = attend_flops(segment_length, d.heads, d.key_dim, d.value_dim)
        return Cost(local=local, bytes_moved=2.0 * memory_bytes(self) / segment_length)


EXTRA = {"descent": Descent, "recurrent": Recurrent}


def registered() -> contextlib.AbstractContextManager[None]:
    """All are in the registry for as long as this is open."""
    return in_the_registry(EXTRA)


def all_losses() -> dict[str, dict[str, list[float]]]:
    """`losses` of both."""
    return {name: losses(name) for name in EXTRA}


def losses(name: str) -> dict[str, list[float]]:
    """Losses of three training steps on one device and on four, by layout."""
    with registered():
        model = tiny(name)
        train = TrainConfig(batch=4, sequence=2 * model.segment, learning_rate=1e-2)
        run = RunConfig(model=model, data=MqarConfig(pairs=4, symbols=32), train=train, budget=Budget("steps", 3))
        kinds = {"data": Sharding(), "fsdp": Sharding("fsdp"), "fsdp+tensor": Sharding("fsdp+tensor", 2)}
        return {"one": losses_of(run)} | {key: losses_of(run, layout_of(run, kind)) for key, kind in kinds.items()}
