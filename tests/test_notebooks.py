"""Notebooks run headless, and the executed ones beside them are made of the same source."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.made_results import fill, made_rows, write_all_measures
from tests.support.marks import slow_but

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))
QUICK = ("03_compare",)  # the others take longer than the tests that run all day


def executed(name: str):
    """The notebook after its last cell, from its source; raises what a cell raises."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    return notebook


def pictures(notebook) -> list[dict]:
    """The outputs that are pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("name", slow_but(QUICK, NAMES))
def test_a_notebook_runs_to_its_end(name):
    expected = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert len(pictures(executed(name))) >= min(1, len(pictures(expected)))


@pytest.mark.slow
def test_any_study_can_be_compared(tmp_path, monkeypatch):
    """Another folder than those that the notebook looks for by itself, with the logs of its runs."""
    rows = made_rows()
    fill(tmp_path, rows)
    write_all_measures(tmp_path, rows)
    monkeypatch.setenv("INFINI_JAX_STUDY", str(tmp_path))
    notebook = executed("03_compare")
    assert len(pictures(notebook)) == 5  # recall and curves of two tasks, and the loss of a selection
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("vega" in str(output.get("data", {})) for output in shown)


@pytest.mark.parametrize("name", NAMES)
def test_the_executed_notebook_has_the_source_beside_it(name):
    """`make notebooks` makes them again."""
    source, kept = jupytext.read(FOLDER / f"{name}.py"), nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [(cell.cell_type, cell.source) for cell in source.cells]
    assert all(cell.execution_count for cell in kept.cells if cell.cell_type == "code")
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_shows_names_no_machine(name):
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_has_words_for_those_who_do_not_see_it(name):
    kept = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert all(output.metadata["image/png"]["alt"] for output in pictures(kept))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_that_is_made_again_differs_where_its_results_do(name):
    """Neither times nor addresses in memory are kept."""
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert "iopub" not in text
    assert not re.search(r" at 0x[0-9a-f]{6,}>", text)
