"""Preparation of a corpus: texts -> TFDS data set -> tokens on disk, in parallel processes.

The tokenizer is trained on a sample of the training split. The result does not depend on the number of processes.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infini_jax.data.batch import Split
from infini_jax.data.corpora import BuiltIn, lookup_corpus, own_texts
from infini_jax.data.decoding import Errors
from infini_jax.data.long_documents import AT_ONCE, ExamplePlaces, encoded_text, parts_of_lines
from infini_jax.data.prepared import (
    FORMAT,
    MANIFEST_FILE,
    MODEL_FILE,
    SNAPSHOTS,
    Counts,
    Manifest,
    Prepared,
    only_preparer,
    prepared_folder,
)
from infini_jax.data.snapshots import Snapshot, built_in_snapshot, load_tfds, own_snapshot
from infini_jax.data.texts import Lists
from infini_jax.data.tokenizers import Algorithm, SentencePiece, Tokenizer, TokenizerKind, load_tokenizer, train_sentencepiece
from infini_jax.errors import ConfigError, check_fields, require, require_positive
from infini_jax.files import data_folder

SAMPLE_BYTES = 16 << 20  # of training text for a tokenizer
SAMPLE_PARTS = 64  # at least so many documents share it
TASKS, LARGEST_TASK = 256, 1024  # parts of a split that processes work on, and documents of one at most
PACKAGES = {"sentencepiece": "sentencepiece", "json": "tokenizers"}  # by kind of tokenizer

WatchPreparing = Callable[[str, int, int], None]  # (what is done, so many, of so many)
Work = Callable[[ExamplePlaces], "SplitPart"]


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """Settings of the tokenizer.

    Attributes:
      tokenizer: bytes, SentencePiece, or a tokenizer.json.
      vocab: number of tokens of a SentencePiece model that is trained.
      algorithm: algorithm by which a SentencePiece model is trained.
      model: an existing SentencePiece model instead of training one; the tokenizer.json.
    """

    tokenizer: TokenizerKind = "bytes"
    vocab: int = 8192
    algorithm: Algorithm = "bpe"
    model: Path | None = None

    def __post_init__(self):
        check_fields("", self)
        require(self.vocab >= 1, "vocab", f"{self.vocab} tokens are none", "give at least 1, such as 8192")
        is_given = self.tokenizer != "json" or self.model is not None
        require(is_given, "model", "a tokenizer.json is not trained here", "name the file with --model")

    @property
    def label(self) -> str:
        """Short name of the tokenizer, part of the prepared corpus's name."""
        if self.tokenizer == "bytes":
            return "bytes"
        return self.model.stem if self.model else f"{self.algorithm}{self.vocab}"

    def described(self) -> str:
        """Description that is equal for settings that make the same tokenizer from the same texts."""
        if self.tokenizer == "bytes":
            return "bytes"
        if self.model:
            made = load_tokenizer(self.model)
            return made.name if made.begin is None else f"{made.name}, texts behind token {made.begin}"
        return f"sentencepiece {self.algorithm} {self.vocab}, sample of {SAMPLE_BYTES} bytes"

    def make(self, snapshot: Snapshot) -> Tokenizer:
        """The tokenizer, trained on the training split if it is to be. Raises `ConfigError` where that is not possible."""
        if self.tokenizer == "bytes" or self.model:
            return load_tokenizer(self.model)
        return SentencePiece(train_sentencepiece(sample_texts(snapshot), self.vocab, self.algorithm))


def sample_texts(snapshot: Snapshot) -> Iterator[str]:
    """About `SAMPLE_BYTES` characters of the training split: documents in a fixed random order, a piece of each."""
    examples, left, random = snapshot.documents("train"), SAMPLE_BYTES, np.random.default_rng(0)
    for number in random.permutation(len(examples)):
        text = snapshot.text(examples[int(number)])
        start = int(random.integers(max(1, len(text) - SAMPLE_BYTES // SAMPLE_PARTS + 1)))
        part = text[start : start + SAMPLE_BYTES // SAMPLE_PARTS]
        yield part
        left -= len(part)
        if left <= 0:
            return


class SplitPart(NamedTuple):
    """Some documents of a split as tokens.

    Attributes:
      tokens: tokens of all documents behind one another.
      lengths: tokens of each document that is not empty.
      continues: whether the first length belongs to the last document of the part before.
      empty: number of documents without text.
      words: number of parts between white space.
      bytes: size of the text in UTF-8.
    """

    tokens: np.ndarray
    lengths: list[int]
    continues: bool
    empty: int
    words: int
    bytes: int


@functools.cache
def _tokenizer(model: bytes | None) -> Tokenizer:
    return load_tokenizer(model)


@functools.cache
def _examples(snapshot: Snapshot, split: Split) -> Sequence[dict]:
    return snapshot.documents(split)


def tokenise(snapshot: Snapshot, model: bytes | None, dtype: str, split: Split, places: ExamplePlaces) -> SplitPart:
    """Tokens of the documents at these places of a split; runs in a process of its own.

    Raises `ConfigError` for a damaged data set.
    """
    tokenizer, parts, lengths, empty, words, size = _tokenizer(model), [], [], 0, 0, 0
    examples = _examples(snapshot, split)
    for number, continues, may_be_blank in zip(*places[:3], strict=True):
        try:
            text = snapshot.text(examples[int(number)])
        except Exception as error:  # array_record raises whatever its checksums find
            raise snapshot.damaged(error) from error
        found = [part.astype(dtype) for part in encoded_text(tokenizer, text, not continues)]
        tokens = sum(map(len, found))
        if may_be_blank and not (tokens and text.strip()):
            empty += 1
            continue
        if continues and lengths:
            lengths[-1] += tokens
        else:
            lengths.append(tokens)
        parts += found
        words += sum(len(lines.split()) for lines in parts_of_lines(text, AT_ONCE))
        size += sum(len(lines.encode()) for lines in parts_of_lines(text, AT_ONCE))
    joined = np.concatenate(parts) if parts else np.zeros(0, dtype)
    return SplitPart(joined, lengths, bool(places.continues[:1].any()), empty, words, size)


def prepare(
    corpus: str,
    settings: TokenizerSettings,
    name: str = "",
    path: Path | None = None,
    errors: Errors | None = None,
    lists: Lists = (),
    jobs: int = 0,
    column: str = "",
    watch: WatchPreparing = lambda what, done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Prepared, bool]:
    """Prepares a corpus unless that is done: (the prepared corpus, whether there was anything to do).

    Args:
      corpus: a name in CORPORA.
      settings: settings of the tokenizer.
      name: name of the prepared corpus; by default that of the corpus (of the path for a folder) and of the tokenizer.
      path: path of the texts, where they are not where a package installs them.
      errors: treatment of bytes that are no UTF-8.
      lists: files that list the held-out documents.
      jobs: number of processes; 0 is one per core.
      column: with the text, where documents are rows of files.
      watch: called with the work at hand, its parts done and their number.
      tell: called with a line for the user.

    Raises:
      ConfigError: the corpus is not here, a file cannot be read, the name is taken by something else or is being prepared.
    """
    kind = lookup_corpus(corpus)
    load_packages(corpus, settings)
    require(
        settings.model is None or settings.tokenizer != "bytes",
        "model",
        "is for SentencePiece, or a tokenizer.json",
        "add --tokenizer sentencepiece, or --tokenizer json",
    )
    folder = prepared_folder(name or default_name(corpus, path, settings))
    folder.parent.mkdir(parents=True, exist_ok=True)
    snapshots = data_folder() / SNAPSHOTS
    with only_preparer(folder):
        watch("reading the texts", 0, 0)
        if isinstance(kind, BuiltIn):
            require(not lists, "splits", f"{corpus} has splits of its own", "leave the lists out")
            require(not column, "column", f"{corpus} has its own", "leave it out")
            snapshot = built_in_snapshot(corpus, snapshots, path, lambda what: watch(what, 0, 0))
            source = snapshot.digest
        else:
            texts = own_texts(corpus, path, errors, lists, column)
            source = texts.digest()
            tell_left_out(texts.left_out(), tell)
        done = finished(folder, corpus, source, settings.described())
        if done:
            return done, False
        if not isinstance(kind, BuiltIn):
            for line in texts.checked():
                tell(line)
            snapshot = own_snapshot(corpus, texts, snapshots, lambda what: watch(what, 0, 0))
        watch("learning the tokenizer", 0, 0)
        tokenizer = settings.make(snapshot)
        write_prepared(folder, corpus, snapshot, settings.described(), tokenizer, jobs or cores(), watch)
        return Prepared.read(folder), True


def load_packages(corpus: str, settings: TokenizerSettings) -> None:
    """Imports all that preparing a corpus needs, before threads begin, see `load_tfds`.

    Raises `ConfigError` for a package that is missing and a corpus that nobody knows.
    """
    kind = lookup_corpus(corpus)
    own = [PACKAGES[settings.tokenizer]] if settings.tokenizer in PACKAGES else []
    for module in ("tensorflow_datasets", "array_record", "importlib_resources", *own):
        here = importlib.util.find_spec(module) is not None
        require(here, "corpus", f"{module} is not installed and preparing needs it", f"pip install {module.replace('_', '-')}")
    for module in own:
        importlib.import_module(module)
    load_tfds()
    if isinstance(kind, BuiltIn):
        with contextlib.suppress(Exception):  # who downloads it imports it again, and says what is wrong
            importlib.import_module(kind.module)


def tell_left_out(names: list[str], tell: Callable[[str], None]) -> None:
    """Tells in one line what was left out, where anything was."""
    if names:
        more = ", ..." if len(names) > 3 else ""
        tell(f"left out as hidden, junk or missing: {len(names)} ({', '.join(map(ascii, names[:3]))}{more})")


def default_name(corpus: str, path: Path | None, settings: TokenizerSettings) -> str:
    """Name of a prepared corpus: the corpus (for a folder of texts its own name) and the tokenizer's label."""
    title = path.resolve().name.split(".")[0] if path and corpus == "text_folder" else corpus
    return f"{title}-{settings.label}"


def finished(folder: Path, corpus: str, source: str, settings: str) -> Prepared | None:
    """The prepared corpus in `folder` if it is whole and made of these very texts, else None.

    Raises `ConfigError` where another corpus or tokenizer has taken the name.
    """
    try:
        prepared = Prepared.read(folder)
    except ConfigError:
        return None
    manifest = prepared.manifest
    require(
        (manifest.corpus, manifest.settings) == (corpus, settings),
        "name",
        f"'{folder.name}' is {manifest.corpus} with {manifest.settings}, not {corpus} with {settings}",
        "give another --name",
    )
    return prepared if manifest.source == source else None


def write_prepared(
    folder: Path, corpus: str, snapshot: Snapshot, settings: str, tokenizer: Tokenizer, jobs: int, watch: WatchPreparing
) -> None:
    """Writes a prepared corpus beside `folder` and renames it: a reader sees the old one or the whole new one."""
    require_positive("corpus", jobs=jobs)
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        write_whole(partial, corpus, snapshot, settings, tokenizer, jobs, watch)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # a disk that is full must not stay so
        raise
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_whole(
    partial: Path, corpus: str, snapshot: Snapshot, settings: str, tokenizer: Tokenizer, jobs: int, watch: WatchPreparing
) -> None:
    """Writes all files of a prepared corpus into a new folder."""
    partial.mkdir()
    model = tokenizer.model
    if model:
        (partial / MODEL_FILE).write_bytes(model)
    blank = Manifest(corpus, snapshot.digest, tokenizer.name, settings, tokenizer.vocab, {}, FORMAT)
    splits = {}
    with workers(jobs) as run:
        for split, _ in snapshot.splits:
            places = snapshot.places(split)
            work = functools.partial(tokenise, snapshot, model, blank.dtype.str, split)
            counts = write_split(partial, split, run(work, places, chunks(len(places.numbers))), watch, places.blank)
            if counts.documents:
                splits[split] = dataclasses.replace(counts, words=dict(snapshot.words).get(split, counts.words))
    require(
        "train" in splits, "corpus", f"{corpus} has no text to train on", "give a corpus with at least one non-empty document"
    )
    with (partial / MANIFEST_FILE).open("w") as file:
        file.write(dataclasses.replace(blank, splits=splits).to_json())
        file.flush()
        os.fsync(file.fileno())


def write_split(
    folder: Path, split: Split, parts: Iterator[tuple[range, int, SplitPart]], watch: WatchPreparing, empty: int = 0
) -> Counts:
    """Appends the parts of a split in order to its files on disk and returns its counts.

    Args:
      folder: folder of the prepared corpus.
      split: split of the parts.
      parts: (numbers of the documents, documents in all, their tokens) each.
      watch: called after each part.
      empty: number of empty documents that are in none of the parts.
    """
    hashes = hashlib.sha256(), hashlib.sha256()
    lengths, words, size = [], 0, 0
    with (folder / f"{split}.tokens").open("wb") as file:
        for numbers, total, part in parts:
            raw = part.tokens.tobytes()
            file.write(raw)
            hashes[0].update(raw)
            new = np.array(part.lengths, np.int64)
            if part.continues:
                lengths[-1][-1] += new[0]
                new = new[1:]
            if len(new):
                lengths.append(new)
            empty, words, size = empty + part.empty, words + part.words, size + part.bytes
            watch(f"tokenizing the {split} split", numbers.stop, total)
        file.flush()
        os.fsync(file.fileno())
    lengths = np.concatenate([np.zeros(0, np.int64), *lengths])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8").tobytes()
    hashes[1].update(starts)
    with (folder / f"{split}.starts").open("wb") as file:
        file.write(starts)
        file.flush()
        os.fsync(file.fileno())
    sha256 = [digest.hexdigest() for digest in hashes]
    return Counts(len(lengths), empty, int(lengths.sum()), words, size, int(lengths.max(initial=0)), *sha256)


def chunks(documents: int) -> list[range]:
    """Ranges of neighboring documents, enough of them for an even load and a progress bar that moves."""
    step = min(LARGEST_TASK, max(1, -(-documents // TASKS)))
    return [range(start, min(start + step, documents)) for start in range(0, documents, step)]


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[Callable]:
    """A context with `jobs` processes: run(work, places, chunks) iterates over (numbers, documents, result) in order.

    At most two parts per process are read ahead.
    """
    if jobs == 1:
        yield lambda work, places, parts: ((part, parts[-1].stop, work(places.part(part))) for part in parts)
        return
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:

        def run(work: Work, places: ExamplePlaces, parts: list[range]) -> Iterator[tuple[range, int, SplitPart]]:
            waiting: list[concurrent.futures.Future] = []
            for number, part in enumerate(parts):
                while len(waiting) < 2 * jobs and number + len(waiting) < len(parts):
                    waiting.append(pool.submit(work, places.part(parts[number + len(waiting)])))
                yield part, parts[-1].stop, waiting.pop(0).result()

        try:
            yield run
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
