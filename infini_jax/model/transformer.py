"""The decoder-only transformer: blocks of named parts whose attention is a `Memory`, stacked by `nn.scan`.

Every method takes explicit state and returns the new one; nothing is kept in Linen collections but parameters. The scan over
segments stands outside (`infini_jax.model.stream`): a raw scan inside a module that first creates a parameter leaks a tracer
at init.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.config import ModelConfig
from infini_jax.config.optimisers import GROUP
from infini_jax.layers.attention import soft_cap
from infini_jax.layers.dropout import Dropout, dropped
from infini_jax.layers.key_taps import KeyTaps
from infini_jax.layers.low_rank import Projection
from infini_jax.layers.mlp import MLP
from infini_jax.layers.norms import norm_of
from infini_jax.layers.precision import PARAMETERS
from infini_jax.layers.segment import Boundaries, Segment
from infini_jax.memory import kind_of, memory_of
from infini_jax.memory.base import KEPT, Memory, MemoryConfig
from infini_jax.model.form import IN_TURN, Form

# All is made again for the gradient but what mechanisms name as too costly to find twice.
KEEP_FOUND = jax.checkpoint_policies.save_only_these_names(KEPT)

# Logical axes of the parameters, by their path below the layer group, whose layers are stacked in front; the memory's own are
# in `Memory.parameter_axes`. What is not named is small.
PARAMETER_AXES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("embedding", "embedding"): ("vocab", "embed"),
    ("query", "kernel"): ("embed", "heads", "head_dim"),
    ("key", "kernel"): ("embed", "kv_heads", "head_dim"),
    ("value", "kernel"): ("embed", "kv_heads", "head_dim"),
    ("memory", "out", "kernel"): ("heads", "head_dim", "embed"),
    ("mlp", "up", "kernel"): ("embed", "mlp"),
    ("mlp", "down", "kernel"): ("mlp", "embed"),
    ("mlp", "gate", "kernel"): ("embed", "mlp"),
    ("query", "bias"): ("heads", "head_dim"),
    ("key", "bias"): ("kv_heads", "head_dim"),
    ("value", "bias"): ("kv_heads", "head_dim"),
    ("mlp", "up", "bias"): ("mlp",),
    ("mlp", "gate", "bias"): ("mlp",),
    ("head", "kernel"): ("embed", "vocab"),
    ("head", "bias"): ("vocab",),
    ("positions", "embedding"): (None, "embed"),
}
"""Logical axes of the model's own parameters, by their path."""
TABLE = "table"  # VxD of the head
NO_DECAY = tuple((name, "bias") for name in ("query", "key", "value"))  # of a layer: they have two axes, and are no matrices


@struct.dataclass
class OpenLayer:
    """A layer's buffers for the segment that is being decoded.

    Attributes:
      inputs: BxTxD, normalized inputs.
      queries: BxTxHxK.
      keys: BxTxGxK.
      values: BxTxGxV.
      ends: BxTxD, the residual stream at the layer's end, None where the memory does not work on it.
      features: BxTxD, the model's features behind all layers, None where the memory does not see them.
    """

    inputs: jax.Array
    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    ends: jax.Array | None
    features: jax.Array | None


