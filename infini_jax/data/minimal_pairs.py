"""Reader of BLiMP, the Benchmark of Linguistic Minimal Pairs (Warstadt et al. 2020, arXiv 1912.00582; CC-BY 4.0).

67 paradigms of 1000 pairs of sentences that differ in one point of grammar, one of them good and one bad. The source is a zip
or folder of its JSONL files, or TFDS's `blimp/<paradigm>` in array_record files. BabyLM's supplement (Warstadt et al. 2023)
has five more paradigms in files of the same kind, whose lines name no paradigm: it is the file's name.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from infini_jax.data.prepared import SNAPSHOTS
from infini_jax.data.raw_files import open_files
from infini_jax.data.snapshots import newest_version, trusted_builder
from infini_jax.errors import ConfigError, one_line, require, required
from infini_jax.files import FOLDER_VARIABLE, data_folder

SUPPLEMENT = "supplement"  # its phenomenon
GET = f"put blimp.zip, a folder blimp of its .jsonl files or TFDS's {SNAPSHOTS}/blimp into ${FOLDER_VARIABLE}, or give a path"
GET_SUPPLEMENT = f"put BabyLM's evaluation_data or its supplement_filtered into ${FOLDER_VARIABLE}, or give a path"
SAME_PHENOMENON = {"s-selection": "argument_structure"}  # the paper has 12 phenomena (table 2), its files 13 terms
FIELDS = ("sentence_good", "sentence_bad", "linguistics_term", "UID")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A minimal pair of sentences.

    Attributes:
      good: the grammatical sentence.
      bad: the ungrammatical sentence.
      paradigm: name of one of the 67 paradigms.
      phenomenon: name of one of the 12 phenomena.
    """

    good: str
    bad: str
    paradigm: str
    phenomenon: str


def blimp_place(path: str = "") -> Path | None:
    """The given path, or the place of BLiMP in the data folder; None where nothing is there."""
    folder = data_folder()
    usual = (folder / "blimp.zip", folder / "blimp", folder / SNAPSHOTS / "blimp")
    return next((place for place in ([Path(path)] if path else usual) if place.exists()), None)


def supplement_place(path: str = "") -> Path | None:
    """The given path, or the place of BabyLM's supplement in the data folder; None where nothing is there."""
    folder = data_folder()
    usual = (folder / "supplement_filtered", *evaluation_folders(folder / "evaluation_data", "supplement_filtered"))
    return next((place for place in ([Path(path)] if path else usual) if place.exists()), None)


def evaluation_folders(place: Path, name: str) -> list[Path]:
    """The folders of this name in BabyLM's unpacked `evaluation_data`; of several, that of the full evaluation first."""
    found = sorted(place.rglob(name)) if place.is_dir() else []
    return sorted(found, key=lambda one: "fast_eval" in one.parts)


@functools.lru_cache(maxsize=4)
def blimp_pairs(path: str = "") -> dict[str, list[Pair]]:
    """The pairs of each paradigm, by its name. Raises `ConfigError` where they are not here or cannot be read."""
    place = required(blimp_place(path), "blimp.path", f"{path or 'BLiMP'} is not here", GET)
    pairs: dict[str, list[Pair]] = {}
    for where, fields in read_fields(place):
        try:
            good, bad, term, paradigm = (str(fields[name]) for name in FIELDS)
        except (KeyError, TypeError) as error:
            raise ConfigError("blimp.path", f"{where} is not a BLiMP pair ({one_line(error)} is missing)", GET) from error
        pairs.setdefault(paradigm, []).append(Pair(good, bad, paradigm, SAME_PHENOMENON.get(term, term)))
    require(bool(pairs), "blimp.path", f"{place} holds no pairs", GET)
    return dict(sorted(pairs.items()))


def read_fields(place: Path) -> Iterator[tuple[str, dict]]:
    """(place in the source, fields) of every pair below `place`. Raises `ConfigError` for a file that cannot be read."""
    if any(place.glob("*/*/dataset_info.json")):
        yield from read_prepared(place)
        return
    files = open_files(place, "blimp.path")
    for name in sorted(filter(is_jsonl, files.names())):
        unnamed = {"UID": PurePosixPath(name).stem, "linguistics_term": SUPPLEMENT}
        for where, fields in read_lines(f"{place.name}/{name}", b"".join(files.blocks(name))):
            yield where, {**unnamed, **fields} if isinstance(fields, dict) and not fields.keys() & unnamed.keys() else fields


def is_jsonl(name: str) -> bool:
    """Whether a file is JSONL, the hidden files left out that a Mac adds to its archives."""
    file = PurePosixPath(name)
    return file.suffix == ".jsonl" and not file.name.startswith(".")


def read_lines(name: str, lines: bytes) -> Iterator[tuple[str, dict]]:
    """(place, fields) of each line of one JSONL file called `name`. Raises `ConfigError` for a line that is no JSON."""
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            yield f"{name} line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError("blimp.path", f"{name} line {number} is not JSON", "get the file again") from error


def read_prepared(place: Path) -> Iterator[tuple[str, dict]]:
    """(place, fields) of every pair in the newest version of each TFDS data set below `place`.

    Raises `ConfigError` for a data set that is damaged or has no array_record files.
    """
    for folder in sorted(filter(None, map(newest_version, place.iterdir()))):
        require(
            any(folder.glob("*.array_record*")),
            "blimp.path",
            f"{folder} has no array_record files, and only they are read without TensorFlow",
            "convert it: python -m tensorflow_datasets.scripts.convert_format --out_file_format=array_record",
        )
        try:
            examples: Sequence[dict] = trusted_builder(folder).as_data_source(split="train")
            for number in range(len(examples)):
                fields = {name: value for name, value in examples[number].items() if name in FIELDS}
                yield f"{folder.parent.name} pair {number}", {name: value.decode() for name, value in fields.items()}
        except Exception as error:  # TFDS raises whatever its files do
            raise ConfigError("blimp.path", f"{folder} cannot be read ({one_line(error)})", "prepare it again") from error
