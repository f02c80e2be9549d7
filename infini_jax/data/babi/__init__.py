"""BABILong (Kuratov et al. 2024, arXiv 2406.10149): facts of bAbI in order among sentences of any text, then a question.

Tasks qa1 to qa10 of bAbI (Weston et al. 2015, arXiv 1502.05698), simulated by its rules, with BABILong's prompts and score.
DEVIATION: a length counts the whole prompt and the tokens that a model says; BABILong's counts facts and background alone. The
background is whole sentences of any corpus instead of PG-19, and where persons and things are at first is drawn.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from infini_jax.data.asked import Asked, Ground, Prompt, Suite, inserted
from infini_jax.data.babi import carrying, directions, giving, objects, whereabouts
from infini_jax.data.babi.prompts import PROMPTS, Instruction
from infini_jax.data.babi.scores import answered
from infini_jax.data.babi.world import Story
from infini_jax.data.text_task import split_sentences

TEMPLATE = "{instruction}\n\n{examples}\n\n{end}\n\n<context>\n{context}\n</context>\n\nQuestion: {question}"


@dataclasses.dataclass(frozen=True)
class Facts(Asked):
    """A task of bAbI in a haystack; a unit is a sentence of the text.

    Attributes:
      tell: function that draws a story.
      labels: answers that there are, by which a model's is judged.
      forms: number of different answers.
      instruction: words around the context.
    """

    new: ClassVar[int] = 20
    tell: Callable[[np.random.Generator], Story]
    labels: tuple[str, ...]
    forms: int
    instruction: Instruction

    @property
    def needs_hay(self) -> bool:
        """Always: the facts stand in running text."""
        return True

    @property
    def chance(self) -> float:
        """Score of an answer drawn uniformly from all."""
        return 1 / self.forms

    def least(self, ground: Ground) -> int:
        return 0

    def write(self, random: np.random.Generator, units: int, ground: Ground) -> Prompt:
        story, sentences = self.tell(random), split_sentences(ground.hay)
        begin = int(random.integers(len(sentences)))
        hay = [sentences[(begin + number) % len(sentences)] for number in range(units)]
        places = np.sort(random.random(len(story.facts)))
        context = " ".join(inserted(hay, story.facts, [int(place * (units + 1)) for place in places]))
        parts = dataclasses.asdict(self.instruction)
        text = TEMPLATE.format(**parts, context=context, question=story.question).strip()
        return Prompt(text, (story.answer,), (story.question,))

    def hits(self, said: str, prompt: Prompt) -> list[bool]:
        (answer,), (question,) = prompt.references, prompt.others
        return [answered(said, answer, question, self.labels)]


PLACES = tuple(sorted(whereabouts.PLACES))
THINGS = carrying.THINGS
TASKS: dict[str, Asked] = {
    name: Facts(tell, labels, forms or len(labels), PROMPTS[name])
    for name, tell, labels, forms in (
        ("qa1", whereabouts.where, PLACES, 0),
        ("qa2", objects.where, PLACES, 0),
        ("qa3", objects.before, PLACES, 0),
        ("qa4", directions.told, PLACES, 0),
        ("qa5", giving.told, (*giving.PERSONS, *THINGS), 0),
        ("qa6", whereabouts.whether, ("no", "yes"), 0),
        ("qa7", carrying.how_many, carrying.NUMBERS, 0),
        ("qa8", carrying.what, (*THINGS, carrying.NOTHING), 2 ** len(THINGS)),
        ("qa9", whereabouts.negated, ("no", "yes"), 0),
        ("qa10", whereabouts.indefinite, ("maybe", "no", "yes"), 0),
    )
}
"""Tasks by bAbI's numbers. An answer of qa8 is any set of the things."""


@dataclasses.dataclass(frozen=True)
class Babilong(Suite):
    """The tasks of BABILong."""

    title = "BABILong"

    def tasks(self) -> Mapping[str, Asked]:
        """The ten tasks by bAbI's numbers."""
        return TASKS
