"""The Block-Recurrent Transformer (Hutchins et al. 2022, arXiv 2203.07852), section 3: a layer with N recurrent state vectors.

With s the states, s~ = norm(s) + e their inputs, e one learned vector (state ID) for each, and x~ the tokens' inputs; keys and
values of states are W_k s~, W_v s~ and those of tokens the layer's own, each shared by both directions:
  vertical     y = W_o attn(q_x, k_x, v_x) + W_o' attn(W_c x~, k_s, v_s)         causal on tokens; added to the tokens
  horizontal   h = [attn(W_q s~, k_s, v_s) ; attn(W_q' s~, k_x, v_x)]            of all states and all tokens of the segment
  fixed gate   s' = g s + (1 - g) z,  z = W_z h + b_z,  g = sigmoid(b_g)
  LSTM gate    s' = f s + i z,  z = tanh(W_z h + b_z),  i = sigmoid(W_i h + b_i - 1),  f = sigmoid(W_f h + b_f + 1)
The states of a document's beginning are learned. The published models have one such layer, the third from the top.
DEVIATION: of the paper's three arrangements of gates the one without an MLP in the horizontal direction (skip), its best.
DEVIATION: scores are divided by sqrt(K), as everywhere here; the authors' code gives queries and keys unit length and a
learned scale. States are float32 whatever the compute type.
DEVIATION: rows hold several documents. Tokens of one that began in the segment read the learned states, so that attention is
computed to these and to the memory's.

Letters: R rows of states, for each row of tokens those of the memory and the learned ones; C what a state has read.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from infini_jax.errors import require
from infini_jax.layers.attention import attention_flops, dense
from infini_jax.layers.low_rank import Projection
from infini_jax.layers.norms import norm_of
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import Segment
from infini_jax.memory.base import Cost, Dims, memory_bytes, output_projection
from infini_jax.memory.positions import Positioned, PositionedConfig, local_cost
from infini_jax.memory.window import view


@dataclasses.dataclass(frozen=True)
class BlockRecurrentConfig(PositionedConfig):
    """Settings of the Block-Recurrent Transformer.

    Attributes:
      states: number of state vectors.
      gate: fixed keeps of every feature a learned share, whatever was read; lstm has gates of input and forgetting.
    """

    states: int = 64
    gate: Literal["fixed", "lstm"] = "fixed"

    def check(self, dims: Dims) -> None:
        require(self.states >= 1, "memory.states", f"{self.states} state vectors remember nothing", "give at least 1")


class Gate(nn.Module):
    """The next states from the last ones and what was read for them.

    Attributes:
      kind: fixed or lstm.
      dtype: type of the states.
    """

    kind: Literal["fixed", "lstm"]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, s_BxNxD: jax.Array, h_BxNxC: jax.Array) -> jax.Array:
        size, small = s_BxNxD.shape[-1], nn.initializers.normal(0.1)
        z_BxNxD = nn.Dense(size, dtype=self.dtype, name="new")(h_BxNxC)
        if self.kind == "fixed":
            g_D = nn.sigmoid(self.param("kept", small, (size,), PARAMETERS)).astype(self.dtype)
            return g_D * s_BxNxD + (1.0 - g_D) * z_BxNxD

        def gate(name: str) -> nn.Dense:
            narrow = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
            return nn.Dense(size, dtype=self.dtype, kernel_init=narrow, bias_init=small, name=name)

        i_BxNxD, f_BxNxD = nn.sigmoid(gate("input")(h_BxNxC) - 1.0), nn.sigmoid(gate("forget")(h_BxNxC) + 1.0)
        return f_BxNxD * s_BxNxD + i_BxNxD * jnp.tanh(z_BxNxD)


class BlockRecurrent(Positioned):
    """Memory of state vectors that attend to every segment, and to which its tokens attend."""

    Config = BlockRecurrentConfig
    summary = "recurrent states that attend to the segment, behind a gate"
    paper = "arXiv 2203.07852"
    axes = ("states",)
    no_decay = (*Positioned.no_decay, ("ids",), ("start",))
    neighborhoods = ("segment", "window", "cache")
    honors = ("rotary", "score_cap")
    parameter_axes: ClassVar = {
        **Positioned.parameter_axes,
        ("ask", "kernel"): ("embed", "heads", "head_dim"),
        ("state_queries", "kernel"): ("embed", None, "heads", "head_dim"),
        ("state_keys", "kernel"): ("embed", "kv_heads", "head_dim"),
        ("state_values", "kernel"): ("embed", "kv_heads", "head_dim"),
        ("out_states", "kernel"): ("heads", "head_dim", "embed"),
        **{("gate", name, "kernel"): (None, "embed") for name in ("new", "input", "forget")},
    }

    def setup(self):
        super().setup()
        d, wide, shape = self.dims, self.dims.memory_dtype, (self.config.states, self.dims.d_model)
        self.start = self.param("start", nn.initializers.normal(0.1), shape, PARAMETERS)
        self.ids = self.param("ids", nn.initializers.normal(1.0), shape, PARAMETERS)
        self.norm = norm_of("rms", 1e-6, False, wide)
        self.ask = Projection((d.heads, d.key_dim), use_bias=False, dtype=d.dtype)
        self.state_queries = Projection((2, d.heads, d.key_dim), use_bias=False, dtype=wide)  # of states, of tokens
        self.state_keys = Projection((d.kv_heads, d.key_dim), use_bias=False, dtype=wide)
        self.state_values = Projection((d.kv_heads, d.value_dim), use_bias=False, dtype=wide)
        self.out_states = output_projection(d)
        self.gate = Gate(self.config.gate, wide)

    @classmethod
    def usual_layers(cls, layers: int) -> tuple[int, ...]:
        return (max(layers - 3, 0),)

    def init_memory(self, batch: int) -> jax.Array:
        return jnp.zeros((batch, self.config.states, self.dims.d_model), self.dims.memory_dtype)

    def initial(self, batch: int) -> jax.Array:
        start_NxD = self.start.astype(self.dims.memory_dtype)
        return jnp.broadcast_to(start_NxD, (batch, *start_NxD.shape))

    def _inputs(self, s_BxNxD: jax.Array) -> jax.Array:
        return self.norm(s_BxNxD) + self.ids.astype(s_BxNxD.dtype)

    def attend(self, memory: jax.Array, segment: Segment) -> tuple[jax.Array, dict[str, jax.Array]]:
        local_BxSxHxV = self.attention(segment.queries, view(segment))
        asking_BxSxD = segment.bounds.of_queries(segment.inputs)
        read_BxSxHxV = self._read(memory, self.ask(asking_BxSxD), segment.bounds.reads_BxS)
        return self.out(local_BxSxHxV) + self.out_states(read_BxSxHxV), {}

    def _read(self, memory: jax.Array, q_BxSxHxK: jax.Array, reads_BxS: jax.Array) -> jax.Array:
        """Attention of tokens to the states of their document: those of the memory, or the first ones, which stand behind."""
        both = jnp.concatenate([memory, self.initial(len(memory))], axis=1)
        s_RxNxD = self._inputs(both.reshape(-1, *memory.shape[1:]))
        keys, values = (
            make(s_RxNxD).reshape(len(memory), -1, heads, size).astype(self.dims.dtype)
            for make, heads, size in (
                (self.state_keys, self.dims.kv_heads, self.dims.key_dim),
                (self.state_values, self.dims.kv_heads, self.dims.value_dim),
            )
        )
        shown_BxSx2 = jnp.stack([reads_BxS, ~reads_BxS], axis=-1)
        mask = jnp.repeat(shown_BxSx2, self.config.states, axis=-1)
        return dense(q_BxSxHxK, keys, values, mask, cap=self.dims.score_cap)[0]

    def write(self, memory: jax.Array, segment: Segment) -> jax.Array:
        s_BxNxD = self.begun(memory, segment.bounds.keeps_B)
        inputs_BxNxD = self._inputs(s_BxNxD)
        q_BxNx2xHxK = self.state_queries(inputs_BxNxD)
        k_BxTxGxK, v_BxTxGxV = (x.astype(memory.dtype) for x in (segment.keys, segment.values))
        batch, count = s_BxNxD.shape[:2]
        writes_BxNxT = jnp.repeat(segment.bounds.writes_BxT[:, None], count, axis=1)
        of_states = (self.state_keys(inputs_BxNxD), self.state_values(inputs_BxNxD), jnp.ones((batch, count, count), bool))
        of_tokens = (k_BxTxGxK, v_BxTxGxV, writes_BxNxT)
        read = [
            dense(q_BxNx2xHxK[:, :, number], keys, values, mask, cap=self.dims.score_cap)[0]
            for number, (keys, values, mask) in enumerate((of_states, of_tokens))
        ]
        return self.gate(s_BxNxD, jnp.concatenate(read, axis=2).reshape(batch, count, -1))

    def logical_axes(self) -> tuple[str, ...]:
        return ("batch", "slots", "embed")

    def cost(self, segment_length: int, segments: int = 1) -> Cost:
        d, states = self.dims, self.config.states
        key_value = 2.0 * d.d_model * d.kv_heads * (d.key_dim + d.value_dim)  # FLOPs of a state's keys and values
        asked, given = 2.0 * d.d_model * d.heads * d.key_dim, 2.0 * d.d_model * d.heads * d.value_dim
        seen = attention_flops(states + segment_length, d.heads, d.key_dim, d.value_dim)
        gates = {"fixed": 1, "lstm": 3}[self.config.gate] * 2 * given
        local = local_cost(self.config, d, segment_length, segments=segments)
        begun = attention_flops(2 * states, d.heads, d.key_dim, d.value_dim)
        return dataclasses.replace(
            local,
            read=local.read + asked + given + begun + 2 * key_value * states / segment_length,
            write=states * (2 * asked + key_value + seen + gates) / segment_length,
            bytes_moved=3.0 * memory_bytes(self) / segment_length,  # read by attend, read and written by write
        )
