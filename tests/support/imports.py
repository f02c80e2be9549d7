"""The imports of the package, read from its source: anywhere in a file, under TYPE_CHECKING, and in strings of registries."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "infini_jax"
# Rooms, ground first: each imports only what stands before it. "" is the face of the package, which knows its version.
ROOMS = (
    "",
    "errors",
    "units",
    "files",
    "locks",
    "data",
    "records",
    "layers",
    "memory",
    "config",
    "model",
    "pretrained",
    "devices",
    "analysis",
    "evals",
    "training",
    "finetuning",
    "codes",
    "forecast",
    "study",
    "report",
    "cli",
    "harness",
    "results",
    "__main__",
)
NAMED = re.compile(rf"({PACKAGE}(?:\.\w+)+):\w+")  # "module:function", as registries name what a worker imports


@dataclasses.dataclass(frozen=True)
class Import:
    """One module that imports another. Attributes: importer, imported, as dotted names; line of the importer's file."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{file_of(self.importer)}:{self.line} imports {file_of(self.imported)}"


def file_of(module: str) -> str:
    """The path of a module below the root, as it is told to a person."""
    return module.replace(".", "/") + ".py"


def room_of(module: str) -> str:
    """The folder directly below the package that a module lies in, or its own name where it stands there itself."""
    return [*module.split("."), ""][1]


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package below `root`."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    parts = {file: file.relative_to(root).with_suffix("").parts for file in files}
    return {".".join(part[:-1] if part[-1] == "__init__" else part): file for file, part in parts.items()}


def named_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything that a file imports or names for a worker to import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{name.name}", node.lineno) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (found := NAMED.fullmatch(node.value)):
            yield found[1], node.lineno


def imports_of(root: Path) -> list[Import]:
    """All imports of modules of the package by each other; a name in a package's face counts as an import of the face."""
    modules, found = modules_of(root), []
    for importer, file in modules.items():
        for name, line in named_in(ast.parse(file.read_text())):
            imported = name if name in modules else name.rpartition(".")[0]
            if imported in modules and imported != importer:
                found.append(Import(importer, imported, line))
    return found


def against_the_list(imports: list[Import]) -> list[str]:
    """The imports of a room that stands later in `ROOMS`, and those of rooms that are not on the list."""
    place = {room: number for number, room in enumerate(ROOMS)}
    wrong = []
    for one in imports:
        above, below = room_of(one.importer), room_of(one.imported)
        if above not in place or below not in place:
            wrong.append(f"{one}: {above if above not in place else below} is not on the list of rooms")
        elif place[below] > place[above]:
            wrong.append(f"{one}: {below} stands above {above}")
    return wrong


def rings(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Groups of names that import each other, directly or through others."""
    after: dict[str, set[str]] = {}
    for one, other in edges:
        after.setdefault(one, set()).add(other)

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        ahead = list(after.get(start, ()))
        while ahead:
            if (name := ahead.pop()) not in found:
                found.add(name)
                ahead.extend(after.get(name, ()))
        return found

    reach = {name: reached(name) for name in after}
    circular = {name for name in reach if name in reach[name]}
    groups = {tuple(sorted(other for other in reach[name] & circular if name in reach[other])) for name in circular}
    return sorted(map(list, groups))
