"""The Recurrent Memory Transformer (Bulatov, Kuratov, Burtsev 2022, arXiv 2207.06881), section 3.

N memory tokens stand before and after the tokens H of segment s, all of them the memory m_s:
  [m_s ; H_s ; m_s]  ->  layers 1..L  ->  [read ; H' ; write]
  m_{s+1} = write                                    what comes out of the last layer goes into the first one
  m_0                                                N learned vectors, here rows of the embedding
The tokens before the segment are read by all of its first document; those after it read all of its last one and are read by
nobody. Nothing is masked among the tokens of a group. Gradients flow through m: backpropagation through time, cut by
`train.bptt`.
DEVIATION: the paper's layers norm their outputs; ours, pre-norm, have a norm behind the last one, from which m is taken, as
in the authors' code for pretrained models (Bulatov, Kuratov, Burtsev 2023, arXiv 2304.11062).
DEVIATION: the paper's first memory is one vector N times; here, as in that code, N different ones drawn like the embedding.
DEVIATION: no Transformer-XL cache beside the memory tokens.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from infini_jax.errors import require
from infini_jax.layers.segment import Boundaries, Segment, at_places
from infini_jax.memory.base import Cost, Dims, memory_bytes
from infini_jax.memory.positions import Positioned, PositionedConfig, local_cost
from infini_jax.memory.window import view


@dataclasses.dataclass(frozen=True)
class RMTConfig(PositionedConfig):
    """Settings of the Recurrent Memory Transformer.

    Attributes:
      layers: the one layer at which the memory enters, by default the first; it leaves behind the last one.
      tokens: number of memory tokens before a segment, and as many after it.
    """

    layers: tuple[int, ...] | None = (0,)
    tokens: int = 10

    @property
    def memory_tokens(self) -> tuple[int, int]:
        return self.tokens, self.tokens

    @property
    def mutual_tokens(self) -> tuple[int, int]:
        return self.memory_tokens

    def check(self, dims: Dims) -> None:
        require(self.tokens >= 1, "memory.tokens", f"{self.tokens} tokens remember nothing", "give at least 1")
        problem = "the memory enters the model at one layer"
        require(self.layers is not None and len(set(self.layers)) == 1, "memory.layers", problem, "name one, 0 is the paper's")
        problem = "relative positions know no later token, and memory tokens see them"
        require(self.positions != "relative", "memory.positions", problem, "choose rotary, t5 or none")


class RMT(Positioned):
    """Memory of tokens that are put around every segment, and come out of the last layer for the next one."""

    Config = RMTConfig
    summary = "memory tokens around the segment, from the last layer to the first"
    paper = "arXiv 2207.06881"
    axes = ("tokens",)
    no_decay = (("attention", "bias"),)  # relative positions, which have more parameters, are refused
    parameter_axes: ClassVar = {}
    honors = ("attention_scale", "rotary", "score_cap")
    exempt: ClassVar = {"costs_grow_with_bytes": "its tokens cost what all tokens cost, in every layer and part of the model"}

    @classmethod
    def usual_layers(cls, layers: int) -> tuple[int, ...]:
        return (0,)

    def init_memory(self, batch: int) -> jax.Array:
        return jnp.zeros((batch, self.config.tokens, self.dims.d_model), self.dims.memory_dtype)

    def enter(self, memory: jax.Array, x_BxSxD: jax.Array, bounds: Boundaries) -> jax.Array:
        last = bounds.key_documents.shape[1] - self.config.tokens
        for first, goes_on_B in ((0, bounds.continues_B), (last, bounds.keeps_B)):
            x_BxSxD = jnp.where(goes_on_B[:, None, None], at_places(memory, x_BxSxD, bounds, first), x_BxSxD)
        return x_BxSxD

    def attend(self, memory: jax.Array, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self.out(self.attention(segment.queries, view(segment))), {}

    def write(self, memory: jax.Array, segment: Segment) -> jax.Array:
        return memory

    def finish(self, memory: jax.Array, x_BxTxD: jax.Array, bounds: Boundaries) -> jax.Array:
        return x_BxTxD[:, -self.config.tokens :].astype(memory.dtype)

    def logical_axes(self) -> tuple[str, ...]:
        return ("batch", "slots", "embed")

    def cost(self, segment_length: int) -> Cost:
        moved = 3.0 * memory_bytes(self) / segment_length  # read at both ends, written once
        return dataclasses.replace(local_cost(self.config, self.dims, segment_length), bytes_moved=moved)
