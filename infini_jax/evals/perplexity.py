"""Streaming perplexity of whole documents: the memory is carried from the first token to the last.

R documents are read side by side, each from its first token with a fresh memory; when the longest of them has been read, the
next R begin. Nothing is kept but the memory, so a document may have any length. The token at place t >= 1 of a document is
scored once as -ln p(x_t | what the condition lets the model know); the one at place 0 has nothing before it and is not scored.

  carried   the segment reads the memory that the document itself left before it, as in training and generation.
  reset     it reads an empty memory, as every document's first segment does: what the segment alone predicts.
            Landmarks stand where they do in the document.
  another   it reads the memory that another document left after as many tokens: as full and as old, with the wrong content.

Only the carried pass writes; the controls read copies of what it carries, so in the first segment, where all memories are
empty, the three are equal. For `another`, document b of the group (longest first) reads the memory of document b - 1, the
longest that of the shortest; a document that ends before its reader does is read again from its first token, as often as
needed, so that its memory is always as old as the reader's own. Every layer's memory is exchanged, unfinished landmark blocks
and the relative ages of cached tokens with it, and all tokens of a row count as one document: no mask hides the exchange.

Within the reader's own segment nothing changes, so the difference between two conditions is what memory is worth.
Several models may read the same documents in the same calls (`infini_jax.devices.side_by_side`). Letters: A models.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from infini_jax.config import ModelConfig
from infini_jax.config.evaluation import ANOTHER, CARRIED, Condition, EvaluationConfig
from infini_jax.data.documents import Documents, require_something
from infini_jax.data.prepared import Counts
from infini_jax.devices.side_by_side import Learned, OneModel
from infini_jax.errors import require
from infini_jax.evals.base import spread_evenly
from infini_jax.evals.reading import SEGMENTS_A_CALL, score_segments


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The losses of documents, as sums over the scored tokens of each document and of each range of places.

    Attributes:
      conditions: C conditions of the memory.
      documents: D, numbers of the documents in the split, longest first.
      cut: number of documents that were not read to their end.
      tokens_D: scored tokens of each document.
      hits_D: scored tokens of each document that were the likeliest under `carried`.
      nats_CxD: loss of each document's tokens under each condition, in nats.
      tokens_N: scored tokens by place in the document, where range n is 2^n to 2^(n+1) - 1.
      nats_CxN: loss of these tokens under each condition, in nats.
      counts: words, bytes and tokens of the whole split.
    """

    conditions: tuple[Condition, ...]
    documents: np.ndarray
    cut: int
    tokens_D: np.ndarray
    hits_D: np.ndarray
    nats_CxD: np.ndarray
    tokens_N: np.ndarray
    nats_CxN: np.ndarray
    counts: Counts

    @property
    def tokens(self) -> int:
        """Scored tokens of all documents."""
        return int(self.tokens_D.sum())

    @property
    def accuracy(self) -> float:
        """Share of scored tokens that were the likeliest under `carried`."""
        return float(self.hits_D.sum() / self.tokens)

    def loss(self, condition: Condition = CARRIED) -> float:
        """Mean loss under a condition, in nats per token."""
        return float(self.nats_CxD[self.conditions.index(condition)].sum() / self.tokens)

    def figures(self, condition: Condition) -> dict[str, float]:
        """Loss, word perplexity and bits per byte, where a token has as many words and bytes as in the whole split."""
        loss = self.loss(condition)
        return {
            "loss": loss,
            "word_perplexity": self.counts.word_perplexity(loss),
            "bits_per_byte": self.counts.bits_per_byte(loss),
        }

    def by_position(self) -> list[dict[str, float]]:
        """For each range of places that has tokens: its first place, tokens, and nats per token under each condition."""
        return [
            {"from": 2**n, "tokens": int(tokens)}
            | {name: float(nats[n] / tokens) for name, nats in zip(self.conditions, self.nats_CxN, strict=True)}
            for n, tokens in enumerate(self.tokens_N)
            if tokens
        ]

    def by_document(self) -> list[dict[str, float]]:
        """For each document: its number in the split, tokens, and nats per token under each condition."""
        means_DxC = (self.nats_CxD / self.tokens_D).T.tolist()
        rows = zip(self.documents.tolist(), self.tokens_D.tolist(), means_DxC, strict=True)
        return [
            {"document": number, "tokens": tokens} | dict(zip(self.conditions, means, strict=True))
            for number, tokens, means in rows
        ]

    def metrics(self) -> dict[str, float]:
        """The figures as one line of the metrics log, named `validation_...`."""
        line = {f"validation_{name}": value for name, value in self.figures(CARRIED).items()}
        line |= {"validation_accuracy": self.accuracy, "validation_tokens": self.tokens}
        line |= {f"validation_loss_{name}": self.loss(name) for name in self.conditions if name != CARRIED}
        return line | {f"validation_loss_from_{place['from']}": place[CARRIED] for place in self.by_position()}

    def to_plain(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            "documents": len(self.documents),
            "documents_cut": self.cut,
            "tokens": self.tokens,
            "accuracy": self.accuracy,
            "conditions": {name: self.figures(name) for name in self.conditions},
            "by_position": self.by_position(),
            "by_document": self.by_document(),
        }


