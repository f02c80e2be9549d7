"""Streaming: `lax.scan` over segments outside Linen, with rematerialization and a BPTT window; decoding of one open segment.

Letters as in `infini_jax.layers.segment`, W segments of a sequence, R rows of one segment, L places of it, landmarks and
memory tokens included.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from infini_jax.config import ModelConfig
from infini_jax.layers.dropout import Dropout
from infini_jax.layers.heads import handed_on
from infini_jax.layers.segment import (
    NO_DOCUMENT,
    Boundaries,
    drop_landmarks,
    drop_memory_tokens,
    insert_landmarks,
    insert_memory_tokens,
    memory_token_ids,
    tokens_before_each,
    whole,
)
from infini_jax.memory.base import AUXILIARY, Memory
from infini_jax.memory.rewind import rewinding_scan
from infini_jax.model.form import IN_TURN, Form
from infini_jax.model.scored import few_places, gathered, in_parts
from infini_jax.model.transformer import KEEP_FOUND, Transformer, init_memory, init_open, memories_of, over_layers


@struct.dataclass
class Carry:
    """State that passes from one segment to the next.

    Attributes:
      memory: one pytree per layer group.
      open_document: B, number of the open document.
      phase: B, phase of the landmarks, as in `Boundaries`, or None.
      before: B, tokens of the open document, as in `Boundaries`, or None.
    """

    memory: tuple
    open_document: jax.Array
    phase: jax.Array | None = None
    before: jax.Array | None = None


def init_carry(model: ModelConfig, batch: int) -> Carry:
    """The carry of new streams: empty memories, no open document."""
    phase = jnp.zeros(batch, jnp.int32) if model.has_phase else None
    before = jnp.zeros(batch, jnp.int32) if model.counts_places else None
    return Carry(init_memory(model, batch), jnp.full(batch, NO_DOCUMENT, jnp.int32), phase, before)


def _phase_after(model: ModelConfig, phase: jax.Array | None, segments: int | jax.Array = 1) -> jax.Array | None:
    """The phase so many segments later."""
    every = model.memory.landmark_every
    return None if phase is None or every is None else (phase + segments * model.segment) % every


@functools.lru_cache(maxsize=64)
def parameter_shapes(model: ModelConfig) -> dict:
    """The parameters of a model as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def init_params(model: ModelConfig, key: jax.Array) -> dict:
    """Fresh parameters of a model, float32, as a nested dict."""
    length = model.dims.segment
    tokens = jnp.zeros((1, length), jnp.int32)
    carry = init_carry(model, 1)
    bounds = whole(tokens, carry.open_document, carry.phase)
    variables: Any = Transformer(model).init(key, tokens, carry.memory, bounds)
    return variables["params"]


