"""Reading texts side by side, each from a fresh memory: R rows, some segments per call, at constant memory.

Scores are teacher-forced: every place reads what the text has before it. `ExampleReader` also lets the model answer by itself
(free-running: behind the prompt it reads its own likeliest tokens). Up to the segment in which the first prompt ends both read
the same, once; from there the free run reads token by token.

A row is one document, and rows that end before the longest read on over padding that nobody scores: attention is causal.
Several models may read the same rows in the same calls (`infini_jax.devices.side_by_side`). Letters: A models, C conditions.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infini_jax.config import ModelConfig
from infini_jax.config.evaluation import CARRIED, RESET, Condition
from infini_jax.data.examples import Example, Label
from infini_jax.devices.sharding import Layout, on_own_rows, replicated
from infini_jax.devices.side_by_side import Learned, OneModel, Places, ReadingProgram
from infini_jax.errors import present, require
from infini_jax.model.controls import emptied, with_neighborhoods
from infini_jax.model.stream import Carry, decode, forward_segments, init_decoder, logits_of

DOCUMENT = 0  # of every token: a row is one document for as long as it is read
SEGMENTS_A_CALL = 16  # enough that calling the program costs nothing beside running it


@functools.partial(ReadingProgram, settings=2, own=1, uses_up=True)
def score_segments(
    model: ModelConfig,
    conditions: tuple[Condition, ...],
    layout: Layout | None,
    params: dict,
    carry: Carry,
    texts: tuple[jax.Array, jax.Array],
    segments: jax.Array,
) -> tuple[Carry, jax.Array, jax.Array]:
    """Scores the first `segments` of W segments of `texts`: (tokens RxT, targets RxT) with T = W S.

    Returns:
      (carry, nats CxRxT of the targets under C conditions, hits RxT: whether the likeliest token under `carried` is the
      target); the last two lie on every device of `layout`. Segments that are not read score zero.
    """
    (rows, length), size = texts[0].shape, model.segment

    def read_rows(carry: Carry, texts: tuple[jax.Array, jax.Array], params: dict) -> tuple[tuple, Carry]:
        tokens_RxS, targets_RxS = texts
        carry, x_RxSxD, _ = forward_segments(model, params, carry, tokens_RxS, jnp.full_like(tokens_RxS, DOCUMENT))
        logits_RxSxV = logits_of(model, params, x_RxSxD)
        return (nats_of(logits_RxSxV, targets_RxS), logits_RxSxV.argmax(axis=-1) == targets_RxS), carry

    read = on_own_rows(read_rows, model, layout)

    def nats_under(condition: Condition, carry: Carry, texts: tuple[jax.Array, jax.Array]) -> jax.Array:
        if condition == RESET:
            return read(emptied(model, carry), texts, params)[0][0]
        # Row b - 1 with its memory reads what document b says: the texts are exchanged, which moves no memory.
        texts = jax.tree.map(lambda text_RxS: jnp.roll(text_RxS, -1, axis=0), texts)
        (nats_RxS, _), _ = read(with_neighborhoods(carry, lambda leaf: jnp.roll(leaf, -1, axis=1)), texts, params)
        return jnp.roll(nats_RxS, 1, axis=0)

    def step(number: jax.Array, state: tuple) -> tuple:
        carry, nats_CxRxT, hits_RxT = state
        part = jax.tree.map(lambda text_RxT: jax.lax.dynamic_slice_in_dim(text_RxT, number * size, size, axis=1), texts)
        controls = {name: nats_under(name, carry, part) for name in conditions if name != CARRIED}
        (nats_RxS, hits_RxS), carry = read(carry, part, params)
        nats = {CARRIED: nats_RxS, **controls}
        found_CxRxS = jnp.stack([nats[name] for name in conditions])
        nats_CxRxT = jax.lax.dynamic_update_slice_in_dim(nats_CxRxT, found_CxRxS, number * size, axis=2)
        return carry, nats_CxRxT, jax.lax.dynamic_update_slice_in_dim(hits_RxT, hits_RxS, number * size, axis=1)

    blank = (jnp.zeros((len(conditions), rows, length), model.dims.policy.output), jnp.zeros((rows, length), bool))
    carry, *found = jax.lax.fori_loop(0, segments, step, (carry, *blank))
    if layout is not None:  # every process must be able to read them
        found = jax.lax.with_sharding_constraint(found, replicated(layout.mesh))
    return carry, *found


def nats_of(logits_RxSxV: jax.Array, targets_RxS: jax.Array) -> jax.Array:
    """-ln p of each target, RxS."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_RxSxV, targets_RxS)


