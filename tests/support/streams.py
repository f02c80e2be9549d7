"""Tiny models and streams of every mechanism, with compiled functions shared by the tests of a process."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from infini_jax.config import Budget, ModelConfig, RunConfig
from infini_jax.devices.sharding import RULES, Layout, batch_sharding, parameter_sharding
from infini_jax.layers.segment import NO_DOCUMENT, Segment, drop_memory_tokens, insert_memory_tokens, whole
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.model.cost import program_flops
from infini_jax.model.stream import (
    decode,
    forward_segments,
    init_carry,
    init_decoder,
    init_params,
    parameter_shapes,
    scan_segments,
)
from infini_jax.model.stream import logits_of as head_of
from infini_jax.model.transformer import Block, init_memory, memory_parameters
from infini_jax.training.gradient import auxiliary_loss
from infini_jax.training.optimiser import names_of
from infini_jax.training.program import Training

BATCH, SEGMENTS, SIZE = 2, 3, 8
MODEL = ModelConfig(vocab=32, layers=2, d_model=16, heads=2, segment=16, key_taps=2)


@functools.cache
def tiny(name: str, **changes) -> ModelConfig:
    """A small model of a registered mechanism, its memory of about `SIZE` natural units."""
    mechanism = MECHANISMS[name]
    every = mechanism.Config().landmark_every or 1
    memory, dims = mechanism.resized(mechanism.Config(), MODEL.dims, SIZE)
    fields = {"memory": memory, "key_dim": dims.key_dim, "segment": every * -(-MODEL.segment // every)}
    return dataclasses.replace(MODEL, **fields | changes)


def initial(model: ModelConfig, seed: int = 0) -> dict:
    """Fresh parameters, drawn by one program: operation by operation, each would be compiled by itself."""
    return drawn_by(model, jax.random.key(seed))


drawn_by = jax.jit(init_params, static_argnums=0)


@functools.cache
def parameters(name: str) -> dict:
    return parameters_of(tiny(name))


@functools.cache
def parameters_of(model: ModelConfig) -> dict:
    """Random parameters; gates are moved off zero, so that both branches are seen."""
    params = initial(model)
    gates = memory_parameters(model, "gates")

    def moved(path, leaf):
        return leaf + 0.3 if names_of(path) in gates else leaf

    return opened(jax.tree_util.tree_map_with_path(moved, params))


def opened(params: dict) -> dict:
    """Parameters with random kernels in place of those that begin at zero, so that what is read is seen."""

    def moved(path, leaf):
        is_closed = names_of(path)[-1] == "kernel" and not np.any(leaf)
        return jax.random.normal(jax.random.key(1), leaf.shape, leaf.dtype) / 4 if is_closed else leaf

    return jax.tree_util.tree_map_with_path(moved, params)


def tokens_of(model: ModelConfig, segments: int = SEGMENTS, seed: int = 0) -> np.ndarray:
    """Of NumPy, as all that tests cut: a cut of a JAX array is a program for each of its shapes."""
    return np.random.default_rng(seed).integers(0, model.vocab, (BATCH, segments * model.segment), np.int32)


@dataclasses.dataclass(frozen=True)
class Sequence:
    """What `scan_segments` takes."""

    tokens: jax.Array
    documents: jax.Array


jax.tree_util.register_dataclass(Sequence, data_fields=["tokens", "documents"], meta_fields=[])


@functools.cache
def scorer(model: ModelConfig):
    """Jitted (params, carry, tokens, documents) -> (carry, logits BxTxV)."""

    def run(params, carry, tokens, documents):
        carry, logits, _ = scan_segments(model, params, carry, Sequence(tokens, documents), lambda logits, part: logits)
        return carry, logits.swapaxes(0, 1).reshape(*tokens.shape, -1)

    return jax.jit(run)


def logits_of(name: str, tokens, documents=None, model: ModelConfig | None = None):
    model = model or tiny(name)
    documents = np.zeros_like(tokens) if documents is None else documents
    return scorer(model)(parameters(name), init_carry(model, tokens.shape[0]), tokens, documents)[1]


def decoded(model: ModelConfig, params: dict, tokens: jax.Array) -> jax.Array:
    """Logits BxTxV of tokens of one document that are read one by one."""
    document = jnp.zeros(tokens.shape[0], jnp.int32)
    step = jax.jit(lambda decoder, token: decode(model, params, decoder, token, document))
    decoder, outputs = init_decoder(model, init_carry(model, tokens.shape[0])), []
    for t in range(tokens.shape[1]):
        decoder, logits = step(decoder, tokens[:, t])
        outputs.append(logits)
    return jnp.stack(outputs, axis=1)


def walked_flops(model: ModelConfig, batch: int = BATCH, segments: int = 1) -> float:
    """FLOPs per raw token of the forward pass of segments that are taken at once, as the walker counts the program."""
    tokens = jax.ShapeDtypeStruct((batch, segments * model.segment), jnp.int32)

    def forward(params, carry, tokens):
        carry, x, _ = forward_segments(model, params, carry, tokens, tokens)
        return carry, head_of(model, params, x)

    shapes = jax.eval_shape(lambda: (init_params(model, jax.random.key(0)), init_carry(model, batch)))
    return program_flops(forward, *shapes, tokens).executed / math.prod(tokens.shape)


def length_of(model: ModelConfig) -> int:
    """Tokens of a segment of free inputs: landmarks are among them, memory tokens stand around them."""
    return model.dims.segment - sum(model.memory.memory_tokens)


def slopes_of(model: ModelConfig, params: dict) -> dict:
    """The gradient of a loss of what is said of the next token, with the mechanisms' auxiliary losses, as in training."""
    tokens = jnp.asarray(tokens_of(model))
    sequence = Sequence(tokens, jnp.zeros_like(tokens))

    def score(logits, part):
        return jnp.mean((logits - jax.nn.one_hot(jnp.roll(part.tokens, -1, axis=1), model.vocab)) ** 2)

    def loss(params):
        _, scores, metrics = scan_segments(model, params, init_carry(model, BATCH), sequence, score)
        return scores.mean() + auxiliary_loss(metrics)

    return jax.jit(jax.grad(loss))(params)


