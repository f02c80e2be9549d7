"""Classification tasks: GLUE, SuperGLUE and a user's own, as TFDS prepares them or as JSONL.

GLUE: Wang et al. 2018, arXiv 1804.07461; SuperGLUE: Wang et al. 2019, arXiv 1905.00537. A source is one of
  TFDS      `glue/<task>` or `super_glue/<task>` in array_record files, below the data folder's `tfds` or a path
  JSONL     `<task>.train.jsonl` and `<task>.valid.jsonl` in a folder or an archive, at any depth, an object a line
JSONL of a known task has TFDS's names of fields, as BabyLM's `glue_filtered` has them; of any other task `text`, `label` and,
where it asks about two texts, `text_pair`. Test splits have no labels and are not read. How the fields of a task become a text
and its pair is that of BabyLM's evaluation of 2025.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from infini_jax.data.prepared import SNAPSHOTS
from infini_jax.data.raw_files import Files, open_files
from infini_jax.data.readers import json_objects
from infini_jax.data.snapshots import newest_version, trusted_builder
from infini_jax.errors import ConfigError, one_line, require, required
from infini_jax.files import FOLDER_VARIABLE, data_folder

FIELD = "finetune.path"
TRAIN, VALID = ".train.jsonl", ".valid.jsonl"
MISMATCHED = "mnli-mm"  # its file of other genres, which has no training split of its own


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked, and how it is scored.

    Attributes:
      text: format of the text, with the names of fields in braces.
      pair: format of the text that follows it; "" where there is none.
      metrics: names in `infini_jax.analysis.classification.METRICS`; the first is the task's score.
      suite: TFDS's builder, "" for a user's own task.
      validation: (name in figures, TFDS's split) of the labelled splits that are scored, the first for the task's score.
    """

    text: str
    pair: str = ""
    metrics: tuple[str, ...] = ("accuracy",)
    suite: str = "glue"
    validation: tuple[tuple[str, str], ...] = (("validation", "validation"),)

    def texts(self, fields: dict[str, Any]) -> tuple[str, str]:
        """The text and its pair, "" where the task has none. Raises `KeyError` for a field that is missing."""
        words = {name: value.decode() if isinstance(value, bytes) else value for name, value in fields.items()}
        return self.text.format(**words), self.pair.format(**words)


MATCHED = (("validation_matched", "validation_matched"), ("validation_mismatched", "validation_mismatched"))
SENTENCES, F1 = ("{sentence1}", "{sentence2}"), ("f1", "accuracy")
TASKS: dict[str, Task] = {
    "cola": Task("{sentence}", metrics=("matthews", "accuracy")),
    "sst2": Task("{sentence}"),
    "mrpc": Task(*SENTENCES, metrics=F1),
    "qqp": Task("{question1}", "{question2}", metrics=F1),
    "mnli": Task("{premise}", "{hypothesis}", validation=MATCHED),
    "qnli": Task("{question}", "{sentence}"),
    "rte": Task(*SENTENCES),
    "boolq": Task("{question}", "{passage}", suite="super_glue"),
    "multirc": Task("Question: {question} Answer: {answer}", "{paragraph}", ("accuracy", "f1"), "super_glue"),
    "wsc": Task('Does "{span2_text}" refer to "{span1_text}" in this passage?', "{text}", suite="super_glue"),
}
"""Registry of published tasks: name on the command line -> fields and metrics."""
OWN = Task("{text}", "{text_pair}", ("accuracy", "f1", "matthews"), suite="")  # f1 and matthews of two classes only
GET = (
    f"put BabyLM's evaluation_data, its glue_filtered (folder or .zip), or TFDS's {SNAPSHOTS}/glue and {SNAPSHOTS}/super_glue "
    f"in array_record files into ${FOLDER_VARIABLE}, or give a path"
)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The labelled examples of a task, read when they are asked for.

    Attributes:
      task: fields and metrics of the task.
      train: fields of each training example.
      validation: fields of each example of the splits that are scored, by their name in figures.
      classes: the labels, in the order of their numbers.
      described: where they are from.
    """

    task: Task
    train: Sequence[dict[str, Any]]
    validation: dict[str, Sequence[dict[str, Any]]]
    classes: tuple[Any, ...]
    described: str

    def metrics(self) -> tuple[str, ...]:
        """The metrics of the task that its number of classes has; the first is its score."""
        return self.task.metrics if len(self.classes) == 2 else self.task.metrics[:1]

    def example(self, fields: dict[str, Any]) -> tuple[tuple[str, str], int]:
        """((text, pair), number of the class) of an example. Raises `ConfigError` for one without them."""
        try:
            texts, label = self.task.texts(fields), fields["label"]
        except (KeyError, AttributeError) as error:
            problem = f"an example in {self.described} lacks {one_line(error)}"
            raise ConfigError(FIELD, problem, f"give examples with the fields of {self.task.text} {self.task.pair}") from error
        problem = f"an example in {self.described} has the label {label!r:.40}, which no training example has"
        require(label in self.classes, FIELD, problem, f"the labels are {', '.join(map(repr, self.classes))}")
        return texts, self.classes.index(label)


def task_of(name: str) -> Task:
    """The published task of this name, or a user's own."""
    return TASKS.get(name, OWN)


