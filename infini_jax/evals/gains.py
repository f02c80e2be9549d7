"""Gains of tokens from memory: the loss under a control minus the loss with the memory carried, by class of word.

Held-out documents are read once; the controls read in the same pass (`infini_jax.evals.perplexity`): an empty memory, and the
memory of another document of the same age. Classes are of words and other units of text (`infini_jax.evals.words`), whatever
the tokenizer: the loss of a unit is the sum over its tokens, so that bytes and SentencePiece are compared on the same words.
The first and the last unit of what is read of a document are left out, for they may be cut.

  kind     as in `infini_jax.evals.words`. Beside them, and overlapping with them, "copy > 512" and "copy > 8192": units that
           the copier of `infini_jax.data.repeats` gets right from more than 512 or 8192 tokens back, white space passed over.
  rarity   uses of a word or number per million, counted in the training split: "none", "<= 1", "<= 10" ... "> 10000".
  gap      tokens of the run from the last use of the same word or number to this one: "<= segment", "<= 512", "<= 8192",
           "> 8192", "never before" in the document. Upper and lower case are the same.

Intervals are bootstrapped over documents (percentiles of the ratio of sums), as tokens of one document are not independent.
With few documents they are too narrow rather than too wide; a class that only one document has gets none.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from infini_jax.config import RunConfig
from infini_jax.config.evaluation import CARRIED, CONDITIONS, EvaluationConfig
from infini_jax.data.base import DataConfig, documents_of, tokenizer_of
from infini_jax.data.batch import Split
from infini_jax.data.repeats import NOWHERE, copy_sources, previous_use
from infini_jax.devices.chosen_form import RowsAtOnce, documents_at_once
from infini_jax.devices.side_by_side import Learned
from infini_jax.errors import require
from infini_jax.evals.base import ReadingEvaluation, Watch, unwatched
from infini_jax.evals.perplexity import Reader, chosen_documents
from infini_jax.evals.words import LEXICAL, UNIT_KINDS, Units, count_words, unit_of_tokens
from infini_jax.model.cost import model_cost
from infini_jax.records.measures import Label, Measure

GAPS = (512, 8192)
DECADES = (0, 1, 10, 100, 1000, 10_000)  # uses per million
PIECES = 256  # of the training split, in which words are counted
SEED = 0  # of the bootstrap

Class = tuple[str, str]  # (by, class)


@dataclasses.dataclass(frozen=True)
class Gains(ReadingEvaluation):
    """Gain from memory by class of word: the loss under each control minus the loss with the memory carried.

    Attributes:
      split: split whose documents are read.
      documents: number of documents, spread evenly over the split; 0 is all.
      tokens: number of tokens per document, from its first on; 0 is all.
      rows: number of documents that are read side by side.
      counted: number of tokens of the training split in which words are counted, spread evenly over its documents.
      draws: number of draws of the bootstrap.
    """

    name: ClassVar[str] = "gains"

    split: Split = "validation"
    documents: int = 0
    tokens: int = 65_536
    rows: int = 8
    counted: int = 8 << 20
    draws: int = 1000

    def __post_init__(self):
        super().__post_init__()
        self.reading  # noqa: B018  refuses what cannot be read
        require(self.counted >= PIECES, "gains.counted", f"{self.counted} tokens are too few", f"give at least {PIECES}")
        require(self.draws >= 1, "gains.draws", f"{self.draws} draws give no interval", "give at least 1, such as 1000")

    @property
    def reading(self) -> EvaluationConfig:
        """These settings as settings of the reader, with all conditions of the memory."""
        return EvaluationConfig(self.documents, self.tokens, self.rows, CONDITIONS)

    def applies(self, run: RunConfig) -> bool:
        """Whether the run was trained on all tokens of a corpus of whole documents with a tokenizer."""
        whole = run.data.whole("train") if run.data.open_tokenizer() is not None else None
        return whole is not None and whole[0].targets is None

    def check(self, run: RunConfig) -> None:
        """Checks the settings: raises `ConfigError` where the split has no document of two tokens."""
        self._reader(run)

    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of reading the documents once under each condition."""
        reader = self._reader(run)
        return model_cost(run.model).flops * reader.read_tokens * len(reader.conditions)

    def at_once(self, run: RunConfig) -> RowsAtOnce:
        """The documents that are read side by side, with a memory for each condition."""
        return documents_at_once(self.reading)

    def read(self, run: RunConfig, learned: Learned, watch: Watch = unwatched) -> list[dict[str, "Tally"]]:
        """The gains of the documents' classes of words with each model, by control."""
        reader, tokenizer = self._reader(run), tokenizer_of(run.data)
        documents = documents_of(run.data, self.split)[0]
        uses, total = training_words(run.data, self.counted)
        controls = [name for name in reader.conditions if name != CARRIED]
        found = [{control: Tally(self.draws) for control in controls} for _ in range(learned.asked)]
        for number, nats_AxCxT in reader.token_nats_each(learned, lambda done: watch(done, reader.tokens)):
            start = documents.starts[number]
            tokens_T = documents.text[start : start + nats_AxCxT.shape[2] + 1]
            _, units, unit_T = unit_of_tokens(tokens_T.tolist(), tokenizer)
            of_units = Classes(units, unit_T, run.model.segment).all(uses, total)
            for tallies, nats_CxT in zip(found, nats_AxCxT.astype(float), strict=True):
                nats: dict[str, np.ndarray] = dict(zip(reader.conditions, nats_CxT, strict=True))
                for control, tally in tallies.items():
                    tally.add(nats[control] - nats[CARRIED], unit_T[1:], of_units)
        return found

    def figures_of(self, run: RunConfig, found: dict[str, "Tally"]) -> list[Measure]:
        """The mean gain of each class and the share of tokens with half of the total gain, under each control.

        Gains are in nats per unit of text.
        """
        return [one for control, tally in found.items() for one in tally.measures(control)]

    def _reader(self, run: RunConfig) -> Reader:
        documents, counts = documents_of(run.data, self.split)
        return Reader(run.model, documents, counts, self.reading)


