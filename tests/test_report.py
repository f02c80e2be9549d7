"""The report says what the rows say, asks nothing of the network, and is the same every time."""

import io
import json
import re
from dataclasses import replace

import matplotlib as mpl
import pytest
from rich.console import Console
from scipy import stats

from infini_jax.errors import ConfigError
from infini_jax.records.measures import Measure
from infini_jax.records.rows import Row, write_rows
from infini_jax.report import StudySource, terminal_table, write_report
from infini_jax.report.found import Found
from infini_jax.report.looks import label_of, styles_of
from infini_jax.report.plots import drawing, human_bytes, score_against_bytes, svg
from infini_jax.report.scores import against_window, behind_score, score_for
from infini_jax.report.sections import equality, finding
from infini_jax.study.scores import score_of
from tests.support.made_results import SERIES, SIZES, TASKS, config_of, fill, made_rows, row_of

QUESTION = "Do more bytes recall more, at the same FLOPs?"
ERROR = "loss: not finite at step 40; lower <train.learning_rate> & try 'again'"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return made_rows()


@pytest.fixture(scope="module")
def study(tmp_path_factory, rows):
    """A study's folder with every run but one, which failed, and one that was never finished."""
    folder = tmp_path_factory.mktemp("results") / "quick"
    fill(folder, rows[:-1], [{"run": rows[-1].run, "error": ERROR}])
    (folder / "runs" / "begun").mkdir()
    (folder / "runs" / "begun" / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def page(study) -> str:
    return write_report([source(study)], study).read_text(encoding="utf-8")


def source(folder) -> StudySource:
    return StudySource(folder, QUESTION, {"optimiser": "AdamW"})


def test_page_has_every_seed_of_every_run(page, rows):
    for row in rows[:-1]:
        score = score_of(row.task)
        assert f"<small>seed {row.seed}:</small> {score.number(score.of(row))}<" in page


def test_every_figure_that_is_saved_is_told(study, tmp_path):
    told = []
    write_report([source(study)], tmp_path, lambda done, total: told.append((done, total)))
    count = len(list((tmp_path / "report-figures").glob("*.svg")))
    assert told == [(number, count) for number in range(1, count + 1)]


def test_page_draws_a_marker_for_every_run(rows):
    mqar = [row for row in rows if row.task == "mqar"]
    figure = score_against_bytes(mqar, score_of("mqar"), styles_of(rows), chance=1 / 32)
    clouds = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert sorted(y for line in clouds for y in line.get_ydata()) == sorted(row.accuracy for row in mqar)


def test_page_asks_nothing_of_the_network(page):
    addresses = re.findall(r"https?://[^\s\"'<)]+", page)
    assert set(addresses) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert len(addresses) == len(re.findall(r'xmlns(?::xlink)?="http', page))
    assert all(target.startswith("#") for target in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "<script" not in page
    assert "@import" not in page


def test_page_has_unique_ids_and_every_reference_lands(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    wanted += re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', page)
    assert set(wanted) <= set(ids)


def test_page_is_accessible(page):
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 7  # score, loss curves and gate curves of two tasks; F10, for which rows are enough
    assert all('role="img"' in figure and "<title" in figure and "<desc" in figure for figure in figures)
    assert not re.findall(r"<th(?![^>]*scope=)[\s>]", page)
    assert page.count("<table") == page.count("<caption")
    assert '<meta name="viewport"' in page


def test_failed_and_unfinished_runs_stand_at_the_top_with_escaped_errors(page, rows):
    assert "2 runs missing" in page
    assert "<dt>begun</dt>" in page
    assert f"<dt>{rows[-1].run}</dt>" in page
    assert "lower &lt;train.learning_rate&gt; &amp; try &#39;again&#39;" in page
    assert page.index("lower &lt;train.learning_rate&gt;") < page.index('<h2 id="found">')
    assert "<train.learning_rate>" not in page


def test_page_says_what_was_held_equal_and_how_to_remake_it(page):
    assert re.search(r"optimiser</th><td>AdamW</td>", page)
    assert re.search(r"train.learning_rate</th><td>0.001</td><td>0.001</td>", page)
    assert re.search(r"data.symbols</th><td>64</td><td></td>", page)
    assert "model.segment</th><td>16</td><td>64</td>" in page
    assert ">seed</th>" not in page
    assert "infini-jax study quick" in page


def test_finding_is_computed_from_the_rows(page, rows):
    mqar = [row for row in rows if row.task == "mqar"]
    said = finding(mqar, score_of("mqar"), 1 / 32)
    best = row_of("mqar", "infinite_former", "", SIZES[-1], 0)
    middle = (best.accuracy + row_of("mqar", "infinite_former", "", SIZES[-1], 1).accuracy) / 2
    assert f"The highest median validation accuracy is {100 * middle:.1f} % (infinite_former at 64 KiB)" in said
    assert "the sliding window (local) has 3.6 % at 4 KiB, 3.6 % at 64 KiB" in said
    assert "a guess has 3.1 %" in said
    assert said.replace("'", "&#39;") in page


def test_lower_loss_is_better(rows):
    code = [row for row in rows if row.task == "python_stdlib"]
    assert finding(code, score_of("python_stdlib"), None).startswith(
        f"The lowest median validation loss is {min(row.loss for row in code) + 0.00605:.4f} nats per byte"
    )


def test_validation_is_never_printed_as_a_result(page):
    """Every row has a validation score; it is named so wherever it stands, and the split beside it says what it is for."""
    assert "Split: validation, by which learning rates are chosen: it says where to look and is no result; seeds 0, 1" in page
    for heading in ("Validation accuracy against memory", "Validation loss against memory"):
        assert heading in page
    assert not re.findall(r"(?<!alidation )(?<!training )(?:accuracy|loss), (?:%|nats)", page)


def test_of_runs_that_have_a_test_split_it_is_the_score(rows):
    code = [replace(row, test_loss=row.loss + 0.5) for row in rows if row.task == "python_stdlib"]
    found = Found(code, [], {}, {}, [], {})
    score = score_for(code, found)
    assert (score.name, score.split, score.of(code[0])) == ("test loss", "test", code[0].loss + 0.5)
    assert score_for([*code, rows[-1]], found).split == "validation"  # one run has none: no two splits are compared


def test_examples_that_ask_what_was_trained_are_the_score(rows):
    mqar = [row for row in rows if row.task == "mqar"]
    configs = {row.run: config_of(row).to_dict() for row in mqar}

    def score(length: int, **more):
        labels = {"pairs": 8, "length": length, "overwrites": 0, **more}
        measures = [(row.run, Measure("mqar", "accuracy", row.accuracy / 2, 64, labels=labels)) for row in mqar]
        return score_for(mqar, Found(mqar, [], configs, {}, measures, {}))

    found = score(128)  # as trained
    assert (found.name, found.of(mqar[0]), found.asked(mqar[0])) == ("evaluation accuracy", mqar[0].accuracy / 2, 64)
    assert "64 answers per run; seeds 0, 1; 3.00e11 FLOPs; rate 0.01" in behind_score(mqar, found)
    assert score(256).split == score(128, pairs=16).split == "validation"  # harder than what was trained


def test_mechanisms_are_compared_with_the_window_seed_by_seed(rows):
    three = [
        replace(row, seed=seed, accuracy=row.accuracy + 0.01 * seed) for row in rows if row.seed == 0 for seed in range(3)
    ]
    mqar = [row for row in three if row.task == "mqar" and row.mechanism in ("local", "landmark")]
    mqar = [replace(row, accuracy=row.accuracy + 0.001 * row.seed**2 * (row.mechanism == "landmark")) for row in mqar]
    (said,) = against_window(mqar, score_of("mqar"))
    gained = [row.accuracy for row in mqar if row.mechanism == "landmark" and row.memory_bytes > 60000]
    window = [row.accuracy for row in mqar if row.mechanism == "local"][:3]
    expected = stats.ttest_rel(gained, window).confidence_interval(0.95)
    assert said.endswith(f"[{100 * expected.low:.3g}, {100 * expected.high:.3g}].")
    (said,) = against_window([row for row in mqar if row.seed < 2], score_of("mqar"))
    assert said.endswith("(no interval from 2 seeds (0, 1)).")


def test_flops_are_called_equal_only_where_they_are(rows):
    assert equality(rows)[0]
    twice = [*rows, replace(rows[0], flops_actual=2 * rows[0].flops_actual)]
    assert equality(twice) == (False, "Training FLOPs spent: 2.99e11 to 5.98e11, 50.0 % apart: not equal.")


def test_same_rows_give_the_same_page(study, page):
    before = dict(mpl.rcParams)
    assert write_report([source(study)], study).read_text(encoding="utf-8") == page
    assert dict(mpl.rcParams) == before


def test_study_without_rows_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no finished run in .*; run the study first") as raised:
        write_report([StudySource(tmp_path)], tmp_path)
    assert "\n" not in str(raised.value)
    write_rows([], tmp_path / "results.parquet")
    (tmp_path / "failed.json").write_text(json.dumps([{"run": "a", "error": "first\nsecond"}]))
    with pytest.raises(ConfigError, match=r"1 failed, the first: a: first second\); mend that") as raised:
        write_report([StudySource(tmp_path)], tmp_path)
    assert "\n" not in str(raised.value)


def test_report_of_bare_rows_needs_no_run_folders(tmp_path, rows):
    """One run of a task nobody listed, without memory, without settings or log."""
    write_rows([replace(rows[0], task="books", memory_bytes=0)], tmp_path / "results.parquet")
    page = write_report([StudySource(tmp_path, QUESTION, command="make books")], tmp_path).read_text(encoding="utf-8")
    assert "nats per token" in page
    assert "make books" in page
    assert "0 B" in page


def test_terminal_table_fits_80_columns(rows):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(rows))
    text = console.export_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.strip()]) == 1 + len(TASKS) * len(SERIES) * len(SIZES)
    assert "…" not in text
    assert all(label_of(series) in text for series in SERIES)


def test_svg_escapes_its_alternative_text(rows):
    figure = score_against_bytes(rows[:2], score_of("mqar"), styles_of(rows))
    text = svg(drawing(figure), "a", "<b>", "c & d")
    assert ">&lt;b&gt;</title>" in text
    assert ">c &amp; d</desc>" in text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (4096, "4 KiB"), (3968, "3.9 KiB"), (1048575, "1024 KiB"), (2**21, "2 MiB")],
)
def test_bytes_are_written_for_people(size, text):
    assert human_bytes(size) == text
