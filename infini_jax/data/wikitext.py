"""WikiText-103 (Merity et al. 2016, arXiv 1609.07843) as running text, with the words that its perplexity is published per.

The data set is spaced: its words, marks and parts of numbers stand apart, and lines end in a space. Models that were trained
on running text read it detokenized, by the rules that Megatron-LM and lm-evaluation-harness share, applied to an article as a
whole. Word perplexity divides by the words before that, and each line's end counts as a word, as in the data set's own count
(245 569 in the test split).
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from infini_jax.data.batch import Split
from infini_jax.data.decoding import decoded
from infini_jax.data.field_rows import field_rows, published_split
from infini_jax.data.raw_files import NO_LIMIT, Files, open_files
from infini_jax.data.readers import lines
from infini_jax.data.texts import READING, FileTexts, ruled_digest
from infini_jax.errors import require

SPACED = (".tokens", ".raw", ".parquet")
TITLE = re.compile(r" = (?!= )[^\n]*? = ?")  # " = Title = ", and not " = = Section = = "
RULES: tuple[tuple[str, str], ...] = (
    (r"s '", "s'"),  # plural possessives
    *((rf" @{re.escape(mark)}@ ", mark) for mark in "-,."),  # parts of numbers and words
    *((rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"\{\s*([^}]*?)\s*\}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)
FORM = 1  # version of the rules, part of the digest


@dataclasses.dataclass(frozen=True)
class WikiText(FileTexts):
    """Texts of WikiText-103, an article per document, detokenized.

    Attributes:
      path: a folder or an archive with `wiki.{train,valid,test}.tokens` or `.raw`, or with the Parquet files of Hugging Face,
        a line per row in the column `text`.
    """

    def digest(self) -> str:
        rules = (READING, FORM, type(self).__name__)
        return ruled_digest(open_files(self.path).digest(SPACED, NO_LIMIT), rules)

    def documents(self, split: Split) -> Iterator[tuple[str, Iterator[str]]]:
        for number, article in enumerate(articles(self._lines(split))):
            yield f"{split}/{number}", iter([detokenized(article).strip() + "\n"])

    def counted_words(self, split: Split) -> int:
        """Words before detokenization, and line ends."""
        return sum(len(line.split()) + 1 for line in self._lines(split))

    def _lines(self, split: Split) -> Iterator[str]:
        """The lines of a split, with their ends."""
        files = open_files(self.path)
        names = [name for name in files.ending(SPACED) if published_split(name)]
        mend = "give a folder with wiki.train.tokens, or with the files of Hugging Face"
        require(bool(names), "path", f"{self.path} has no files of WikiText-103", mend)
        for name in names:
            if published_split(name) == split:
                yield from lines_of(files, name)


def articles(lines: Iterator[str]) -> Iterator[str]:
    """The articles of these lines, each from its title on: a line of title's form behind an empty one."""
    article: list[str] = []
    for line in lines:
        if article and not article[-1].strip() and TITLE.fullmatch(line.rstrip("\n")) and "".join(article).strip():
            yield "".join(article)
            article = []
        article.append(line)
    if (whole := "".join(article)).strip():
        yield whole


def lines_of(files: Files, name: str) -> Iterator[str]:
    """The lines of a file, or the rows of a table, with their ends."""
    if name.endswith(".parquet"):
        for _, fields in field_rows(files, name):
            yield fields["text"].rstrip("\n") + "\n"
        return
    text = decoded(functools.partial(files.blocks, name, NO_LIMIT), name, "refuse")
    before = None
    for line in lines(text, name, files.field):
        if before is not None:
            yield before + "\n"
        before = line
    if before:  # the file ends without a line end
        yield before + "\n"


def detokenized(text: str) -> str:
    """Spaced text as running text, by `RULES` in their order."""
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text