@functools.partial(ReadingProgram, settings=2, own=1)
def speak(
    model: ModelConfig,
    vocab: int,
    layout: Layout | None,
    params: dict,
    carry: Carry,
    texts: tuple[jax.Array, jax.Array],
    steps: jax.Array,
) -> jax.Array:
    """The likeliest of the first `vocab` tokens behind each of `steps` tokens that are read one by one: RxT, zero behind them.

    `texts` are (tokens RxT, given R): from place `given` of a row on, the token said last takes the place of the row's own.
    The carry stays usable.
    """

    def speak_rows(carry: Carry, texts: tuple[jax.Array, jax.Array], params: dict, steps: jax.Array) -> tuple:
        tokens_RxT, given_R = texts
        document_R = jnp.full_like(given_R, DOCUMENT)

        def step(place: jax.Array, state: tuple) -> tuple:
            decoder, last_R, said_RxT = state
            token_R = jnp.where(place < given_R, tokens_RxT[:, place], last_R)
            decoder, logits_RxV = decode(model, params, decoder, token_R, document_R)
            last_R = logits_RxV[:, :vocab].argmax(axis=-1).astype(jnp.int32)
            return decoder, last_R, said_RxT.at[:, place].set(last_R)

        begin = (init_decoder(model, carry), jnp.zeros_like(given_R), jnp.zeros_like(tokens_RxT))
        return jax.lax.fori_loop(0, steps, step, begin)[-1], carry

    said_RxT, _ = on_own_rows(speak_rows, model, layout)(carry, texts, params, steps)
    return said_RxT if layout is None else jax.lax.with_sharding_constraint(said_RxT, replicated(layout.mesh))


@dataclasses.dataclass(frozen=True)
class Reading:
    """The scores of one example, and the model's own answer where it was asked for one.

    Attributes:
      labels: labels of the example.
      answer_N: the scored targets.
      nats_N: -ln p of each target.
      hits_N: whether the likeliest token was the target.
      said_M: tokens that the model said by itself behind the prompt; None where it was not asked.
      references: the example's references: what a right answer says in words.
    """

    labels: tuple[tuple[str, Label], ...]
    answer_N: np.ndarray
    nats_N: np.ndarray
    hits_N: np.ndarray
    said_M: np.ndarray | None = None
    references: tuple[str, ...] = ()

    @property
    def spoken_M(self) -> np.ndarray:
        """The tokens that the model said, for an evaluation that asks for new tokens."""
        return present(self.said_M, "the evaluation asks for new tokens")


