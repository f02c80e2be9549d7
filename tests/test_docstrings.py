"""Docstrings of the package stand on their own: an API reference shows each of them without its neighbors."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import infini_jax

PACKAGE = Path(infini_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NO_SUBJECT = ("Of ", "The same", "Those ", "As of", "As `", "As in", "Like those", "Also ", "Its ", "Their ", "See ")
FRAGMENT = re.compile(r"^ +[a-z][\w, ]*: (?:of|in|to|that|at|from|which|whose|it|they|such as|so many|as in) .*", re.MULTILINE)


def documented(node: ast.AST, name: str, public: bool = True) -> Iterator[tuple[str, bool, str | None]]:
    """(name, whether a reader of the API sees it, docstring) of a module and all that is defined in it."""
    assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    yield name, public, ast.get_docstring(node)
    if isinstance(node, ast.FunctionDef):
        return
    for inner in node.body:
        if isinstance(inner, ast.ClassDef | ast.FunctionDef):
            yield from documented(inner, f"{name}.{inner.name}", public and not inner.name.startswith("_"))


def wrong_in(source: str, module: str) -> list[str]:
    """The docstrings of a module that an API reference cannot show alone."""
    found = documented(ast.parse(source), module)
    texts = [(name, text) for name, public, text in found if public and text]
    fragments = [f"{name}: {line.strip()[:60]}" for name, text in texts for line in FRAGMENT.findall(text)]
    return [f"{name}: {text[:60]}" for name, text in texts if text.startswith(NO_SUBJECT)] + fragments


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_docstrings_open_with_a_subject(file):
    assert wrong_in(file.read_text(), file.stem) == []


def test_modules_and_public_classes_and_functions_have_one():
    silent = [
        name
        for file in FILES
        for name, public, text in documented(ast.parse(file.read_text()), str(file.relative_to(PACKAGE)))
        if public and text is None and name.count(".") <= 2  # methods that a base class describes need none
    ]
    assert silent == []


def test_an_attribute_without_a_subject_is_found():
    source = 'class Run:\n    """A run.\n\n    Attributes:\n      name: of the run.\n      folder: its path.\n    """\n'
    assert wrong_in(source, "planted") == ["planted.Run: name: of the run."]


def test_a_docstring_without_a_subject_is_found():
    assert wrong_in('def size():\n    """Of one device."""\n', "planted") == ["planted.size: Of one device."]
