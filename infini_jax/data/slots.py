"""Slots that a conversation overwrites turn by turn: the newest value is asked, and older ones pollute the context.

In the style of proactive interference (PI-LLM, Wang & Sun 2025, arXiv 2506.08184): slots get one value after the other, and a
model that does not let go of the old ones says one of them, however near the newest stands. It becomes harder along slots,
overwrites and length; `stale` is the share of answers that say an older value.
DEVIATION: slots take their values in a common random order, over turns of a conversation that are filled with turns about a
text; one slot is asked. PI-LLM asks all slots at once of a list of nothing else. Values are made-up words, each said once.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from infini_jax.data.asked import Asked, Ground, Prompt, Suite
from infini_jax.data.text_task import split_sentences
from infini_jax.data.words import MADE_UP, made_up
from infini_jax.errors import require

NAMES = (
    "color",
    "city",
    "number",
    "flower",
    "animal",
    "fruit",
    "river",
    "tool",
    "dish",
    "song",
    "planet",
    "metal",
    "sport",
    "drink",
    "tree",
    "bird",
    "shape",
    "month",
    "ship",
    "road",
    "stone",
    "game",
    "book",
    "hat",
    "lamp",
    "door",
    "clock",
    "chair",
    "coat",
    "coin",
    "flag",
    "bell",
)
HEAD = "In the conversation below, slots get new values. Only the newest value of a slot counts."
SET = "User: Set the {slot} to {value}.\nAssistant: The {slot} is now {value}."
OTHER = "User: {text}\nAssistant: Noted."
ASKED = "User: What is the {slot} now?\nAssistant: The {slot} is now"


@dataclasses.dataclass(frozen=True)
class Overwrites(Asked):
    """Values of slots, of which all but the last are overwritten; a unit is a turn about something else.

    Attributes:
      slots: number of slots.
      overwrites: times that each slot gets another value.
    """

    new: ClassVar[int] = 10
    slots: int = 4
    overwrites: int = 4

    @property
    def needs_hay(self) -> bool:
        """Always: turns about something else are sentences of a text."""
        return True

    @property
    def chance(self) -> float:
        """Score of a random made-up word."""
        return 1 / MADE_UP

    def least(self, ground: Ground) -> int:
        return 0

    def write(self, random: np.random.Generator, units: int, ground: Ground) -> Prompt:
        names = [NAMES[number] for number in random.permutation(len(NAMES))[: self.slots]]
        order = random.permuted(np.repeat(np.arange(self.slots), self.overwrites + 1))
        values = [made_up(int(number)) for number in random.permutation(MADE_UP)[: len(order)]]
        asked = int(random.integers(self.slots))
        own = [value for slot, value in zip(order, values, strict=True) if slot == asked]
        sets = iter(SET.format(slot=names[slot], value=value) for slot, value in zip(order, values, strict=True))
        sentences = split_sentences(ground.hay)
        begin = int(random.integers(len(sentences)))
        others = iter(OTHER.format(text=sentences[(begin + number) % len(sentences)]) for number in range(units))
        is_set = random.permutation(np.arange(units + len(order)) < len(order))
        turns = [next(sets if one else others) for one in is_set]
        return Prompt("\n".join([HEAD, *turns, ASKED.format(slot=names[asked])]), (own[-1],), tuple(own[:-1]))

    def hits(self, said: str, prompt: Prompt) -> list[bool]:
        return [first_of(said, (*prompt.references, *prompt.others)) in prompt.references]

    def more(self, said: str, prompt: Prompt) -> Mapping[str, list[bool]]:
        """stale: whether an older value of the slot is said first."""
        return {"stale": [first_of(said, (*prompt.references, *prompt.others)) in prompt.others]}


def first_of(said: str, values: tuple[str, ...]) -> str:
    """The first of the values that is said, "" for none."""
    return next((word for word in re.findall(r"\w+", said.lower()) if word in values), "")


@dataclasses.dataclass(frozen=True)
class Slots(Suite):
    """Overwrites in a conversation.

    Attributes:
      slots: number of slots.
      overwrites: times that each slot gets another value.
    """

    title = "slots"
    kind: str = "overwrites"
    slots: int = 4
    overwrites: int = 4

    def tasks(self) -> Mapping[str, Asked]:
        """The one task. Raises `ConfigError` for numbers that it cannot have."""
        most = MADE_UP // max(self.slots, 1) - 1
        require(1 <= self.slots <= len(NAMES), "slots", f"{self.slots} cannot be told apart", f"give 1 to {len(NAMES)}")
        require(0 <= self.overwrites <= most, "overwrites", f"{self.overwrites} is out of range", f"give 0 to {most}")
        return {"overwrites": Overwrites(self.slots, self.overwrites)}
