"""Documents that an evaluation is given in place of the run's own: a prepared corpus, or texts that are encoded at once.

Either is in the tokens of the run's tokenizer. A folder or archive holds one document a file; a file is one document.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from infini_jax.data.base import DataConfig, documents_of, tokenizer_of
from infini_jax.data.batch import Split
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.documents import Documents
from infini_jax.data.long_documents import encoded_text
from infini_jax.data.prepared import MODEL_FILE, Counts, existing_folder, prepared_folders, read_manifest
from infini_jax.data.raw_files import OneFile, open_files
from infini_jax.data.readers import WHOLE
from infini_jax.data.texts import file_text
from infini_jax.data.tokenizers import Bytes, Tokenizer
from infini_jax.errors import quoted, require

FIELD = "data"


def given_name(given: str) -> str:
    """The name of given documents in labels and names of files: that of the corpus, or of the file or folder."""
    return Path(os.path.abspath(given)).name  # resolve() would look for it on the disk


def given_documents(data: DataConfig, given: str, split: Split, tokens: int = 0) -> tuple[Documents, Counts]:
    """The documents that are given by a name or a path, and their counts; those of the run's own data for "".

    Args:
      data: data of the run, whose tokenizer the documents must have.
      given: name of a prepared corpus, or else path of a file, folder or archive of texts, all of which are read.
      split: split of a prepared corpus, and of the run's own data.
      tokens: number of tokens behind which texts of a path end; 0 is none.

    Raises:
      ConfigError: there are no such documents, or they are in another tokenizer's tokens.
    """
    if not given:
        mend = "name a prepared corpus, or a file or folder of texts, with --data"
        require(has_documents(data), FIELD, "the run has no documents of its own", mend)
        return documents_of(data, split)
    if given in (folder.name for folder in prepared_folders()):
        found = read_manifest(existing_folder(given))
        problem = f"'{given}' is in tokens of {found.tokenizer}, and the run reads those of {data.tokenizer_name}"
        require(found.tokenizer == data.tokenizer_name, FIELD, problem, f"prepare it: {command(data, found.corpus)}")
        return CorpusConfig(given).whole(split)
    path, problem = Path(given), f"'{quoted(given)}' is neither a prepared corpus nor a path"
    require(os.path.exists(path), FIELD, problem, f"give a file or folder of texts, or prepare a corpus: {command(data)}")
    return in_memory(data, given_name(given), tuple(texts_at(path)), tokens)


def has_documents(data: DataConfig) -> bool:
    """Whether a run's data has documents: that of an imported model holds the tokenizer alone."""
    return not isinstance(data, CorpusConfig) or any(data.has(split) for split in ("train", "validation", "test"))


def command(data: DataConfig, corpus: str = "text_folder") -> str:
    """The command that prepares a corpus in the tokens of a run's tokenizer."""
    kind, path = data.tokenizer_name.partition(":")[0], " --path FOLDER" * (corpus == "text_folder")
    file = existing_folder(data.name) / MODEL_FILE if isinstance(data, CorpusConfig) and kind != Bytes.name else None
    return f"infini-jax corpus prepare {corpus}{path} --tokenizer {kind}" + (f" --model {file}" if file else "")


def texts_at(path: Path) -> Iterator[str]:
    """The text of each document at a path. Raises `ConfigError` for one that cannot be read, and where there is none."""
    files = open_files(path, FIELD)
    names = files.names() if isinstance(files, OneFile) else files.ending(WHOLE)
    require(bool(names), FIELD, f"{path} has no file that ends in {' or '.join(WHOLE)}", "give another, or one file")
    for name in names:
        yield file_text(files, name, "refuse", FIELD)


@functools.lru_cache(maxsize=1)  # an evaluation is checked and counted before it is made
def in_memory(data: DataConfig, name: str, texts: tuple[str, ...], tokens: int) -> tuple[Documents, Counts]:
    """Texts as documents in memory, each at most so many tokens long, and their counts; `name` is that of all.

    Raises `ConfigError` where there is no text, or the run has no tokenizer.
    """
    tokenizer = tokenizer_of(data)
    pairs = [cut(tokenizer, text, tokens) for text in texts if text.strip()]
    require(bool(pairs), FIELD, f"{name} holds no text", "give another")
    text_T = np.concatenate([tokens_T for tokens_T, _ in pairs])
    lengths = [len(tokens_T) for tokens_T, _ in pairs]
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    counts = Counts(
        documents=len(pairs),
        empty=len(texts) - len(pairs),
        tokens=len(text_T),
        words=sum(len(text.split()) for _, text in pairs),
        bytes=sum(len(text.encode()) for _, text in pairs),
        longest=max(lengths),
        tokens_sha256=hashlib.sha256(text_T.data).hexdigest(),
        starts_sha256=hashlib.sha256(starts.data).hexdigest(),
    )
    content = hashlib.sha256((counts.tokens_sha256 + counts.starts_sha256).encode()).hexdigest()[:16]
    described = f"{name}: {counts.documents} documents, {counts.tokens} tokens ({tokenizer.name}), content {content}"
    return Documents(text_T, starts, described, name=f"'{name}'"), counts


def cut(tokenizer: Tokenizer, text: str, tokens: int) -> tuple[np.ndarray, str]:
    """(tokens of a text, uint32, at most so many; the text that they are); all of it for 0."""
    parts, count = [], 0
    for part in encoded_text(tokenizer, text):
        parts.append(np.asarray(part, np.uint32))
        count += len(parts[-1])
        if 0 < tokens <= count:
            break
    whole_T = np.concatenate(parts)
    if not 0 < tokens <= len(whole_T):
        return whole_T, text
    return whole_T[:tokens], tokenizer.decode(whole_T[:tokens])
