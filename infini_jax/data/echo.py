"""Echo: natural text whose documents quote themselves from far back, so that a language model has something to remember.

A document is cut into frames of equal length. In each frame, at a random place, stands one quotation: a cue, and `span` tokens
that repeat, token for token, a stretch of the same document. A distance is drawn for each quotation among those that its
document has behind it; the stretch begins so many tokens before, or up to a frame more, so that no fixed offset can be learned
in its place. A stretch is quoted once, and no quotation is quoted: its newest earlier copy is the one that was planted.

A quotation takes the place of the text that stood there, so that documents keep their lengths; the text goes on behind it.
The cue says that a quotation begins, its first tokens (`lead`) which stretch it repeats: those cannot be predicted and are not
scored. The others can be, by whoever remembers the stretch, and by nobody else better than any text.

Short texts are joined, in their order, to documents of at least twice the longest distance. All is a function of the settings,
the split and the number of the document: the quotations are the same for every run, seed and epoch. They are found where they
are read, so that a corpus on disk stays there.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from infini_jax.data.base import Controls, DataConfig, documents_of, tokenizer_of
from infini_jax.data.batch import SPLIT_NUMBER, Rows, Split
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.documents import DocumentRows, Documents, require_something
from infini_jax.data.prepared import Counts
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.errors import require, require_not_negative, require_positive, require_utf8

FIRST_TIME, UNSCORED = 0, -1  # places of text that quotes nothing, and of cues and leads
MOST_SHARE = 0.5  # of a document in quotations: beyond it, too little is left that was not quoted yet


@dataclasses.dataclass(frozen=True)
class EchoConfig(DataConfig):
    """Settings of text that quotes itself. Blank fields of a prepared corpus are taken from it, as `CorpusConfig` does.

    Attributes:
      name: name of the prepared corpus whose text is taken; empty takes the source code of the standard library, as bytes.
      tokenizer: tokenizer of the prepared corpus.
      symbols: number of tokens in the vocabulary of the prepared corpus.
      content: hash of all that the prepared corpus holds.
      distances: numbers of tokens back to what is quoted, ascending; a document has about as many quotations of each.
      span: number of tokens of a quotation, its cue not counted.
      lead: number of its first tokens that are not scored, as they tell what is quoted.
      share: share of a document in quotations, cues included, from where the shortest distance fits on.
      cue: text in front of every quotation; may be empty.
      seed: seed of the quotations.
    """

    title = "text that quotes itself"
    controls = Controls(perfect=0.0, evaluation="echo", by="distance", unit="nats per byte")

    name: str = ""
    tokenizer: str = ""
    symbols: int = 0
    content: str = ""
    distances: tuple[int, ...] = (1024, 4096, 16384, 65536)
    span: int = 64
    lead: int = 16
    share: float = 0.25
    cue: str = "|> "
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        blank = not (self.tokenizer or self.symbols or self.content)
        mend = "give data.name, or leave data.tokenizer, data.symbols and data.content out"
        require(bool(self.name) or blank, "data.name", "it is empty, and a prepared corpus is described", mend)
        for field in ("tokenizer", "symbols", "content") if self.name else ():
            object.__setattr__(self, field, getattr(self.source, field))
        require_positive("data", span=self.span)
        require_not_negative("data", lead=self.lead, seed=self.seed)
        problem = f"{self.lead} tokens leave none of a quotation of {self.span} to be scored"
        require(self.lead < self.span, "data.lead", problem, f"give at most {self.span - 1}")
        is_share = 0 < self.share <= MOST_SHARE
        require(
            is_share, "data.share", f"{self.share} is not a share that can be quoted", f"give above 0, at most {MOST_SHARE}"
        )
        require_utf8("data.cue", self.cue, "give text")
        self._check_distances()

    def _check_distances(self) -> None:
        """Checks that distances ascend and that what is quoted ends before the cue, which has at most one token per byte."""
        require(bool(self.distances), "data.distances", "there is none", "give some, such as 1024 4096")
        ascending = all(a < b for a, b in zip(self.distances, self.distances[1:], strict=False))
        require(ascending, "data.distances", f"{self.distances} do not ascend", "give each once, the shortest first")
        least = self.span + len(self.cue.encode())
        problem = f"{self.distances[0]} tokens back lies the quotation itself"
        require(self.distances[0] >= least, "data.distances", problem, f"give at least {least}, or a shorter data.span")

    @functools.cached_property
    def source(self) -> CorpusConfig | StdlibConfig:
        """Settings of the text that is quoted."""
        return CorpusConfig(self.name, self.tokenizer, self.symbols, self.content) if self.name else StdlibConfig()

    @property
    def vocab(self) -> int:
        return self.source.vocab

    def check(self, tokens: int) -> None:
        self.source.check(tokens)

    def distance(self, tokens: int) -> float:
        """The shortest distance, whatever the length of rows."""
        return float(self.distances[0])

    def open(self, rows: Rows) -> DocumentRows:
        """Rows of whole documents of the split, with their quotations. Raises `ConfigError` as the source does."""
        documents, _ = self.whole(rows.split)
        require_something(documents.lengths, documents.name)
        return DocumentRows(documents, rows)

    def whole(self, split: Split) -> tuple[Documents, Counts]:
        """The documents of a split with their quotations, and counts of which words and bytes are those of the source.

        Their `text` is an `EchoText`. Raises `ConfigError` as the source does, and as its tokenizer does for the cue.
        """
        documents, counts = documents_of(self.source, split)
        text = EchoText(documents, self._layout(), (self.seed, SPLIT_NUMBER[split]))
        as_array: Any = text  # indexed as one
        found = dataclasses.replace(
            documents,
            text=as_array,
            starts=text.starts,
            described=f"{documents.described}, quoted from {', '.join(map(str, self.distances))} tokens back",
            name=f"the echo of {documents.name}",
        )
        longest = int(found.lengths.max())
        return found, dataclasses.replace(counts, documents=len(found.lengths), longest=longest)

    def _layout(self) -> "Layout":
        cue = tokenizer_of(self.source).encode(self.cue) if self.cue else np.zeros(0, np.int64)
        return Layout(tuple(int(token) for token in cue), self.span, self.lead, self.share, self.distances)

    def has(self, split: Split) -> bool:
        """Whether the source has this split. Raises `ConfigError` where it is not here."""
        return self.source.has(split)

    @property
    def tokenizer_name(self) -> str:
        return self.source.tokenizer_name

    def open_tokenizer(self) -> Tokenizer | None:
        return self.source.open_tokenizer()


@dataclasses.dataclass(frozen=True)
class Layout:
    """Form of quotations, in tokens.

    Attributes:
      cue: tokens in front of what is quoted.
      span: number of quoted tokens.
      lead: number of the first ones, which are not scored.
      share: share of a frame that its quotation takes, cue included.
      distances: numbers of tokens back, ascending.
    """

    cue: tuple[int, ...]
    span: int
    lead: int
    share: float
    distances: tuple[int, ...]

    @property
    def block(self) -> int:
        """Tokens of a quotation with its cue."""
        return len(self.cue) + self.span

    @property
    def frame(self) -> int:
        """Tokens of which one quotation is a part."""
        return round(self.block / self.share)


@dataclasses.dataclass(frozen=True)
class Quotations:
    """The quotations of a document, in their order, behind one that no token is in.

    Attributes:
      begins: int64, place of each one's cue in the document.
      back: int64, number of tokens from each quoted token back to its first use.
      distances: int64, the distance that was drawn, of which `back` is at most a frame more.
    """

    begins: np.ndarray
    back: np.ndarray
    distances: np.ndarray


def quotations(length: int, layout: Layout, random: np.random.Generator) -> Quotations:
    """The quotations of a document of `length` tokens, one a frame where some distance has text that was not quoted yet."""
    free_T = np.ones(length, bool)  # text that stands for the first time and was not quoted
    found = [(-layout.block, 0, FIRST_TIME)]
    for first in range(0, length - layout.frame + 1, layout.frame):
        begin = first + int(random.integers(layout.frame - layout.block + 1))
        told = begin + len(layout.cue)
        for distance in random.permutation(layout.distances).tolist():
            source = drawn_source(free_T, told - distance, layout, random)
            if source is not None:
                free_T[begin : begin + layout.block] = free_T[source : source + layout.span] = False
                found.append((begin, told - source, distance))
                break
    return Quotations(*np.array(found, np.int64).T)


def drawn_source(free_T: np.ndarray, newest: int, layout: Layout, random: np.random.Generator) -> int | None:
    """The beginning of a free stretch, at `newest` or less than a frame before; None where there is none."""
    oldest = max(0, newest - layout.frame + 1)
    if newest < oldest:
        return None
    taken_T = np.append(0, np.cumsum(~free_T[oldest : newest + layout.span]))
    starts = np.flatnonzero(taken_T[layout.span :] == taken_T[: -layout.span])
    return oldest + int(starts[random.integers(len(starts))]) if len(starts) else None


class EchoText:
    """The tokens of documents that quote themselves, made where they are read: `text[places]`, as of an array.

    Attributes:
      starts: int64, the place where each document begins, and the end of the last.
      layout: form of the quotations.
      dtype: type of the tokens.
    """

    def __init__(self, documents: Documents, layout: Layout, seeds: tuple[int, ...]):
        self._text, self._seeds, self.layout = documents.text, seeds, layout
        self.starts, self.dtype = joined_starts(documents.starts, 2 * layout.distances[-1]), documents.text.dtype
        self._cue = np.array(layout.cue, self.dtype)
        self.quotations = functools.lru_cache(maxsize=256)(self._quotations)

    def _quotations(self, document: int) -> Quotations:
        """The quotations of a document, by its number."""
        length = int(self.starts[document + 1] - self.starts[document])
        return quotations(length, self.layout, np.random.default_rng([*self._seeds, document]))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, places: Any) -> np.ndarray:
        """The tokens at places of all documents behind one another: a slice, or whole numbers from 0 on."""
        place_N = np.arange(*places.indices(len(self))) if isinstance(places, slice) else np.asarray(places)
        document_N = np.searchsorted(self.starts, place_N, side="right") - 1
        read_N, nth_N = place_N.copy(), np.empty_like(place_N)
        for document in np.unique(document_N).tolist():
            here = document_N == document
            found = self.quotations(document)
            number, nth_N[here] = self._within(found, place_N[here] - self.starts[document])
            read_N[here] -= np.where(nth_N[here] >= len(self._cue), found.back[number], 0)
        tokens_N = np.asarray(self._text[read_N])
        is_cue_N = (nth_N >= 0) & (nth_N < len(self._cue))
        return np.where(is_cue_N, self._cue[nth_N * is_cue_N], tokens_N) if len(self._cue) else tokens_N

    def _within(self, found: Quotations, offset_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the newest quotation, place in it with its cue, -1 behind its end) of each place of a document."""
        number_N = np.searchsorted(found.begins, offset_N, side="right") - 1
        nth_N = offset_N - found.begins[number_N]
        return number_N, np.where(nth_N < self.layout.block, nth_N, -1)

    def places(self, document: int, tokens: int) -> np.ndarray:
        """What stands at the first `tokens` places of a document, int64 T.

        The distance drawn of a quoted token that is scored, `UNSCORED` for the tokens of cues and leads, and `FIRST_TIME`.
        """
        found = self.quotations(document)
        number_T, nth_T = self._within(found, np.arange(tokens))
        is_told_T = nth_T < len(self._cue) + self.layout.lead
        return np.where(nth_T < 0, FIRST_TIME, np.where(is_told_T, UNSCORED, found.distances[number_T]))


def joined_starts(starts: np.ndarray, least: int) -> np.ndarray:
    """The starts of documents that are as many in a row as have `least` tokens; what is left over joins the last one."""
    kept = [0]
    while kept[-1] < starts[-1]:
        end = np.searchsorted(starts, kept[-1] + least)
        kept.append(int(starts[min(end, len(starts) - 1)]))
    if len(kept) > 2 and kept[-1] - kept[-2] < least:
        del kept[-2]
    return np.array(kept, np.int64)
