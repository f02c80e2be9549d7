"""Needles in a haystack of text, one task for each kind.

From RULER (Hsieh et al. 2024, arXiv 2404.06654), whose templates and numbers the defaults are:
- single: one needle, "One of the special magic numbers for KEY is: VALUE."
- multi_key: several needles, of which one is asked (MK-NIAH); multi_needle: all are asked, in a random order (MQ-NIAH).
- variable_tracking: chains "VAR A = 12345. VAR B = VAR A. ..."; all variables of one chain are asked, in its order.
- common_words, frequent_words: lists of words (word_counts.py); the most frequent are asked.
From the Associative Recurrent Memory Transformer (Rodkin et al. 2024, arXiv 2407.04841, section 4):
- associative: keys with a value each, one in each of equally long stretches of the row, one of them asked; with rows of
  `items` + 1 segments, one pair per segment and the question in the last.
- rewrite: associative, but keys are written twice, each time with another value, and the newer counts.
In the style of bAbI, as BABILong hides it in books (Kuratov et al. 2024, arXiv 2406.10149): facts1, facts2, facts3 (facts.py).

DEVIATION: names are made-up words of four letters and the list is not numbered, so that any example needs the same room;
common words are asked in alphabetical order, so that there is one right answer, which can be scored token by token.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from infini_jax.data import facts
from infini_jax.data.examples import Label
from infini_jax.data.text_task import FILLER, Body, Even, Filler, Scattered, Story, TextTask
from infini_jax.data.word_counts import COMMON_TO_RARE, DOTS, WordList, common_counts, least_zeta, zeta_counts
from infini_jax.data.words import MADE_UP, made_up
from infini_jax.errors import require

NeedleKind = Literal[
    "single",
    "multi_needle",
    "multi_key",
    "variable_tracking",
    "common_words",
    "frequent_words",
    "associative",
    "rewrite",
    "facts1",
    "facts2",
    "facts3",
]
ITEMS: dict[str, int] = {
    "single": 1,
    "multi_needle": 4,
    "multi_key": 4,
    "variable_tracking": 1,
    "common_words": 10,
    "frequent_words": 3,
    "associative": 8,
    "rewrite": 8,
    "facts1": 3,
    "facts2": 3,
    "facts3": 3,
}
HOPS, DIGITS, VARIABLE_DIGITS = 4, 7, 5  # RULER's

NIAH = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards."
)
NEEDLE = "One of the special magic numbers for {} is: {}."
ASK_ONE = (
    " What is the special magic number for {0} mentioned in the provided text? "
    "The special magic number for {0} mentioned in the provided text is"
)
ASK_ALL = (
    " What are all the special magic numbers for {0} mentioned in the provided text? "
    "The special magic numbers for {0} mentioned in the provided text are"
)
TRACK = "Memorize and track the chain of variable assignment hidden in the following text."
ASK_VARIABLES = (
    " Question: Find all variables that are assigned the value {0} in the text above. "
    "Answer: According to the chain of variable assignment in the text above, "
    "the variables that are assigned the value {0} are:"
)
COMMON = (
    "Below is a list of words. In these words, some appear more often than others. Memorize the ones that appear most often."
)
ASK_COMMON = (
    " Question: What are the {0} most common words in the above list? "
    "Answer: In alphabetical order, the top {0} words that appear most often in the list are:"
)
FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the {0} most frequently appeared coded words."
)
ASK_FREQUENT = (
    " Question: Please ignore the dots. What are the {0} most frequently appeared words in the above coded text? "
    "Answer: According to the coded text above, the {0} most frequently appeared words are:"
)
PAIRS = "Remember the newest value of every key."
PAIR, ASK_PAIR = "The value of {} is {}.", " What is the value of {0}? The value of {0} is"
FACTS = "Some facts are hidden within the following text. I will ask you about them afterwards."


@dataclasses.dataclass(frozen=True)
class HaystackConfig(TextTask):
    """Settings of needles in a haystack.

    Attributes:
      task: kind of needles; labels and tables call it kind, a name that saved settings use for the data as a whole.
      items: needles of multi_needle and multi_key, chains of variable_tracking, words asked of common_words and
        frequent_words, pairs written of associative and rewrite, persons of the facts; 0 is the kind's own number, RULER's
        where it has one.
      names: made-up words in the vocabulary, from which keys, values, variables and listed words are drawn.
    """

    task: NeedleKind = "single"
    items: int = 0
    names: int = 110

    @property
    def count(self) -> int:
        """Number of items: `items`, or the kind's own number where that is 0."""
        return self.items or ITEMS[self.task]

    def story(self, random: np.random.Generator) -> Story:
        return TELLERS[self.task](self, random)

    def draw_names(self, random: np.random.Generator, count: int) -> list[str]:
        """`count` different made-up words."""
        return [made_up(number) for number in random.permutation(self.names)[:count]]

    def filler(self, random: np.random.Generator) -> Filler:
        return Filler(FILLER)

    def lexicon(self) -> tuple[str, ...]:
        """Texts with all words of all kinds, so that a run trained on one kind can be asked another."""
        templates = (NIAH, NEEDLE, ASK_ONE, ASK_ALL, TRACK, ASK_VARIABLES, COMMON, ASK_COMMON, FREQUENT, ASK_FREQUENT, PAIRS)
        spoken = (*templates, PAIR, ASK_PAIR, FACTS, "VAR = , 0123456789", *facts.words())
        return (
            *(text.replace("{0}", " ").replace("{}", " ") for text in spoken),
            *FILLER,
            DOTS,
            *map(made_up, range(self.names)),
        )

    def chance(self) -> dict[str, float]:
        """Score of a number, name or place drawn uniformly, by metric; empty where several are asked."""
        if self.task in ("single", "multi_key"):
            return self.chance_of_number(DIGITS)
        choices = {"associative": self.names, "rewrite": self.names, **facts.CHOICES}.get(self.task)
        if choices is None:
            return {}
        metrics = ("exact_match", "token_accuracy") if self.tokenizer == "words" else ("exact_match",)  # a word is a token
        return dict.fromkeys(metrics, 1 / choices)

    def with_labels(self, labels: Mapping[str, Label]) -> "HaystackConfig":
        """These settings with the kind that the labels name.

        If it is another kind, `items` are its own number, as they mean another thing there.
        """
        kind: Any = labels.get("kind", self.task)
        return dataclasses.replace(self, task=kind, items=self.items if kind == self.task else 0)

    def check_settings(self) -> None:
        super().check_settings()
        most = {"single": 1} | dict.fromkeys(facts.QUESTIONS, len(facts.PERSONS))
        fewest = 2 if self.task == "rewrite" else 1
        limit = most.get(self.task, MADE_UP)
        mend = f"give {fewest} to {limit}, or 0 for the kind's own number"
        require(fewest <= self.count <= limit, "data.items", f"{self.task} cannot have {self.count}", mend)
        used = NAMES_USED.get(self.task, lambda count: 0)(self.count)
        require(
            used <= self.names <= MADE_UP,
            "data.names",
            f"{self.task} needs {used} different names and there are {self.names}",
            f"give data.names from {used} to {MADE_UP}, or fewer data.items",
        )


