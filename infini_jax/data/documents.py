"""Rows of whole documents: each batch row is one endless stream, its documents in a new seeded order each epoch.

The tokens may lie on disk: a batch reads only its own. Memory holds 24 bytes per document and, for the rows that are read,
the order and the ends of their documents in the epochs being read.
"""

import dataclasses
import functools
import hashlib
import heapq
from collections.abc import Callable

import numpy as np

from infini_jax.data.batch import Batch, Rows, generator
from infini_jax.errors import require

LARGEST_ID = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents behind one another in one array.

    Attributes:
      text: unsigned tokens of all documents, in memory or on disk.
      starts: int64, the place where each document begins, and the end of the last.
      described: description in one line, for the table of results.
      check: function that raises `ConfigError` where the data on disk has changed since it was opened.
      name: the corpus and split in errors.
      targets: int64 Nx2, the first place and the one behind the last of each stretch of tokens that is scored, ascending; None
        where all tokens are.
    """

    text: np.ndarray
    starts: np.ndarray
    described: str
    check: Callable[[], None] = lambda: None
    name: str = "the corpus"
    targets: np.ndarray | None = None

    @staticmethod
    def join(documents: list[bytes], name: str = "the corpus") -> "Documents":
        """The bytes of these documents as tokens. Raises `ConfigError` where no document has any byte."""
        documents = [document for document in documents if document]
        require(bool(documents), "data", "the corpus is empty", "name a corpus with at least one non-empty document")
        starts = np.cumsum([0, *map(len, documents)], dtype=np.int64)
        text = np.frombuffer(b"".join(documents), np.uint8)
        digest = hashlib.sha256(text.data).hexdigest()[:12]
        return Documents(text, starts, f"{len(documents)} documents, {len(text)} bytes, sha256 {digest}", name=name)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64."""
        return np.diff(self.starts)

    def are_scored(self, places: np.ndarray) -> np.ndarray:
        """Whether the tokens at places in `text` are scored where they are predicted, bool in the shape of `places`."""
        if self.targets is None:
            return np.ones(places.shape, bool)
        last = np.searchsorted(self.targets[:, 0], places, side="right") - 1
        return (last >= 0) & (places < self.targets[last, 1])

    def have_scored(self, numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether any of the first `lengths` tokens of the documents `numbers` is scored, apart from the very first."""
        if self.targets is None:
            return lengths >= 2
        first = self.starts[numbers] + 1
        following = np.minimum(np.searchsorted(self.targets[:, 1], first, side="right"), len(self.targets) - 1)
        begin, end = self.targets[following].T
        return (end > first) & (begin < self.starts[numbers] + lengths)

    @functools.cached_property
    def _dealt(self) -> dict[int, list[np.ndarray]]:
        return {}

    def dealt(self, rows: int) -> list[np.ndarray]:
        """The numbers of the documents of each of `rows` rows, with about as many tokens in each row."""
        if rows not in self._dealt:
            self._dealt[rows] = deal(self.lengths, rows)
        return self._dealt[rows]


def has_something(lengths: np.ndarray) -> bool:
    """Whether any of the documents of these lengths has a token that can be scored: a second one."""
    return bool((lengths >= 2).any())


def require_something(lengths: np.ndarray, name: str) -> None:
    """Checks the lengths of documents: raises `ConfigError` with the `name` of their corpus where nothing can be scored."""
    require(
        has_something(lengths),
        "data",
        f"no document of {name} has two tokens, and the first of each is never predicted",
        "prepare longer documents for it: infini-jax corpus prepare with --validation and --test, or folders of these names",
    )


class DocumentRows:
    """Source of batches that deals documents to rows: about as many tokens for each row, one row for each document.

    Raises `ConfigError` where there are fewer documents than rows.
    """

    def __init__(self, documents: Documents, rows: Rows):
        count = len(documents.lengths)
        require(
            rows.batch <= count,
            "train.batch",
            f"{rows.batch} rows need as many documents and the {rows.split} split has {count}",
            f"give at most {count}",
        )
        self.shape, self.documents = rows, documents
        self.dealt = documents.dealt(rows.batch)
        self._tokens = [int(documents.lengths[mine].sum()) for mine in self.dealt]
        self._epoch = functools.lru_cache(maxsize=2 * rows.batch)(self._order)

    @property
    def corpus(self) -> str:
        """Description of the documents in one line, for the result table."""
        return self.documents.described

    def batch(self, step: int) -> Batch:
        """Tokens step * T to (step + 1) * T of every row's stream, T tokens per row."""
        return self.rows(step, 0, self.shape.batch)

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Rows `first` to `first + count` of batch `step`; no token of another row is read.

        Raises `ConfigError` where the data on disk has changed since it was opened.
        """
        self.documents.check()
        tokens = self.shape.tokens
        parts = [self._row(row, step * tokens, tokens) for row in range(first, first + count)]
        return Batch(*(np.stack(field) for field in zip(*parts, strict=True)))

    def _row(self, row: int, position: int, tokens: int) -> tuple[np.ndarray, ...]:
        text = self.documents.text
        epoch_T, offset_T = np.divmod(position + np.arange(tokens), self._tokens[row])
        index_T, document_T, is_end_T = np.empty(tokens, np.int64), np.empty(tokens, np.int64), np.empty(tokens, bool)
        for epoch in range(int(epoch_T[0]), int(epoch_T[-1]) + 1):
            here = epoch_T == epoch
            order, ends = self._epoch(row, epoch)
            nth = np.searchsorted(ends, offset_T[here], side="right")
            to_end = ends[nth] - offset_T[here]
            index_T[here] = self.documents.starts[order[nth] + 1] - to_end
            document_T[here] = epoch * len(order) + nth
            is_end_T[here] = to_end == 1
        following_T = np.where(is_end_T, index_T, index_T + 1)
        text_T, next_T = text[index_T], text[following_T]
        ids_T = (document_T % LARGEST_ID).astype(np.int32)
        weights_T = (~is_end_T & self.documents.are_scored(following_T)).astype(np.float32)
        return text_T.astype(np.int32), next_T.astype(np.int32), weights_T, ids_T

    def _order(self, row: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of one row's documents in an epoch, and the end of each in the row's stream."""
        order = generator(self.shape, row, epoch).permutation(self.dealt[row])
        return order, np.cumsum(self.documents.lengths[order])


def deal(lengths: np.ndarray, rows: int) -> list[np.ndarray]:
    """The numbers of the documents of each row: the longest first, each to the row that has the fewest tokens so far."""
    row_of = np.empty(len(lengths), np.int32)
    longest_first = np.argsort(-lengths, kind="stable")
    totals = [(0, row) for row in range(rows)]
    for document, length in zip(longest_first, lengths[longest_first].tolist(), strict=True):
        total, row = totals[0]
        row_of[document] = row
        heapq.heapreplace(totals, (total + length, row))
    by_row = longest_first[np.argsort(row_of[longest_first], kind="stable")]
    return np.split(by_row, np.cumsum(np.bincount(row_of, minlength=rows))[:-1])
