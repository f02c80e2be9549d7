"""The pages of the site: links that lead somewhere, a page per study and per module, equations that keep their lines."""

import re

import pytest

from docs import site


def test_a_link_to_a_file_leads_to_its_page_and_one_to_nothing_on_the_site_leaves_its_words():
    text = "[design](docs/design.md#the-seam), [base](infini_jax/memory/base.py), [tour](notebooks/01_tour.py), [x](no.md)"
    said = site.relinked(text, ".", "index.md")
    assert said == "[design](design.md#the-seam), [base](reference/infini_jax/memory/base.md), tour, [x](no.md)"
    assert site.relinked("[quick](../README.md#what-the-quick-study-says)", "docs", "running.md") == "quick"


def test_every_study_with_tables_has_a_page_with_its_question_figures_and_scores():
    assert "initial_values" in site.studies()
    page = site.study_page("initial_values")
    assert "Initial values: which start of gates" in page
    assert "![score-mqar.svg](../results/initial_values/score-mqar.svg)" in page
    assert re.search(r"\| infini gate2-scale3 \|[^\n]*\b100\.0\b", page)
    assert "Split: test" in page


def test_the_contents_list_every_room_and_study():
    assert [line.split(":")[0].strip(" -") for line in site.rooms_in_contents().splitlines()] == [*site.rooms(), "experiments"]
    assert all(f"gallery/{name}.md" in site.studies_in_contents() for name in site.studies())
    settings = (site.ROOT / "docs" / "site.yml").read_text()
    assert "@ROOMS@" in settings
    assert "@STUDIES@" in settings


def test_equations_of_a_docstring_keep_their_lines_and_its_sections_and_lists_are_left():
    pytest.importorskip("griffe", reason="griffe is of the extra docs")
    from docs.lines import fenced

    text = """A memory:

  eq. 1  a = b
  eq. 2  c = d

DEVIATION: one.
DEVIATION: two.

- a list that
  goes on

Args:
  x: number.
"""
    block = "```text\neq. 1  a = b\neq. 2  c = d\n```"
    parts = ["A memory:", block, "DEVIATION: one.", "DEVIATION: two.", "- a list that\n  goes on", "Args:\n  x: number."]
    assert re.split(r"\n\n+", fenced(text).strip()) == parts
