"""Tasks made of text: an instruction, a haystack that hides needles, a question, an answer; exact lengths in tokens.

A row is `instruction haystack question answer filler`. The haystack takes the room that is left, counted in tokens, and is cut
where it is full. Answers of one task may be of different lengths: the room of the longest is kept behind every question, so
that all prompts of one length end at the same place and can be read side by side; behind a shorter answer stands filler that
is not scored.
"""

import abc
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from infini_jax.data.examples import Example, ExampleConfig, Label
from infini_jax.data.tokenizers import Bytes, Tokenizer
from infini_jax.data.words import Words
from infini_jax.errors import require

Encode = Callable[[str], np.ndarray]
LONGEST_ROW = 1 << 24  # tokens that are laid out at once
CHARACTERS_A_TOKEN = 8  # of a book that are taken; where they are not enough tokens they are repeated

FILLER = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
"""Of both passkey papers and of RULER, which they call noise."""


@functools.lru_cache(maxsize=8192)  # the texts of a task are few, its examples many
def continued(encode: Encode, text: str) -> np.ndarray:
    """Tokens of a text that goes on within a line: without the token that some tokenizers put at a line's beginning."""
    return encode("." + text)[len(encode(".")) :]


def require_room(tokens: int, least: int, what: str) -> None:
    """Checks a length: raises `ConfigError` where `tokens` are fewer than the `least` that `what` needs."""
    mend = f"give at least {least} (train.sequence, or the lengths of an evaluation)"
    require(tokens >= least, "length", f"{tokens} tokens do not hold {what}", mend)


@dataclasses.dataclass(frozen=True)
class Filler:
    """Text that surrounds the needles.

    Attributes:
      units: pieces of text without a space in front, such as sentences.
      order: cycle repeats the units in order; shuffle repeats all of them, each time in a new random order.
    """

    units: tuple[str, ...]
    order: Literal["cycle", "shuffle"] = "cycle"

    def stream(
        self, random: np.random.Generator, encode: Encode, count: int, begins_line: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, places): at least `count` tokens of filler, and the places in them where units begin."""
        parts = [continued(encode, f" {unit}") for unit in self.units]
        lengths_U = np.array([len(part) for part in parts])
        begins_U = lengths_U.cumsum() - lengths_U
        rounds = -(-count // int(lengths_U.sum())) + 1
        order_RxU = np.tile(np.arange(len(parts)), (rounds, 1))
        order_N = (random.permuted(order_RxU, axis=1) if self.order == "shuffle" else order_RxU).ravel()
        first = encode(self.units[order_N[0]]) if begins_line else parts[order_N[0]]
        lengths_N = lengths_U[order_N[1:]]
        begins_N = lengths_N.cumsum() - lengths_N
        places_T = np.arange(lengths_N.sum()) + np.repeat(begins_U[order_N[1:]] - begins_N, lengths_N)
        tokens_T = np.concatenate([first, np.concatenate(parts)[places_T]])
        return tokens_T, np.append(0, begins_N + len(first))

    def least(self, encode: Encode) -> int:
        """Fewest tokens that hold every unit, where all should occur; 0 where they need not."""
        return sum(len(continued(encode, f" {unit}")) for unit in self.units) if self.order == "shuffle" else 0


@functools.lru_cache(maxsize=8)
def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, each in one line."""
    return tuple(" ".join(sentence.split()) for sentence in re.split(r"(?<=[.!?])\s+", text.strip()))


def sentences_of(text: str, random: np.random.Generator, count: int, hidden: tuple[str, ...]) -> Filler:
    """Filler of a book's sentences from a random one on, at least `count` characters, without those with a word of `hidden`.

    Raises `ConfigError` where none is left.
    """
    whole = split_sentences(text)
    told = re.compile(rf"\b(?:{'|'.join(map(re.escape, hidden))})\b", re.IGNORECASE) if hidden else None
    begin, found, characters = int(random.integers(len(whole))), [], 0
    for sentence in (*whole[begin:], *whole[:begin]):
        if not (told and told.search(sentence)):
            found.append(sentence)
            characters += len(sentence) + 1
        if characters >= count:
            break
    require(bool(found), "text", "no sentence is free of the answer's words", "give a longer text")
    return Filler(tuple(found))


@dataclasses.dataclass(frozen=True)
class Room:
    """Space in a row that a body is laid out in.

    Attributes:
      tokens: number of tokens of the whole row.
      free: number of tokens of the body.
      head: number of tokens in front of the body.
      encode: function from text to tokens.
      filler: text for the space that the needles leave.
    """

    tokens: int
    free: int
    head: int
    encode: Encode
    filler: Filler

    def hold(self, least: int, what: str) -> None:
        """Checks that the body fits: raises `ConfigError` where it needs at least `least` tokens and there are fewer."""
        require_room(self.tokens, self.tokens - self.free + least, what)


