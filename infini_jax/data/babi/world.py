"""What all stories of bAbI have: verbs, and the form of a story."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

WENT = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
TOOK = ("got", "took", "grabbed", "picked up")
LEFT = ("dropped", "put down", "left", "discarded")
GAVE = ("gave", "passed", "handed")
QUESTIONS = 5  # of a bAbI story, of which one is asked here, so that stories differ in length

One = TypeVar("One")


@dataclasses.dataclass(frozen=True)
class Story:
    """Facts in order, a question and its answer."""

    facts: tuple[str, ...]
    question: str
    answer: str


def one_of(random: np.random.Generator, of: Sequence[One]) -> One:
    """One of a sequence, drawn uniformly."""
    return of[int(random.integers(len(of)))]


def other_than(random: np.random.Generator, of: Sequence[str], *but: str) -> str:
    """One of a sequence that is none of `but`."""
    return one_of(random, [one for one in of if one not in but])


def went(random: np.random.Generator, person: str, place: str) -> str:
    """The sentence that a person goes to a place."""
    return f"{person} {one_of(random, WENT)} the {place}."


def took(random: np.random.Generator, person: str, thing: str) -> str:
    """The sentence that a person takes a thing."""
    return f"{person} {one_of(random, TOOK)} the {thing} there."


def left(random: np.random.Generator, person: str, thing: str) -> str:
    """The sentence that a person leaves a thing."""
    return f"{person} {one_of(random, LEFT)} the {thing} there."


def gave(random: np.random.Generator, person: str, thing: str, other: str) -> str:
    """The sentence that a person gives a thing to another."""
    return f"{person} {one_of(random, GAVE)} the {thing} to {other}."
