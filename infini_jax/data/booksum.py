"""BookSum (Kryscinski et al. 2021, arXiv 2105.08209): chapters and books with their summaries, as documents with targets.

Three published forms are read, told apart by the fields of their rows:
- The authors' alignments, `chapter_summary_aligned_{train,val,test}_split.jsonl` and
  `book_summaries_aligned_{train,val,test}.jsonl`, whose rows name files: `chapter_path` or `book_path` below
  `all_chapterized_books`, `summary_path` below `finished_summaries`, JSON with a list of paragraphs as `summary`. The folders
  lie beside the alignments, at any depth. Also with `.gz`, and with the texts in place (`text` and `summary`, lists), as the
  authors' script gathers them.
- `kmfoda/booksum`: CSV or Parquet with `chapter` and `summary_text`. Chapters only.
- `ubaada/booksum-complete-cleaned`: `chapters/*.jsonl` and `books/*.jsonl` with `text` and `summary`, a list of
  `{source, text}`.

A text with several summaries is as many documents. The authors' summaries have to be collected from the web, and some are
gone: rows whose files are missing are left out and told.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Literal

from infini_jax.data.batch import Split
from infini_jax.data.decoding import decoded
from infini_jax.data.field_rows import LINES, TABLES, Fields, field_rows, published_split, whole_text
from infini_jax.data.raw_files import NO_LIMIT, Files, open_files
from infini_jax.data.target_marks import Turn, marked
from infini_jax.data.texts import READING, FileTexts, file_text, ruled_digest, short_names
from infini_jax.errors import ConfigError, one_line, require

Level = Literal["chapters", "books"]
PATHS = {"chapters": "chapter_path", "books": "book_path"}
READ = (*LINES, *TABLES, ".txt", ".json")
ROOTS = ("all_chapterized_books", "finished_summaries")
IN_PLACE = ("summary_text", "summary")
OF_CHAPTERS = ("chapter_path", "chapter", "chapter_id", "is_aggregate")
FORM = 1  # version of how rows become documents, part of the digest


@dataclasses.dataclass(frozen=True)
class BookSum(FileTexts):
    """Texts of BookSum: a chapter or a book, then its summary as the target.

    Attributes:
      path: a folder or an archive with one of the published forms.
      level: what is summarized.
    """

    level: Level = "chapters"

    def digest(self) -> str:
        rules = (READING, FORM, type(self).__name__, self.level)
        return ruled_digest(open_files(self.path).digest(READ, NO_LIMIT), rules)

    def left_out(self) -> list[str]:
        files = open_files(self.path)
        return files.left_out() + [missing for _, row in self._rows(files) for missing in self._missing(files, row)]

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        files = open_files(self.path)
        for title, fields in self._rows(files, split):
            if not self._missing(files, fields):
                for number, summary in enumerate(summaries_of(files, fields)):
                    yield f"{title}/{number}" if number else title, marked(self._context(files, fields), [Turn(summary)])

    def _rows(self, files: Files, split: Split | None = None) -> Iterator[tuple[str, Fields]]:
        """(name, fields) of the rows of a split, or of all; those of the other level are passed over."""
        names = [name for name in files.ending((*LINES, *TABLES)) if published_split(name)]
        mend = "give a folder with BookSum's alignments, or its files from Hugging Face"
        require(bool(names), "path", f"{self.path} has no rows of a train, val or test split", mend)
        for name, short in zip(names, short_names(names), strict=True):
            if split in (None, published_split(name)):
                for number, (place, fields) in enumerate(field_rows(files, name)):
                    if level_of(fields, place) == self.level:
                        yield f"{short}/{number}", fields

    def _context(self, files: Files, fields: Fields) -> Iterator[str]:
        found = fields.get("chapter") or fields.get("text")
        if found:
            yield whole_text("\n\n".join(found) if isinstance(found, list) else found)
            return
        name = places_of(files)[tail_of(fields[PATHS[self.level]])]
        yield from decoded(functools.partial(files.blocks, name), name, "replace")

    def _missing(self, files: Files, fields: Fields) -> list[str]:
        """The files that a row names and that are not there."""
        named = [] if fields.get("chapter") or fields.get("text") else [fields.get(PATHS[self.level])]
        named += [] if any(name in fields for name in IN_PLACE) else [fields.get("summary_path")]
        return [str(name) for name in named if tail_of(str(name)) not in places_of(files)]


def summaries_of(files: Files, fields: Fields) -> list[str]:
    """The summaries of a row, in place or in the file that it names. Raises `ConfigError` for a file that holds none."""
    found = next((fields[name] for name in IN_PLACE if name in fields), None)
    if not any(name in fields for name in IN_PLACE):
        name = places_of(files)[tail_of(fields["summary_path"])]
        text = file_text(files, name, "replace")
        try:
            found = json.loads(text)["summary"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ConfigError("path", f"{name} holds no summary ({one_line(error)})", "mend or remove it") from error
    parts = [found] if isinstance(found, str) else found or []
    told = [one["text"] for one in parts if isinstance(one, dict)]
    texts = [" ".join(one) if isinstance(one, list) else one or "" for one in told] or [" ".join(map(str, parts))]
    return [whole_text(text) for text in texts if text.strip()]


@functools.lru_cache(maxsize=2)
def places_of(files: Files) -> dict[str, str]:
    """The name of each file below one of `ROOTS`, by its path from there on."""
    return {tail: name for name in files.names() if (tail := tail_of(name))}


def tail_of(path: str) -> str:
    """A path from the folder of `ROOTS` on; "" where it lies in none."""
    parts = PurePosixPath(path).parts
    begin = next((number for number, part in enumerate(parts) if part in ROOTS), len(parts))
    return "/".join(parts[begin:])


def level_of(fields: Fields, place: str) -> Level | None:
    """What a row summarizes; None for a row of another kind, such as an aligned paragraph.

    Raises `ConfigError` for a row without a summary.
    """
    require(
        any(name in fields for name in (*IN_PLACE, "summary_path")),
        "path",
        f"{place} has no summary",
        "give BookSum's alignments, or its files from Hugging Face",
    )
    if "paragraph_alignments" in fields:
        return None
    return "chapters" if any(name in fields for name in OF_CHAPTERS) else "books"
