"""Readers that answer the suites from the text of a prompt alone, by the published definitions."""

import re
from collections import Counter


def needles(text: str) -> str:
    """RULER's magic numbers and UUIDs."""
    told: dict[str, list[str]] = {}
    for key, value in re.findall(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.", text):
        told.setdefault(key, []).append(value)
    asked = re.search(r"What (?:is|are all) the special magic \w+ for (.+) mentioned in the provided text\?", text).group(1)
    return ", ".join(value for key in re.split(r", and |, ", asked) for value in told[key])


def variables(text: str) -> str:
    """RULER's chain of assignments, of the last of the two questions."""
    last = text.split("Memorize and track the chain(s)")[-1]
    value: dict[str, str] = {}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", last):
        value[name] = value.get(source, source)
    asked = re.search(r"assigned the value (\d+) in the text above", last).group(1)
    return " ".join(name for name in value if value[name] == asked)


def common_words(text: str) -> str:
    """RULER's most common words of the last of the two lists."""
    last = text.split("Memorize the ones that appear most often.\n")[-1].split("\nQuestion:")[0]
    found = Counter(re.findall(r"\d+\. (\w+)", last)).most_common(11)
    assert found[9][1] > found[10][1]
    return " ".join(word for word, _ in found[:10])


def frequent_words(text: str) -> str:
    """RULER's most frequent coded words."""
    coded = text.split("appeared coded words. ")[1].split("\nQuestion:")[0]
    found = Counter(word for word in coded.split() if word != "...").most_common(4)
    assert len({count for _, count in found}) == 4
    return " ".join(word for word, _ in found[:3])


WENT = r"(?:moved|went|journeyed|travelled|went back) to the (\w+)"
TOOK = r"(?:got|took|grabbed|picked up) the (\w+) there"
LEFT = r"(?:dropped|put down|left|discarded) the (\w+) there"
GAVE = r"(?:gave|passed|handed) the (\w+) to (\w+)"
IS = r"is (in|not in|no longer in) the (\w+)"
EITHER = r"is either in the (\w+) or the (\w+)"
FACT = re.compile(rf"\b([A-Z]\w+) (?:{WENT}|{TOOK}|{LEFT}|{GAVE}|{IS}|{EITHER})\.")
BESIDE = re.compile(r"\bThe (\w+) is (north|south|east|west) of the (\w+)\.")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def babi(text: str) -> str:
    """What bAbI's qa1 to qa10 ask, by what a reader of the facts knows."""
    context = text.split("\n\n<context>\n")[-1].split("\n</context>")[0]
    question = text.rsplit("Question: ", 1)[1]
    if asked := re.fullmatch(r"What is (north|south|east|west) of the (\w+)\?", question):
        return beside(context, *asked.groups())
    if asked := re.fullmatch(r"What is the (\w+) (north|south|east|west) of\?", question):
        return beside(context, OPPOSITE[asked.group(2)], asked.group(1))
    place: dict[str, str] = {}
    may: dict[str, tuple[str, ...]] = {}
    holds: dict[str, str] = {}
    been: dict[str, list[str]] = {}
    gifts: list[tuple[str, str, str]] = []
    for who, went, took, left, given, whom, how, where, one, other in FACT.findall(context):
        if went or how == "in":
            place[who], may[who] = went or where, (went or where,)
            for thing in (thing for thing, holder in holds.items() if holder == who):
                been.setdefault(thing, []).append(place[who])
        elif one:
            may[who] = (one, other)
        elif took:
            holds[took] = who
            if who in place and been.get(took, [""])[-1] != place[who]:
                been.setdefault(took, []).append(place[who])
        elif left:
            del holds[left]
        elif given:
            gifts.append((who, given, whom))
            holds[given] = whom
    return answer(question, place, may, holds, been, gifts)


def beside(context: str, side: str, place: str) -> str:
    for one, direction, other in BESIDE.findall(context):
        if (direction, other) == (side, place):
            return one
        if (OPPOSITE[direction], one) == (side, place):
            return other
    raise AssertionError("nothing is there")


def answer(question, place, may, holds, been, gifts) -> str:
    if asked := re.fullmatch(r"Where is (the )?(\w+)\?", question):
        return been[asked.group(2)][-1] if asked.group(1) else place[asked.group(2)]
    if asked := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        assert been[asked.group(1)][-1] == asked.group(2)
        return been[asked.group(1)][-2]
    if asked := re.fullmatch(r"Is (\w+) in the (\w+)\?", question):
        where = may.get(asked.group(1), ())
        return "no" if asked.group(2) not in where else "yes" if len(where) == 1 else "maybe"
    if asked := re.fullmatch(r"(?:How many objects|What) is (\w+) carrying\?", question):
        things = [thing for thing, who in holds.items() if who == asked.group(1)]
        return ("none", "one", "two", "three")[len(things)] if question.startswith("How") else ",".join(things) or "nothing"
    forms = (
        (r"What did (?P<giver>\w+) give to (?P<whom>\w+)\?", 1),
        (r"Who gave the (?P<thing>\w+) to (?P<whom>\w+)\?", 0),
        (r"Who did (?P<giver>\w+) give the (?P<thing>\w+) to\?", 2),
        (r"Who gave the (?P<thing>\w+)\?", 0),
        (r"Who received the (?P<thing>\w+)\?", 2),
    )
    form, part = next((asked, part) for words, part in forms if (asked := re.fullmatch(words, question)))
    names = form.groupdict()
    of = [gift for gift in gifts if all(gift[("giver", "thing", "whom").index(name)] == names[name] for name in names)]
    return of[-1][part]


def slots(text: str) -> str:
    """The newest value of the slot that a conversation's last turn asks for."""
    asked = re.search(r"User: What is the (\w+) now\?\nAssistant: The \w+ is now$", text).group(1)
    return re.findall(rf"User: Set the {asked} to (\w+)\.", text)[-1]


RULER = {"vt": variables, "cwe": common_words, "fwe": frequent_words}


def ruler(kind: str, text: str) -> str:
    """What one of RULER's tasks that need no file asks."""
    return RULER.get(kind, needles)(text)
