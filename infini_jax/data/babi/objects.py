"""bAbI's qa2 and qa3: where a thing is that persons carry about, and where it was before."""

import dataclasses

import numpy as np

from infini_jax.data.babi.whereabouts import PERSONS, PLACES
from infini_jax.data.babi.world import QUESTIONS, Story, left, one_of, other_than, took, went

THINGS = ("apple", "football", "milk")
FEWEST = 3  # facts in front of each question


@dataclasses.dataclass
class World:
    """Persons and things as they are, and as the facts tell.

    Attributes:
      random: random stream of the story.
      place: where persons and things are.
      holder: who has each thing that somebody has.
      told: where persons are by the facts.
      been: places of each thing by the facts, the latest last.
      facts: sentences so far.
    """

    random: np.random.Generator
    place: dict[str, str]
    holder: dict[str, str] = dataclasses.field(default_factory=dict)
    told: dict[str, str] = dataclasses.field(default_factory=dict)
    been: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    facts: list[str] = dataclasses.field(default_factory=list)

    def act(self) -> None:
        """Does what somebody can do: one time in three they go somewhere, else they take or leave a thing."""
        if self.random.random() < 1 / 3 or not (choices := self._handlings()):
            person = one_of(self.random, PERSONS)
            self.place[person] = self.told[person] = other_than(self.random, PLACES, self.place[person])
            self.facts.append(went(self.random, person, self.place[person]))
            for thing in (thing for thing, holder in self.holder.items() if holder == person):
                self._moved(thing, self.place[person])
            return
        person, thing = one_of(self.random, choices)
        if thing in self.holder:
            self.place[thing] = self.place[self.holder.pop(thing)]
            self.facts.append(left(self.random, person, thing))
        else:
            self.holder[thing] = person
            self.facts.append(took(self.random, person, thing))
            if person in self.told:
                self._moved(thing, self.told[person])

    def _handlings(self) -> list[tuple[str, str]]:
        """Things that persons can leave, and those that lie where persons are."""
        near = [(person, thing) for person in PERSONS for thing in THINGS if thing not in self.holder]
        here = [(person, thing) for person, thing in near if self.place[person] == self.place[thing]]
        return [*((person, thing) for thing, person in self.holder.items()), *here]

    def _moved(self, thing: str, place: str) -> None:
        if (been := self.been.setdefault(thing, []))[-1:] != [place]:
            been.append(place)


def lived(random: np.random.Generator, places: int) -> tuple[World, str]:
    """(a world behind some facts, a thing that was in so many places one after the other, by the facts)."""
    world = World(random, {one: one_of(random, PLACES) for one in (*PERSONS, *THINGS)})
    questions, since = int(random.integers(1, QUESTIONS + 1)), 0
    while True:
        world.act()
        since += 1
        known = [thing for thing in THINGS if len(world.been.get(thing, ())) >= places]
        if known and since >= FEWEST and random.random() < 0.5:
            questions, since = questions - 1, 0
            if not questions:
                return world, one_of(random, known)


def where(random: np.random.Generator) -> Story:
    """A story of qa2: where a thing is."""
    world, thing = lived(random, 1)
    return Story(tuple(world.facts), f"Where is the {thing}?", world.been[thing][-1])


def before(random: np.random.Generator) -> Story:
    """A story of qa3: where a thing was before the place it is in."""
    world, thing = lived(random, 2)
    earlier, last = world.been[thing][-2:]
    return Story(tuple(world.facts), f"Where was the {thing} before the {last}?", earlier)
