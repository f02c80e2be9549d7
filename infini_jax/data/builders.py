"""TFDS builders of the corpora that this package reads itself. Imported only where a corpus is prepared: loads TFDS.

The features are those of pg19, so that corpora interchange. The files are array_record, which TFDS reads and writes without
TensorFlow.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from infini_jax.data.batch import SPLIT_NUMBER, Split
from infini_jax.data.corpora import CORPORA, own_texts
from infini_jax.data.decoding import pieces
from infini_jax.data.long_documents import LONG, in_parts
from infini_jax.data.texts import Texts

FILE_FORMAT = "array_record"


@dataclasses.dataclass
class TextsConfig(tfds.core.BuilderConfig):
    """Config of a builder: the texts to read. Its name is their digest, so that changed texts get a folder of their own.

    Attributes:
      texts: source of the documents.
    """

    texts: Texts | None = None

    @staticmethod
    def of(texts: Texts) -> "TextsConfig":
        """The config of these texts, named by their digest."""
        return TextsConfig(name=texts.digest(), texts=texts)


class Books(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder with one document per example. Without a config it reads the corpus where its package installs it."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=CORPORA[self.name].about,
            metadata=tfds.core.MetadataDict(),
            features=tfds.features.FeaturesDict(
                {
                    "book_text": tfds.features.Text(),
                    "book_id": np.int32,
                    "book_title": np.str_,
                    "publication_date": np.str_,
                    "book_link": np.str_,
                }
            ),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        texts = self.builder_config.texts if self.builder_config else own_texts(self.name)
        return {split: self._generate_examples(texts, split) for split in SPLIT_NUMBER if next(texts.documents(split), None)}

    def _generate_examples(self, texts: Texts, split: Split) -> Iterator[tuple[str, dict]]:
        for number, (name, text) in enumerate(texts.documents(split)):
            for key, link, piece in in_parts(name, pieces(text)):
                if key != name:  # so the document has several
                    self._note_long(split, number)
                yield (
                    key,
                    {
                        "book_text": piece,
                        "book_id": number,
                        "book_title": re.sub(r"\.\w+$", "", name.rsplit("/", 1)[-1]),
                        "publication_date": "",
                        "book_link": link,
                    },
                )

    def _note_long(self, split: Split, number: int) -> None:
        metadata: Any = self.info.metadata  # the one made in _info
        noted = metadata.setdefault(LONG, {}).setdefault(split, [])
        if number not in noted[-1:]:
            noted.append(number)


class TextFolder(Books):
    """Builder of any folder of texts, registered as text_folder."""


class PythonStdlib(Books):
    """Builder of the standard library's source code, registered as python_stdlib."""


class Shakespeare(Books):
    """Builder of Shakespeare's works, registered as shakespeare."""


class HolLight(Books):
    """Builder of the HOL Light library, registered as hol_light."""


class Metamath(Books):
    """Builder of Metamath databases, registered as metamath."""


class BabylmStrict(Books):
    """Builder of BabyLM's strict corpus, registered as babylm_strict."""


class BabylmStrictSmall(Books):
    """Builder of BabyLM's strict-small corpus, registered as babylm_strict_small."""


class CoqStdlib(Books):
    """Builder of Coq's standard library, registered as coq_stdlib."""


class Mathcomp(Books):
    """Builder of Mathematical Components, registered as mathcomp."""


class AgdaStdlib(Books):
    """Builder of Agda's standard library, registered as agda_stdlib."""


class IsabelleAfp(Books):
    """Builder of Isabelle's Archive of Formal Proofs, registered as isabelle_afp."""


class Github(Books):
    """Builder of repositories of source code, registered as github."""


class Wikitext103(Books):
    """Builder of WikiText-103, registered as wikitext103."""


class BooksumChapters(Books):
    """Builder of BookSum's chapters, registered as booksum_chapters."""


class BooksumBooks(Books):
    """Builder of BookSum's books, registered as booksum_books."""


class CmuDog(Books):
    """Builder of CMU-DoG, registered as cmu_dog."""


class MarkedSentences(Books):
    """Builder of texts with marked sentences, registered as marked_sentences."""


BUILDERS: dict[str, type[Books]] = {kind.name: kind for kind in Books.__subclasses__()}
"""Registry of TFDS builders: name of the corpus -> class."""
