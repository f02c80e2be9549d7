"""Texts to be classified as rows: each from a fresh memory, read to its last token.

A row is a document, and what fills it up is another one: nothing of it reaches the features of the last token, and the memory
of the text ends where the text does. A batch is as long as its longest text, up to a power of two segments, so that few
programs are compiled. Letters: N examples, R rows, T tokens of a row.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from infini_jax.data.batch import Batch
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.evals.blimp import context_of

PADDING = 1  # document of what fills a row up; the text is document 0


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples in tokens.

    Attributes:
      texts: token ids of each of N examples, the token of context first.
      classes: N, the number of each one's class.
    """

    texts: list[np.ndarray]
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def digest(self) -> str:
        """Twelve hex digits of all tokens and classes."""
        content = hashlib.sha256(self.classes.astype("<i4").tobytes())
        for text in self.texts:
            content.update(len(text).to_bytes(8, "little") + text.astype("<i4").tobytes())
        return content.hexdigest()[:12]

    def some(self, numbers: np.ndarray) -> "Encoded":
        """The examples with these numbers."""
        return Encoded([self.texts[number] for number in numbers], self.classes[numbers])


def encoded_examples(tokenizer: Tokenizer, examples: Iterable[tuple[tuple[str, str], int]], most: int) -> Encoded:
    """Examples ((text, pair), class) in tokens: a token of context, the text, a line end and the pair where there is one.

    Of more than `most` tokens, the longer of the two loses its end first, token by token; 0 keeps them whole.
    """
    before, line_end = context_of(tokenizer), np.asarray(tokenizer.encode("\n"), np.int32)
    texts, classes = [], []
    for (text, pair), number in examples:
        first, second = (np.asarray(tokenizer.encode(part), np.int32) for part in (text, pair))
        between = line_end if pair else line_end[:0]
        if most:
            first, second = shortened(first, second, max(most - len(before) - len(between), 1))
        texts.append(np.concatenate([before, first, between, second]))
        classes.append(number)
    return Encoded(texts, np.array(classes, np.int32))


def shortened(first: np.ndarray, second: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Two texts of at most so many tokens together: the longer one loses its end until both fit or are as long as each other.

    From there on they lose tokens in turn, the second first.
    """
    kept = max(most - len(first), min(len(second), most // 2))
    return first[: max(most - len(second), most - kept)], second[:kept]


def row_length(segment: int, longest: int) -> int:
    """Tokens of rows that hold texts of up to so many: segments, a power of two of them."""
    return segment * (1 << (-(-longest // segment) - 1).bit_length())


def batch_of(examples: Encoded, rows: int, segment: int) -> Batch:
    """The examples, at most so many, in rows RxT.

    Targets hold the class and weights a one at the last token of each text, elsewhere zeros; rows without a text have none.
    """
    shape = (rows, row_length(segment, max(map(len, examples.texts))))
    tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights, documents = np.zeros(shape, np.float32), np.full(shape, PADDING, np.int32)
    for row, text in enumerate(examples.texts):
        tokens[row, : len(text)], documents[row, : len(text)] = text, 0
        targets[row, len(text) - 1], weights[row, len(text) - 1] = examples.classes[row], 1.0
    return Batch(tokens, targets, weights, documents)


def training_batches(examples: Encoded, rows: int, segment: int, seed: int, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch: all examples in an order drawn by seed and epoch, but for the last that fill no batch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    for begin in range(0, len(examples) - rows + 1, rows):
        yield batch_of(examples.some(order[begin : begin + rows]), rows, segment)


def reading_batches(examples: Encoded, rows: int, segment: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """(batch, numbers of its examples) of all examples, the shortest first."""
    order = np.argsort([len(text) for text in examples.texts], kind="stable")
    for begin in range(0, len(order), rows):
        numbers = order[begin : begin + rows]
        yield batch_of(examples.some(numbers), rows, segment), numbers
