"""Words and other units of a text, with their kinds: each character belongs to exactly one unit; tokens are parts of units.

A unit is a word, a number, a reference, a mark (any other character) or white space. The kinds are found by rules of spelling
alone, in one pass over the text, so they hold for prose, LaTeX and code alike, and they are wrong now and then:

  reference   LaTeX's \\ref{...} and \\cite{...} in all their forms, and [12] or [3, 7] as citations stand in prose.
  number      digits, with points and commas inside.
  identifier  a word that the same document defined further up: def f(, class C:, let x =, or x = at a line's beginning.
  name        a word with a capital that stands neither at the beginning of a sentence nor behind an opening quotation mark,
              and is neither "I" nor a title like "Mr" nor in capitals throughout.
  word        every other word.
  mark        any other character; space: white space.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np

from infini_jax.data.tokenizers import Tokenizer

UnitKind = Literal["name", "number", "reference", "identifier", "word", "mark", "space"]
UNIT_KINDS: tuple[UnitKind, ...] = get_args(UnitKind)
LEXICAL: tuple[UnitKind, ...] = ("name", "number", "identifier", "word")  # what can be rare, and used again

UNIT = re.compile(
    r"""
    (?P<reference> \\(?:[A-Za-z]*ref|[cC]ite[A-Za-z]*)\*?(?:\[[^\]\n]*\])*\{[^{}\n]*\}
                 | (?<=[\s~])\[\d+(?:\s?[,;–-]\s?\d+)*\](?=[\s.,;:)]|\Z) )
  | (?P<number> \d+(?:[.,]\d+)* )
  | (?P<word> (?:[rbfu]|[bf]r|r[bf])(?=')                   # in front of a string in Python
            | \\?[^\W\d]\w*(?:['’][^\W\d_]+)* )
  | (?P<space> \s+ )
  | (?P<mark> . )
    """,
    re.VERBOSE | re.DOTALL,
)
DEFINITION = re.compile(
    r"""
    ^[ \t]*(?:async[ ]+)?(?:def|class)[ ]+(\w+)[ ]*[(:]     # Python
  | \blet[ ]+(?:rec[ ]+)?(\w+)[^=\n]*=                      # OCaml, HOL Light
  | ^[ \t]*(?:\w+\.)*(\w+)[ ]*(?::[^=\n]*)?=(?!=)           # an assignment, with its type
    """,
    re.VERBOSE | re.MULTILINE,
)
ENDS_SENTENCE, QUOTES = frozenset(".!?:"), frozenset("\"'“”‘’«»`")
TRANSPARENT = QUOTES | frozenset(")]}*_#>—–-")  # what may stand between a sentence's end and the next one
TITLES = frozenset(("mr", "mrs", "ms", "dr", "st", "messrs", "prof", "rev", "hon", "capt", "col", "gen", "vol", "fig", "eq"))


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of a text.

    Attributes:
      starts: N, the first character of each unit.
      spelt: N, a spelling by which the same word is known again.
      kinds: N, the kind of each unit as a place in KINDS.
    """

    starts: np.ndarray
    spelt: list[str]
    kinds: np.ndarray

    def are(self, *kinds: UnitKind) -> np.ndarray:
        """Whether each unit is of one of these kinds, N."""
        return np.isin(self.kinds, [UNIT_KINDS.index(kind) for kind in kinds])


def spelling(word: str) -> str:
    """A word's spelling without case, emphasis and possessive 's, equal for all uses of the word."""
    return re.sub("['’]s$", "", word.casefold()).strip("_") or word


def units_of(text: str) -> Units:
    """The units of a text, in order."""
    starts, spelt, kinds = [], [], []
    defined = defined_names(text)
    begins = SentenceStart()
    for found in UNIT.finditer(text):
        unit, kind = found.group(), str(found.lastgroup)
        spelled = spelling(unit)
        if kind == "word":
            if found.start() >= defined.get(unit, len(text)):
                kind = "identifier"
            elif is_capitalised(unit) and not begins.now and spelled not in TITLES:
                kind = "name"
        begins.pass_unit(unit, str(found.lastgroup))
        starts.append(found.start())
        spelt.append(spelled)
        kinds.append(UNIT_KINDS.index(kind))
    return Units(np.array(starts, np.int64), spelt, np.array(kinds, np.int64))


def defined_names(text: str) -> dict[str, int]:
    """Each name that the text defines, with the place of the character behind its first definition; case matters."""
    ends: dict[str, int] = {}
    for found in DEFINITION.finditer(text):
        group = found.lastindex or 0  # each way to define a name has a group of its own
        ends.setdefault(found[group], found.end(group))
    return ends


def is_capitalised(word: str) -> bool:
    """Whether a word has a capital, then small letters; False for "I" and its short forms."""
    word = word.strip("_")
    return word[:1].isupper() and any(letter.islower() for letter in word) and not re.match(r"I['’]", word)


class SentenceStart:
    """A reader of units that knows whether the next word would begin a sentence.

    Attributes:
      now: whether the next word would begin a sentence.
    """

    def __init__(self):
        self.now, self._word, self._quoted = True, "", False

    def pass_unit(self, unit: str, kind: str) -> None:
        """Reads one unit of the kind `kind`."""
        if kind == "space":
            self.now = (self.now and not self._quoted) or unit.count("\n") > 1
        elif kind == "mark" and unit in ENDS_SENTENCE:
            is_short = unit == "." and (self._word in TITLES or len(self._word) == 1)
            self.now = not is_short
        elif kind == "mark" and unit in TRANSPARENT:
            if unit in QUOTES and not self.now:
                self.now, self._quoted = True, True  # it opens, unless white space follows
                self._word = ""
                return
        else:
            self.now = False
        self._quoted = False
        self._word = spelling(unit) if kind == "word" else ""


def unit_of_tokens(tokens: Iterable[int], tokenizer: Tokenizer) -> tuple[str, Units, np.ndarray]:
    """(text, its units, T: the unit that each token is a part of).

    A token's unit is that of the first character it adds that is no white space, or of its first character: SentencePiece has
    the space before a word in the word's first token. A token that adds nothing is a part of the character that comes next.
    """
    parts = list(tokenizer.decode_each(tokens))
    text = "".join(parts)
    units = units_of(text)
    begins_T = np.cumsum([0, *map(len, parts[:-1])])[:-1]
    blank_T = np.array([len(part) - len(part.lstrip()) if part.strip() else 0 for part in parts[:-1]], np.int64)
    places_T = np.minimum(begins_T + blank_T, max(len(text) - 1, 0))
    return text, units, np.searchsorted(units.starts, places_T, side="right") - 1


def count_words(texts: Iterable[str]) -> collections.Counter[str]:
    """Uses of each word and number, by spelling."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(spelling(found.group()) for found in UNIT.finditer(text) if found.lastgroup in ("word", "number"))
    return counts
