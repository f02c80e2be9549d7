"""The source of what a user installs, read for tests of rules that hold in every file."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALLED = ("infini_jax", "experiments", "configs")


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """(file:line, node) of everything in the Python files that are installed; nodes without a line have that of the file."""
    for folder in INSTALLED:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                yield f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node
