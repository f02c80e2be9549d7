"""Prepared documents with targets as the task of a run: all of a document is read, and its targets alone are scored.

There is no encoder: context and target are one stream of tokens, as Infini-attention was tuned to summarize books (Munkhdalai
et al. 2024, arXiv 2404.07143, section 4.2), so that a context may have any length. Gradients reach what a training sequence
holds; from what lies before it the memory alone is carried, as with all documents.
"""

import dataclasses
import functools

import numpy as np

from infini_jax.data.batch import Split
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.documents import Documents
from infini_jax.data.prepared import Counts
from infini_jax.data.target_marks import Marks
from infini_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class ConditionedConfig(CorpusConfig):
    """A prepared corpus of documents with targets, such as summaries or turns of a dialogue, which alone are scored."""

    title = "targets behind a context"

    def whole(self, split: Split) -> tuple[Documents, Counts]:
        """The documents of a split with their targets, and the counts of the targets alone but for `documents` and `longest`.

        Raises `ConfigError` as `CorpusConfig` does, and where the corpus has no targets.
        """
        documents, counts = super().whole(split)
        targets, of_targets = found_targets(self, split)
        words, size = of_targets
        found = dataclasses.replace(documents, targets=targets, described=f"{documents.described}, {len(targets)} targets")
        tokens = int(np.diff(targets).sum())
        return found, dataclasses.replace(counts, tokens=tokens, words=words, bytes=size)


@functools.lru_cache(maxsize=8)  # a run opens its documents several times, and all of their tokens are searched
def found_targets(config: ConditionedConfig, split: Split) -> tuple[np.ndarray, tuple[int, int]]:
    """(targets of a split's documents as in `Documents.targets`, (words, bytes) of their texts)."""
    documents, _ = CorpusConfig.whole(config, split)
    tokenizer = config.open_tokenizer()
    targets = Marks.of(tokenizer).targets(documents)
    texts = [target_text(tokenizer, documents.text[begin:end]) for begin, end in targets]
    return targets, (sum(len(text.split()) for text in texts), sum(len(text.encode()) for text in texts))


def target_text(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    """The text of a target's tokens, without the mark that ends it and white space around it."""
    return tokenizer.decode(tokens[:-1]).strip()