class Block(nn.Module):
    """One layer: x + Memory(norm(x)), then x + MLP(norm(x)), where the memory may change x first and look at it in the end.

    Norms, biases, activation and residual are those of `model.block`: with norms in both places what is added is normed, too,
    and in parallel the MLP sees x as attention does.

    The methods take x first and return it first so that `nn.scan` can stack layers, whose states follow.

    Attributes:
      model: settings of the model.
      memory_config: settings of this layer's memory.
    """

    model: ModelConfig
    memory_config: MemoryConfig

    def setup(self):
        dims, block = self.model.dims_of(self.memory_config), self.model.block
        biased = "query_key_value" in block.biases

        def project(heads: int, features: int) -> Projection:
            return Projection((heads, features), use_bias=biased, dtype=dims.dtype)

        norm = functools.partial(norm_of, block.norm, block.epsilon, "norm" in block.biases, dims.dtype)
        self.query = project(dims.heads, dims.key_dim)
        self.key, self.value = project(dims.kv_heads, dims.key_dim), project(dims.kv_heads, dims.value_dim)
        self.attention_norm, self.mlp_norm = norm(), norm()
        if block.norm_places == "both":
            self.attention_norm_after, self.mlp_norm_after = norm(), norm()
        if block.qk_norm == "rms":
            self.query_norm, self.key_norm = (norm_of("rms", block.epsilon, False, dims.dtype) for _ in range(2))
        self.taps = KeyTaps(self.model.key_taps, dims.dtype, self.model.key_taps_own)
        self.memory = memory_of(self.memory_config, dims)
        width = self.model.mlp_dim or 4 * dims.d_model
        self.mlp = MLP(dims.d_model, width, dims.dtype, block.mlp, "mlp" in block.biases)

    def __call__(
        self, x_BxSxD: jax.Array, state: tuple[Any, Dropout | None], bounds: Boundaries
    ) -> tuple[jax.Array, tuple[Any, dict]]:
        """(x BxSxD, (memory, metrics)) after whole segments, one or several of each stream as `Memory.advance` takes them.

        The state is (memory, dropout of this layer).
        """
        memory, dropout = state
        x_BxSxD = self.memory.enter(memory, x_BxSxD, bounds)
        inputs_BxSxD = self.attention_norm(x_BxSxD)
        queries, keys, values = self._project(inputs_BxSxD, inputs_BxSxD, bounds)
        segments = Segment(inputs_BxSxD, queries, keys, values, bounds)
        y_BxSxD, memory, metrics = self.memory.advance(memory, segments)
        x_BxSxD = self._residual(x_BxSxD, y_BxSxD, dropout)
        return x_BxSxD, (self.memory.leave(memory, x_BxSxD, bounds), metrics)

    def extend(self, x_BxSxD: jax.Array, state: tuple[Any, OpenLayer], bounds: Boundaries) -> tuple[jax.Array, OpenLayer]:
        """(x BxSxD, buffers) after a few tokens of the open segment.

        They attend to memory and to the tokens so far, and write nothing.
        """
        memory, opened = state
        x_BxSxD = self.memory.enter(memory, x_BxSxD, bounds)
        new_BxSxD = self.attention_norm(x_BxSxD)

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new, bounds.start, axis=1)

        inputs_BxTxD = put(opened.inputs, new_BxSxD)
        queries_BxSxHxK, keys_BxSxGxK, values_BxSxGxV = self._project(new_BxSxD, inputs_BxTxD, bounds)
        keys_BxTxGxK, values_BxTxGxV = put(opened.keys, keys_BxSxGxK), put(opened.values, values_BxSxGxV)
        segment = Segment(inputs_BxTxD, queries_BxSxHxK, keys_BxTxGxK, values_BxTxGxV, bounds)
        x_BxSxD = self._residual(x_BxSxD, self.memory.attend(memory, segment)[0])
        return x_BxSxD, OpenLayer(
            inputs=inputs_BxTxD,
            queries=put(opened.queries, queries_BxSxHxK),
            keys=keys_BxTxGxK,
            values=values_BxTxGxV,
            ends=None if opened.ends is None else put(opened.ends, x_BxSxD),
            features=opened.features,
        )

    def close(self, x: jax.Array, state: tuple[Any, OpenLayer], bounds: Boundaries) -> tuple[jax.Array, Any]:
        """(x, memory after the open segment, which is full); `x` passes through."""
        memory, opened = state
        segment = Segment(opened.inputs, opened.queries, opened.keys, opened.values, bounds)
        memory = self.memory.write(memory, segment)
        if opened.ends is not None:
            memory = self.memory.leave(memory, opened.ends, bounds)
        return x, memory if opened.features is None else self.memory.finish(memory, opened.features, bounds)

    def finish(self, x_BxTxD: jax.Array, memory: Any, bounds: Boundaries) -> tuple[jax.Array, Any]:
        """(x, memory after the segment), updated from the model's features `x_BxTxD`, which pass through."""
        return x_BxTxD, self.memory.finish(memory, x_BxTxD, bounds)

    def _project(
        self, new_BxSxD: jax.Array, inputs_BxTxD: jax.Array, bounds: Boundaries
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of the new tokens; keys may look back at the inputs before them."""
        block, seen_BxSxD = self.model.block, new_BxSxD if self.model.key_taps == 1 else self.taps(inputs_BxTxD, bounds)
        q_BxSxHxK, k_BxSxGxK = self.query(new_BxSxD), self.key(seen_BxSxD)
        if block.qk_norm == "rms":
            q_BxSxHxK, k_BxSxGxK = self.query_norm(q_BxSxHxK), self.key_norm(k_BxSxGxK)
        if block.attention_scale:  # mechanisms divide by sqrt(K)
            q_BxSxHxK = q_BxSxHxK * (block.attention_scale * q_BxSxHxK.shape[-1] ** 0.5)
        return q_BxSxHxK, k_BxSxGxK, self.value(new_BxSxD)

    def _residual(self, x_BxSxD: jax.Array, y_BxSxD: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        block, has_both = self.model.block, self.model.block.norm_places == "both"
        sum_BxSxD = x_BxSxD + dropped(self.attention_norm_after(y_BxSxD) if has_both else y_BxSxD, dropout, 0)
        made_BxSxD = self.mlp(self.mlp_norm(x_BxSxD if block.residual == "parallel" else sum_BxSxD))
        return sum_BxSxD + dropped(self.mlp_norm_after(made_BxSxD) if has_both else made_BxSxD, dropout, 1)


def layer_groups(model: ModelConfig) -> list[tuple[MemoryConfig, int]]:
    """Runs of consecutive layers that carry the same memory: (memory settings, number of layers)."""
    groups: list[tuple[MemoryConfig, int]] = []
    for layer in range(model.layers):
        config = model.layer_memory(layer)
        if groups and groups[-1][0] == config:
            groups[-1] = (config, groups[-1][1] + 1)
        else:
            groups.append((config, 1))
    return groups


def memories_of(model: ModelConfig) -> list[Memory]:
    """The memory of each layer group."""
    return [memory_of(config, model.dims_of(config)) for config, _ in layer_groups(model)]


def over_layers(function: Callable[..., Any], *states: Any) -> Any:
    """`function` of each layer's states, which are stacked in front; of states without arrays as they are."""
    return jax.vmap(function)(*states) if jax.tree.leaves(states) else function(*states)


def dropout_by_group(model: ModelConfig, dropout: Dropout | None) -> list[Dropout | None]:
    """The dropout of each layer group, its layers' keys stacked in front; layers are told apart by number, from 1."""
    groups, first = [], 1
    for _, count in layer_groups(model):
        groups.append(dropout and jax.vmap(dropout.folded)(jnp.arange(first, first + count)))
        first += count
    return groups


def memory_parameters(model: ModelConfig, kind: Literal["gates", "no_decay", "auxiliary"]) -> frozenset[tuple[str, ...]]:
    """Paths of the parameters that the layers' mechanisms declare as of a kind, see `Memory`."""
    declared = [getattr(memory, kind) for memory in memories_of(model)]
    return frozenset((f"{GROUP}{number}", "memory", *path) for number, paths in enumerate(declared) for path in paths)


def without_decay(model: ModelConfig) -> frozenset[tuple[str, ...]]:
    """Paths of parameters of layers that have axes like matrices and no weight decay."""
    groups = range(len(layer_groups(model)))
    return memory_parameters(model, "no_decay") | {(f"{GROUP}{number}", *path) for number in groups for path in NO_DECAY}


def init_memory(model: ModelConfig, batch: int) -> tuple:
    """Empty memories, one pytree per layer group with the layers in front of the batch."""

    def stacked(config: MemoryConfig, count: int):
        memory = memory_of(config, model.dims_of(config)).init_memory(batch)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), memory)

    return tuple(stacked(config, count) for config, count in layer_groups(model))


