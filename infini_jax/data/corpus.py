"""A prepared corpus as the task of a run: rows of whole documents over tokens that stay on disk."""

import dataclasses

from infini_jax.data.base import DataConfig
from infini_jax.data.batch import Rows, Split
from infini_jax.data.documents import DocumentRows, Documents, require_something
from infini_jax.data.prepared import Counts, Prepared, checked_model, existing_folder, read_manifest
from infini_jax.data.tokenizers import Bytes, Tokenizer, load_tokenizer
from infini_jax.errors import require, require_file_name, require_not_negative


@dataclasses.dataclass(frozen=True)
class CorpusConfig(DataConfig):
    """A corpus made by `infini-jax corpus prepare`. Where it lies is no setting: $INFINI_JAX_DATA, else the user's cache.

    Blank fields are taken from the prepared corpus when the settings are made, and stay: a saved run names its tokenizer,
    vocabulary and content, and refuses any other corpus of the same name.

    Attributes:
      name: name of the prepared corpus.
      tokenizer: bytes, or sentencepiece: followed by the hash of the model.
      symbols: number of tokens in the tokenizer's vocabulary.
      content: hash of the tokenizer and of all tokens and documents.
    """

    name: str
    tokenizer: str = ""
    symbols: int = 0
    content: str = ""

    def __post_init__(self):
        super().__post_init__()
        require_file_name("data.name", self.name)
        require_not_negative("data", symbols=self.symbols)
        if self.tokenizer and self.symbols and self.content:
            return  # a saved run is read where its corpus is not, too
        manifest = Prepared.open(self.name).manifest
        for field, found in (("tokenizer", manifest.tokenizer), ("symbols", manifest.vocab), ("content", manifest.content)):
            object.__setattr__(self, field, getattr(self, field) or found)
        self._fits(Prepared.open(self.name))

    @property
    def vocab(self) -> int:
        return self.symbols

    def check(self, tokens: int) -> None:
        require(tokens >= 1, "train.sequence", f"{tokens} tokens are not a sequence", "give at least 1")

    def open(self, rows: Rows) -> DocumentRows:
        """Rows of whole documents of the split.

        Raises `ConfigError` where the corpus is not here, is damaged, or is not the one that these settings name.
        """
        documents, _ = self.whole(rows.split)
        require_something(documents.lengths, f"the {rows.split} split of {self.name}")
        return DocumentRows(documents, rows)

    def whole(self, split: Split) -> tuple[Documents, Counts]:
        """The documents of a split and their counts.

        Raises `ConfigError` where the corpus is not here, is damaged, is not the one that these settings name, or has no such
        split.
        """
        prepared = Prepared.open(self.name)
        self._fits(prepared)
        return prepared.documents(split), prepared.counts(split)

    def has(self, split: Split) -> bool:
        """Whether the prepared corpus has this split. Raises `ConfigError` where the corpus is not here."""
        return split in read_manifest(existing_folder(self.name)).splits

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer  # known where the corpus is not

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer of the prepared corpus, whose texts may have changed.

        Raises `ConfigError` where the corpus is not here or has another tokenizer.
        """
        folder = existing_folder(self.name)
        manifest = read_manifest(folder)
        self._same("tokenizer", self.tokenizer, manifest.tokenizer)
        return load_tokenizer(None if self.tokenizer == Bytes.name else checked_model(folder, manifest))

    def _fits(self, prepared: Prepared) -> None:
        manifest = prepared.manifest
        self._same("tokenizer", self.tokenizer, manifest.tokenizer)
        self._same("symbols", self.symbols, manifest.vocab)
        self._same("content", self.content, manifest.content)

    def _same(self, field: str, wanted: str | int, found: str | int) -> None:
        require(
            wanted == found,
            f"data.{field}",
            f"the run wants {wanted} and the prepared corpus '{self.name}' has {found}",
            "prepare the corpus that the run wants, or leave the field blank to take this one",
        )
