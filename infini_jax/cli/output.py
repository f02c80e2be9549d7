"""Output of commands for people and scripts: a terminal to which text is text, exit codes, and JSON instead of tables."""

from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from infini_jax.files import json_text

MANY = 200  # rows of a table that nobody reads in a frame
REQUEUE = 75  # EX_TEMPFAIL: try again later; what a scheduler can requeue on
AsJson = Annotated[bool, tyro.conf.arg(name="json")]  # the option --json of commands whose tables a script would read


def terminal(**settings: Any) -> Console:
    """A console that prints names, settings and errors as they are: brackets are no markup, and `:name:` is no emoji."""
    return Console(markup=False, emoji=False, **settings)


def print_table(console: Console, table: Table) -> None:
    """Prints a table; one of many rows without its frame and its colors, each row on one line.

    Laying one row out takes about a millisecond otherwise.
    """
    if table.row_count <= MANY:
        console.print(table)
    else:
        print("\n".join(plain_lines(table)), file=console.file)


def plain_lines(table: Table) -> list[str]:
    """The lines of a table of texts: title, heads, rows, sums, caption."""
    lines = (
        [str(column.header) for column in table.columns],
        *zip(*(map(str, one.cells) for one in table.columns), strict=True),
    )
    sums = [[str(column.footer) for column in table.columns]] if table.show_footer else []
    columns = [
        justified([cell_len(cell) for cell in cells], cells, column.justify == "right")
        for column, cells in zip(table.columns, zip(*lines, *sums, strict=True), strict=True)
    ]
    rows = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return [*filter(None, [str(table.title or "")]), *rows, *filter(None, [str(table.caption or "")])]


def justified(widths: Sequence[int], cells: Sequence[str], right: bool) -> list[str]:
    """The cells of a column, as wide as the widest, which fills on the left where `right`."""
    most = max(widths)
    gaps = [" " * (most - width) for width in widths]
    return [gap + cell if right else cell + gap for gap, cell in zip(gaps, cells, strict=True)]


def print_json(value: Any) -> None:
    """Prints a value as indented JSON, and nothing else."""
    print(json_text(value, indent=2))
