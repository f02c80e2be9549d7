"""Generation: a prompt of any length is read at constant memory, then tokens are sampled from the model.

Whole segments of the prompt are read at once, the rest token by token; all that stays of them is the carried memory.
"""

import functools
from collections.abc import Iterable, Iterator

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
        require(0 < self.top_p <= 1, "top_p", f"{self.top_p} keeps nothing", "give above 0 to 1")


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


def read_prompt(
    model: ModelConfig, params: dict, pieces: Iterable[np.ndarray], watch=lambda tokens: None
) -> tuple[Decoder, jax.Array]:
    """(decoder behind the prompt, logits 1xV of the next token).

    Args:
      model: settings of the model.
      params: its parameters.
      pieces: arrays of token ids that follow one another, of any lengths, read as they come.
      watch: called with the number of tokens read so far.

    Raises `ConfigError` where there is not one token, or one that the model does not have.
    """
    carry, logits, waiting, done = init_carry(model, 1), None, np.zeros(0, np.int32), 0
    for piece in pieces:
        waiting = np.concatenate([waiting, known(model, piece)])
        for begin in range(0, len(waiting) - model.segment + 1, model.segment):
            carry, logits = read_segment(model, params, carry, jnp.asarray(waiting[None, begin : begin + model.segment]))
            done += model.segment
            watch(done)
        waiting = waiting[len(waiting) // model.segment * model.segment :]
    decoder = init_decoder(model, carry)
    for token in waiting:
        decoder, logits = _read_token(model, params, decoder, jnp.array([token]))
        watch(done := done + 1)
    return decoder, required(logits, "prompt", "it is empty", "give at least one token")


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