NAMES_USED = {
    "single": lambda count: count,
    "multi_needle": lambda count: count,
    "multi_key": lambda count: count,
    "variable_tracking": lambda count: (HOPS + 1) * count,
    "common_words": lambda count: (COMMON_TO_RARE + 1) * count,
    "frequent_words": lambda count: count + 2,
    "associative": lambda count: max(count, 2),
    "rewrite": lambda count: max(count, 2),
}
"""Different names that a kind cannot do without, by its items."""


def draw_numbers(random: np.random.Generator, digits: int, count: int) -> list[str]:
    """`count` different numbers of `digits` digits, as text."""
    least = 10 ** (digits - 1)
    return [str(least + number) for number in random.choice(9 * least, count, replace=False)]


def scattered(needles: list[str], random: np.random.Generator, what: str) -> Scattered:
    """A body with the needles in their order, at uniformly drawn places in the filler; `what` names them in messages."""
    return Scattered(tuple(needles), tuple(np.sort(random.random(len(needles)))), what=what)


def listed(words: list[str]) -> str:
    """The words of an answer as one text: names joined by spaces, numbers by commas."""
    return (", " if words[0].isdigit() else " ").join(words)


def story_of(config: HaystackConfig, head: str, body: Body, question: str, answers: list[str], hidden: list[str]) -> Story:
    """The story of an example. Answers of one kind are equally long, so that each is as long as the longest."""
    text = f" {listed(answers)}"
    return Story(head, body, question, text, text, tuple(answers), {"kind": config.task}, tuple(hidden))


def needles(config: HaystackConfig, random: np.random.Generator) -> Story:
    """A story of single, multi_key or multi_needle (RULER): magic numbers by name."""
    keys = config.draw_names(random, config.count)
    values = draw_numbers(random, DIGITS, len(keys))
    body = scattered([NEEDLE.format(*pair) for pair in zip(keys, values, strict=True)], random, f"{len(keys)} needles")
    order = random.permutation(len(keys))[: len(keys) if config.task == "multi_needle" else 1]
    asked = [keys[number] for number in order]
    question = (ASK_ONE if len(asked) == 1 else ASK_ALL).format(", ".join(asked))
    return story_of(config, NIAH, body, question, [values[number] for number in order], [*keys, *values])


