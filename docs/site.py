"""Pages of the site: docs/ with its links led to pages, one page per study with tables here, and one per module.

    python -m docs.site build     # writes build/pages and build/site.yml, which `zensical build -f build/site.yml` reads

The files of docs/ are written to be read in the repository, so that they link to files beside docs/. Here such a link leads to
the page that the site has of that file; of what it has none (folders, notebooks) the words stay and the link goes.
"""

import ast
import functools
import itertools
import math
import posixpath
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infini_jax.report.found import by_task
from infini_jax.report.parts import Table
from infini_jax.report.scores import behind_score, score_for
from infini_jax.report.settled import only_top
from infini_jax.report.summary import sizes_table
from infini_jax.report.trials import only_chosen
from infini_jax.results import load
from infini_jax.results.figures import found_of

ROOT = Path(__file__).parents[1]
TOP = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # file of the repository -> page
PACKAGES = ("infini_jax", "experiments")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
NOT_SHOWN = shutil.ignore_patterns("*.py", "*.yml", "*.parquet", "__pycache__")


def write_site(folder: Path) -> None:
    """Writes the pages below `folder`/pages, all of them anew, and the settings of the site beside them."""
    pages = folder / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages, ignore=NOT_SHOWN)
    for page, text in page_texts().items():
        (pages / page).parent.mkdir(parents=True, exist_ok=True)
        (pages / page).write_text(text)
    settings = (ROOT / "docs" / "site.yml").read_text()
    for mark, lines in (("@ROOMS@", rooms_in_contents()), ("@STUDIES@", studies_in_contents())):
        settings = settings.replace(mark, lines)
    (folder / "site.yml").write_text(settings)


def page_texts() -> dict[str, str]:
    """The pages by their path: those of docs/ and of the top folder, of studies and of modules."""
    texts = {file.name: relinked(file.read_text(), "docs", file.name) for file in (ROOT / "docs").glob("*.md")}
    texts |= {page: relinked((ROOT / name).read_text(), ".", page) for name, page in TOP.items()}
    texts |= {f"gallery/{name}.md": study_page(name) for name in studies()} | {"gallery/index.md": gallery()}
    texts["reference/index.md"] = index()
    for module in modules():
        text = f"# `{dotted(module)}`\n\n::: {dotted(module)}\n"
        if module.name == "__init__.py":
            text += f"\n## Modules\n\n{table(inside(module.parent), posixpath.dirname(page_of(module)))}\n"
        texts[page_of(module)] = text
    return texts


def rooms_in_contents() -> str:
    """The rooms of the package and the experiments, as lines of the site's contents."""
    pages = {room: f"reference/infini_jax/{room}.md" for room in rooms()} | {"experiments": "reference/experiments.md"}
    return "\n".join(f"      - {name}: {page}" for name, page in pages.items())


def studies_in_contents() -> str:
    """The studies whose tables are here, as lines of the site's contents."""
    return "\n".join(f"      - {name}: gallery/{name}.md" for name in studies())


def studies() -> list[str]:
    """The studies whose tables are here."""
    return sorted(file.parent.name for file in (ROOT / "docs" / "results").glob("*/results.parquet"))


def gallery() -> str:
    """The page of all studies: each one's question and first figure."""
    parts = ["# Studies", "", "Each page has the figures and scores of one study, made from its tables in the repository."]
    for name in studies():
        parts += ["", f"## [{name}]({name}.md)", "", asked(name)]
        parts += [f"\n![{name}](../results/{name}/{figure})" for figure in figures(name)[:1]]
    return "\n".join(parts) + "\n"


def study_page(name: str) -> str:
    """The page of one study: question, command, figures, and the score of every mechanism at every size."""
    experiment = experiment_of(name)
    code = f"../reference/experiments/{experiment}.md"
    parts = [f"# {name}", "", asked(name), "", f"    infini-jax study {experiment} --scale cpu", ""]
    parts += [f"What it shows and what it does not: [findings](../findings.md). Code: [{experiment}]({code})."]
    parts += [f"\n![{figure}](../results/{name}/{figure})" for figure in figures(name)]
    found = only_top(only_chosen(found_of(load(ROOT / "docs" / "results" / name))))
    for task, rows in by_task(found.rows, found.configs).items():
        score = score_for(rows, found)
        scored = [row for row in rows if math.isfinite(score.of(row))]
        parts += ["", f"## {task}", "", behind_score(scored, score), "", as_markdown(sizes_table(scored, score))]
    return "\n".join(parts) + "\n"


def as_markdown(table: Table) -> str:
    """A table of a report as one of a page."""
    lines = [table.heads, ["---"] * len(table.heads), *table.lines]
    return "\n".join([table.caption, "", *(f"| {' | '.join(line)} |" for line in lines)])


def asked(name: str) -> str:
    """The question of a study: the first line of its experiment's docstring."""
    said = ast.get_docstring(ast.parse((ROOT / "experiments" / f"{experiment_of(name)}.py").read_text())) or name
    return said.split("\n")[0]


def experiment_of(name: str) -> str:
    """The experiment whose runs a folder of tables has: the folder's name, before a hyphen where it holds a part."""
    return name.split("-")[0]


def figures(name: str) -> list[str]:
    """The names of the figures of a study, scores first."""
    found = [file.name for file in (ROOT / "docs" / "results" / name).glob("*.svg")]
    return sorted(found, key=lambda one: (not one.startswith("score"), one))


def relinked(markdown: str, folder: str, page: str) -> str:
    """The text of a file in `folder` of the repository, as `page` of the site."""

    def lead(match: re.Match[str]) -> str:
        words, target, anchor = match.groups()
        file = posixpath.normpath(posixpath.join(folder, target))
        found = site_page(file)
        if found and not (file == "README.md" and anchor):  # the home page has other sections
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


if __name__ == "__main__":
    write_site(Path(sys.argv[1]))
