"""bAbI's qa4: three places in a row, and what is on one side of the middle one."""

import itertools

import numpy as np

from infini_jax.data.babi.whereabouts import PLACES
from infini_jax.data.babi.world import Story, one_of

OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def told(random: np.random.Generator) -> Story:
    """A story of qa4: two relations in either order and either direction, one of which is asked."""
    places = [PLACES[number] for number in random.permutation(len(PLACES))[:3]]
    side = one_of(random, ("north", "east"))  # on which each place is of the next
    facts = []
    for one, other in itertools.pairwise(places):
        back = f"The {other} is {OPPOSITE[side]} of the {one}."
        facts.append(one_of(random, (f"The {one} is {side} of the {other}.", back)))
    middle, answer, direction = places[1], *one_of(random, ((places[0], side), (places[2], OPPOSITE[side])))
    questions = (f"What is {direction} of the {middle}?", f"What is the {middle} {OPPOSITE[direction]} of?")
    order = random.permutation(2)
    return Story(tuple(facts[number] for number in order), one_of(random, questions), answer)
