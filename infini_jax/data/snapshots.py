"""The documents of a corpus as a TFDS data set of array_record files: made, found or downloaded.

TFDS is imported by `load_tfds` alone, when it is needed, and TensorFlow never: training reads prepared corpora only.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infini_jax.data.batch import SPLIT_NUMBER, Split
from infini_jax.data.corpora import CORPORA, BuiltIn
from infini_jax.data.long_documents import LONG, ExamplePlaces, all_whole, places_of
from infini_jax.data.spilled import sorting_on_disk
from infini_jax.data.texts import Texts
from infini_jax.errors import ConfigError, instance, one_line, require
from infini_jax.files import json_value
from infini_jax.locks import awaited

Tell = Callable[[str], None]


def untold(line: str) -> None:
    """Tells nobody."""


@functools.cache
def load_tfds() -> Any:
    """TFDS and all that is read or made by it.

    While it is imported it has an `__import__` of its own in the place of Python's, in all threads, where whatever else is
    imported fails. So who draws or works in threads calls this before they begin.
    """
    importlib.import_module("array_record.python.array_record_data_source")
    importlib.import_module("infini_jax.data.builders")
    return importlib.import_module("tensorflow_datasets")


TYPE_KEYS = ("type", "pythonClassName", "python_class_name")  # of a features.json, then and now
JSON_KEYS = ("json", "content")  # hold more of it as text
FEATURES = tuple(
    f"tensorflow_datasets.core.features.{kind}"
    for kind in (
        "features_dict.FeaturesDict",
        "text_feature.Text",
        "tensor_feature.Tensor",
        "feature.Tensor",
        "scalar.Scalar",
        "class_label_feature.ClassLabel",
        "sequence_feature.Sequence",
        "dataset_feature.Dataset",
    )
)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Documents as a TFDS data set on disk; small enough to send to another process.

    Attributes:
      folder: path of the data set.
      feature: name of the feature that holds the text.
      splits: (split here, split of the data set) pairs.
      digest: sixteen hex digits of the content.
      words: (split, words) pairs of texts whose words are not those of their text, see `Texts.counted_words`.
    """

    folder: str
    feature: str
    splits: tuple[tuple[Split, str], ...]
    digest: str
    words: tuple[tuple[Split, int], ...] = ()

    def documents(self, split: Split) -> Sequence[dict]:
        """The examples of a split with random access. Raises `ConfigError` where the data set is damaged."""
        try:
            return trusted_builder(Path(self.folder)).as_data_source(split=dict(self.splits)[split])
        except Exception as error:  # TFDS raises whatever its files do
            raise self.damaged(error) from error

    def places(self, split: Split) -> ExamplePlaces:
        """The examples of a split in the order of its documents. Raises `ConfigError` where the data set is damaged."""
        examples = self.documents(split)
        try:
            long = (trusted_builder(Path(self.folder)).info.metadata or {}).get(LONG, {}).get(split, [])
            return places_of(examples, self.text, long) if long else all_whole(len(examples))
        except Exception as error:  # as above
            raise self.damaged(error) from error

    def text(self, example: dict) -> str:
        """The text of an example."""
        return example[self.feature].decode()

    def damaged(self, error: Exception) -> ConfigError:
        """The error of a data set that cannot be read, `error` being the cause."""
        return ConfigError("corpus", f"{self.folder} cannot be read ({one_line(error)})", "delete it and prepare again")


def trusted_builder(folder: Path) -> Any:
    """TFDS's builder of the data set in a folder.

    Raises `ValueError` where the data set has features of other types than `FEATURES`: TFDS would import their modules.
    """
    tfds = load_tfds()
    check_features(json_value((folder / "features.json").read_bytes()))
    return tfds.builder_from_directory(folder)


def check_features(plain: Any) -> None:
    """Checks the values of a features.json: raises `ValueError` for a type that is not in `FEATURES`, wherever it stands."""
    if isinstance(plain, list):
        for value in plain:
            check_features(value)
    if not isinstance(plain, dict):
        return
    for key, value in plain.items():
        if key in TYPE_KEYS and isinstance(value, str) and value not in FEATURES:
            raise ValueError(f"its features.json has the type '{value}', which is not a text feature")
        if key in JSON_KEYS and isinstance(value, str):
            value = json_value(value)
        check_features(value)


