"""Generation: a prompt of any length is read at constant memory, then tokens are sampled from the model.

Whole segments of the prompt are read at once, the rest token by token; all that stays of them is the carried memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from infini_jax.config import ModelConfig
from infini_jax.errors import check_fields, require, require_not_negative, required
from infini_jax.model.stream import Carry, Decoder, decode, forward_segments, init_carry, init_decoder, logits_of

DOCUMENT = 0  # a prompt and its continuation are one document


@struct.dataclass
class Sampling:
    """Settings of sampling.

    Attributes:
      temperature: temperature of the softmax; 0 takes the likeliest token.
      top_p: probability mass of the likeliest tokens that may be drawn (nucleus sampling); 1 keeps all.
      seed: seed of the draws.
      vocab: number of the model's tokens that may be drawn (a tokenizer may have fewer than the model); 0 for all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = struct.field(pytree_node=False, default=0)
    vocab: int = struct.field(pytree_node=False, default=0)

    def check(self) -> None:
        """Checks the settings: raises `ConfigError` where they draw nothing."""
        check_fields("", self)
        require_not_negative("", vocab=self.vocab)
        require(self.temperature >= 0, "temperature", f"{self.temperature} is negative", "give 0 for the likeliest, or more")
        require(self.seed >= 0, "seed", f"{self.seed} is negative", "give 0 or more")
        require(0 < self.top_p <= 1, "top_p", f"{self.top_p:g} is not a probability mass", "give a number above 0, at most 1")


