"""Docstrings as help texts."""

import functools
import inspect
import re
from typing import Any


def opening(owner: Any) -> str:
    """The docstring of a function or class without its lists of arguments and attributes."""
    return re.split(r"\n\s*\n?(?:Args|Attributes):", inspect.getdoc(owner) or "")[0].strip()


@functools.cache
def help_of(owner: Any, name: str) -> str:
    """The description of an argument or attribute in the docstring of a function or a class, inherited ones included."""
    entry = re.compile(rf"^ +(?:\w+, )*{name}(?:, \w+)*: (.*?)(?=\n +\w[\w, ]*: |\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
    for one in inspect.getmro(owner) if isinstance(owner, type) else (owner,):
        if found := entry.search(inspect.getdoc(one) or ""):
            return re.sub(r"\s+", " ", found.group(1)).strip()
    return ""
