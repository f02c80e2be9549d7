"""Colors and markers belong to mechanisms, names stand at the ends of lines, and figures for papers have two widths."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infini_jax.memory import MECHANISMS
from infini_jax.report.dots import has_one_size, score_by_name
from infini_jax.report.looks import DASHES, MARKERS, OF_MECHANISMS, look_of, looks, styles_of
from infini_jax.report.plots import COLUMNS, MOST_NAMED, apart, drawing, save_pdf, score_against_bytes
from infini_jax.study.scores import score_of
from tests.support.made_results import made_rows

SCORE = score_of("mqar")


def mqar():
    return [row for row in made_rows() if row.task == "mqar"]


def test_a_mechanism_looks_the_same_on_every_page():
    alone = looks([("infini", "linear")])[("infini", "linear")]
    beside = looks([("local", ""), ("infini", "delta"), ("infini", "linear"), ("memorizing", ""), ("mine", "")])
    assert beside[("infini", "linear")] == alone
    assert (beside[("infini", "delta")].colour, beside[("infini", "delta")].marker) == (alone.colour, alone.marker)
    assert beside[("infini", "delta")].dashes != alone.dashes
    assert beside[("mine", "")] == look_of("mine") == looks([("mine", "")])[("mine", "")]


def test_mechanisms_of_the_package_differ_in_color_and_marker():
    known = {name: look_of(name) for name in MECHANISMS}
    assert len({(look.colour, look.marker) for look in known.values()}) == len(known)
    assert len({look.marker for look in OF_MECHANISMS.values()}) == len(OF_MECHANISMS)


def test_variants_of_one_mechanism_never_share_a_look():
    series = [("infini", f"variant{number}") for number in range(len(DASHES) * len(MARKERS))]
    assert len(set(looks([*series, ("infini", "linear")]).values())) >= len(series)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted), st.floats(0.01, 0.2))
def test_names_are_apart_in_order_and_no_further_from_their_lines_than_needed(places, step):
    moved = apart(places, step)
    assert np.all(np.diff(moved) >= step - 1e-9)
    assert np.mean(moved) == pytest.approx(np.mean(places), abs=1e-9)  # least squares keeps the mean of every group
    if np.all(np.diff(places) >= step):
        assert moved == pytest.approx(places)


def test_every_line_has_its_name_at_its_end_and_many_have_a_legend():
    rows = mqar()
    figure = score_against_bytes(rows, SCORE, styles_of(rows), chance=1 / 32)
    names = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(names) == sorted({" ".join(filter(None, one)) for one in styles_of(rows)} | {"chance, 3.1 %"})
    assert not figure.legends
    many = [dataclasses.replace(rows[0], variant=f"{number:02}") for number in range(MOST_NAMED + 1)]
    crowded = score_against_bytes(many, SCORE, styles_of(many))
    assert not crowded.axes[0].texts
    assert len(crowded.legends[0].get_texts()) == len(many)


def test_runs_whose_score_still_changes_are_hollow():
    rows = mqar()
    changing = {row.run for row in rows if row.mechanism == "memorizing"}
    figure = score_against_bytes(rows, SCORE, styles_of(rows), unsettled=changing)
    clouds = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    hollow = [y for line in clouds if line.get_markerfacecolor() == "none" for y in line.get_ydata()]
    assert sorted(hollow) == sorted(row.accuracy for row in rows if row.run in changing)


def test_settings_of_one_size_are_compared_by_name():
    rows = [dataclasses.replace(row, memory_bytes=4096) for row in mqar() if row.memory_bytes < 5000]
    bound = dataclasses.replace(rows[0], mechanism="full", memory_bytes=65536)
    assert has_one_size([*rows, bound])
    assert not has_one_size(mqar())
    figure = score_by_name([*rows, bound], SCORE, styles := styles_of([*rows, bound]), chance=1 / 32)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [" ".join(filter(None, series)) for series in styles]
    place = names.index("memorizing")
    drawn = [x for line in figure.axes[0].lines for x, y in line.get_xydata() if y == place and line.get_marker() == "P"]
    assert sorted(drawn) == sorted(row.accuracy for row in rows if row.mechanism == "memorizing")


@pytest.mark.parametrize("width", COLUMNS.values())
def test_a_figure_for_a_paper_is_as_wide_as_its_columns_and_leaves_the_page_s_figure_as_it_was(tmp_path, width):
    rows = mqar()
    figure = score_against_bytes(rows, SCORE, styles_of(rows))
    before = drawing(figure)
    save_pdf(figure, tmp_path / "one.pdf", width)
    (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) [\d.]+ ?\]", (tmp_path / "one.pdf").read_bytes())
    assert float(box) == pytest.approx(72 * width, abs=0.01)
    assert b"/FontFile2" in (tmp_path / "one.pdf").read_bytes()  # TrueType, embedded
    assert drawing(figure) == before
