"""bAbI's qa7 and qa8: how many things somebody carries, and which."""

import numpy as np

from infini_jax.data.babi.objects import THINGS
from infini_jax.data.babi.whereabouts import PERSONS, PLACES
from infini_jax.data.babi.world import QUESTIONS, Story, gave, left, one_of, other_than, took, went

NUMBERS, NOTHING = ("none", "one", "two", "three"), "nothing"


def carried(random: np.random.Generator) -> tuple[list[str], str, list[str]]:
    """(facts, a person who took, left or gave a thing, what they carry); a question stands behind every second fact."""
    holder: dict[str, str] = {}
    facts: list[str] = []
    known: list[str] = []
    more = 2 * int(random.integers(QUESTIONS))
    while len(facts) < 2 or not known or more:
        more -= bool(known and len(facts) >= 2)
        act(random, holder, facts, known)
    person = one_of(random, sorted(set(known)))
    return facts, person, [thing for thing, who in holder.items() if who == person]


def act(random: np.random.Generator, holder: dict[str, str], facts: list[str], known: list[str]) -> None:
    """Adds a fact and notes whose hands it tells of: a walk half of the time, else a thing is taken, left or given."""
    kind, thing, person = int(random.integers(4)), one_of(random, THINGS), one_of(random, PERSONS)
    if kind < 2:
        facts.append(went(random, person, one_of(random, PLACES)))
        return
    if thing not in holder:
        holder[thing] = person
        facts.append(took(random, person, thing))
    elif kind == 2:
        person = holder.pop(thing)
        facts.append(left(random, person, thing))
    else:
        person = holder[thing]
        holder[thing] = other_than(random, PERSONS, person)
        facts.append(gave(random, person, thing, holder[thing]))
    known.append(person)


def how_many(random: np.random.Generator) -> Story:
    """A story of qa7: the number of things that somebody carries."""
    facts, person, things = carried(random)
    return Story(tuple(facts), f"How many objects is {person} carrying?", NUMBERS[len(things)])


def what(random: np.random.Generator) -> Story:
    """A story of qa8: the things that somebody carries."""
    facts, person, things = carried(random)
    return Story(tuple(facts), f"What is {person} carrying?", ",".join(things) or NOTHING)