@functools.lru_cache(maxsize=2)
def training_words(data: DataConfig, counted: int) -> tuple[collections.Counter[str], int]:
    """(uses of each word, uses of all words) in about `counted` tokens of the training split."""
    documents, tokenizer = documents_of(data, "train")[0], tokenizer_of(data)
    numbers = chosen_documents(documents.lengths, PIECES, documents.name)
    starts, ends = documents.starts[numbers], documents.starts[numbers + 1]
    ends = np.minimum(ends, starts + counted // len(numbers))
    uses = count_words(tokenizer.decode(documents.text[a:b]) for a, b in zip(starts, ends, strict=True))
    return uses, uses.total()


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of one document's units.

    Attributes:
      units: N units of text.
      unit_of_token: T, the unit of each token.
      segment: tokens per segment of the model.
    """

    units: Units
    unit_of_token: np.ndarray
    segment: int

    def all(self, uses: collections.Counter[str], total: int) -> dict[Class, np.ndarray]:
        """The numbers of each class's units. The document's first and last unit are in no class.

        Args:
          uses: uses of each word in the training split.
          total: uses of all words there.
        """
        inner = np.zeros(len(self.units.spelt), bool)
        inner[1:-1] = np.bincount(self.unit_of_token, minlength=len(inner))[1:-1] > 0
        found = {**self._kinds(), **self._rarity(uses, total), **self._gaps(), **self._copies()}
        return {name: np.flatnonzero(is_N & inner) for name, is_N in found.items()}

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """The first token of each unit, N."""
        return np.searchsorted(self.unit_of_token, np.arange(len(self.units.spelt)))

    @functools.cached_property
    def _symbols(self) -> np.ndarray:
        """A number for each unit's spelling, equal for equal spellings, N."""
        return np.unique(np.array(self.units.spelt, object), return_inverse=True)[1]

    def _kinds(self) -> dict[Class, np.ndarray]:
        """For each kind, whether each unit is of it, N."""
        return {("kind", kind): self.units.are(kind) for kind in UNIT_KINDS}

    def _rarity(self, uses: collections.Counter[str], total: int) -> dict[Class, np.ndarray]:
        """For each range of uses per million in the training split, whether each unit lies in it, N."""
        per_million_N = np.array([uses[word] for word in self.units.spelt]) * (1e6 / max(total, 1))
        return self._binned("rarity", per_million_N, DECADES, ("none", *(f"<= {most}" for most in DECADES[1:])), np.True_)

    def _gaps(self) -> dict[Class, np.ndarray]:
        """For each range of tokens since the last use of the same word, whether each unit lies in it, N."""
        before_N = previous_use(self._symbols)
        gap_N = self._places - self._places[before_N]
        edges = (self.segment, *(gap for gap in GAPS if gap > self.segment))
        names = ("<= segment", *(f"<= {gap}" for gap in edges[1:]))
        found = self._binned("gap", gap_N, edges, names, before_N != NOWHERE)
        return {**found, ("gap", "never before"): self.units.are(*LEXICAL) & (before_N == NOWHERE)}

    def _binned(self, by: str, value_N: np.ndarray, edges: tuple, names: tuple, is_there_N) -> dict[Class, np.ndarray]:
        """For each range of a value, whether each unit is a word in it, N.

        A word is in the first range whose edge is not below its value.
        """
        last = f"> {edges[-1]}" if len(edges) > 1 else names[-1].replace("<=", ">")
        bin_N, is_word_N = np.searchsorted(edges, value_N), self.units.are(*LEXICAL) & is_there_N
        return {(by, name): is_word_N & (bin_N == number) for number, name in enumerate((*names, last))}

    def _copies(self) -> dict[Class, np.ndarray]:
        """For each distance, whether the copier that passes over white space gets each unit right from further back, N."""
        solid = np.flatnonzero(~self.units.are("space"))
        source = copy_sources(self._symbols[solid])
        gap = np.where(source == NOWHERE, 0, self._places[solid] - self._places[solid[source]])
        gap_N = np.zeros(len(self.units.spelt), np.int64)
        gap_N[solid] = gap
        return {("kind", f"copy > {least}"): gap_N > least for least in GAPS}


class Tally:
    """Gains under one control: sums by class and document, and the gain of every token."""

    def __init__(self, draws: int):
        self._sums: dict[Class, dict[int, tuple[float, int]]] = {}
        self._tokens: list[np.ndarray] = []
        self._draws = draws

    def add(self, gain_T: np.ndarray, unit_T: np.ndarray, classes: dict[Class, np.ndarray]) -> None:
        """Adds the gains of one document.

        Args:
          gain_T: gain of each scored token, in nats.
          unit_T: the unit that each scored token is a part of.
          classes: numbers of each class's units.
        """
        gain_N, number = np.bincount(unit_T, gain_T), len(self._tokens)
        for name, units in classes.items():
            self._sums.setdefault(name, {})[number] = (float(gain_N[units].sum()), len(units))
        self._tokens.append(gain_T)

    def measures(self, control: str) -> list[Measure]:
        """Nats per unit of every class that has one, and the share of tokens that makes up half of the total gain."""
        weights = resampled(len(self._tokens), self._draws)
        return [*self._gains(control, weights), *self._share(control, weights)]

    def _gains(self, control: str, weights_NxD: np.ndarray) -> Iterator[Measure]:
        """The mean gain of each class with its bootstrap interval, in nats per unit."""
        for (by, name), sums in self._sums.items():
            gain_D, count_D = (np.array(column) for column in zip(*sums.values(), strict=True))
            if not count_D.sum():
                continue
            drawn_N, counts_N = weights_NxD @ gain_D, weights_NxD @ count_D
            is_drawn_N = (counts_N > 0) & ((count_D > 0).sum() > 1)
            low, high = interval(drawn_N[is_drawn_N] / counts_N[is_drawn_N])
            labels: dict[str, Label] = {"control": control, "by": by, "class": name}
            yield Measure("gains", "gain", float(gain_D.sum() / count_D.sum()), int(count_D.sum()), low, high, labels)

    def _share(self, control: str, weights_NxD: np.ndarray) -> Iterator[Measure]:
        """The share of tokens that makes up half of the total gain, with its interval; nothing without a positive total."""
        gain_T = np.concatenate(self._tokens)
        document_T = np.repeat(np.arange(len(self._tokens)), [len(part) for part in self._tokens])
        order_T = np.argsort(-gain_T, kind="stable")
        gain_T, document_T = gain_T[order_T], document_T[order_T]
        share = half_share(gain_T, np.ones(len(gain_T)))
        if np.isfinite(share):
            drawn_N = np.array([half_share(gain_T, weights_D[document_T]) for weights_D in weights_NxD])
            low, high = interval(drawn_N[np.isfinite(drawn_N)])
            yield Measure("gains", "gain_share", share, len(gain_T), low, high, {"control": control})


def half_share(gain_T: np.ndarray, weight_T: np.ndarray) -> float:
    """The least share of tokens, most gained first, that makes up half of the total gain.

    NaN where the total is not above zero. `gain_T` falls; a token weighs as often as its document was drawn. Losses of other
    tokens count in the total.
    """
    gained_T = np.cumsum(gain_T * weight_T)
    if not len(gained_T) or gained_T[-1] <= 0:
        return float("nan")
    last = int(np.argmax(gained_T >= gained_T[-1] / 2))
    return float(weight_T[: last + 1].sum() / weight_T.sum())


def resampled(documents: int, draws: int) -> np.ndarray:
    """The number of times that each of D documents is in each of N draws with replacement: NxD, 0xD for a single document."""
    random = np.random.default_rng(SEED)
    if documents < 2:
        return np.zeros((0, documents))
    return random.multinomial(documents, np.full(documents, 1 / documents), draws).astype(float)


def interval(drawn_N: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of N draws; (NaN, NaN) where there are none."""
    if not len(drawn_N):
        return float("nan"), float("nan")
    low, high = np.percentile(drawn_N, [2.5, 97.5])
    return float(low), float(high)