def labelled(name: str, path: str = "") -> Labelled:
    """The examples of a task at a path, or else in the data folder.

    Raises `ConfigError` where they are not here, are damaged, or have fewer than two labels.
    """
    place = required(task_place(name, path), FIELD, f"{name} is not {f'in {path}' if path else 'here'}", GET)
    folder = tfds_folder(name, place)
    found = from_tfds(name, folder) if folder else from_jsonl(name, open_files(place, FIELD))
    require(len(found.classes) >= 2, FIELD, f"{found.described} has one label alone", "give examples of two classes at least")
    return found


def task_place(name: str, path: str = "") -> Path | None:
    """The given path, or a place in the data folder, that has a task; None where it is in none."""
    folder = data_folder()
    usual = [folder / one for one in ("evaluation_data", "glue_filtered", "glue_filtered.zip", SNAPSHOTS)]
    places = [Path(path)] if path else [place for place in usual if place.exists()]
    return next(
        (place for place in places if tfds_folder(name, place) or file_of(open_files(place, FIELD), name, TRAIN)), None
    )


def tfds_folder(name: str, place: Path) -> Path | None:
    """The newest version of a task that TFDS prepared in or below a place; None where there is none."""
    suite = task_of(name).suite
    if not suite or not place.is_dir():
        return None
    if (place / "dataset_info.json").is_file():
        return place
    return newest_version(place / suite / name) or newest_version(place / name)


def file_of(files: Files, name: str, ending: str) -> str | None:
    """The file of a task's split, at any depth; None where there is none."""
    return next((one for one in sorted(files.names()) if PurePosixPath(one).name == name + ending), None)


def from_jsonl(name: str, files: Files) -> Labelled:
    """The examples of a task's JSONL files. Raises `ConfigError` where one is missing or is no JSONL."""

    def read(ending: str, of: str = name) -> list[dict[str, Any]]:
        file = required(file_of(files, of, ending), FIELD, f"{files.path} has no {of}{ending}", "put it beside the other")
        objects = (fields for _, fields in json_objects(files, file, "refuse"))
        return [{"text_pair": "", **{key: value for key, value in one.items() if value is not None}} for one in objects]

    train, task = read(TRAIN), task_of(name)
    first, *others = (label for label, _ in task.validation)
    validation: dict[str, Sequence[dict[str, Any]]] = {first: read(VALID)}
    if others and file_of(files, MISMATCHED, VALID):
        validation[others[0]] = read(VALID, MISMATCHED)
    labels = {fields.get("label") for fields in train if isinstance(fields.get("label"), str | int)}
    classes = tuple(sorted(labels, key=lambda label: (isinstance(label, str), label)))
    return Labelled(task, train, validation, classes, f"{files.path}: {name}")


def from_tfds(name: str, folder: Path) -> Labelled:
    """The examples that TFDS prepared. Raises `ConfigError` where they are damaged or have no array_record files."""
    task = task_of(name)
    mend = "convert it: python -m tensorflow_datasets.scripts.convert_format --out_file_format=array_record"
    is_readable = any(folder.glob("*.array_record*"))
    require(is_readable, FIELD, f"{folder} has no array_record files, and only they are read without TensorFlow", mend)
    try:
        builder = trusted_builder(folder)
        train: Sequence[dict] = builder.as_data_source(split="train")
        validation = {label: builder.as_data_source(split=split) for label, split in task.validation}
        classes = tuple(range(builder.info.features["label"].num_classes))
    except Exception as error:  # TFDS raises whatever its files do
        raise ConfigError(FIELD, f"{folder} cannot be read ({one_line(error)})", "prepare it again") from error
    return Labelled(task, train, validation, classes, str(folder))


def examples_of(
    found: Labelled, fields: Sequence[dict[str, Any]], numbers: Sequence[int]
) -> Iterator[tuple[tuple[str, str], int]]:
    """((text, pair), class) of the examples with these numbers. Raises `ConfigError` for one that cannot be read."""
    for number in numbers:
        try:
            one = fields[int(number)]
        except Exception as error:  # as above
            raise ConfigError(FIELD, f"{found.described} cannot be read ({one_line(error)})", "prepare it again") from error
        yield found.example(one)
