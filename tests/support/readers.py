"""Readers that answer a task from the text of its prompt alone, written against the tasks' definitions, not their code."""

import re
from collections import Counter


def passkey(text: str) -> str:
    number = re.findall(r"The pass key is (\d+)\. Remember it\. (\d+) is the pass key\.", text)
    assert len(number) == 1
    assert number[0][0] == number[0][1]
    return number[0][0]


def needles(text: str) -> str:
    told = dict(re.findall(r"One of the special magic numbers for (\w+) is: (\d+)\.", text))
    asked = re.search(r"What (?:is|are all) the special magic numbers? for ([\w, ]+) mentioned", text).group(1)
    return ", ".join(told[key] for key in asked.split(", "))


def variables(text: str) -> str:
    value: dict[str, str] = {}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text):
        value[name] = value.get(source, source)
    asked = re.search(r"assigned the value (\d+) in the text above", text).group(1)
    return " ".join(name for name in value if value[name] == asked)


def listed(text: str, begin: str) -> Counter:
    return Counter(re.findall(r"\b[a-z]{4}\b", text.split(begin)[1].split(" Question:")[0]))


def common(text: str) -> str:
    count = int(re.search(r"the (\d+) most common", text).group(1))
    found = listed(text, "appear most often.").most_common(count + 1)
    assert found[count - 1][1] > found[count][1]
    return " ".join(sorted(word for word, _ in found[:count]))


def frequent(text: str) -> str:
    count = int(re.search(r"Find the (\d+) most", text).group(1))
    found = listed(text, "appeared coded words.").most_common(count + 1)
    assert len({times for _, times in found}) == count + 1
    return " ".join(word for word, _ in found[:count])


def pairs(text: str) -> str:
    told = dict(re.findall(r"The value of (\w+) is (\w+)\.", text))  # of equal keys the last stays
    return told[re.search(r"What is the value of (\w+)\?", text).group(1)]


def facts(text: str) -> str:
    """Follows every person and thing through the rooms."""
    place: dict[str, str] = {}
    been: dict[str, list[str]] = {}
    holds: dict[str, set[str]] = {}
    fact = r"(\w+) (went to|took|left) the (\w+)(?: there)?\."
    for who, did, what in re.findall(fact, text):
        if did == "went to":
            place[who] = what
            for thing in holds.get(who, ()):
                been[thing].append(what)
        elif did == "took":
            holds.setdefault(who, set()).add(what)
            been.setdefault(what, []).append(place[who])
        else:
            holds[who].remove(what)
    if asked := re.search(r"Where was the (\w+) before it came to the (\w+)\?", text):
        thing, last = asked.groups()
        return been[thing][been[thing].index(last) - 1]
    asked = re.search(r"Where is (the )?(\w+)\?", text)
    return been[asked.group(2)][-1] if asked.group(1) else place[asked.group(2)]


READERS = {
    "single": needles,
    "multi_needle": needles,
    "multi_key": needles,
    "variable_tracking": variables,
    "common_words": common,
    "frequent_words": frequent,
    "associative": pairs,
    "rewrite": pairs,
    "facts1": facts,
    "facts2": facts,
    "facts3": facts,
}