class Reader:
    """A reader of the same documents for any parameters. With a single document, the condition `another` is left out.

    Attributes:
      model: settings of the model that reads.
      described: description of the documents' source.
      numbers_D: numbers of the documents in the split, longest first.
      lengths_D: tokens of each document that are read.
      conditions: conditions of the memory under which the documents are read.

    Raises:
      ConfigError: no document has two tokens.
    """

    def __init__(self, model: ModelConfig, documents: Documents, counts: Counts, settings: EvaluationConfig):
        self.model, self.counts, self.documents, self.described = model, counts, documents, documents.described
        numbers_D = chosen_documents(documents.lengths, settings.documents, documents.name)
        whole_D = documents.lengths[numbers_D]
        lengths_D = np.minimum(whole_D, settings.tokens) if settings.tokens else whole_D
        kept_D = documents.have_scored(numbers_D, lengths_D)
        problem = f"no target of {documents.name} begins in the first {settings.tokens} tokens of its document"
        require(bool(kept_D.any()), "evaluation.tokens", problem, "give more, or 0 for whole documents")
        numbers_D, whole_D, lengths_D = numbers_D[kept_D], whole_D[kept_D], lengths_D[kept_D]
        longest_first = np.argsort(-lengths_D, kind="stable")
        self.numbers_D, self.lengths_D = numbers_D[longest_first], lengths_D[longest_first]
        self.starts_D, self.cut = documents.starts[self.numbers_D], int((lengths_D < whole_D).sum())
        self.rows = min(settings.rows, len(numbers_D))
        self.conditions: tuple[Condition, ...] = tuple(
            name for name in settings.conditions if name != ANOTHER or self.rows > 1
        )
        self.segments = min(SEGMENTS_A_CALL, -(-int(self.lengths_D[0] - 1) // model.segment))

    @property
    def tokens(self) -> int:
        """Tokens of all documents that are read for the first time; all are scored where documents have no targets."""
        return int((self.lengths_D - 1).sum())

    def read(self, params: dict, watch: Callable[[int], None] = lambda tokens: None) -> Perplexity:
        """The perplexity under one model's parameters, see `read_each`."""
        (found,) = self.read_each(OneModel(params), watch)
        return found

    def read_each(self, learned: Learned, watch: Callable[[int], None] = lambda tokens: None) -> list[Perplexity]:
        """The perplexity under each model's parameters; `watch` gets the number of tokens read so far."""
        done = 0
        ranges = int(self.lengths_D[0] - 1).bit_length()
        sums = [Sums(len(self.conditions), len(self.numbers_D), ranges) for _ in range(learned.asked)]
        for documents_R, places_T, is_read_RxT, nats_AxCxRxT, hits_AxRxT in self._pieces(learned):
            is_scored_RxT = is_read_RxT & self.documents.are_scored(self.starts_D[documents_R, None] + places_T)
            range_T = np.minimum(np.frexp(places_T)[1] - 1, ranges - 1)  # places past the end hold no scored token
            for of_model, nats_CxRxT, hits_RxT in zip(sums, nats_AxCxRxT, hits_AxRxT, strict=True):
                of_model.add(documents_R, range_T, is_scored_RxT, nats_CxRxT, hits_RxT)
            watch(done := done + int(is_read_RxT.sum()))
        return [
            Perplexity(
                self.conditions,
                self.numbers_D,
                self.cut,
                one.scored_D,
                one.hits_D,
                one.nats_CxD,
                one.tokens_N,
                one.nats_CxN,
                self.counts,
            )
            for one in sums
        ]

    @property
    def read_tokens(self) -> int:
        """Tokens that pass through the model under each condition, padding of segments and rows included."""
        size, longest_G = self.model.segment, self.lengths_D[:: self.rows] - 1
        return int((-(-longest_G // size)).sum()) * size * self.rows

    def token_nats(self, params: dict, watch: Callable[[int], None] = lambda tokens: None) -> Iterator[tuple[int, np.ndarray]]:
        """For each document, as soon as it is read: (its number in the split, nats CxT of all its tokens but the first)."""
        return ((number, nats_AxCxT[0]) for number, nats_AxCxT in self.token_nats_each(OneModel(params), watch))

    def token_nats_each(
        self, learned: Learned, watch: Callable[[int], None] = lambda tokens: None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """For each document, as soon as it is read: (its number, nats AxCxT of its tokens but the first with each model)."""
        parts: dict[int, list[np.ndarray]] = collections.defaultdict(list)
        done = 0
        for documents_R, _, is_read_RxT, nats_AxCxRxT, _ in self._pieces(learned):
            done += int(is_read_RxT.sum())
            watch(done)
            for row in np.flatnonzero(is_read_RxT.any(axis=1)):
                document = int(documents_R[row])
                parts[document].append(nats_AxCxRxT[:, :, row, is_read_RxT[row]])
                if sum(part.shape[2] for part in parts[document]) == self.lengths_D[document] - 1:
                    yield int(self.numbers_D[document]), np.concatenate(parts.pop(document), axis=2)

    def _pieces(self, learned: Learned) -> Iterator[tuple[np.ndarray, ...]]:
        """The scores of each piece: (documents R, places T, whether read for the first time RxT, nats AxCxRxT, hits AxRxT)."""
        size, places = self.model.segment, learned.places(self.model, self.rows)
        for first in range(0, len(self.numbers_D), self.rows):
            documents_R = min(first, len(self.numbers_D) - self.rows) + np.arange(self.rows)
            is_new_R = documents_R >= first  # the last group is filled up with documents that were scored before
            carry = places.fresh()
            longest = int(self.lengths_D[documents_R[is_new_R]].max()) - 1
            for begin in range(0, longest, self.segments * size):
                tokens_RxT = self._tokens(documents_R, begin)
                texts = (places.put(tokens_RxT[:, :-1]), places.put(tokens_RxT[:, 1:]))
                segments = np.int32(min(self.segments, -(-(longest - begin) // size)))
                carry, *found = places.call(score_segments, (self.model, self.conditions), (carry,), (texts, segments))
                places_T = begin + 1 + np.arange(self.segments * size)
                is_read_RxT = is_new_R[:, None] & (places_T < self.lengths_D[documents_R, None])
                yield documents_R, places_T, is_read_RxT, *places.on_host(found)

    def _tokens(self, documents_R: np.ndarray, begin: int) -> np.ndarray:
        """The tokens of one call's segments and the one after them, Rx(T + 1); a document that ended begins again."""
        places_T = begin + np.arange(self.segments * self.model.segment + 1)
        places_RxT = self.starts_D[documents_R, None] + places_T % self.lengths_D[documents_R, None]
        return np.stack([self.documents.text[places_T] for places_T in places_RxT]).astype(np.int32)


class Sums:
    """The losses of one model, added up over pieces of D documents under C conditions, by document and by N ranges of places.

    Attributes:
      nats_CxD: nats of each document's tokens so far.
      hits_D: right predictions among them.
      scored_D: their number.
      nats_CxN: nats by range.
      tokens_N: tokens by range.
    """

    def __init__(self, conditions: int, documents: int, ranges: int):
        self.nats_CxD, self.nats_CxN = np.zeros((conditions, documents)), np.zeros((conditions, ranges))
        self.hits_D, self.scored_D = np.zeros(documents, np.int64), np.zeros(documents, np.int64)
        self.tokens_N = np.zeros(ranges, np.int64)

    def add(
        self,
        documents_R: np.ndarray,
        range_T: np.ndarray,
        is_scored_RxT: np.ndarray,
        nats_CxRxT: np.ndarray,
        hits_RxT: np.ndarray,
    ) -> None:
        """Adds a piece of R rows: numbers of their documents, ranges of its places, and the scores of each place."""
        nats_CxRxT = np.where(is_scored_RxT, nats_CxRxT, 0.0)
        np.add.at(self.nats_CxD.T, documents_R, nats_CxRxT.sum(axis=2, dtype=float).T)
        np.add.at(self.hits_D, documents_R, (hits_RxT & is_scored_RxT).sum(axis=1))
        np.add.at(self.scored_D, documents_R, is_scored_RxT.sum(axis=1))
        np.add.at(self.nats_CxN.T, range_T, nats_CxRxT.sum(axis=1, dtype=float).T)
        np.add.at(self.tokens_N, range_T, is_scored_RxT.sum(axis=0))


def chosen_documents(lengths: np.ndarray, count: int, name: str = "the corpus") -> np.ndarray:
    """Numbers of `count` documents of at least two tokens, spread evenly; of all such documents for 0.

    Raises `ConfigError` with the `name` of the corpus and split where no document has two tokens.
    """
    usable = np.flatnonzero(lengths >= 2)
    require_something(lengths, name)
    return usable[spread_evenly(len(usable), count)]
