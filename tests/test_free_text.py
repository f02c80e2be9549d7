"""Names, variants, questions and errors are text: no terminal, figure or page reads markup or mathematics in them."""

import dataclasses
import html
import io
import re
from pathlib import Path

import markupsafe
import pytest
from rich.console import Console

from infini_jax.cli.main import main
from infini_jax.cli.output import terminal
from infini_jax.cli.progress import study_progress, waiting
from infini_jax.cli.tables import result
from infini_jax.config import RunConfig
from infini_jax.records.folder import StudyFolder
from infini_jax.records.rows import write_rows
from infini_jax.report import StudySource, terminal_table, write_report
from infini_jax.report.plots import power_of_two, svg
from infini_jax.results import load, tasks, training_curves
from infini_jax.study.spending import spending_table
from infini_jax.study.study import Study, save_study
from tests.support.made_results import SIZES, config_of, fill, row_of, write_all_measures

VARIANTS = ["[/b] x", r"$\frac{a$", "[red]x", "lr[/fast]", "$x$", r"\$y\$", ":smile:", "<b>&amp;</b>", 'url(#a id="b #010203']
REPORTED = (*VARIANTS[:2], " ".join(VARIANTS[2:]))  # each is a panel of many figures
ROOM = Path(__file__).parents[1] / "infini_jax"


def rows_with(variant: str):
    return [dataclasses.replace(row_of("python_stdlib", "infini", "delta", size, 0), variant=variant) for size in SIZES[:2]]


def shown(table, **settings) -> str:
    console = terminal(file=io.StringIO(), width=200, **settings)
    console.print(table)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, str]:
    """(folder, page) of a study with every evaluation, whose texts are all hostile."""
    folder = tmp_path_factory.mktemp("results") / "quick"
    rows = [
        dataclasses.replace(row, run=f"{row.run}-{number}")
        for number, variant in enumerate(REPORTED)
        for row in rows_with(variant)[number % 2 :][:1]
    ]
    fill(folder, rows, [{"run": "bad", "error": VARIANTS[0] + VARIANTS[1]}])
    write_all_measures(folder, rows)
    held = {f"held {variant}": variant for variant in VARIANTS}
    return folder, write_report([StudySource(folder, " ".join(VARIANTS), held)], folder).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_report_shows_every_variant_as_it_is(reported):
    """Escaped once in the page, and in the pictures' own text."""
    folder, page = reported
    bare = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    pictures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    texts = [html.unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", pictures, flags=re.DOTALL)]
    for variant in REPORTED:
        assert f"infini {variant}" in html.unescape(bare)
        assert variant not in bare or html.escape(variant) == variant
        assert any(f"infini {variant}" in text for text in texts)
    assert f"<h1>{markupsafe.escape(' '.join(VARIANTS))}</h1>" in page
    assert len(list((folder / "report-figures").glob("F*.pdf"))) > 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_table_of_rows_shows_a_variant_on_any_console(variant):
    for console in (terminal(file=io.StringIO(), width=200), Console(file=io.StringIO(), width=200)):
        console.print(terminal_table(rows_with(variant)))
        assert f"infini {variant}" in console.file.getvalue()


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_tables_and_bars_show_it(variant):
    run = RunConfig(variant=variant)
    study = Study("mine", variant, (run,))
    assert variant in shown(result(rows_with(variant)[0], Path(variant)))
    shown(spending_table(study))
    console = terminal(file=io.StringIO(), force_terminal=True, width=200)
    with waiting(variant, console):
        pass
    with study_progress(study, console):
        pass
    assert variant in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


@pytest.mark.parametrize("variant", VARIANTS)
def test_figures_of_a_notebook_show_it(variant, tmp_path):
    rows = rows_with(variant)
    folder = tmp_path / "quick"
    fill(folder, rows, configs={row.run: dataclasses.replace(config_of(row), variant=variant) for row in rows})
    found = load(folder)
    figure = training_curves(found, task=tasks(found)[0])
    file = io.StringIO()
    figure.savefig(file, format="svg")  # as a notebook does, outside of our look
    assert figure.axes[0].get_title(loc="left") == f"infini {variant}"


def test_the_report_command_prints_hostile_variants_paths_and_failures(tmp_path, capsys, monkeypatch):
    """After all runs are done, nothing of what they are called ends it."""
    monkeypatch.setenv("COLUMNS", "200")
    made, folder, (row, *_) = tmp_path / "made", tmp_path / "[red]x[/b]", rows_with("[/b] x")
    fill(made, [row], [{"run": "bad", "error": "[/b] $x$"}])
    write_rows([row], StudyFolder(made).run(row.run).row)
    save_study(Study("mine", "[/b]?", (dataclasses.replace(config_of(row), variant="[/b] x"), RunConfig(name="bad"))), made)
    folder.parent.mkdir()  # no study is trained there, but a finished one may be moved
    made.rename(folder)
    main(["report", str(folder)])
    said = capsys.readouterr().out
    for text in ("infini [/b] x", "failed: bad: [/b] $x$", f"report: {folder / 'report.html'}"):
        assert text in said


def test_only_one_function_makes_consoles():
    """And so no command reads markup in what it prints."""
    made = [file for file in (ROOM / "cli").glob("*.py") if re.search(r"\bConsole\(", file.read_text())]
    assert [file.name for file in made] == ["output.py"]
    columns = re.findall(r"TextColumn\((.*)\)", (ROOM / "cli" / "progress.py").read_text())
    assert all("markup=False" in column or "{" not in column for column in columns)


def test_only_tags_of_a_picture_are_made_the_pages():
    drawn = '<svg id="a" fill="#010203"><text>id="a" url(#a) #010203</text><use href="#a"/></svg>'
    text = svg(drawn, "F1", "t", "d")
    assert '<text>id="a" url(#a) #010203</text>' in text
    assert '<svg id="F1-a" fill="currentColor"' in text
    assert 'href="#F1-a"' in text


@pytest.mark.parametrize(
    ("value", "said"), [(8.0, "2³"), (1.0, "2⁰"), (0.125, "2⁻³"), (2.0**12, "2¹²"), (3.0, "3"), (0.0, "0")]
)
def test_powers_of_two_are_written_without_mathematics(value, said):
    assert power_of_two(value) == said


@pytest.mark.slow
def test_no_text_of_a_figure_is_read_as_mathematics(reported):
    """Of every figure of a report, axes and legends included."""
    _, page = reported
    assert "mathdefault" not in page
    assert not re.findall(r"<!-- [^>]*\$", page)
