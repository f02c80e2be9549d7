"""The blocks of code in README.md, CONTRIBUTING.md and docs/, and what is done to test each.

A block is fenced, with its language, or indented by four spaces, which is a block of commands. A comment in front of it says
what it needs: without one it is run as it stands; `<!-- slow -->` is run with the slow tests; of `<!-- needs: WHAT -->` the
arguments are parsed; `<!-- sketch -->` is no program.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(file for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")))
NEEDS = ("gpu", "network", "slurm", "time", "corpus", "results", "shell")
MARKER = re.compile(r"<!-- (.*) -->")
PROGRAMS = ("infini-jax", "make", "pip", "srun")
SHOWN = ("text", "yaml")  # output, files, pictures in letters


@dataclasses.dataclass(frozen=True)
class Block:
    """Attributes: page, its name; line in it, from 1; language, "" where none is said; text; marker in front of it, or ""."""

    page: str
    line: int
    language: str
    text: str
    marker: str

    @property
    def group(self) -> str:
        """What is done with it: run, slow, parsed, python, shown (output, pictures in letters), or "" where nothing fits."""
        need = self.marker.removeprefix("needs: ")
        if self.language in SHOWN:
            return "shown" if not self.marker else ""
        if self.language == "python":
            return {"": "python", "sketch": "shown"}.get(self.marker, "")
        if self.language != "sh" or not all(command[0] in PROGRAMS for command in self.commands):
            return ""
        return {"": "run", "slow": "slow"}.get(self.marker, "parsed" if need in NEEDS and need != self.marker else "")

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command; comments are left out, lines that end with a backslash go on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(text: str, page: str) -> Iterator[Block]:
    """The blocks of a page of Markdown, from top to bottom."""
    lines, at, before = text.splitlines(), 0, ""
    while at < len(lines):
        line, begin = lines[at], at
        if line.startswith("```"):
            at = next(end for end in range(at + 1, len(lines)) if lines[end].startswith("```"))
            yield Block(page, begin + 1, line.removeprefix("```"), "\n".join(lines[begin + 1 : at]) + "\n", marker_of(before))
        elif line.startswith("    ") and (begin == 0 or not lines[begin - 1].strip()):
            while at + 1 < len(lines) and lines[at + 1].startswith("    "):
                at += 1
            text = "\n".join(line[4:] for line in lines[begin : at + 1])
            yield Block(page, begin + 1, "sh", text + "\n", marker_of(before))
        if lines[at].strip():
            before = lines[at]
        at += 1


def marker_of(line: str) -> str:
    found = MARKER.fullmatch(line.strip())
    return found.group(1) if found else ""


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page.read_text(), page.name)]
