"""What the documentation tells a reader to type works: see documentation.py for how a block says what it needs."""

import functools
import re
import shutil
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from infini_jax.cli import main as cli
from infini_jax.data import SOURCES
from infini_jax.data.corpora import CORPORA
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS
from infini_jax.results import load
from infini_jax.study.launch import LAUNCHERS
from tests.support.documentation import PAGES, ROOT, Block, all_blocks, blocks_of

BLOCKS = all_blocks()
WITH_PYTHON = sorted({block.page for block in BLOCKS if block.group == "python"})
SLOW = ("adding.md",)  # trains three models, makes a TFDS data set
STEPS = "--budget.amount"
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def of_group(group: str):
    return pytest.mark.parametrize("block", [block for block in BLOCKS if block.group == group], ids=str)


@pytest.fixture
def registries():
    """What a page adds to them is gone behind it."""
    from infini_jax.data.builders import BUILDERS  # loads TFDS

    kept = [(registry, dict(registry)) for registry in (MECHANISMS, SOURCES, CORPORA, BUILDERS, LAUNCHERS)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place to be at, with nothing of the repository but what pages read, and no prepared corpora."""
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    return tmp_path


def glued(page: str) -> list[str]:
    """The lists and tables right behind a line of text: the site has them in its paragraph. Blocks of code are no text."""
    found, before, is_code = [], "", False
    for line in page.splitlines():
        is_code ^= line.startswith("```")
        kind = (
            before
            if line.startswith("|--")
            else ""
            if is_code or not line.strip() or line[0] in "#`"
            else {"| ": "table", "- ": "list"}.get(line[:2], "text")
        )
        found += [line] if before == "text" and kind in ("table", "list") else []
        before = kind if kind != "text" or before != "list" else before  # items go on over lines
    return found


def test_lists_and_tables_stand_behind_an_empty_line():
    assert glued("text\n- item\n  goes on\n- item\n\ntext\n| a |\n\n## head\n- item\n") == ["- item", "| a |"]
    assert {page.name: lines for page in PAGES if (lines := glued(page.read_text()))} == {}


def test_every_block_is_in_a_group():
    assert [str(block) for block in BLOCKS if not block.group] == []
    assert {block.group for block in BLOCKS} == {"run", "slow", "parsed", "python", "shown"}


def test_a_block_says_what_it_needs_or_is_in_no_group():
    page = "Text\n\n    infini-jax study\n\n<!-- needs: gpu -->\n\n    infini-jax a \\\n      --b # c\n    make d\n\n"
    page += "```\nx\n```\n"
    page += "<!-- needs: luck -->\n```sh\nmake it\n```\n```sh\nrm x\n```\n<!-- slow -->\n```python\n1\n```\n"
    found = list(blocks_of(page, "page"))
    assert [block.group for block in found] == ["run", "parsed", "", "", "", ""]
    assert [block.line for block in found] == [3, 7, 11, 15, 18, 22]
    assert found[1].commands == [["infini-jax", "a", "--b"], ["make", "d"]]


@of_group("run")
def test_commands_run(block, folder):
    run(block)


@pytest.mark.slow
@of_group("slow")
def test_slow_commands_run(block, folder):
    run(block)


def run(block: Block) -> None:
    """As they stand there, but for fewer steps of training: whether it learns is not asked."""
    for program, *arguments in block.commands:
        assert program == "infini-jax", f"{block}: only commands of this package are run"
        if STEPS in arguments:
            arguments[arguments.index(STEPS) + 1] = "8"
        cli.main(arguments)


@of_group("parsed")
def test_commands_that_are_not_run_are_understood(block, folder):
    for program, *arguments in block.commands:
        PARSERS[program](arguments)


def parsed(arguments: list[str]) -> None:
    """By the command's own parser, settings made and checked; a study says what it would do."""
    name, *rest = arguments
    if name == "--tyro-write-completion":
        with pytest.raises(SystemExit):
            cli.main([name, rest[0], "completion"])
        assert Path("completion").stat().st_size > 0
        return
    if name == "study" and "--cancel" not in rest:
        experiment, *options = rest
        where = str(ROOT / experiment) if experiment.endswith(".py") else experiment
        cli.main([name, where, *options, *{"--dry-run"}.difference(options)])
        return
    try:
        tyro.cli(unused(cli.command(name)), args=rest, config=(tyro.conf.CascadeSubcommandArgs,))
    except ConfigError as error:  # what a corpus is made of can be said of one that is here
        if not str(error).startswith("data.name: no prepared corpus"):
            raise


def unused(command: Callable) -> Callable:
    """The command's arguments, and nothing done with them."""

    @functools.wraps(command)
    def nothing(*args, **kwargs) -> None:
        pass

    return nothing


def made(arguments: list[str]) -> None:
    """The Makefile has the targets."""
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def installed(arguments: list[str]) -> None:
    """The extras that are asked for are there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert arguments[0] == "install"
    asked = [name for words in arguments for group in re.findall(r"\[(.*)\]", words) for name in group.split(",")]
    assert set(asked) <= set(extras)


def of_tasks(arguments: list[str]) -> None:
    """What srun starts."""
    parsed(arguments[arguments.index("infini-jax") + 1 :])


PARSERS = {"infini-jax": parsed, "make": made, "pip": installed, "srun": of_tasks}


@pytest.mark.parametrize(
    "arguments", [["evaluate", "x", "--tasks", "mqar"], ["train", "infini", "mqar", "--model.layer", "1"]]
)
def test_a_flag_that_does_not_exist_is_noticed(arguments, capsys):
    with pytest.raises(SystemExit):
        parsed(arguments)
    assert "nrecognized" in capsys.readouterr().err


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in WITH_PYTHON])
def test_python_of_a_page_runs_from_top_to_bottom(page, folder, registries, monkeypatch):
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses and Linen look for their annotations
    for block in BLOCKS:
        if block.page == page and block.group == "python":
            exec(compile("\n" * block.line + block.text, str(ROOT / "docs" / page), "exec"), module.__dict__)


@pytest.mark.slow
def test_the_study_file_of_the_documentation_runs(folder):
    """The workers of the command train all of it, and the report is there."""
    (block,) = (block for block in BLOCKS if block.page == "studies.md" and "def study()" in block.text)
    assert block.text.count("seeds=3") == 1
    Path("recall.py").write_text(block.text.replace("seeds=3", "seeds=1"))  # a third of its time
    cli.main(["study", "recall.py"])
    found = load("results/recall").runs
    assert len(found) == 66 / 3
    assert Path("results/recall/report.html").exists()
    best = found.groupby("mechanism").accuracy.max()
    assert best["full"] > 0.9 > 0.1 > best["local"]  # its ceiling learns, its floor guesses: chance is 1 of 32


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository(page):
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []
