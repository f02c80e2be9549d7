"""`infini-jax corpus`: lists, prepares and removes corpora."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from infini_jax.cli.output import AsJson, print_json, terminal
from infini_jax.cli.progress import corpus_progress
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.batch import Split
from infini_jax.data.corpora import CORPORA
from infini_jax.data.decoding import Errors
from infini_jax.data.prepare import TokenizerSettings, WatchPreparing, prepare
from infini_jax.data.prepared import Prepared, prepared_folders
from infini_jax.data.removal import bytes_on_disk, removable, remove
from infini_jax.data.texts import Lists
from infini_jax.data.tokenizers import Algorithm, TokenizerKind
from infini_jax.errors import ConfigError, require
from infini_jax.files import data_folder
from infini_jax.units import human_bytes

FEW = EvaluationConfig.documents  # of a split: as many are read by default


@dataclasses.dataclass(frozen=True)
class PrepareCorpus:
    """Tokenize a corpus into $INFINI_JAX_DATA or the user's cache, unless that is done. Example:
    `infini-jax corpus prepare text_folder --path books --tokenizer sentencepiece --vocab 8192`

    Attributes:
      corpus: name of a corpus, see `infini-jax corpus list`.
      path: folder, zip or tar with the texts, unless a package installs them. text_folder also takes one large file, which is
        split by share and cut into rows, as enwik8 is.
      column: text column, if the documents are rows of .jsonl, .jsonl.gz, .parquet or .arrow files (a folder of
        datasets.save_to_disk). Otherwise .txt, .md, .txt.gz and .md.gz files are read, one document per file.
      tokenizer: bytes, sentencepiece, or json: the tokenizer.json of a pretrained model, given by --model.
      vocab: vocabulary size of a new SentencePiece model.
      algorithm: algorithm of a new SentencePiece model.
      model: existing SentencePiece model, instead of training one, or a tokenizer.json.
      name: name of the prepared corpus. Default: that of the corpus (of the path for text_folder) and of the tokenizer.
      errors: how to treat invalid UTF-8: stop, replace it by U+FFFD, or read the file as Latin-1. Default: the corpus's own.
      validation: file that lists the validation documents, one name per line.
      test: file that lists the test documents. Without lists, folders called train, validation and test are the splits.
      jobs: number of processes; 0 is one per core.
    """

    corpus: Annotated[str, tyro.conf.Positional]
    path: Path | None = None
    column: str = ""
    tokenizer: TokenizerKind = "bytes"
    vocab: int = 8192
    algorithm: Algorithm = "bpe"
    model: Path | None = None
    name: str = ""
    errors: Errors | None = None
    validation: Path | None = None
    test: Path | None = None
    jobs: int = 0

    @property
    def settings(self) -> TokenizerSettings:
        """What is asked for of the tokenizer."""
        return TokenizerSettings(self.tokenizer, self.vocab, self.algorithm, self.model)

    def run(self, watch: WatchPreparing, tell: Callable[[str], None]) -> tuple[Prepared, bool]:
        """(the prepared corpus, whether it was made now). Raises `ConfigError` as `infini_jax.data.prepare.prepare` does."""
        named: tuple[tuple[Split, Path | None], ...] = (("validation", self.validation), ("test", self.test))
        lists: Lists = tuple((split, file) for split, file in named if file)
        return prepare(
            self.corpus, self.settings, self.name, self.path, self.errors, lists, self.jobs, self.column, watch, tell
        )


@dataclasses.dataclass(frozen=True)
class RemoveCorpus:
    """Remove a prepared corpus, but not its texts. A corpus in use, and a folder with anything else in it, are refused.

    Example: `infini-jax corpus remove books-bytes`

    Attributes:
      name: name of the prepared corpus, see `infini-jax corpus list`.
      yes: remove it without confirmation.
    """

    name: Annotated[str, tyro.conf.Positional]
    yes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False

    def run(self, console: Console) -> None:
        """Asks, and removes the corpus. Raises `ConfigError` where it may not be removed, or nobody can be asked."""
        folder = removable(self.name)
        if not self.yes:
            require(sys.stdin.isatty(), "yes", f"'{self.name}' is not removed without confirmation", "add --yes")
            console.print(f"remove {folder} ({human_bytes(bytes_on_disk(folder))})? [y/N] ", end="", soft_wrap=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                console.print("not removed")
                return
        size = remove(self.name)
        console.print(f"removed {self.name}: {human_bytes(size)}", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class ListCorpora:
    """Show the corpora, how to get each, and the prepared ones with their sizes. Examples: `infini-jax corpus list`,
    `infini-jax corpus list --json`

    Attributes:
      as_json: print one JSON object instead of tables.
    """

    as_json: AsJson = False


def corpus(
    action: tyro.conf.OmitArgPrefixes[
        Annotated[PrepareCorpus, tyro.conf.subcommand("prepare")]
        | Annotated[ListCorpora, tyro.conf.subcommand("list")]
        | Annotated[RemoveCorpus, tyro.conf.subcommand("remove")]
    ],
) -> None:
    """List, prepare and remove corpora. Examples: `infini-jax corpus list`,
    `infini-jax corpus prepare python_stdlib --tokenizer sentencepiece`

    Args:
      action: what to do.
    """
    console = terminal()
    if isinstance(action, ListCorpora):
        if action.as_json:
            print_json(corpora_plain())
            return
        console.print(corpora_table(), prepared_table())
        return
    if isinstance(action, RemoveCorpus):
        action.run(console)
        return
    told: list[str] = []
    with corpus_progress(action.corpus, action.settings, console) as watch:
        prepared, is_new = action.run(watch, told.append)
    console.print(counts_table(prepared))
    for line in told:
        console.print(line, soft_wrap=True)
    for line in few_held_out(prepared):
        console.print(line)
    if not is_new:
        console.print("already prepared")
    console.print(f"train on it: infini-jax train infini corpus --data.name {prepared.folder.name} ...", soft_wrap=True)


def few_held_out(prepared: Prepared) -> Iterator[str]:
    """A warning where the validation split is too small for a loss that compares runs."""
    counts = prepared.manifest.splits.get("validation")
    documents, tokens = (counts.documents, counts.tokens) if counts else (0, 0)
    if documents < FEW:
        plural = "" if documents == 1 else "s"
        yield (
            f"warning: validation has {documents} document{plural} ({tokens:,} tokens), fewer than {FEW}: its loss is noisy; "
            "add documents, or list more with --validation"
        )


def corpora_plain() -> dict[str, Any]:
    """The lists of corpora and of prepared corpora as JSON values, with the `trouble` of one that cannot be read."""
    corpora = [
        {"corpus": name, "here": corpus.installed(), "what": corpus.about, "get": corpus.get}
        for name, corpus in CORPORA.items()
    ]
    prepared = []
    for made in prepared_folders():
        known = {"name": made.name, "bytes_on_disk": bytes_on_disk(made)}
        try:
            prepared.append({**known, **dataclasses.asdict(Prepared.read(made).manifest), "trouble": ""})
        except ConfigError as error:
            prepared.append({**known, "trouble": str(error)})
    return {"folder": str(data_folder()), "corpora": corpora, "prepared": prepared}


def corpora_table() -> Table:
    """A table with one line per corpus."""
    table = Table("corpus", "here", "what", "how to get it")
    for name, corpus in CORPORA.items():
        table.add_row(name, corpus.installed(), corpus.about, corpus.get)
    return table


def prepared_table() -> Table:
    """A table with one line per prepared corpus, damaged ones included."""
    table = Table(title=f"in {data_folder()}")
    table.add_column("prepared", no_wrap=True)  # to be typed
    table.add_column("tokenizer")
    for column in ("vocabulary", "documents", "tokens", "on disk"):
        table.add_column(column, justify="right")
    for made in prepared_folders():
        size = human_bytes(bytes_on_disk(made))
        try:
            manifest = Prepared.read(made).manifest
        except ConfigError as error:
            table.add_row(made.name, str(error).split(": ", 1)[1], "-", "-", "-", size)
            continue
        splits = manifest.splits.values()
        counts = (manifest.vocab, sum(one.documents for one in splits), sum(one.tokens for one in splits))
        table.add_row(made.name, manifest.tokenizer, *(f"{number:,}" for number in counts), size)
    return table


def counts_table(prepared: Prepared) -> Table:
    """A table with one line per split of a prepared corpus: its counts."""
    table = Table("split", title=prepared.folder.name, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ("documents", "empty", "tokens", "words", "bytes", "longest")
    for column in columns:
        table.add_column(column, justify="right")
    for split, counts in prepared.manifest.splits.items():
        numbers = dataclasses.asdict(counts)
        table.add_row(split, *(f"{numbers[column]:,}" for column in columns))
    return table
