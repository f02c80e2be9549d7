"""BabyLM's corpora (Warstadt et al. 2023; Hu et al. 2024): a folder of files per split, by their endings.

`train_100M/*.train` is the strict track's text and `train_10M/*.train` that of strict-small (in 2023 `babylm_100M` and
`babylm_10M`); `*.dev` and `*.test` are common to both. A file holds the texts of one source one after the other, nothing in it
says where one ends. So it is cut: a document is `PART` bytes of one file, up to the next end of a line.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from infini_jax.data.batch import Split
from infini_jax.data.decoding import Errors, decoded
from infini_jax.data.raw_files import NO_LIMIT, open_files
from infini_jax.data.texts import READING, FileTexts
from infini_jax.errors import require

Track = Literal["100M", "10M"]
TRACKS: tuple[Track, ...] = ("100M", "10M")
ENDINGS: dict[Split, str] = {"train": ".train", "validation": ".dev", "test": ".test"}
PART = 1 << 18  # bytes of a document, about 45 000 words: longer than any memory here, and enough documents for a batch


@dataclasses.dataclass(frozen=True)
class BabyLmTexts(FileTexts):
    """Texts of one track: parts of its files.

    Attributes:
      path: folder or archive of the files.
      track: words of the training text.
      errors: treatment of bytes that are no UTF-8.
    """

    track: Track
    errors: Errors = "refuse"

    def names(self, split: Split) -> list[str]:
        """The files of a split, sorted; of training files those in a folder called after the track, where there is one."""
        found = sorted(open_files(self.path).ending((ENDINGS[split],)))
        tracks = {name: track_of(name) for name in found}
        if split == "train" and any(tracks.values()):
            return [name for name in found if tracks[name] == self.track]
        return found

    def digest(self) -> str:
        files = open_files(self.path)
        content = hashlib.sha256(repr((READING, type(self).__name__, PART, self.errors)).encode())
        for split in ENDINGS:
            for name in self.names(split):
                content.update(PurePosixPath(name).name.encode() + b"\0")
                for block in files.blocks(name, NO_LIMIT):
                    content.update(block)
        return content.hexdigest()[:16]

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        files = open_files(self.path)
        for name in self.names(split):
            text = decoded(functools.partial(files.blocks, name, NO_LIMIT), name, self.errors)
            for number, part in enumerate(parts_at_lines(text)):
                yield f"{PurePosixPath(name).name}/{number}", iter([part])


def babylm_texts(path: Path, track: Track, errors: Errors) -> BabyLmTexts:
    """The texts of a track. Raises `ConfigError` where the path has no training files of it."""
    found = BabyLmTexts(path, track, errors)
    mend = f"unpack train_{track}, dev and test of BabyLM into it"
    require(bool(found.names("train")), "path", f"{path} has no .train files of {track} words", mend)
    return found


def track_of(name: str) -> Track | None:
    """The track that a folder of a file is called after; None where none is."""
    folders = PurePosixPath(name).parts[:-1]
    return next((track for track in TRACKS if any(part.endswith(f"_{track}") or part == track for part in folders)), None)


def parts_at_lines(text: Iterator[str]) -> Iterator[str]:
    """Parts of a text that comes some at a time: each ends with the first line that reaches `PART` bytes."""
    held, size = [], 0
    for block in text:
        for line in block.splitlines(keepends=True):
            held.append(line)
            size += len(line.encode())
            if size >= PART and line.endswith("\n"):
                yield "".join(held)
                held, size = [], 0
    if held:
        yield "".join(held)