def draw(key: jax.Array, logits_BxV: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """One token per row, B int32, of the smallest set of likeliest tokens that has `top_p` of the probability.

    This is nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751); temperature 0 takes the likeliest.
    """
    greedy_B = logits_BxV.argmax(axis=-1)
    logits_BxV = logits_BxV / jnp.where(temperature > 0, temperature, 1.0)
    order_BxV = jnp.argsort(-logits_BxV, axis=-1, stable=True)
    sorted_BxV = jnp.take_along_axis(logits_BxV, order_BxV, axis=-1)
    p_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
    kept_BxV = jnp.cumsum(p_BxV, axis=-1) - p_BxV < top_p  # what lies before a token; the likeliest always stays
    place_B = jax.random.categorical(key, jnp.where(kept_BxV, sorted_BxV, -jnp.inf), axis=-1)
    drawn_B = jnp.take_along_axis(order_BxV, place_B[:, None], axis=-1)[:, 0]
    return jnp.where(temperature > 0, drawn_B, greedy_B).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def read_segment(model: ModelConfig, params: dict, carry: Carry, tokens_1xS: jax.Array) -> tuple[Carry, jax.Array]:
    """(carry behind one segment of a prompt, logits 1xV of the next token). The new carry takes the place of the old one."""
    carry, x_1xSxD, _ = forward_segments(model, params, carry, tokens_1xS, jnp.full_like(tokens_1xS, DOCUMENT))
    return carry, logits_of(model, params, x_1xSxD[:, -1:])[:, 0]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read_token(model: ModelConfig, params: dict, decoder: Decoder, token_1: jax.Array) -> tuple[Decoder, jax.Array]:
    return decode(model, params, decoder, token_1, jnp.full_like(token_1, DOCUMENT))


def known(model: ModelConfig, piece: np.ndarray) -> np.ndarray:
    """Token ids as int32. Raises `ConfigError` for an id outside the vocabulary: the embedding would take another's."""
    strange = [int(token) for token in (np.min(piece, initial=0), np.max(piece, initial=0)) if not 0 <= token < model.vocab]
    require(
        not strange,
        "prompt",
        f"token {strange and strange[0]} is outside the model's vocabulary of {model.vocab}",
        "use the tokenizer that the run was trained with",
    )
    return np.asarray(piece, np.int32)


@dataclasses.dataclass(frozen=True)
class PromptState:
    """The state behind a prompt: the memory of its whole segments and the tokens behind them.

    The last segment counts as open also where it is full, so that going on needs nothing but this state. Reading on from it
    makes the calls that reading in one piece makes: logits are the same bits.

    Attributes:
      carry: state behind the closed segments, of one stream.
      waiting: int32 T, tokens of the open segment, at most a whole one.
      tokens: number of all tokens of the prompt, the waiting ones included.
    """

    carry: Carry
    waiting: np.ndarray
    tokens: int = 0

    @staticmethod
    def empty(model: ModelConfig) -> "PromptState":
        """The state before any token."""
        return PromptState(init_carry(model, 1), np.zeros(0, np.int32))


def read_segments(
    model: ModelConfig,
    params: dict,
    pieces: Iterable[np.ndarray],
    after: PromptState | None = None,
    watch: Callable[[int], None] = lambda tokens: None,
) -> PromptState:
    """The state behind a prompt. Segments are read whole; the tokens of the last one wait.

    Args:
      model: settings of the model.
      params: its parameters.
      pieces: arrays of token ids that follow one another, of any lengths, read as they come.
      after: state behind what stands in front of the prompt, which stays as it is and may be gone on from again.
      watch: called with the number of tokens read so far.

    Raises `ConfigError` for a token that the model does not have.
    """
    state = after or PromptState.empty(model)
    carry, waiting, tokens = jax.tree.map(jnp.copy, state.carry), state.waiting, state.tokens  # a read uses its carry up
    for piece in pieces:
        waiting, tokens = np.concatenate([waiting, known(model, piece)]), tokens + len(piece)
        while len(waiting) > model.segment:
            carry, _ = read_segment(model, params, carry, jnp.asarray(waiting[None, : model.segment]))
            waiting = waiting[model.segment :]
            watch(tokens - len(waiting))
    return PromptState(carry, waiting, tokens)


def open_prompt(
    model: ModelConfig, params: dict, state: PromptState, watch: Callable[[int], None] = lambda tokens: None
) -> tuple[Decoder, jax.Array]:
    """(decoder behind the tokens of a state, logits 1xV of the next token). The state stays as it is.

    Raises `ConfigError` where the state has no token.
    """
    carry, logits, waiting = jax.tree.map(jnp.copy, state.carry), None, state.waiting
    if len(waiting) == model.segment:
        carry, logits = read_segment(model, params, carry, jnp.asarray(waiting[None]))
        waiting = waiting[:0]
        watch(state.tokens)
    decoder = init_decoder(model, carry)
    for number, token in enumerate(waiting, 1):
        decoder, logits = _read_token(model, params, decoder, jnp.array([token]))
        watch(state.tokens - len(waiting) + number)
    return decoder, required(logits, "prompt", "it is empty", "give at least one token")


def read_prompt(
    model: ModelConfig, params: dict, pieces: Iterable[np.ndarray], watch: Callable[[int], None] = lambda tokens: None
) -> tuple[Decoder, jax.Array]:
    """(decoder behind the prompt, logits 1xV of the next token).

    Args:
      model: settings of the model.
      params: its parameters.
      pieces: arrays of token ids that follow one another, of any lengths, read as they come.
      watch: called with the number of tokens read so far.

    Raises `ConfigError` where there is not one token, or one that the model does not have.
    """
    return open_prompt(model, params, read_segments(model, params, pieces, watch=watch), watch)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _next(model: ModelConfig, vocab: int, params: dict, decoder: Decoder, logits_1xV, key, temperature, top_p):
    token_1 = draw(key, logits_1xV[:, :vocab], temperature, top_p)
    decoder, logits_1xV = decode(model, params, decoder, token_1, jnp.full_like(token_1, DOCUMENT))
    return decoder, logits_1xV, token_1[0]


def continuation(
    model: ModelConfig, params: dict, decoder: Decoder, logits_1xV: jax.Array, sampling: Sampling
) -> Iterator[int]:
    """Sampled tokens one after another, without end, from the logits behind a prompt. The decoder is used up.

    Raises `ConfigError` for settings of sampling that draw nothing.
    """
    sampling.check()
    key, vocab = jax.random.key(sampling.seed), sampling.vocab or model.vocab
    for number in range(2**62):
        drawn = (jax.random.fold_in(key, number), sampling.temperature, sampling.top_p)
        decoder, logits_1xV, token = _next(model, vocab, params, decoder, logits_1xV, *drawn)
        yield int(token)