WIDE = {"vocab": 64, "d_model": 64, "heads": 4, "kv_heads": 4, "key_dim": 16, "value_dim": 16}  # which eight devices divide


def whole_parameters(model: ModelConfig) -> list[tuple[int, ...]]:
    """Shapes of the large parameters of which each of eight devices, two of which share a row's heads, has over a quarter."""
    mesh = AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    shapes = jax.tree.leaves(parameter_shapes(model))
    places = jax.tree.leaves(parameter_sharding(model, Layout(mesh, RULES["fsdp+tensor"])))
    large = [(leaf.shape, place) for leaf, place in zip(shapes, places, strict=True) if leaf.size > 1024]
    return [shape for shape, place in large if math.prod(place.shard_shape(shape)) > math.prod(shape) / 4]


@functools.cache
def layer(name: str, **changes):
    """(module, params, jitted stream): one memory layer fed with free queries, keys and values over `SEGMENTS` segments.

    The stream takes parameters, inputs (x BxTxD, q BxTxHxK, k BxTxGxK, v BxTxGxV) and documents BxT,
    and returns the outputs BxTxD. A memory that works on the residual stream stands in a whole layer, fed with x alone.
    """
    model = tiny(name, **changes)
    if MECHANISMS[name].works_on_stream():
        return whole_layer(model)
    module = memory_of(model.memory, model.dims)

    @jax.jit
    def made(inputs):
        segment = cut(inputs, documents_of(name), 0, model.dims.segment, jnp.full(BATCH, -1))
        return module.init(jax.random.key(1), module.init_memory(BATCH), segment, method=both)

    def run(params, inputs, documents):
        memory, before, outputs = module.init_memory(BATCH), jnp.full(BATCH, -1), []
        for number in range(SEGMENTS):
            segment = cut(inputs, documents, number, model.dims.segment, before)
            (y, _), memory = module.apply(params, memory, segment, method=both)
            outputs.append(y)
            before = segment.bounds.key_documents[:, -1]
        return jnp.concatenate(outputs, axis=1)

    return module, opened(made(free_inputs(name, **changes))), jax.jit(run)