def forward_segments(
    model: ModelConfig,
    params: dict,
    carry: Carry,
    tokens_BxT: jax.Array,
    documents_BxT: jax.Array,
    form: Form = IN_TURN,
    dropout: Dropout | None = None,
) -> tuple[Carry, jax.Array, tuple]:
    """(carry, features BxTxD of the raw tokens, metrics per layer group) after W consecutive segments of raw tokens, T = W S.

    Every layer takes all of them before the next layer does, which is the same as one segment after the other. Landmarks and
    memory tokens stand inside the layers only. `dropout` has keys BxW. Raises `ConfigError` where the memory cannot take
    several segments at once.
    """

    def segments(x_BxT: jax.Array) -> jax.Array:
        return x_BxT.reshape(-1, model.segment)

    batch, every = tokens_BxT.shape[0], model.memory.landmark_every
    tokens_RxL, documents_RxL, phase_R = segments(tokens_BxT), segments(documents_BxT), None
    count, memory_tokens = len(tokens_RxL) // batch, model.memory.memory_tokens
    model.check_at_once(count)
    if carry.phase is not None:
        phase_BxW: Any = _phase_after(model, carry.phase[:, None], jnp.arange(count))
        phase_R = phase_BxW.reshape(-1)
    if every is not None:
        tokens_RxL = insert_landmarks(tokens_RxL, every, model.vocab, phase_R)
        documents_RxL = insert_landmarks(documents_RxL, every, None, phase_R)
    tokens_RxL = insert_memory_tokens(tokens_RxL, memory_tokens, model.vocab)
    documents_RxL = insert_memory_tokens(documents_RxL, memory_tokens)
    last_BxW = documents_RxL[:, -1].reshape(batch, -1)
    open_B, last_B = handed_on(carry.open_document, last_BxW[:, -1])
    open_BxW = jnp.concatenate([open_B[:, None], last_BxW[:, :-1]], axis=1)
    bounds, before = whole(documents_RxL, open_BxW.reshape(-1), phase_R, model.memory.mutual_tokens), None
    if carry.before is not None:
        before_BxX = tokens_before_each(carry.before, bounds)
        bounds, before = dataclasses.replace(bounds, before=before_BxX[:, :-1].reshape(-1)), before_BxX[:, -1]
    transformer = Transformer(model, form)
    dropout = dropout and dataclasses.replace(dropout, keys=dropout.keys.reshape(-1))
    found: Any = transformer.apply({"params": params}, tokens_RxL, carry.memory, bounds, dropout)
    x_RxSxD, memory, metrics = found
    x_RxSxD = drop_memory_tokens(x_RxSxD, memory_tokens)
    if every is not None:
        x_RxSxD = drop_landmarks(x_RxSxD, every, phase_R)
    carry = Carry(memory, last_B, _phase_after(model, carry.phase, count), before)
    return carry, x_RxSxD.reshape(batch, -1, x_RxSxD.shape[-1]), metrics


def logits_of(model: ModelConfig, params: dict, x_BxSxD: jax.Array) -> jax.Array:
    """Logits BxSxV of features."""
    logits_BxSxV: Any = Transformer(model).apply({"params": params}, x_BxSxD, method="head")
    return logits_BxSxV


def features_themselves(model: ModelConfig, params: dict, x_BxSxD: jax.Array) -> jax.Array:
    """The `head` of `scan_segments` for scores of the features BxSxD, behind the last norm."""
    return x_BxSxD


def scan_segments(
    model: ModelConfig,
    params: dict,
    carry: Carry,
    sequence: Any,
    score: Callable[[jax.Array, Any], Any],
    bptt: int = 0,
    form: Form = IN_TURN,
    dropout: Dropout | None = None,
    most_scored: int | None = None,
    first_trained: int = 0,
    head: Callable[[ModelConfig, dict, jax.Array], jax.Array] = logits_of,
) -> tuple[Carry, Any, tuple]:
    """(carry, scores stacked over steps, metrics per layer group stacked over steps) of a sequence streamed through the model.

    Where few places are scored, logits are made of these alone, behind the scan: scores are stacked over parts of them then.

    Args:
      model: settings of the model.
      params: its parameters.
      carry: state before the sequence.
      sequence: a pytree of BxT arrays with attributes `tokens` and `documents`; T a multiple of the segment.
      score: (what `head` makes, its part of `sequence`) -> pytree, so that logits BxSxV of one step only ever exist.
      bptt: segments that gradients flow through; 0 for all of them.
      form: form of the program; its segments are a divisor of their number and of `bptt`. The results are the same.
      dropout: dropout with a key for each row and segment; None has none.
      most_scored: places of a row that have a weight in `sequence.weights`, at most; the others may be left out of the scores.
        None takes all places.
      first_trained: number of the first layer group that a gradient goes through; none goes into what those below it carry,
        and into logits where it is their number.
      head: (model, params, features BxSxD) -> what is scored; logits by default.
    """
    tokens = sequence.tokens.shape[1]
    few = None if most_scored is None else few_places(most_scored, tokens)

    def scores_of(params: dict, x_BxSxD: jax.Array, part: Any) -> Any:
        return score(head(model, params, x_BxSxD), part)

    def split(length: int, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1, length).swapaxes(0, 1), tree)

    def step(params: dict, carry: Carry, item: tuple[jax.Array, Any, Dropout | None]) -> tuple[Carry, tuple]:
        number, part, drop = item
        if bptt:
            cut = jax.lax.stop_gradient(carry.memory)
            memory = jax.tree.map(
                lambda free, held: jnp.where(number * form.segments % bptt == 0, held, free), carry.memory, cut
            )
            carry = dataclasses.replace(carry, memory=memory)
        if first_trained:
            below, above = carry.memory[:first_trained], carry.memory[first_trained:]
            carry = dataclasses.replace(carry, memory=(*jax.lax.stop_gradient(below), *above))
        carry, x_BxSxD, metrics = forward_segments(model, params, carry, part.tokens, part.documents, form, drop)
        found = scores_of(params, x_BxSxD, part) if few is None else x_BxSxD
        return carry, (found, tuple(map(_as_reported, metrics)))

    parts, drops = split(form.segments * model.segment, sequence), split(form.segments, dropout)
    numbers = jnp.arange(parts.tokens.shape[0])
    if form.rematerialise != "none":
        step = jax.checkpoint(step, policy=KEEP_FOUND)
    lost = functools.partial(_lost, model, form.segments)
    restored = functools.partial(_restored, model, form.segments)
    items = (numbers, parts, drops)
    carry, (found, metrics) = rewinding_scan(step, params, carry, items, lost, restored)
    if few is not None:
        found = jax.lax.stop_gradient(found) if first_trained == len(carry.memory) else found
        at_once = few if form.rematerialise == "none" else form.segments * model.segment
        found = in_parts(functools.partial(scores_of, params), *gathered(found, sequence, few), at_once)
    return carry, found, metrics