def init_open(model: ModelConfig, batch: int) -> tuple:
    """Empty buffers for decoding one segment, one per layer group with the layers in front."""
    d = model.dims

    def stacked(config: MemoryConfig, count: int) -> OpenLayer:
        def zeros(*shape: int) -> jax.Array:
            return jnp.zeros((count, batch, d.segment, *shape), d.dtype)

        kind = kind_of(config)
        return OpenLayer(
            inputs=zeros(d.d_model),
            queries=zeros(d.heads, d.key_dim),
            keys=zeros(d.kv_heads, d.key_dim),
            values=zeros(d.kv_heads, d.value_dim),
            ends=zeros(d.d_model) if kind.works_on_stream() else None,
            features=zeros(d.d_model) if kind.finishes() else None,
        )

    return tuple(stacked(config, count) for config, count in layer_groups(model))


class Head(nn.Module):
    """Logits from features, with parameters where they are not those of the embedding.

    An embedding of which only the row of inserted tokens is trained is among the parameters again as `TABLE`, without that
    row: the logits then cost no gradient of a matrix.

    Attributes:
      vocab: number of logits.
      own: whether there is a matrix of its own.
      biased: whether there is a bias.
      output: type of logits.
    """

    vocab: int
    own: bool
    biased: bool
    output: jnp.dtype

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array, table_VxD: jax.Array) -> jax.Array:
        product, shape = functools.partial(jnp.einsum, preferred_element_type=self.output), (x_BxSxD.shape[-1], self.vocab)
        if self.has_variable("params", TABLE):
            table_VxD = self.get_variable("params", TABLE)
        if self.own:
            kernel_DxV = self.param("kernel", nn.initializers.lecun_normal(), shape, PARAMETERS)
            logits_BxSxV = product("bsd,dv->bsv", x_BxSxD, kernel_DxV.astype(x_BxSxD.dtype))
        else:
            logits_BxSxV = product("bsd,vd->bsv", x_BxSxD, table_VxD.astype(x_BxSxD.dtype))
        return logits_BxSxV + self.param("bias", nn.initializers.zeros, shape[1:], PARAMETERS) if self.biased else logits_BxSxV