def own_snapshot(name: str, texts: Texts, folder: Path, tell: Tell = untold) -> Snapshot:
    """The texts as a TFDS data set below `folder`, written unless it is there.

    What another process writes at the same time is waited for, and `tell` gets a line that names it. Raises `ConfigError`
    where the texts changed while they were read.
    """
    load_tfds()
    shuffle = importlib.import_module("tensorflow_datasets.core.shuffle")
    with awaited(lock_of(folder, name), tell), quiet_tfds(), sorting_on_disk(shuffle):
        from infini_jax.data.builders import BUILDERS, FILE_FORMAT, TextsConfig

        config = TextsConfig.of(texts)
        builder = BUILDERS[name](data_dir=folder, config=config, file_format=FILE_FORMAT)
        is_new = not builder.data_path.exists()
        builder.download_and_prepare()
        if texts.digest() != config.name:
            if is_new:
                shutil.rmtree(builder.data_path)
            raise ConfigError("path", f"the files of {name} changed while they were read", "run the command again")
    made: tuple[tuple[Split, str], ...] = tuple((split, split) for split in SPLIT_NUMBER if split in builder.info.splits)
    words: tuple[tuple[Split, int], ...] = tuple(
        (split, count) for split, _ in made if (count := texts.counted_words(split)) is not None
    )
    return Snapshot(str(builder.data_path), "book_text", made, config.name, words)


def lock_of(folder: Path, name: str) -> Path:
    """The lock of whoever makes data sets called `name` below `folder`: TFDS itself knows no other process."""
    return folder / f".{name}.lock"


def built_in_snapshot(name: str, folder: Path, path: Path | None = None, tell: Tell = untold) -> Snapshot:
    """A data set that TFDS defines: the one in `path`, the one prepared below `folder`, or else downloaded.

    A download of another process is waited for, and `tell` gets a line that names it. Raises `ConfigError` where it cannot be
    downloaded, is no data set, or has no array_record files.
    """
    corpus = instance(CORPORA[name], BuiltIn, "TFDS defines it")
    made = path or newest_version(folder / corpus.builder)
    if made is None:
        with awaited(lock_of(folder, corpus.builder), tell):
            made = newest_version(folder / corpus.builder) or download(name, folder)
    require((made / "dataset_info.json").is_file(), "path", f"{made} is not a TFDS data set", "give the folder of its version")
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
    """The folder of the newest prepared version of a TFDS data set; None where there is none."""
    made = [file.parent for file in folder.glob("*/dataset_info.json") if not file.parent.name.startswith("incomplete")]
    return max(made, key=lambda version: [int(part) for part in version.name.split(".")], default=None)


def download(name: str, folder: Path) -> Path:
    """Downloads and prepares a data set by TFDS below `folder`; returns its folder.

    Raises `ConfigError` where a package is missing, the host cannot be reached, or TFDS fails.
    """
    corpus = instance(CORPORA[name], BuiltIn, "TFDS defines it")
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
        tfds = load_tfds()
        importlib.import_module(corpus.module)  # registers it: TFDS does so itself only where TensorFlow is
        builder = tfds.builder(corpus.builder, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # of networks, disks and the packages it needs
        raise ConfigError("corpus", f"{name} cannot be downloaded ({one_line(error)})", mend) from error
    return Path(builder.data_path)


def reachable(host: str) -> bool:
    """Whether a host's name can be looked up, by a proxy perhaps. TFDS itself would try for minutes."""
    if os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY"):
        return True
    with contextlib.suppress(OSError):
        return bool(socket.getaddrinfo(host, 443))
    return False


@contextlib.contextmanager
def quiet_tfds():
    """Context in which TFDS shows no progress bars and no log; errors come through."""
    from absl import logging

    load_tfds().disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.set_verbosity(before)