class Body(Protocol):
    """The part of a prompt that grows with its length."""

    def lay_out(self, random: np.random.Generator, room: Room) -> np.ndarray:
        """The body in exactly `room.free` tokens. Raises `ConfigError` where they do not hold it."""
        ...


@dataclasses.dataclass(frozen=True)
class Story:
    """One example in words.

    Attributes:
      head: the instruction.
      body: the haystack with its needles.
      question: the end of the prompt, with the text that stands before the question.
      answer: the answer as it follows the question, its space included.
      longest: the longest answer of the task, in words.
      references: parts of the answer that a substring hit looks for.
      labels: values that tell it from other examples, its length apart.
      hidden: words that a book's sentences must not have.
    """

    head: str
    body: Body
    question: str
    answer: str
    longest: str
    references: tuple[str, ...]
    labels: dict[str, Label]
    hidden: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TextTask(ExampleConfig):
    """Settings of a task made of text.

    Attributes:
      tokenizer: words, one token each, from the task's own closed vocabulary; or bytes.
    """

    row_metric = "token_accuracy"
    tokenizer: Literal["words", "bytes"] = "words"

    def chance_of_number(self, digits: int) -> dict[str, float]:
        """Score of a random number of `digits` digits without a leading 0, by metric.

        As bytes, the space in front of the number is known and scored with it.
        """
        known = int(self.tokenizer == "bytes")
        guessed = 1 / 9 + (digits - 1) / 10
        return {"exact_match": 1 / (9 * 10 ** (digits - 1)), "token_accuracy": (known + guessed) / (known + digits)}

    @abc.abstractmethod
    def story(self, random: np.random.Generator) -> Story:
        """One example in words, drawn from `random`."""

    def longest_story(self, random: np.random.Generator) -> Story:
        """A story that needs as many of the task's own tokens as any."""
        return self.story(random)

    @abc.abstractmethod
    def lexicon(self) -> tuple[str, ...]:
        """Texts with all words that examples may have."""

    @abc.abstractmethod
    def filler(self, random: np.random.Generator) -> Filler:
        """The filler of one example that is given no book."""

    def check_settings(self) -> None:
        """Checks the settings apart from the length: raises `ConfigError` where no length would do."""

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Bytes() if self.tokenizer == "bytes" else Words(self.lexicon())

    def open_tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def vocab(self) -> int:
        return self._tokenizer.vocab

    def check(self, tokens: int) -> None:
        checked(self, tokens)

    def check_room(self, tokens: int) -> None:
        """Checks that rows of `tokens` hold the task: raises `ConfigError` where they do not."""
        self.check_settings()
        require(tokens <= LONGEST_ROW, "length", f"{tokens} tokens are too many", f"give at most {LONGEST_ROW}")
        random = np.random.default_rng(0)
        self._lay_out(self.longest_story(random), random, tokens)

    def example(self, random: np.random.Generator, tokens: int) -> Example:
        self.check_settings()
        return self._lay_out(self.story(random), random, tokens)

    def most_scored(self, tokens: int) -> int:
        """The length of the longest answer."""
        return self._longest_answer

    @functools.cached_property
    def _longest_answer(self) -> int:
        return self._answer_room(self.longest_story(np.random.default_rng(0)))

    def _answer_room(self, story: Story) -> int:
        return len(continued(self._tokenizer.encode, story.longest))

    def _lay_out(self, story: Story, random: np.random.Generator, tokens: int) -> Example:
        room = self._answer_room(story)
        return lay_out(story, self.filler(random), random, tokens, self._tokenizer.encode, room)

    def text_example(self, random: np.random.Generator, tokens: int, encode: Encode, text: str = "") -> Example:
        """One example in another tokenizer's tokens, of exactly `tokens` read tokens.

        `encode` takes a text to its tokens, at most one per byte. The needles stand among sentences of `text` where it is
        given, a book say, from a random one on; those with words of the answer are left out. Raises `ConfigError` where
        `tokens` do not hold the task.
        """
        self.check_settings()
        story = self.story(random)
        filler = self.filler(random)
        if text:
            require(filler.order == "cycle", "data.novelty", "a book's words are its own", "give 0, or no text")
            filler = sentences_of(text, random, CHARACTERS_A_TOKEN * tokens, story.hidden)
        return lay_out(story, filler, random, tokens, encode, len(story.longest.encode()))


