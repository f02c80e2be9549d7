"""Rows of whole documents: each batch row is one endless stream, its documents in a new seeded order each epoch."""

import dataclasses
import hashlib

import numpy as np

from infini_jax.data.base import Batch, Rows, generator
from infini_jax.errors import require


@dataclasses.dataclass(frozen=True)
class Documents:
    """Attributes: text uint8, all documents behind one another; starts int64, where each begins, and the end."""

    text: np.ndarray
    starts: np.ndarray

    @staticmethod
    def join(documents: list[bytes]) -> "Documents":
        """Raises `ConfigError` where no document has any byte."""
        documents = [document for document in documents if document]
        require(bool(documents), "data", "the corpus is empty", "name a corpus with at least one non-empty document")
        starts = np.cumsum([0, *map(len, documents)], dtype=np.int64)
        return Documents(np.frombuffer(b"".join(documents), np.uint8), starts)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


class DocumentRows:
    """Deals the documents to the rows, so that each row gets about the same number of tokens and each document one row."""

    def __init__(self, documents: Documents, rows: Rows):
        count = len(documents.lengths)
        require(
            rows.batch <= count,
            "train.batch",
            f"{rows.batch} rows need as many documents and the {rows.split} split has {count}",
            f"give at most {count}",
        )
        self.documents, self.rows = documents, rows
        self.dealt = deal(documents.lengths, rows.batch)

    @property
    def corpus(self) -> str:
        text = self.documents.text
        return f"{len(self.documents.lengths)} documents, {len(text)} bytes, sha256 {hashlib.sha256(text).hexdigest()[:12]}"

    def batch(self, step: int) -> Batch:
        """Tokens step * T to (step + 1) * T of every row's stream."""
        parts = [self._row(row, step * self.rows.tokens, self.rows.tokens) for row in range(self.rows.batch)]
        return Batch(*(np.stack(field) for field in zip(*parts, strict=True)))

    def _row(self, row: int, position: int, tokens: int) -> tuple[np.ndarray, ...]:
        lengths, text = self.documents.lengths[self.dealt[row]], self.documents.text
        epoch_T, offset_T = np.divmod(position + np.arange(tokens), lengths.sum())
        index_T, document_T, is_end_T = np.empty(tokens, np.int64), np.empty(tokens, np.int32), np.empty(tokens, bool)
        for epoch in np.unique(epoch_T):
            here = epoch_T == epoch
            order, ends = self._epoch(row, int(epoch))
            nth = np.searchsorted(ends, offset_T[here], side="right")
            to_end = ends[nth] - offset_T[here]
            index_T[here] = self.documents.starts[order[nth] + 1] - to_end
            document_T[here] = epoch * len(order) + nth
            is_end_T[here] = to_end == 1
        targets_T = text[np.where(is_end_T, index_T, index_T + 1)]
        return text[index_T].astype(np.int32), targets_T.astype(np.int32), (~is_end_T).astype(np.float32), document_T

    def _epoch(self, row: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of one row's documents in an epoch, and where each ends in the row's stream."""
        order = generator(self.rows, row, epoch).permutation(self.dealt[row])
        return order, np.cumsum(self.documents.lengths[order])


def deal(lengths: np.ndarray, rows: int) -> list[np.ndarray]:
    """Longest first, each to the row that has least so far."""
    totals, dealt = np.zeros(rows, np.int64), [[] for _ in range(rows)]
    for document in np.argsort(-lengths, kind="stable"):
        row = int(totals.argmin())
        dealt[row].append(int(document))
        totals[row] += lengths[document]
    return [np.array(documents) for documents in dealt]
