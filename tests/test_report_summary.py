"""The first screen: one verdict per task with its conditions, every size of every mechanism, and contents that land."""

import dataclasses
import re

import pytest

from infini_jax.report.controls import Decision
from infini_jax.report.settled import Standing
from infini_jax.report.summary import sizes_table, verdict
from infini_jax.study.scores import score_of
from tests.support.made_results import SIZES, made_rows
from tests.test_report_words import SOUND, climbed, page_of

FINDING = "The highest accuracy is 97.0 % (infini at 16 KiB)."
HELD, FAILED = Decision(True, "The controls hold."), Decision(False, "This task decided nothing, because there is no floor.")
SETTLED = Standing("4.00e11 FLOPs", (), (), ())
TURNED = dataclasses.replace(SETTLED, turned=("a and b", "a and c"))


@pytest.mark.parametrize(
    ("decided", "standing", "said"),
    [
        ([FAILED], SETTLED, "This task decided nothing, because there is no floor."),
        ([FAILED, HELD], SETTLED, f"{FINDING} Settled at 4.00e11 FLOPs, with 2 seeds per point or more."),
        ([HELD], SETTLED, f"{FINDING} Settled at 4.00e11 FLOPs, with 2 seeds per point or more."),
        ([HELD], TURNED, f"Not settled at 4.00e11 FLOPs: 2 orders of two mechanisms turned. {FINDING}"),
        ([], None, f"One budget, so no conclusion. {FINDING}"),
        ([HELD], Standing("", (), (), ()), f"Not settled: no point has finished a rung. {FINDING}"),
    ],
)
def test_a_verdict_has_the_conditions_under_which_it_holds(decided, standing, said):
    assert verdict(FINDING, decided, standing, made_rows()) == said


def test_every_mechanism_stands_in_the_summary_with_every_size():
    rows = [row for row in made_rows() if row.task == "mqar"]
    table = sizes_table(rows, score_of("mqar"))
    assert table.heads == ("Mechanism", "4 KiB", "15.5 KiB", "64 KiB")  # sizes of a few bytes less share a column
    memorizing = next(line for line in table.lines if line[0] == "memorizing")
    mine = [row for row in rows if row.mechanism == "memorizing"]
    means = [sum(row.accuracy for row in mine if abs(row.memory_bytes - size) < 99) / 2 for size in SIZES]
    assert memorizing[1:] == tuple(f"{100 * mean:.1f}" for mean in means)


def test_the_page_opens_with_the_question_the_verdicts_and_one_figure(tmp_path):
    page = page_of(tmp_path, climbed(SOUND))
    marks = ("<h1>", '<dl class="verdicts">', "<figure>", '<ul class="contents">', '<h2 id="found">')
    order = [page.index(mark) for mark in marks]
    assert order == sorted(order)
    linked = re.findall(r'href="#([^"]+)"', page.split('<ul class="contents">')[1].split("</ul>")[0])
    assert linked == re.findall(r'<h2 id="([^"]+)"', page)