@functools.lru_cache(maxsize=64)  # each of the thousands of runs of a study asks it, and an example is laid out for it
def checked(task: TextTask, tokens: int) -> None:
    """Checks a task, once: raises `ConfigError` where rows of `tokens` do not hold it."""
    task.check_room(tokens)


def lay_out(
    story: Story, filler: Filler, random: np.random.Generator, tokens: int, encode: Encode, answer_room: int
) -> Example:
    """The example of a story in exactly `tokens` read tokens; its prompt takes `tokens` + 1 - `answer_room` of them.

    Raises `ConfigError` where they do not hold it.
    """
    head = encode(story.head)
    asked, answer = question_and_answer(encode, story.question, story.answer)
    prompt = tokens + 1 - answer_room
    room = Room(tokens, prompt - len(head) - len(asked), len(head), encode, filler)
    body = story.body.lay_out(random, room)
    rest = answer_room - len(answer)
    behind = filler.stream(random, encode, rest, begins_line=False)[0][:rest] if rest else answer[:0]
    text = np.concatenate([head, body, asked, answer, behind]).astype(np.int32)
    weights = np.zeros(tokens, np.float32)
    weights[prompt - 1 : prompt - 1 + len(answer)] = 1.0
    labels = (("length", tokens), *story.labels.items())
    return Example(text[:-1], text[1:], weights, prompt, labels, story.references)


def question_and_answer(encode: Encode, question: str, answer: str) -> tuple[np.ndarray, np.ndarray]:
    """(question, answer) in tokens, encoded as one text and cut where the question alone goes another way."""
    alone, both = continued(encode, question), continued(encode, question + answer)
    same = min(len(alone), len(both))
    equal = int(np.argmin(np.append(alone[:same] == both[:same], False)))
    return both[:equal], both[equal:]


@dataclasses.dataclass(frozen=True)
class Scattered:
    """Body of needles among filler, in their order.

    Attributes:
      needles: sentences.
      places: share of the filler before each, rising.
      lines: whether each needle is a line of its own and filler is cut anywhere and begins anew behind it; else needles stand
        between units of filler, at the nearest place.
      what: name of the needles in messages.
    """

    needles: tuple[str, ...]
    places: tuple[float, ...]
    lines: bool = False
    what: str = "the needles"

    def lay_out(self, random: np.random.Generator, room: Room) -> np.ndarray:
        """The body in exactly `room.free` tokens. Raises `ConfigError` where they do not hold it."""
        form = "\n{}\n" if self.lines else " {}"
        needles = [continued(room.encode, form.format(needle)) for needle in self.needles]
        free = room.free - sum(map(len, needles))
        least = room.filler.least(room.encode)
        room.hold(
            room.free - free + least, f"{self.what}, the question and the answer" + " and all filler words" * bool(least)
        )
        hay, begins = room.filler.stream(random, room.encode, free, begins_line=self.lines)
        stops = np.append(begins[begins < free], free)
        wanted = np.array(self.places) * free
        ends = np.rint(wanted).astype(int) if self.lines else stops[np.abs(stops[None] - wanted[:, None]).argmin(axis=1)]
        parts, begin = [], 0
        for needle, end in zip(needles, ends, strict=True):
            parts += [hay[begin:end], needle]
            begin = end
        renewed = self.lines and room.filler.order == "cycle"
        parts.append(hay[: free - begin] if renewed else hay[begin:free])
        return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Even:
    """Body with a needle at the beginning of each of equally long stretches of the row; the question has one more stretch.

    The first needle stands behind the instruction, and what division leaves over is in the question's stretch.

    Attributes:
      needles: sentences, in their order.
    """

    needles: tuple[str, ...]

    def lay_out(self, random: np.random.Generator, room: Room) -> np.ndarray:
        """The body in exactly `room.free` tokens. Raises `ConfigError` where a stretch does not hold its needle."""
        needles = [continued(room.encode, f" {needle}") for needle in self.needles]
        fixed = [room.head + len(needles[0]), *map(len, needles[1:]), room.tokens - room.head - room.free]
        stretches = len(fixed)
        require_room(room.tokens, stretches * max(fixed), f"{stretches} stretches with a pair or the question in each")
        stretch = room.tokens // stretches
        hay, _ = room.filler.stream(random, room.encode, room.free, begins_line=False)
        parts, begin = [], 0
        for needle, length in zip(needles, fixed, strict=False):
            parts += [needle, hay[begin : begin + stretch - length]]
            begin += stretch - length
        rest = room.free - sum(map(len, parts))
        return np.concatenate([*parts, hay[begin : begin + rest]])
