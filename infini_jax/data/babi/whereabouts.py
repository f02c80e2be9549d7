"""bAbI's qa1, qa6, qa9 and qa10: where persons are, whether they are there, by denial, and by either of two places.

Two statements stand in front of each of a story's questions; the last of up to five questions is asked.
"""

from collections.abc import Callable, Sequence

import numpy as np

from infini_jax.data.babi.world import QUESTIONS, Story, one_of, other_than, went

PERSONS = ("John", "Mary", "Sandra", "Daniel")
PLACES = ("bedroom", "kitchen", "garden", "hallway", "bathroom", "office")
OTHER_PERSONS = ("Bill", "Fred", "Julie", "Mary")  # of qa10
OTHER_PLACES = ("bedroom", "cinema", "kitchen", "office", "park", "school")
Known = dict[str, dict[str, bool | None]]  # person -> place -> whether they are there; None is undecided


def there(places: Sequence[str], *at: str) -> dict[str, bool | None]:
    """Knowledge of somebody who is in one of `at`, and in none of the other places."""
    return dict.fromkeys(places, False) | dict.fromkeys(at, True if len(at) == 1 else None)


def statements(random: np.random.Generator) -> int:
    """Number of facts in front of the question."""
    return 2 * int(random.integers(1, QUESTIONS + 1))


def walks(random: np.random.Generator) -> tuple[list[str], dict[str, str]]:
    """(facts of persons who go from place to place, where each who was named is)."""
    place = {person: one_of(random, PLACES) for person in PERSONS}
    facts, known = [], {}
    for _ in range(statements(random)):
        person = one_of(random, PERSONS)
        place[person] = known[person] = other_than(random, PLACES, place[person])
        facts.append(went(random, person, place[person]))
    return facts, known


def where(random: np.random.Generator) -> Story:
    """A story of qa1: where somebody is."""
    facts, known = walks(random)
    person = one_of(random, list(known))
    return Story(tuple(facts), f"Where is {person}?", known[person])


def whether(random: np.random.Generator) -> Story:
    """A story of qa6: whether somebody is in a place, as often as not."""
    facts, known = walks(random)
    person, is_there = one_of(random, list(known)), random.random() < 0.5
    place = known[person] if is_there else other_than(random, PLACES, known[person])
    return Story(tuple(facts), f"Is {person} in the {place}?", "yes" if is_there else "no")


def negated(random: np.random.Generator) -> Story:
    """A story of qa9: persons go, are somewhere, or are not; whether somebody is in a place."""
    place = {person: one_of(random, PLACES) for person in PERSONS}

    def fact(known: Known) -> str:
        person = one_of(random, PERSONS)
        if random.random() < 0.5:
            place[person] = other_than(random, PLACES, place[person])
            known[person] = there(PLACES, place[person])
            return went(random, person, place[person])
        if random.random() < 0.5:
            known[person] = there(PLACES, place[person])
            return f"{person} is in the {place[person]}."
        away = other_than(random, PLACES, place[person])
        known.setdefault(person, {})[away] = False
        return f"{person} {one_of(random, ('is not', 'is no longer'))} in the {away}."

    return asked_whether(random, fact)


def indefinite(random: np.random.Generator) -> Story:
    """A story of qa10: persons go, are somewhere, or are in either of two places; whether somebody is in a place."""
    place = {person: one_of(random, OTHER_PLACES) for person in OTHER_PERSONS}

    def fact(known: Known) -> str:
        person, kind = one_of(random, OTHER_PERSONS), int(random.integers(3))
        if kind == 2:
            one, other = (OTHER_PLACES[number] for number in random.permutation(len(OTHER_PLACES))[:2])
            place[person] = one_of(random, (one, other))
            known[person] = there(OTHER_PLACES, one, other)
            return f"{person} is either in the {one} or the {other}."
        if kind == 1:
            known[person] = there(OTHER_PLACES, place[person])
            return f"{person} is in the {place[person]}."
        place[person] = other_than(random, OTHER_PLACES, place[person])
        known[person] = there(OTHER_PLACES, place[person])
        return went(random, person, place[person])

    return asked_whether(random, fact)


def asked_whether(random: np.random.Generator, fact: Callable[[Known], str]) -> Story:
    """The story of facts that say where persons are; each answer that is possible is as likely as the others."""
    known: Known = {}
    facts = tuple(fact(known) for _ in range(statements(random)))
    person = one_of(random, list(known))
    truth = one_of(random, sorted(set(known[person].values()), key=str))
    place = one_of(random, [place for place, is_there in known[person].items() if is_there is truth])
    return Story(facts, f"Is {person} in the {place}?", {True: "yes", False: "no", None: "maybe"}[truth])
