"""bAbI's qa5: who gave what to whom."""

import numpy as np

from infini_jax.data.babi.objects import THINGS
from infini_jax.data.babi.whereabouts import PLACES
from infini_jax.data.babi.world import QUESTIONS, Story, gave, one_of, other_than, took, went

PERSONS = ("Bill", "Fred", "Jeff", "Mary")
MOST_BEHIND = 5  # facts behind the one that is asked
Gift = tuple[str, str, str]  # giver, thing, receiver
NO_GIFT: Gift = ("", "", "")


def told(random: np.random.Generator) -> Story:
    """A story of qa5: the giver, the thing or the receiver of a gift, behind which nothing tells of the same."""
    holder: dict[str, str] = {}
    facts: list[str] = []
    gift = NO_GIFT
    for _ in range(int(random.integers(1, QUESTIONS + 1))):
        gift = given(random, holder, facts, NO_GIFT)
        while gift == NO_GIFT:
            gift = given(random, holder, facts, NO_GIFT)
        for _ in range(int(random.integers(MOST_BEHIND + 1))):
            given(random, holder, facts, gift)
    giver, thing, receiver = gift
    questions = (
        (f"What did {giver} give to {receiver}?", thing),
        (f"Who gave the {thing} to {receiver}?", giver),
        (f"Who did {giver} give the {thing} to?", receiver),
        (f"Who gave the {thing}?", giver),
        (f"Who received the {thing}?", receiver),
    )
    return Story(tuple(facts), *one_of(random, questions))


def given(random: np.random.Generator, holder: dict[str, str], facts: list[str], kept: Gift) -> Gift:
    """Adds a fact and returns the gift if it is one, `NO_GIFT` otherwise. None is like the gift `kept`."""
    kind, giver_kept, thing_kept, receiver_kept = int(random.integers(3)), *kept
    free = [thing for thing in THINGS if thing != thing_kept]
    if kind == 0 and (lying := [thing for thing in free if thing not in holder]):
        thing = one_of(random, lying)
        holder[thing] = one_of(random, PERSONS)
        facts.append(took(random, holder[thing], thing))
        return NO_GIFT
    if kind == 1 and (held := [thing for thing in free if thing in holder]):
        thing = one_of(random, held)
        giver = holder[thing]
        but = (giver, receiver_kept) if giver == giver_kept else (giver,)
        holder[thing] = other_than(random, PERSONS, *but)
        facts.append(gave(random, giver, thing, holder[thing]))
        return giver, thing, holder[thing]
    facts.append(went(random, one_of(random, PERSONS), one_of(random, PLACES)))
    return NO_GIFT
