"""CMU-DoG (Zhou, Prabhumoye & Black 2018, arXiv 1809.07358): conversations about films, each with the film's document.

Read as it is published: `Conversations/{train,valid,test}/*.json` with `history` (`uid`, `text`, `docIdx`), `whoSawDoc` and
`wikiDocumentIdx`, and `WikiData/*.json` with sections `0` (fields of the film) to `3` and `wikiDocumentIdx`; its first release
called the two indices `docLinkIdx` and `index`.

A document is the whole film's text, then the conversation. What one speaker says in a row is one turn. Turns of those who saw
the document are targets; those of a partner who did not are read.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from infini_jax.data.batch import Split
from infini_jax.data.field_rows import Fields, published_split, whole_text
from infini_jax.data.raw_files import Files, open_files
from infini_jax.data.target_marks import Turn, marked
from infini_jax.data.texts import READING, FileTexts, file_text, ruled_digest
from infini_jax.errors import ConfigError, one_line, require, required

TALKS, FILMS = "Conversations", "WikiData"
INDICES = ("wikiDocumentIdx", "docLinkIdx", "index")
HEAD = ("movieName", "year", "director", "genre", "cast", "introduction", "rating", "critical_response")
FORM = 1  # version of how files become documents, part of the digest


@dataclasses.dataclass(frozen=True)
class CmuDog(FileTexts):
    """Texts of CMU-DoG: the document of a film, then a conversation whose informed turns are targets.

    Attributes:
      path: a folder or an archive with the folders `Conversations` and `WikiData`.
    """

    def digest(self) -> str:
        rules = (READING, FORM, type(self).__name__)
        return ruled_digest(open_files(self.path).digest((".json",)), rules)

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        files = open_files(self.path)
        names = {kind: [name for name in files.ending((".json",)) if kind in name.split("/")] for kind in (TALKS, FILMS)}
        for kind, found in names.items():
            require(bool(found), "path", f"{self.path} has no folder {kind} with .json files", "give CMU-DoG's folder")
        films = {index_of(film, name): film_text(film) for name in names[FILMS] for film in [read(files, name)]}
        for name in names[TALKS]:
            if published_split(name) == split:
                talk = read(files, name)
                film = required(
                    films.get(index_of(talk, name)), "path", f"the film of {name} is missing", f"add it to {FILMS}"
                )
                if turns := turns_of(talk, name):
                    yield f"{split}/{PurePosixPath(name).name}", marked([film], turns)


def read(files: Files, name: str) -> Fields:
    """The JSON object of a file. Raises `ConfigError` where it is none."""
    text = file_text(files, name, "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError("path", f"{name} is no JSON ({one_line(error)})", "mend or remove it") from error
    require(isinstance(found, dict), "path", f"{name} is no JSON object", "mend or remove it")
    return found


def index_of(fields: Fields, name: str) -> Any:
    """The index of a film's document. Raises `ConfigError` where there is none."""
    found = next((fields[field] for field in INDICES if field in fields), None)
    return required(found, "path", f"{name} has no {INDICES[0]}", "mend or remove it")


def film_text(film: Fields) -> str:
    """The text of a film's document: a line for each field of its first section, then the key scenes."""
    first = film.get("0", {})
    head = first if isinstance(first, dict) else {"introduction": first}
    lines = [f"{field}: {joined(head[field])}" for field in HEAD if head.get(field)]
    return whole_text("\n".join([*lines, *(joined(film[number]) for number in ("1", "2", "3") if film.get(number))]))


def joined(value: Any) -> str:
    """A field's value in one line; the parts of a list are separated by semicolons."""
    return "; ".join(map(joined, value)) if isinstance(value, list) else " ".join(str(value).split())


def turns_of(talk: Fields, name: str) -> list[Turn]:
    """The turns of a conversation, what one speaker says in a row being one. Raises `ConfigError` for another form."""
    try:
        said = [(one["uid"], joined(one["text"])) for one in talk["history"]]
        informed = set(talk["whoSawDoc"])
    except (KeyError, TypeError) as error:
        raise ConfigError("path", f"{name} is no conversation ({one_line(error)})", "mend or remove it") from error
    said = [(speaker, text) for speaker, text in said if text]
    turns = itertools.groupby(said, key=lambda one: one[0])
    return [Turn(whole_text(" ".join(text for _, text in of)), speaker in informed) for speaker, of in turns]
