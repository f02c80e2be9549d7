"""Generated parts of the site: a reference page per module, two pages of the top folder, and links.

The pages are written to be read in the repository, so that they link to files beside docs/. Here such a link leads to the page
that the site has of that file; of what it has none (folders, notebooks) the words stay and the link goes.
"""

import ast
import functools
import itertools
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
TOP = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # file of the repository -> page
PACKAGES = ("infini_jax", "experiments")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> None:
    """Lists the rooms of the package and the experiments below the reference's entry in the navigation."""
    for entry in config.nav or ():
        if "Reference" in entry:
            pages = {room: f"reference/infini_jax/{room}.md" for room in rooms()} | {"experiments": "reference/experiments.md"}
            entry["Reference"] = ["reference/index.md", *({name: page} for name, page in pages.items())]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are no files in docs/."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, content=relinked((ROOT / name).read_text(), ".", page)))
    for module in modules():
        page = page_of(module)
        text = f"# `{dotted(module)}`\n\n::: {dotted(module)}\n"
        if module.name == "__init__.py":
            text += f"\n## Modules\n\n{table(inside(module.parent), posixpath.dirname(page))}\n"
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference/index.md", content=index()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to files of the repository to their pages."""
    source = page.file.src_uri
    if page.file.generated_by or not (ROOT / "docs" / source).is_file():
        return markdown
    return relinked(markdown, posixpath.dirname(f"docs/{source}"), source)


def relinked(markdown: str, folder: str, page: str) -> str:
    """The text of a file in `folder` of the repository, as `page` of the site."""

    def lead(match: re.Match[str]) -> str:
        words, target, anchor = match.groups()
        file = posixpath.normpath(posixpath.join(folder, target))
        found = site_page(file)
        if found:
            return f"[{words}]({posixpath.relpath(found, posixpath.dirname(page) or '.')}{anchor or ''})"
        return words if (ROOT / file).exists() else match.group()  # what is nowhere is left for the strict check

    return LINK.sub(lead, markdown)


def site_page(file: str) -> str | None:
    """The page that shows a file of the repository, None where the site has none."""
    path = ROOT / file
    if file in TOP or file == "README.md":
        return TOP.get(file, "index.md")
    if file.startswith("docs/") and path.is_file() and path.suffix not in (".py", ".parquet"):
        return file.removeprefix("docs/")
    if file.split("/")[0] in PACKAGES:
        module = path / "__init__.py" if path.is_dir() else path
        return page_of(module) if module in modules() else None
    return None


def modules() -> list[Path]:
    """Every module that has a page."""
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")) if file.name != "__main__.py"]


def dotted(module: Path) -> str:
    parts = module.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def page_of(module: Path) -> str:
    parts = module.relative_to(ROOT).with_suffix("").parts
    return f"reference/{'/'.join(parts[:-1] if parts[-1] == '__init__' else parts)}.md"


def index() -> str:
    """The page that lists every module by room, in the order of the house, with the first line of its docstring."""
    lines = [
        "# Reference",
        "",
        "Every module, from its docstrings: shapes, units, errors, and the source behind each function.",
    ]
    for package, group in itertools.groupby(sorted(modules(), key=place), key=lambda module: module.parent):
        lines += ["", f"## `{'.'.join(package.relative_to(ROOT).parts)}`", "", table(group, "reference")]
    return "\n".join(lines) + "\n"


def table(listed: Iterable[Path], folder: str) -> str:
    """The modules with links from a page in `folder`, and the first line of each one's docstring."""
    lines = ["| | |", "|---|---|"]
    for module in listed:
        said = (ast.get_docstring(ast.parse(module.read_text())) or "").split("\n")[0].replace("|", "\\|")
        lines.append(f"| [{dotted(module).split('.')[-1]}]({posixpath.relpath(page_of(module), folder)}) | {said} |")
    return "\n".join(lines)


def inside(package: Path) -> list[Path]:
    """The modules and packages directly in a package's folder, in their order in lists."""
    found = [one for one in modules() if one.parent == package and one.name != "__init__.py"]
    found += [one for one in modules() if one.parent.parent == package and one.name == "__init__.py"]
    return sorted(found, key=place)


def place(module: Path) -> tuple[Any, ...]:
    """The place of a module in lists: by room in the order of the house, a package before its modules."""
    package, room, *rest = module.relative_to(ROOT).with_suffix("").parts
    order = rooms().index(room) if room in rooms() else -1
    return PACKAGES.index(package), bool(rest), order, module.parent, module.name != "__init__.py", module.name


@functools.cache
def rooms() -> list[str]:
    """The rooms of the package as docs/design.md lists them, ground first."""
    listed = (ROOT / "docs" / "design.md").read_text().split("```text\n")[1].split("```")[0]
    return [room for line in listed.splitlines() for room in re.findall(r"(\w+)(?:/|\.py)", line.split("   ")[0])]