class Transformer(nn.Module):
    """Embedding, layer groups, norm, head. Token ids run to `vocab`, which stands for landmarks and memory tokens.

    Attributes:
      model: settings of the model.
      form: how the layers are compiled, and whether each one is made again on its own for the gradient.
    """

    model: ModelConfig
    form: Form = IN_TURN

    def setup(self):
        model, block, parts = self.model, Block, self.model.block
        if self.form.rematerialise == "layer":
            block = nn.remat(Block, prevent_cse=False, policy=KEEP_FOUND, methods=("__call__",))
        self.embedding = nn.Embed(
            model.ids, model.d_model, embedding_init=nn.initializers.normal(model.d_model**-0.5), dtype=model.dims.dtype
        )
        self.groups = [
            nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]  flax takes an axis an argument
                length=count,
                unroll=count if self.form.layer_loop == "unroll" else 1,
                methods=("__call__", "extend", "close", "finish"),
                check_constancy_invariants=self.is_initializing(),  # traces a layer twice; the drawn parameters follow from it
            )(model, config)
            for config, count in layer_groups(model)
        ]
        self.norm = norm_of(parts.norm, parts.epsilon, "norm" in parts.biases, model.dims.dtype)
        if parts.learned_positions:
            small = nn.initializers.normal(0.02)
            self.positions = nn.Embed(parts.learned_positions, model.d_model, embedding_init=small, dtype=model.dims.dtype)
        output = model.dims.policy.output
        self.logits = Head(model.vocab, parts.head == "own", "head" in parts.biases, output, name="head")

    def __call__(
        self, tokens_BxS: jax.Array, memory: tuple, bounds: Boundaries, dropout: Dropout | None = None
    ) -> tuple[jax.Array, tuple, tuple]:
        """(features BxSxD before the head, new memory, metrics per layer group) of whole segments.

        Consecutive segments of one stream are rows next to each other, as in `Memory.advance`. `dropout` has a key per row.
        """
        x_BxSxD, written, metrics = dropped(self._embedded(tokens_BxS, bounds), dropout, 0), [], []
        dropouts = dropout_by_group(self.model, dropout)
        for group, state in zip(self.groups, zip(memory, dropouts, strict=True), strict=True):
            x_BxSxD, (new, measured) = group(x_BxSxD, state, bounds)
            written.append(new)
            metrics.append(measured)
        x_BxSxD = self.norm(x_BxSxD)
        for number, (config, _) in enumerate(layer_groups(self.model)):
            if kind_of(config).finishes():
                written[number] = self.groups[number].finish(x_BxSxD, written[number], bounds)[1]
        if self.is_initializing():
            self.head(x_BxSxD)  # makes its parameters
        return x_BxSxD, tuple(written), tuple(metrics)

    def _embedded(self, tokens_BxS: jax.Array, bounds: Boundaries) -> jax.Array:
        block, x_BxSxD = self.model.block, self.embedding(tokens_BxS)
        if block.embedding_scale != 1:
            x_BxSxD = x_BxSxD * jnp.asarray(block.embedding_scale, x_BxSxD.dtype)
        if block.learned_positions:
            x_BxSxD = x_BxSxD + self.positions(jnp.minimum(bounds.places_BxS, block.learned_positions - 1))
        return x_BxSxD

    def extend(self, tokens_BxS: jax.Array, memory: tuple, opened: tuple, bounds: Boundaries) -> tuple[jax.Array, tuple]:
        """(features BxSxD, new buffers) after a few tokens of the open segment."""
        x_BxSxD, extended = self._embedded(tokens_BxS, bounds), []
        for group, state in zip(self.groups, zip(memory, opened, strict=True), strict=True):
            x_BxSxD, new = group.extend(x_BxSxD, state, bounds)
            extended.append(new)
        x_BxSxD = self.norm(x_BxSxD)

        def with_features(opened: OpenLayer) -> OpenLayer:
            if opened.features is None:
                return opened
            new_LxBxSxD = jnp.broadcast_to(x_BxSxD, (len(opened.features), *x_BxSxD.shape))
            found = jax.lax.dynamic_update_slice_in_dim(opened.features, new_LxBxSxD, bounds.start, axis=2)
            return dataclasses.replace(opened, features=found)

        return x_BxSxD, tuple(map(with_features, extended))

    def close(self, memory: tuple, opened: tuple, bounds: Boundaries) -> tuple:
        """The memory after the open segment, which is full."""
        states, nothing = zip(memory, opened, strict=True), jnp.zeros((), self.model.dims.dtype)
        return tuple(group.close(nothing, state, bounds)[1] for group, state in zip(self.groups, states, strict=True))

    def head(self, x_BxSxD: jax.Array) -> jax.Array:
        """Logits BxSxV over raw tokens, float32; inserted tokens are never predicted."""
        logits_BxSxV = self.logits(x_BxSxD, self.embedding.embedding[: self.model.vocab])
        return soft_cap(logits_BxSxV, self.model.block.logit_cap)
