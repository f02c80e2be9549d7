"""What a page cannot say stands at its top: one budget, few seeds; and no sentence below claims what is not there."""

import dataclasses

import pytest

from experiments import quick
from infini_jax.records.rows import Row
from infini_jax.report import StudySource, write_report
from infini_jax.report.found import Found
from infini_jax.report.limits import limits
from infini_jax.study.ladder import Ladder
from tests.support.made_results import SEEDS, SERIES, SIZES, fill, row_of

LADDER = Ladder((1e9, 4e9), 0.02)
ONE_BUDGET = "every point has one budget, so that nothing tells whether a score or an order holds at a larger one"
ONE_SEED = "there is 1 seed per point, and no interval from fewer than 3"
ONE_RATE = "one learning rate was tried at each point"
NO_MORE = "What follows says what these runs scored, and no more."


def rows_of(seeds: int, rungs: int = 0, **columns) -> list[Row]:
    """Runs of one mechanism with so many seeds, on so many rungs of a ladder."""
    made = row_of("mqar", "infini", "linear", SIZES[0], 0)
    return [
        dataclasses.replace(made, run=f"{seed}-{rung}", seed=seed, rung=rung, budget_amount=1e9 * (rung or 1), **columns)
        for seed in range(seeds)
        for rung in (range(1, rungs + 1) if rungs else (None,))
    ]


def said(tmp_path, rows: list[Row], ladder: Ladder | None = None) -> list[str]:
    return limits([StudySource(tmp_path, ladder=ladder)], [Found(rows, [], {}, {}, [], {})])


@pytest.mark.parametrize(
    ("rows", "ladder", "reasons"),
    [
        (rows_of(1), None, f"{ONE_BUDGET}; {ONE_SEED}; {ONE_RATE}"),
        (rows_of(2), None, f"{ONE_BUDGET}; there are 2 seeds per point, and no interval from fewer than 3; {ONE_RATE}"),
        (rows_of(5), None, f"{ONE_BUDGET}; {ONE_RATE}"),
        (rows_of(5, rate_inside=True), None, ONE_BUDGET),
        (rows_of(1, rungs=2, rate_inside=True), LADDER, ONE_SEED),
        (
            rows_of(5, rungs=1, rate_inside=True),
            LADDER,
            ONE_BUDGET.replace("every point has one budget", "no point has finished two of its budgets"),
        ),
    ],
)
def test_a_page_without_conclusions_says_so_and_why(tmp_path, rows, ladder, reasons):
    assert said(tmp_path, rows, ladder) == [f"Nothing on this page is a conclusion: {reasons}. {NO_MORE}"]


def test_a_ladder_with_seeds_and_runs_that_end_by_their_loss_need_no_such_line(tmp_path):
    assert said(tmp_path, rows_of(3, rungs=2), LADDER) == []
    assert said(tmp_path, rows_of(3, stopped_early="the loss has not fallen")) == []
    assert said(tmp_path, rows_of(1, learning_rate=None)) == []  # nothing is trained


def test_of_several_studies_each_is_named(tmp_path):
    sources = [StudySource(tmp_path / "one"), StudySource(tmp_path / "two", ladder=LADDER)]
    found = [Found(rows, [], {}, {}, [], {}) for rows in (rows_of(1), rows_of(3, rungs=2))]
    (line,) = limits(sources, found)
    assert line.startswith("Nothing of one is a conclusion: every point has one budget")


def test_the_quick_studys_page_says_first_that_it_concludes_nothing(tmp_path):
    """One seed, one budget and one rate a point, as the study has them, and no control of full attention."""
    study = quick.study()
    assert study.ladder is None
    assert study.rates is None
    assert {run.seed for run in study.runs} == {0}
    assert "full" not in {run.mechanism for run in study.runs}
    points = {(run.task, run.mechanism, run.variant, run.memory_bytes) for run in study.runs}
    assert len(points) == len(study.runs)
    rows = [row_of(task, *series, size, SEEDS[0]) for task in ("mqar", "python_stdlib") for series in SERIES for size in SIZES]
    fill(tmp_path, rows)
    source = StudySource(tmp_path, study.question, dict(study.held_equal), study.command, ladder=study.ladder)
    page = write_report([source], tmp_path).read_text(encoding="utf-8").replace("&#39;", "'")
    line = f"Nothing on this page is a conclusion: {ONE_BUDGET}; {ONE_SEED}; {ONE_RATE}. {NO_MORE}"
    assert page.index("<h1>") < page.index(line) < page.index('<h2 id="found">')
    assert page.count("This task decided nothing") == 2 * 2  # of two tasks, in the verdict and in the section
    for claim in (
        "The controls hold",
        "Memory, better than",
        ">agrees<",
        ">contradicts<",
        ": settled at",
        ">above 0<",
        ">below 0<",
    ):
        assert claim not in page
    assert "(no interval from 1 seed (0))" in page