def variable_tracking(config: HaystackConfig, random: np.random.Generator) -> Story:
    """A story of variable_tracking (RULER): chains of assignments, of which one is asked."""
    names = config.draw_names(random, (HOPS + 1) * config.count)
    chains = [names[begin : begin + HOPS + 1] for begin in range(0, len(names), HOPS + 1)]
    numbers = draw_numbers(random, VARIABLE_DIGITS, len(chains))
    steps = [
        [f"VAR {variable} = {f'VAR {chain[hop - 1]}' if hop else number}." for hop, variable in enumerate(chain)]
        for chain, number in zip(chains, numbers, strict=True)
    ]
    turns = random.permuted(np.repeat(np.arange(len(chains)), HOPS + 1))
    following = [iter(chain) for chain in steps]
    body = scattered([next(following[chain]) for chain in turns], random, "the assignments")
    asked = int(random.integers(len(chains)))
    return story_of(config, TRACK, body, ASK_VARIABLES.format(numbers[asked]), chains[asked], [*names, *numbers])


def common_words(config: HaystackConfig, random: np.random.Generator) -> Story:
    """A story of common_words (RULER): a list in which few words are frequent."""
    names = config.draw_names(random, config.names)
    least = 2 * COMMON_TO_RARE * config.count  # half of the list is common words
    body = WordList(tuple(names), common_counts(config.count, len(names)), least)
    return story_of(config, COMMON, body, ASK_COMMON.format(config.count), sorted(names[: config.count]), names)


def frequent_words(config: HaystackConfig, random: np.random.Generator) -> Story:
    """A story of frequent_words (RULER): a list whose counts follow a zeta distribution."""
    names = config.draw_names(random, config.names)
    words = (DOTS, *names)
    body = WordList(words, zeta_counts(len(words)), least_zeta(config.count, len(words)))
    head, question = FREQUENT.format(config.count), ASK_FREQUENT.format(config.count)
    return story_of(config, head, body, question, names[: config.count], names)


def associative(config: HaystackConfig, random: np.random.Generator) -> Story:
    """A story of associative (arXiv 2407.04841): pairs of different keys, of which one is asked."""
    keys = config.draw_names(random, config.count)
    values = [made_up(number) for number in random.integers(config.names, size=len(keys))]
    return pairs_told(config, keys, values, int(random.integers(len(keys))))


def rewrite(config: HaystackConfig, random: np.random.Generator) -> Story:
    """A story of rewrite (arXiv 2407.04841): half as many keys as writes, one of the keys written twice is asked.

    With an odd number of writes one key is written once.
    """
    twice = config.count // 2
    keys = config.draw_names(random, config.count - twice)
    written = random.permuted(np.append(np.repeat(np.arange(twice), 2), np.arange(twice, len(keys))))
    values: list[int] = []
    for place, key in enumerate(written):
        before = [values[earlier] for earlier in range(place) if written[earlier] == key]
        step = int(random.integers(1, config.names)) if before else int(random.integers(config.names))
        values.append((before[0] + step if before else step) % config.names)
    asked = int(random.integers(twice))
    last = int(np.flatnonzero(written == asked)[-1])
    return pairs_told(config, [keys[key] for key in written], [made_up(value) for value in values], last)


def pairs_told(config: HaystackConfig, keys: list[str], values: list[str], asked: int) -> Story:
    """A story with one pair per stretch of the row; the pair at place `asked` answers."""
    body = Even(tuple(PAIR.format(*pair) for pair in zip(keys, values, strict=True)))
    return story_of(config, PAIRS, body, ASK_PAIR.format(keys[asked]), [values[asked]], [*keys, *values])


def fact_chain(config: HaystackConfig, random: np.random.Generator) -> Story:
    """A story of facts1, facts2 or facts3, see `infini_jax.data.facts`."""
    told, question, answer = facts.told(config.task, config.count, random)
    hidden = [*facts.PERSONS, *facts.THINGS, *facts.PLACES]
    return story_of(config, FACTS, scattered(told, random, f"{len(told)} facts"), f" {question}", [answer], hidden)


TELLERS = {
    "single": needles,
    "multi_needle": needles,
    "multi_key": needles,
    "variable_tracking": variable_tracking,
    "common_words": common_words,
    "frequent_words": frequent_words,
    "associative": associative,
    "rewrite": rewrite,
    **dict.fromkeys(facts.QUESTIONS, fact_chain),
}
"""Kind -> what draws its story."""
