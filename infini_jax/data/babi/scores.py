"""BABILong's exact match in the text: of a task's labels, the answer and no other stands in the first sentence said.

DEVIATION: labels are looked for as whole words. The released code looks for parts of words, so that "none" also says "one" and
is never right.
"""

import re
from collections.abc import Sequence


def answered(said: str, answer: str, question: str, labels: Sequence[str]) -> bool:
    """Whether a model's words hold the answer alone; a list of several is joined by commas, in any order.

    What counts is the text up to the first "." or tag of another example, upper and lower case alike. Labels of the
    question do not count.
    """
    first = said.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    known = {label.lower() for label in labels} - words(question)
    return known & words(first) == set(answer.lower().split(","))


def words(text: str) -> set[str]:
    """The words of a text in lower case."""
    return set(re.findall(r"\w+", text.lower()))
