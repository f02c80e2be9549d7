"""Keeps the lines of docstrings on the site: equations and tables are set in lines of two spaces, which Markdown would join.

Departures from a paper are paragraphs of their own.
"""

import re
from typing import Any

import griffe

SECTION = re.compile(r"\s*(Args|Attributes|Raises|Returns|Yields|Examples?|Note|Warning):\s*$")


class Lines(griffe.Extension):
    """Fences the indented lines of every docstring that are of no section and no list."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every module, class and function."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text of a docstring with fences around its indented lines."""
    lines, kept, block, in_section = text.split("\n"), [], [], False
    for line in [*lines, ""]:
        is_indented = line.startswith("  ") and not in_section
        if block and not is_indented:
            kept, block = [*kept, "", "```text", *(one[2:] for one in block), "```", ""], []
        if is_indented and (block or not _continues_a_list(kept)):
            block.append(line)
            continue
        if line.startswith("DEVIATION:") and kept and kept[-1].strip():
            kept.append("")
        in_section = bool(SECTION.match(line)) or (in_section and (not line.strip() or line.startswith(" ")))
        kept.append(line)
    return "\n".join(kept[:-1])


def _continues_a_list(before: list[str]) -> bool:
    """Whether the last paragraph is an item of a list, whose lines are indented, too."""
    paragraph = []
    for line in reversed(before):
        if not line.strip():
            break
        paragraph.append(line)
    return any(line.lstrip().startswith(("- ", "* ")) for line in paragraph)