def _as_reported(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The metrics of a layer group, of which only those that are added to the loss have a gradient, which costs work."""
    return {name: x if name.startswith(AUXILIARY) else jax.lax.stop_gradient(x) for name, x in metrics.items()}


def _lost(model: ModelConfig, segments: int, before: Carry, after: Carry, _: Any) -> Carry:
    """What the carry `before` so many segments had that the one after them has not, see `Memory.lost`."""
    memories = zip(memories_of(model), before.memory, after.memory, strict=True)

    def of_group(memory: Memory, before_it: Any, after_it: Any) -> Any:
        if type(memory).lost is Memory.lost:  # all of it, as the same arrays: those that no gradient uses are not kept
            return before_it
        return over_layers(lambda b, a: memory.lost(b, a, segments, before.phase), before_it, after_it)

    return dataclasses.replace(before, memory=tuple(of_group(*group) for group in memories))


def _restored(model: ModelConfig, segments: int, after: Carry, lost: Carry, _: Any) -> Carry:
    """The carry before the segments, see `Memory.restored`."""
    memories = zip(memories_of(model), after.memory, lost.memory, strict=True)
    memory = (over_layers(lambda a, b, m=m: m.restored(a, b, segments, lost.phase), a, b) for m, a, b in memories)
    return dataclasses.replace(lost, memory=tuple(memory))


@struct.dataclass
class Decoder:
    """A stream that is read token by token.

    Attributes:
      carry: state after the closed segments.
      opened: buffers of the open segment, one pytree per layer group.
      documents: BxT, of the open segment, which may be full.
      length: int32 scalar, tokens of the open segment, landmarks and memory tokens included.
    """

    carry: Carry
    opened: tuple
    documents: jax.Array
    length: jax.Array


def init_decoder(model: ModelConfig, carry: Carry) -> Decoder:
    """A decoder with an empty open segment behind `carry`."""
    batch = carry.open_document.shape[0]
    documents = jnp.full((batch, model.dims.segment), NO_DOCUMENT, jnp.int32)
    return Decoder(carry, init_open(model, batch), documents, jnp.int32(0))


def decode(
    model: ModelConfig, params: dict, decoder: Decoder, token_B: jax.Array, document_B: jax.Array
) -> tuple[Decoder, jax.Array]:
    """(decoder, logits BxV of the next token) after one raw token per row. Landmarks and memory tokens are inserted.

    Memory tokens in front of a segment are read with its first token, those behind it when it is closed. A full segment is
    closed when the next token comes, before that one reads: written behind the read, XLA would copy the
    whole memory at every token.
    """
    every, (before, _) = model.memory.landmark_every, model.memory.memory_tokens
    full = _places(model, decoder.carry.phase)
    decoder = jax.lax.cond(decoder.length == full, lambda d: _close(model, params, d), lambda d: d, decoder)
    if before:
        opened = functools.partial(_extend_by_memory_tokens, model, params, document_B=document_B, count=before)
        decoder = jax.lax.cond(decoder.length == 0, opened, lambda d: d, decoder)
    decoder, x_BxD = _extend(model, params, decoder, token_B[:, None], document_B)
    if every is not None:
        landmark_B = jnp.full_like(token_B, model.vocab)
        place = decoder.length if decoder.carry.phase is None else decoder.length + decoder.carry.phase[0]
        decoder = jax.lax.cond(
            (place + 1) % (every + 1) == 0,
            lambda d: _extend(model, params, d, landmark_B[:, None], document_B)[0],
            lambda d: d,
            decoder,
        )
    return decoder, logits_of(model, params, x_BxD[:, None])[:, 0]


def _places(model: ModelConfig, phase: jax.Array | None) -> int | jax.Array:
    """Number of tokens of a full segment, landmarks and the memory tokens in front of it included."""
    every = model.memory.landmark_every
    if phase is None or every is None:
        return model.dims.segment - model.memory.memory_tokens[1]
    return model.segment + (phase[0] + model.segment) // every


def _bounds(model: ModelConfig, decoder: Decoder, query_documents_BxS: jax.Array, start: jax.Array) -> Boundaries:
    carry, mutual = decoder.carry, model.memory.mutual_tokens
    return Boundaries(query_documents_BxS, decoder.documents, carry.open_document, start, carry.phase, carry.before, mutual)


def _extend(model, params, decoder: Decoder, token_BxS: jax.Array, document_B: jax.Array) -> tuple[Decoder, jax.Array]:
    """(decoder, features BxD of the last token) after tokens of one document per row."""
    document_BxS = jnp.broadcast_to(document_B[:, None], token_BxS.shape)
    documents = jax.lax.dynamic_update_slice_in_dim(decoder.documents, document_BxS, decoder.length, 1)
    decoder = dataclasses.replace(decoder, documents=documents)
    bounds = _bounds(model, decoder, document_BxS, decoder.length)
    x_BxSxD, opened = Transformer(model).apply(
        {"params": params}, token_BxS, decoder.carry.memory, decoder.opened, bounds, method="extend"
    )
    return dataclasses.replace(decoder, opened=opened, length=decoder.length + token_BxS.shape[1]), x_BxSxD[:, -1]


def _extend_by_memory_tokens(model, params, decoder: Decoder, document_B: jax.Array, count: int) -> Decoder:
    return _extend(model, params, decoder, memory_token_ids(len(document_B), count, model.vocab), document_B)[0]


def _close(model, params, decoder: Decoder) -> Decoder:
    _, after = model.memory.memory_tokens
    if after:
        last_Bx1 = jax.lax.dynamic_slice_in_dim(decoder.documents, decoder.length - 1, 1, axis=1)
        decoder = _extend_by_memory_tokens(model, params, decoder, last_Bx1[:, 0], after)
    if model.has_phase:  # a dead place at the end is of the last token's document
        last_Bx1 = jax.lax.dynamic_slice_in_dim(decoder.documents, decoder.length - 1, 1, axis=1)
        live_T = jnp.arange(decoder.documents.shape[1]) < decoder.length
        decoder = dataclasses.replace(decoder, documents=jnp.where(live_T, decoder.documents, last_Bx1))
    bounds = _bounds(model, decoder, decoder.documents, jnp.int32(0))
    memory: Any = Transformer(model).apply({"params": params}, decoder.carry.memory, decoder.opened, bounds, method="close")
    before = decoder.carry.before
    before = None if before is None else tokens_before_each(before, bounds)[:, -1]
    carry = Carry(memory, decoder.documents[:, -1], _phase_after(model, decoder.carry.phase), before)
    return dataclasses.replace(decoder, carry=carry, length=jnp.int32(0))
