"""Chains of one to three facts in the style of bAbI qa1-3 (Weston et al. 2015, arXiv 1502.05698), in words of our own.

Every person does as much as the others, and any of them may be asked about, so that nothing but the question tells which facts
matter. Places are drawn uniformly, so the chance of a guesser is one over the number of possible answers (`CHOICES`).

- facts1: "Nora went to the garden." Where is Nora?
- facts2: she takes a thing, carries it, may leave it and go on. Where is the thing?
- facts3: she takes a thing and carries it to two places. Where was it before the last?
"""

import numpy as np

# Words of a group are equally long, so that a length that holds one example holds all.
PERSONS = ("Nora", "Ivan", "Lena", "Omar", "Ruth", "Hugo")
THINGS = ("basket", "candle", "hammer", "kettle", "ribbon", "mirror")
PLACES = ("garden", "cellar", "studio", "market", "office", "stable", "harbor", "bakery")

WENT, TOOK, LEFT = "{} went to the {}.", "{} took the {}.", "{} left the {} there."
QUESTIONS = {
    "facts1": "Where is {person}? {person} is in the",
    "facts2": "Where is the {thing}? The {thing} is in the",
    "facts3": "Where was the {thing} before it came to the {last}? It was in the",
}
CHOICES = {"facts1": len(PLACES), "facts2": len(PLACES), "facts3": len(PLACES) - 1}


def told(kind: str, persons: int, random: np.random.Generator) -> tuple[list[str], str, str]:
    """(facts in their order, question, answer) of a story with `persons` persons; the answer is a place."""
    lives = [life(kind, PERSONS[who], THINGS[what], random) for who, what in paired(persons, random)]
    turns = random.permuted(np.repeat(np.arange(persons), [len(facts) for facts, _, _ in lives]))
    following = [iter(facts) for facts, _, _ in lives]
    facts = [next(following[who]) for who in turns]
    _, question, answer = lives[int(random.integers(persons))]
    return facts, question, answer


def paired(persons: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """(person, thing) pairs of `persons` persons, as places in `PERSONS` and `THINGS`, none of them twice."""
    return list(zip(random.permutation(len(PERSONS))[:persons], random.permutation(len(THINGS))[:persons], strict=True))


def life(kind: str, person: str, thing: str, random: np.random.Generator) -> tuple[list[str], str, str]:
    """(facts, question, answer) of one person: sentences in order, a question about them and the place that answers it."""
    first, second, third = (PLACES[place] for place in random.permutation(len(PLACES))[:3])
    went = [WENT.format(person, place) for place in (first, second, third)]
    took, left = TOOK.format(person, thing), LEFT.format(person, thing)
    question = QUESTIONS[kind].format(person=person, thing=thing, last=third)
    if kind == "facts1":
        return went[:2], question, second
    if kind == "facts3":
        return [went[0], took, *went[1:]], question, second
    if random.random() < 0.5:
        return [went[0], took, went[1], left, went[2]], question, second
    return [went[0], took, went[1], went[2], left], question, third


def words() -> tuple[str, ...]:
    """Texts that hold all words of facts, questions and answers."""
    return (*PERSONS, *THINGS, *PLACES, WENT, TOOK, LEFT, *QUESTIONS.values())
