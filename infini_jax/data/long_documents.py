"""Documents of a data set that are several of its examples: a long text is stored and read in pieces.

A document longer than `PIECE` becomes examples with its number as `book_id`, whose `book_link` ends in "#part=" and the number
of the piece. TFDS shuffles all examples, so its metadata names these documents, and the places of their pieces are found by a
pass over the split. All other documents are one example each, as in any data set.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from infini_jax.data.tokenizers import Tokenizer

LONG = "long_documents"  # in a data set's metadata: split -> numbers of the documents that are several examples
PART = "#part="
AT_ONCE = 1 << 20  # characters that a tokenizer gets at once, and then the rest of the line


class ExamplePlaces(NamedTuple):
    """Examples of a split in the order of documents.

    Attributes:
      numbers: numbers of the examples.
      continues: whether each goes on with the document of the one before.
      may_be_blank: whether each is a whole document, which is left out where it has no text.
      blank: number of long documents without any text, left out already.
    """

    numbers: np.ndarray
    continues: np.ndarray
    may_be_blank: np.ndarray
    blank: int = 0

    def part(self, span: range) -> "ExamplePlaces":
        """The places of a range."""
        kept = slice(span.start, span.stop)
        return ExamplePlaces(self.numbers[kept], self.continues[kept], self.may_be_blank[kept])


def all_whole(count: int) -> ExamplePlaces:
    """The places of a split in which each example is a document."""
    return ExamplePlaces(np.arange(count), np.zeros(count, bool), np.ones(count, bool))


def places_of(examples: Sequence[dict], text: Callable[[dict], str], long: Iterable[int]) -> ExamplePlaces:
    """The places of a split in which the documents with the numbers `long` are several examples each.

    A long document stands where its first piece does.

    Args:
      examples: examples of the split, all of which are read once.
      text: function that gives an example's text.
      long: numbers of the documents, the examples' `book_id`.
    """
    parts: dict[int, dict[int, int]] = {number: {} for number in long}
    has_text: set[int] = set()
    first: list[tuple[int, int | None]] = []  # (example, number of the long document that begins here)
    for place in range(len(examples)):
        example = examples[place]
        document = int(example["book_id"])
        if document not in parts:
            first.append((place, None))
            continue
        part = int(example["book_link"].decode().rsplit(PART, 1)[1])
        parts[document][part] = place
        if text(example).strip():
            has_text.add(document)
        if not part:
            first.append((place, document))
    rows: list[tuple[int, bool, bool]] = []
    for place, document in first:
        if document is None:
            rows.append((place, False, True))
        elif document in has_text:
            rows += [(parts[document][part], part > 0, False) for part in sorted(parts[document])]
    table = np.array(rows, np.int64).reshape(-1, 3)
    return ExamplePlaces(table[:, 0], table[:, 1] > 0, table[:, 2] > 0, len(parts) - len(has_text))


def in_parts(name: str, pieces: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """(key, link, text) of each example of a document, from its pieces; an empty document has one piece."""
    text, more = next(pieces, ""), next(pieces, None)
    if more is None:
        yield name, name, text
        return
    yield name, f"{name}{PART}0", text
    number = 1
    while more is not None:
        yield f"{name}{PART}{number}", f"{name}{PART}{number}", more
        number, more = number + 1, next(pieces, None)


def parts_of_lines(text: str, size: int) -> Iterator[str]:
    """The text in parts of at least `size` characters that end behind a line end; the last one may be shorter."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + size - 1) + 1 or len(text)
        yield text[start:end]
        start = end


def encoded_text(tokenizer: Tokenizer, text: str, from_beginning: bool = True) -> Iterator[np.ndarray]:
    """The tokens of a text or a part of it, some whole lines at a time; first the one for its beginning where there is one."""
    if from_beginning and tokenizer.begin is not None:
        yield np.array([tokenizer.begin], np.int32)
    yield from map(tokenizer.encode, parts_of_lines(text, AT_ONCE))
