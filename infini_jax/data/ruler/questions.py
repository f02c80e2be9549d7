"""RULER's questions about documents, from a file of SQuAD 2.0 (Rajpurkar et al. 2018) or HotpotQA (Yang et al. 2018).

The documents that answer a question stand in random order among others of the same file, those of its article first.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from infini_jax.data.asked import Asked, Ground, Prompt
from infini_jax.data.ruler.scores import match_part
from infini_jax.errors import ConfigError, quoted, require

ONLY = "Only give me the answer and do not output any other words."
ASKED = (
    f"Answer the question based on the given documents. {ONLY}\n\nThe following are given documents.\n\n{{context}}\n\n"
    f"Answer the question based on the given documents. {ONLY}\n\nQuestion: {{question}} Answer:"
)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about documents.

    Attributes:
      text: the question.
      answers: answers, any of which is right.
      needed: numbers of the documents that answer it.
      near: numbers of other documents of its article.
    """

    text: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Library:
    """Documents and questions about them. Attributes: documents, texts in order; questions."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclasses.dataclass(frozen=True)
class Questions(Asked):
    """Questions about some of many documents; a unit is a document.

    Attributes:
      form: form of the file, and the name of its option.
      path: path of the JSON file.
    """

    new: ClassVar[int] = 32
    form: Literal["squad", "hotpot"]
    path: str = ""

    def check(self) -> None:
        name = {"squad": "SQuAD 2.0", "hotpot": "HotpotQA"}[self.form]
        require(
            bool(self.path), self.form, "no file of questions is given", f"give the JSON file of {name} with --{self.form}"
        )
        library(self.form, self.path)

    def least(self, ground: Ground) -> int:
        return max(len(question.needed) for question in library(self.form, self.path).questions)

    def write(self, random: np.random.Generator, units: int, ground: Ground) -> Prompt:
        found = library(self.form, self.path)
        question = found.questions[int(random.integers(len(found.questions)))]
        chosen = [*question.needed, *random.permutation(question.near)[: max(0, units - len(question.needed))]]
        left = np.setdiff1d(np.arange(len(found.documents)), [*question.needed, *question.near])
        chosen += [*random.permutation(left)[: max(0, units - len(chosen))]]
        chosen += [*random.integers(len(found.documents), size=units - len(chosen))]  # again, where there are no more
        order = [int(chosen[place]) for place in random.permutation(units)]
        parts = [f"Document {number}:\n{found.documents[which]}" for number, which in enumerate(order, 1)]
        return Prompt(ASKED.format(context="\n\n".join(parts), question=question.text), question.answers)

    def hits(self, said: str, prompt: Prompt) -> list[bool]:
        return match_part(said, prompt.references)


@functools.lru_cache(maxsize=4)
def library(form: str, path: str) -> Library:
    """The documents and questions of a JSON file. Raises `ConfigError` for one that cannot be read, or has another form."""
    name, kept = {"squad": "SQuAD 2.0", "hotpot": "HotpotQA"}[form], "give the file as it is published"
    require(bool(path), form, "no file of questions is given", f"give the JSON file of {name} with --{form}")
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(form, f"{quoted(path)} cannot be read as JSON", kept) from error
    try:
        found = {"squad": from_squad, "hotpot": from_hotpot}[form](plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(form, f"{quoted(path)} is not in the form of {name}", kept) from error
    require(bool(found.questions), form, f"{quoted(path)} holds no question with an answer", kept)
    return found


def from_squad(plain: Any) -> Library:
    """The library of SQuAD 2.0's JSON: its paragraphs, and the questions that these answer."""
    texts = tuple(sorted({paragraph["context"] for article in plain["data"] for paragraph in article["paragraphs"]}))
    numbers, questions = {text: number for number, text in enumerate(texts)}, []
    for article in plain["data"]:
        of_article = [numbers[paragraph["context"]] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            own = numbers[paragraph["context"]]
            near = tuple(dict.fromkeys(number for number in of_article if number != own))
            for asked in paragraph["qas"]:
                if not asked.get("is_impossible", False):
                    answers = tuple(answer["text"] for answer in asked["answers"])
                    questions.append(Question(asked["question"], answers, (own,), near))
    return Library(texts, tuple(questions))


def from_hotpot(plain: Any) -> Library:
    """The library of HotpotQA's JSON (distractor setting): titles with their paragraphs, and the questions about them."""

    def texts_of(one: Any) -> list[str]:
        return [f"{title}\n{''.join(sentences)}" for title, sentences in one["context"]]

    texts = tuple(sorted({text for one in plain for text in texts_of(one)}))
    numbers = {text: number for number, text in enumerate(texts)}
    return Library(
        texts,
        tuple(
            Question(one["question"], (one["answer"],), tuple(dict.fromkeys(numbers[text] for text in texts_of(one))))
            for one in plain
        ),
    )
