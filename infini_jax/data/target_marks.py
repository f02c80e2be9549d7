"""Documents with targets as text: what is read, then stretches that are to be said, each between two marks.

A document is its context, such as a book, and turns behind it. A turn that is a target, such as the book's summary, is what a
model is trained and asked to say; any other turn, such as what the partner of a dialogue says, is read. A turn stands behind a
line that holds a mark alone, and a line with another mark ends a target, so that a model can end it, too:

    context, LF, STX, LF, target, LF, ETX, LF        context, LF, ENQ, LF, turn, LF, STX, LF, target, LF, ETX, LF ...

The marks are control characters, which are taken out of the texts themselves. As tokenizers encode by line, or split at line
ends, a mark has the same tokens everywhere, and targets are found again in any prepared corpus without a file of their own.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from infini_jax.data.documents import Documents
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import require

TARGET, END, READ = "\x02", "\x03", "\x05"  # STX, ETX, ENQ: a target begins, it ends; a turn begins that is read
NO_MARKS = str.maketrans(dict.fromkeys((TARGET, END, READ), " "))
AT_ONCE = 1 << 24  # tokens that are searched at once, where they lie on disk


@dataclasses.dataclass(frozen=True)
class Turn:
    """A part of a document behind its context.

    Attributes:
      text: the text, without white space around it.
      is_target: whether a model is to say it; else it is read.
    """

    text: str
    is_target: bool = True


def marked(context: Iterable[str], turns: Sequence[Turn]) -> Iterator[str]:
    """The text of a document, some of it at a time. Marks in its texts become spaces.

    Args:
      context: the context, in pieces that follow one another.
      turns: what stands behind it, in order.
    """
    for piece in context:
        yield piece.translate(NO_MARKS)
    for turn in turns:
        text = turn.text.translate(NO_MARKS).strip()
        yield f"\n{TARGET}\n{text}\n{END}\n" if turn.is_target else f"\n{READ}\n{text}\n"


@dataclasses.dataclass(frozen=True)
class Marks:
    """The tokens of the marks under one tokenizer.

    Attributes:
      target: token that begins a target.
      end: token that ends it.
      read: token that begins a turn that is read.
      behind: number of tokens between `target` and the target's first: those of a line end.
    """

    target: int
    end: int
    read: int
    behind: int

    @staticmethod
    def of(tokenizer: Tokenizer) -> "Marks":
        """The marks' tokens. Raises `ConfigError` for a tokenizer that has no tokens of their own for them."""
        alone = {mark: tokenizer.encode(mark) for mark in (TARGET, END, READ)}
        target, end, read = found = [int(tokens[-1]) if len(tokens) else -1 for tokens in alone.values()]
        has_all = min(found) >= 0 and [tokenizer.decode([token]) for token in found] == list(alone)
        mend = "prepare the corpus with bytes, or with a tokenizer that has a token for every byte"
        require(has_all, "tokenizer", f"{tokenizer.name} has no tokens for the marks of targets", mend)
        behind = len(tokenizer.encode(f"{TARGET}\n")) - len(alone[TARGET])
        return Marks(target, end, read, behind)

    def targets(self, documents: Documents) -> np.ndarray:
        """The stretches of tokens that are scored, int64 Nx2 as `Documents.targets`: targets with the marks that end them.

        Raises `ConfigError` where there are none, or one has no end.
        """
        begins, ends = self._places(documents, (self.target,)), self._places(documents, (self.end,))
        mend = "prepare a corpus with targets, such as booksum_chapters or cmu_dog: infini-jax corpus list"
        require(len(begins) > 0, "data.name", f"{documents.name} has no targets", mend)
        following = np.append(begins[1:], len(documents.text))
        paired = len(begins) == len(ends) and bool((begins < ends).all() and (ends < following).all())
        require(paired, "data.name", f"{documents.name} has targets without an end", mend)
        return np.stack([begins + 1 + self.behind, ends + 1], axis=1)

    def contexts(self, documents: Documents) -> np.ndarray:
        """The place where the context of each document ends and its first turn begins, int64."""
        places = np.append(self._places(documents, (self.target, self.read)), len(documents.text))
        first = places[np.searchsorted(places, documents.starts[:-1])]
        return np.minimum(first, documents.starts[1:])

    def _places(self, documents: Documents, tokens: tuple[int, ...]) -> np.ndarray:
        """The places of these tokens in the text, ascending."""
        begins = range(0, len(documents.text), AT_ONCE)
        found = [begin + np.flatnonzero(np.isin(documents.text[begin : begin + AT_ONCE], tokens)) for begin in begins]
        return np.concatenate([np.zeros(0, np.int64), *found])