class ExampleReader:
    """A reader of examples of any lengths with the programs of one model, compiled once for all of its tasks.

    Attributes:
      model: settings of the model that reads.
      rows: number of examples that are read side by side.
      vocab: number of the model's tokens that may be said.
    """

    def __init__(self, model: ModelConfig, rows: int, vocab: int = 0):
        self.model, self.rows, self.vocab = model, rows, vocab or model.vocab

    def read(
        self,
        params: dict,
        examples: Iterable[Example],
        new: Callable[[Example], int] = lambda example: 0,
        watch: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[Reading]:
        """The readings of the examples with one model's parameters, see `read_each`."""
        return (reading for (reading,) in self.read_each(OneModel(params), examples, new, watch))

    def read_each(
        self,
        learned: Learned,
        examples: Iterable[Example],
        new: Callable[[Example], int] = lambda example: 0,
        watch: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[tuple[Reading, ...]]:
        """The readings of each example, one of each model; examples that stand together should be about equally long.

        Args:
          learned: parameters of the models.
          examples: the examples to read, in order.
          new: function from an example to the number of tokens that the model says by itself behind its prompt; 0 for none.
          watch: gets the number of tokens of each group of examples that was read.
        """
        examples, places = iter(examples), learned.places(self.model, self.rows)
        while group := list(itertools.islice(examples, self.rows)):
            found = self._read_group(places, group, [new(example) for example in group])
            watch(sum(len(example.tokens) for example in group))
            yield from found

    def _read_group(self, places: Places, group: Sequence[Example], new: Sequence[int]) -> list[tuple[Reading, ...]]:
        """The readings of at most `rows` examples side by side."""
        size, longest = self.model.segment, max(len(example.tokens) for example in group)
        whole = -(-longest // size)
        tokens, targets = ([getattr(one, name) for one in group] for name in ("tokens", "targets"))
        texts = (self._side_by_side(tokens, whole * size), self._side_by_side(targets, whole * size))
        asked = [example for example, count in zip(group, new, strict=True) if count]
        shared = min((spoken_behind(example, self.model) for example in asked), default=whole * size) // size
        carry, before = self._score(places, places.fresh(), texts, 0, shared)
        said = self._speak(places, carry, group, shared, new) if asked else [None] * len(group)
        _, after = self._score(places, carry, texts, shared, whole)
        nats_AxRxT, hits_AxRxT = (np.concatenate(parts, axis=2) for parts in zip(*filter(None, (before, after)), strict=True))
        found = []
        for row, (one, words) in enumerate(zip(group, said, strict=True)):
            scored = np.flatnonzero(one.weights)
            scores = zip(nats_AxRxT[:, row, scored], hits_AxRxT[:, row, scored], words or itertools.repeat(None), strict=False)
            found.append(tuple(Reading(one.labels, one.answer, *of_model, one.references) for of_model in scores))
        return found

    def _side_by_side(self, texts: Sequence[np.ndarray], length: int) -> np.ndarray:
        """Texts as R rows of `length` tokens, padded with zeros."""
        found = np.zeros((self.rows, length), np.int32)
        for row, text in zip(found, texts, strict=False):
            row[: len(text)] = text
        return found

    def _score(
        self, places: Places, carry: Carry, texts: tuple[np.ndarray, np.ndarray], first: int, last: int
    ) -> tuple[Carry, tuple[np.ndarray, ...] | None]:
        """Scores segments `first` to `last`: (carry, (nats AxRxT, hits AxRxT)), None of no segment. Uses the carry up."""
        size, found = self.model.segment, []
        for begin in range(first, last, SEGMENTS_A_CALL):
            count = min(SEGMENTS_A_CALL, last - begin)
            piece = [text_RxT[:, begin * size : (begin + count) * size] for text_RxT in texts]
            padded = tuple(places.put(np.pad(part, ((0, 0), (0, (SEGMENTS_A_CALL - count) * size)))) for part in piece)
            carry, *scores = places.call(score_segments, (self.model, (CARRIED,)), (carry,), (padded, np.int32(count)))
            nats_AxCxRxT, hits_AxRxT = places.on_host(scores)
            found.append((nats_AxCxRxT[:, 0, :, : count * size].astype(float), hits_AxRxT[:, :, : count * size]))
        return carry, tuple(np.concatenate(parts, axis=2) for parts in zip(*found, strict=True)) if found else None

    def _speak(
        self, places: Places, carry: Carry, group: Sequence[Example], shared: int, new: Sequence[int]
    ) -> list[list[np.ndarray] | None]:
        """The tokens that each model says behind each prompt, whose first `shared` segments are read already."""
        read = shared * self.model.segment
        given_R, new_R = np.ones(self.rows, np.int32), np.zeros(self.rows, np.int32)
        new_R[: len(group)] = new
        given_R[: len(group)] = [max(1, example.prompt - read) for example in group]
        steps = int((given_R + new_R - 1)[new_R > 0].max())
        width = -(-steps // self.model.segment) * self.model.segment  # few programs for many lengths
        given_R = np.minimum(given_R, width)  # of those who are not asked
        tokens_RxT = self._side_by_side([one.tokens[read:][:given] for one, given in zip(group, given_R, strict=False)], width)
        texts = (places.put(tokens_RxT), places.put(given_R))
        said = places.call(speak, (self.model, self.vocab), (carry,), (texts, np.int32(steps)))
        said_RxAxT = places.on_host(said).swapaxes(0, 1)
        rows = zip(said_RxAxT, given_R, new, strict=False)
        return [[*said_AxT[:, given - 1 : given - 1 + count]] if count else None for said_AxT, given, count in rows]


def spoken_behind(example: Example, model: ModelConfig) -> int:
    """Tokens of an example's prompt that are read in whole segments; the rest, at least one, is read token by token.

    Raises `ConfigError` where there is no prompt.
    """
    require(example.prompt >= 1, "example", "it has no prompt to answer", "ask for its scores alone")
    return (example.prompt - 1) // model.segment * model.segment