def whole_layer(model: ModelConfig):
    """(module, params, jitted stream) of a layer of the transformer; what stands at memory tokens below it is zero."""
    module, count = Block(model, model.memory), model.memory.memory_tokens

    def read(number: int, x_BxTxD, documents, before):
        part = slice(number * length_of(model), (number + 1) * length_of(model))
        x_BxSxD = jnp.pad(x_BxTxD[:, part], ((0, 0), count, (0, 0)))
        return x_BxSxD, whole(insert_memory_tokens(documents[:, part], count), before, mutual=model.memory.mutual_tokens)

    def run(params, inputs, documents):
        memory, before, outputs = init_memory(model, BATCH)[0], jnp.full(BATCH, NO_DOCUMENT), []
        memory = jax.tree.map(lambda leaf: leaf[0], memory)
        for number in range(SEGMENTS):
            x, bounds = read(number, inputs[0], documents, before)
            x, (memory, _) = module.apply(params, x, (memory, None), bounds)
            memory = module.apply(params, x, memory, bounds, method="finish")[1]  # the layer is the last one, too
            outputs.append(drop_memory_tokens(x, count))
            before = bounds.key_documents[:, -1]
        return jnp.concatenate(outputs, axis=1)

    return module, opened(jax.jit(block_variables, static_argnums=0)(model)), jax.jit(run)


def block_variables(model: ModelConfig) -> dict:
    """Fresh parameters of one layer of the transformer."""
    memory = jax.tree.map(lambda leaf: leaf[0], init_memory(model, BATCH)[0])
    x, documents = jnp.zeros((BATCH, model.dims.segment, model.d_model)), jnp.zeros((BATCH, model.dims.segment), jnp.int32)
    phase = jnp.zeros(BATCH, jnp.int32) if model.has_phase else None
    bounds = whole(documents, jnp.full(BATCH, NO_DOCUMENT), phase)
    return Block(model, model.memory).init(jax.random.key(1), x, (memory, None), bounds)


@functools.cache
def slope(name: str):
    """Jitted gradient by the free inputs of all features of token t of the stream, in one document: (inputs, t) -> slopes."""
    _, params, stream = layer(name)
    documents = documents_of(name)
    return jax.jit(jax.grad(lambda inputs, t: stream(params, inputs, documents)[:, t].sum()))


def both(module, memory, segment):
    """attend and write of one segment, so that init makes the parameters of both."""
    return module.attend(memory, segment), module.write(memory, segment)


def cut(inputs, documents, number: int, length: int, before) -> Segment:
    """One segment of free inputs."""
    part = slice(number * length, (number + 1) * length)
    return Segment(*(array[:, part] for array in inputs), whole(documents[:, part], before))


def free_inputs(name: str, **changes) -> tuple:
    """Random inputs, queries, keys and values of a whole stream; inputs alone where the memory stands in a whole layer."""
    model = tiny(name, **changes)
    d, length = model.dims, SEGMENTS * length_of(model)
    shapes = [(d.d_model,), (d.heads, d.key_dim), (d.kv_heads, d.key_dim), (d.kv_heads, d.value_dim)]
    random = np.random.default_rng(2)
    found = tuple(random.standard_normal((BATCH, length, *shape), np.float32) for shape in shapes)
    return found[:1] if MECHANISMS[name].works_on_stream() else found


def documents_of(name: str, edges: tuple[int, ...] = ()) -> np.ndarray:
    """Document ids of a stream, with a new document at each of `edges`."""
    length = SEGMENTS * length_of(tiny(name))
    row = np.searchsorted(edges, np.arange(length), side="right").astype(np.int32)
    return np.broadcast_to(row, (BATCH, length))


def losses_of(run: RunConfig, layout: Layout | None = None) -> list[float]:
    """Of the first three training steps, on one device or spread as the layout says."""
    training, found = Training(dataclasses.replace(run, budget=Budget("steps", 3)), layout), []
    state = training.fresh()
    for number in range(3):
        batch = training.source.batch(number)
        placed = jax.device_put(batch, batch_sharding(layout.mesh, layout.rules)) if layout else batch
        state, measured = training.step(state, placed)
        found.append(float(measured["loss"]))
    return found
