"""BLiMP: did the memory cost grammar? Minimal pairs of sentences (Warstadt et al. 2020, arXiv 1912.00582).

A pair is right where the sum of the log-probabilities of all tokens of the good sentence is higher than that of the bad one. A
tie is wrong; BLiMP has a few pairs of equal sentences. Nothing is predicted behind the sentence.

Each sentence is a document of its own behind the token that the model has for the beginning of a text, as the paper's have.
DEVIATION: models that were trained here have none. There a sentence begins with a line end, which stands before a sentence in
the texts that models are trained on; with a tokenizer that drops line ends (T5's) it begins with a full stop. The sentence's
first token is conditioned on that and scored.

The accuracy of a phenomenon, and of "all", is that of all its pairs together: where each paradigm has as many pairs, that is
the mean over paradigms. Wilson intervals, which take the pairs to be independent; they say nothing about other paradigms.

Sentences are packed as documents into rows of whole segments, each into one segment where it fits, so that it is read as at
the beginning of a text; what is longer than a segment begins its row and goes on through the memory, as every document does.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import jax
import numpy as np

from infini_jax.config import ModelConfig, RunConfig
from infini_jax.data.base import tokenizer_of
from infini_jax.data.batch import Batch
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.minimal_pairs import GET_SUPPLEMENT, Pair, blimp_pairs, supplement_place
from infini_jax.data.tokenizers import Tokenizer
from infini_jax.devices.chosen_form import RowsAtOnce
from infini_jax.devices.sharding import Layout, on_own_rows, replicated
from infini_jax.devices.side_by_side import Learned, ReadingProgram
from infini_jax.errors import require, require_local, require_one_line, required
from infini_jax.evals.base import ReadingEvaluation, Watch, spread_evenly, unwatched
from infini_jax.evals.reading import nats_of
from infini_jax.model.cost import model_cost
from infini_jax.model.stream import Carry, init_carry, scan_segments
from infini_jax.records.measures import Measure

ALL = "all"
TOKENS_A_CALL = 1 << 13  # enough that calling the program costs nothing beside running it


@dataclasses.dataclass(frozen=True)
class Blimp(ReadingEvaluation):
    """Accuracy on BLiMP's minimal pairs of sentences (Warstadt et al. 2020), by paradigm, by phenomenon and over all pairs.

    Attributes:
      path: zip or folder of the JSONL files, or TFDS's folder; by default their place in the data folder.
      pairs: number of pairs per paradigm, spread evenly; 0 is all.
    """

    name: ClassVar[str] = "blimp"

    path: str = ""
    pairs: int = 0

    def __post_init__(self):
        super().__post_init__()
        require_one_line("blimp.path", self.path)
        require_local("blimp.path", self.path)
        require(self.pairs >= 0, "blimp.pairs", f"{self.pairs} is negative", "give 0 for all of them")

    def applies(self, run: RunConfig) -> bool:
        """Whether the run was trained on a corpus of whole documents with a tokenizer, or is an imported model."""
        has_text = isinstance(run.data, CorpusConfig) or run.data.whole("train") is not None
        return run.data.open_tokenizer() is not None and has_text

    def check(self, run: RunConfig) -> None:
        """Checks the settings: raises `ConfigError` where BLiMP's files are not at `path` or cannot be read."""
        blimp_pairs(self._source())

    def cost(self, run: RunConfig) -> float:
        """Forward FLOPs of all rows of packed sentences, padding included."""
        packed = Packed.of(run.model, encoded(tokenizer_of(run.data), sentences_of(self._chosen())))
        return model_cost(run.model).flops * packed.read_tokens

    def at_once(self, run: RunConfig) -> RowsAtOnce:
        """The rows of packed sentences, of a segment each where no sentence is longer."""
        return RowsAtOnce(max(1, TOKENS_A_CALL // run.model.segment))

    def read(self, run: RunConfig, learned: Learned, watch: Watch = unwatched) -> list[dict[str, float]]:
        """ln p of each sentence with each model."""
        sentences = sentences_of(self._chosen())
        found_AxN = log_probabilities(run.model, learned, encoded(tokenizer_of(run.data), sentences), watch)
        return [dict(zip(sentences, found_N.tolist(), strict=True)) for found_N in found_AxN]

    def figures_of(self, run: RunConfig, found: dict[str, float]) -> list[Measure]:
        """Accuracy of each paradigm, each phenomenon and "all", with Wilson intervals; a tie counts as wrong."""
        pairs, score = self._chosen(), found
        right = {paradigm: [score[pair.good] > score[pair.bad] for pair in group] for paradigm, group in pairs.items()}
        phenomena: dict[str, list[bool]] = {}
        measures = []
        for paradigm, hits in right.items():
            phenomenon = pairs[paradigm][0].phenomenon
            measures.append(accuracy(self.name, hits, paradigm=paradigm, phenomenon=phenomenon))
            phenomena.setdefault(phenomenon, []).extend(hits)
        measures += [accuracy(self.name, hits, phenomenon=phenomenon) for phenomenon, hits in sorted(phenomena.items())]
        return [*measures, accuracy(self.name, [hit for hits in right.values() for hit in hits], phenomenon=ALL)]

    def _source(self) -> str:
        """The path that pairs are read from; "" for their place in the data folder."""
        return self.path

    def _chosen(self) -> dict[str, list[Pair]]:
        """The pairs to score, by paradigm, evenly spread over each paradigm."""
        found = {}
        for paradigm, pairs in blimp_pairs(self._source()).items():
            found[paradigm] = [pairs[number] for number in spread_evenly(len(pairs), self.pairs)]
        return found


@dataclasses.dataclass(frozen=True)
class BlimpSupplement(Blimp):
    """Accuracy on the minimal pairs by which BabyLM supplements BLiMP (Warstadt et al. 2023): dialog, questions, hypernyms.

    Attributes:
      path: folder of the JSONL files; by default supplement_filtered in the data folder, or in its evaluation_data.
      pairs: number of pairs per paradigm, spread evenly; 0 is all.
    """

    name: ClassVar[str] = "blimp_supplement"

    def _source(self) -> str:
        problem = f"{self.path or 'the supplement of BLiMP'} is not here"
        return str(required(supplement_place(self.path), "blimp.path", problem, GET_SUPPLEMENT))


def accuracy(evaluation: str, hits: Sequence[bool], **labels: str) -> Measure:
    """The share of pairs that are right, as a figure with its 95 % Wilson interval; `hits` has one entry per pair."""
    from scipy import stats  # takes a second to load

    found = stats.binomtest(int(sum(hits)), len(hits)).proportion_ci(0.95, "wilson")
    return Measure(evaluation, "accuracy", float(np.mean(hits)), len(hits), float(found.low), float(found.high), dict(labels))


def sentences_of(pairs: dict[str, list[Pair]]) -> list[str]:
    """The distinct sentences of all pairs: many are in several pairs, and equal ones must be scored equally."""
    return list(dict.fromkeys(sentence for group in pairs.values() for pair in group for sentence in (pair.good, pair.bad)))


def context_of(tokenizer: Tokenizer) -> np.ndarray:
    """The token in front of a text whose first token is scored, int32 1.

    That is the one for the beginning of a text; else a line end, or a full stop for tokenizers without line ends.
    """
    if tokenizer.begin is not None:
        return np.array([tokenizer.begin], np.int32)
    line_end = np.asarray(tokenizer.encode("\n"), np.int32)
    return (line_end if len(line_end) else np.asarray(tokenizer.encode("."), np.int32))[-1:]


def encoded(tokenizer: Tokenizer, sentences: Iterable[str]) -> list[np.ndarray]:
    """Token ids of each sentence behind one token of context."""
    before = context_of(tokenizer)
    return [np.concatenate([before, np.asarray(tokenizer.encode(sentence), np.int32)]) for sentence in sentences]


@dataclasses.dataclass(frozen=True)
class Packed:
    """Sentences as documents in rows of whole segments.

    Attributes:
      sentences: token ids of each of N sentences, the token of context first.
      rows: N, the row of each sentence.
      starts: N, the place of each sentence's first token in its row.
      length: tokens per row, a multiple of the segment.
      calls: calls of the scoring program.
      rows_a_call: rows read in each call.
    """

    sentences: list[np.ndarray]
    rows: np.ndarray
    starts: np.ndarray
    length: int
    calls: int
    rows_a_call: int

    @staticmethod
    def of(model: ModelConfig, sentences: list[np.ndarray]) -> "Packed":
        """Packs sentences, the longest first, each behind the one before it where it fits.

        Each begins a landmark block where the model has landmarks, so that these stand at the same places in every sentence,
        and a segment where memory tokens stand before each, so that every sentence sees them.
        """
        reads = np.array([len(sentence) - 1 for sentence in sentences])  # its last token is only predicted
        size, (before, _) = model.segment, model.memory.memory_tokens
        every = size if before else model.memory.landmark_every or 1
        length = -(-int(reads.max()) // size) * size
        rows, starts, row, free = np.zeros(len(reads), np.int64), np.zeros(len(reads), np.int64), 0, 0
        for number in np.argsort(-reads, kind="stable"):
            count = int(reads[number])
            while free and (count > size or free % size + count > size or free + count > length):
                free = align((free // size + 1) * size, every)
                if free + count > length:
                    row, free = row + 1, 0
            rows[number], starts[number], free = row, free, align(free + count, every)
        devices = jax.device_count()
        a_call = align(min(row + 1, max(1, TOKENS_A_CALL // length)), devices)
        return Packed(sentences, rows, starts, length, -(-(row + 1) // a_call), a_call)

    @property
    def read_tokens(self) -> int:
        """Tokens that pass through the model, padding included."""
        return self.calls * self.rows_a_call * self.length

    def batches(self) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
        """The rows of each call: (batch, numbers of its sentences, RxT: which of these sentences each place belongs to).

        Padding belongs to the sentence before it and has no weight.
        """
        order = np.argsort(self.rows * self.length + self.starts)
        edges = np.searchsorted(self.rows[order], np.arange(self.calls + 1) * self.rows_a_call)
        for call in range(self.calls):
            numbers = order[edges[call] : edges[call + 1]]
            shape = (self.rows_a_call, self.length)
            tokens, targets, documents = (np.zeros(shape, np.int32) for _ in range(3))
            weights = np.zeros(shape, np.float32)
            for local, number in enumerate(numbers):
                sentence, row, start = self.sentences[number], self.rows[number] % self.rows_a_call, self.starts[number]
                here = (row, slice(start, start + len(sentence) - 1))
                tokens[here], targets[here], weights[here] = sentence[:-1], sentence[1:], 1.0
                documents[row, start:] = local
            yield Batch(tokens, targets, weights, documents), numbers, documents


def align(place: int, every: int) -> int:
    """The smallest multiple of `every` that is not below `place`."""
    return -(-place // every) * every


@functools.partial(ReadingProgram, settings=1)
def weighted_nats(model: ModelConfig, layout: Layout | None, params: dict, rows: Batch) -> jax.Array:
    """weight * -ln p(target) at every place of rows that begin with an empty memory: RxT, on every device."""

    def read(carry: Carry, rows: Batch, params: dict) -> tuple[jax.Array, Carry]:
        def score(logits_RxSxV: jax.Array, part: Batch) -> jax.Array:
            return part.weights * nats_of(logits_RxSxV, part.targets)

        carry, nats_WxRxS, _ = scan_segments(model, params, carry, rows, score)
        return nats_WxRxS.swapaxes(0, 1).reshape(rows.tokens.shape), carry

    fresh = init_carry(model, rows.tokens.shape[0])
    nats_RxT, _ = on_own_rows(read, model, layout)(fresh, rows, params)
    return nats_RxT if layout is None else jax.lax.with_sharding_constraint(nats_RxT, replicated(layout.mesh))


def log_probabilities(
    model: ModelConfig, learned: Learned, sentences: list[np.ndarray], watch: Watch = unwatched
) -> np.ndarray:
    """ln p of each of N sentences with each of A models, summed over the tokens behind its first one: AxN, float64.

    One program scores all sentences.
    """
    packed = Packed.of(model, sentences)
    places, found_AxN = learned.places(model, packed.rows_a_call), np.zeros((learned.asked, len(sentences)))
    for call, (rows, numbers, local_RxT) in enumerate(packed.batches(), 1):
        nats = places.call(weighted_nats, (model,), (), (Batch(*map(places.put, rows)),))
        for found_N, nats_RxT in zip(found_AxN, places.on_host(nats).astype(float), strict=True):
            found_N[numbers] = -np.bincount(local_RxT.ravel(), nats_RxT.ravel(), minlength=len(numbers))
        watch(call * packed.rows_a_call * packed.length, packed.read_tokens)
    return found_AxN
