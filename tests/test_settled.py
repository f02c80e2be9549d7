"""What a report says of budgets and rates: an order that turned is not settled, one budget is called one, an edge is named."""

import dataclasses

from infini_jax.records.rows import Row
from infini_jax.report import StudySource, write_report
from infini_jax.report.figures.ladder import score_against_flops
from infini_jax.report.found import Found
from infini_jax.report.looks import styles_of
from infini_jax.report.parts import Drawn, NotMeasured
from infini_jax.report.settled import ONE_BUDGET, orders, rate_sentences, settled_sentence, top_rows
from infini_jax.study.ladder import Ladder
from infini_jax.study.scores import score_of
from tests.support.made_results import config_of, fill, row_of

LADDER = Ladder((1e9, 4e9, 1.6e10), 0.02)
ACCURACY = score_of("mqar")


def rows_of(mechanism: str, *scores: float, size: int = 16384, inside: bool | None = True) -> list[Row]:
    """Two seeds of a mechanism on as many rungs as there are scores, an accuracy of 0.001 apart."""
    made_up = row_of("mqar", "infini", "delta", 4096, 0)
    return [
        dataclasses.replace(
            made_up,
            run=f"{mechanism}-{size}-{rung}-{seed}",
            mechanism=mechanism,
            variant="",
            seed=seed,
            memory_bytes=size,
            accuracy=score + 0.001 * seed,
            budget_amount=LADDER.rungs[rung - 1],
            flops_planned=LADDER.rungs[rung - 1],
            flops_actual=LADDER.rungs[rung - 1],
            rung=rung,
            rate_inside=inside,
        )
        for rung, score in enumerate(scores, 1)
        for seed in (0, 1)
    ]


def sentence(*rows: list[Row]) -> str:
    return settled_sentence([row for of in rows for row in of], ACCURACY, LADDER)


def test_an_order_that_turns_between_the_last_two_rungs_is_printed_as_not_settled():
    said = sentence(rows_of("infini", 0.2, 0.50, 0.50), rows_of("landmark", 0.4, 0.4, 0.9))
    assert said.startswith("not settled at 1.60e10 FLOPs. The order turned for infini and landmark at 16 KiB ")
    assert "(infini ahead at 4.00e9 FLOPs, landmark ahead at 1.60e10 FLOPs)." in said
    assert "Scores still change: landmark at 16 KiB (40.1 % at 4.00e9 FLOPs, 90.1 % at 1.60e10 FLOPs)." in said


def test_what_changes_no_more_is_settled_at_its_rung():
    said = sentence(rows_of("infini", 0.2, 0.5, 0.51), rows_of("landmark", 0.1, 0.1))
    assert said == (
        "settled at 1.60e10 FLOPs: between its last two rungs no score changed by more than 2.0 %, and no order of two "
        "mechanisms at the same bytes turned."
    )


def test_a_point_on_one_rung_settles_nothing():
    said = sentence(rows_of("infini", 0.5, 0.5), rows_of("landmark", 0.1))
    assert said.endswith("One finished rung only, so that nothing is known of a larger budget: landmark at 16 KiB.")


def test_without_a_finished_rung_nothing_is_settled():
    rows = [dataclasses.replace(row, rung=None) for row in rows_of("infini", 0.5, 0.5)]
    assert sentence(rows) == "not settled: no point has finished a rung."


def test_orders_are_of_the_same_bytes_and_a_settled_point_keeps_its_last_score():
    rows = [*rows_of("infini", 0.2, 0.2), *rows_of("landmark", 0.1, 0.15, 0.4), *rows_of("full", 0.9, 0.9, size=65536)]
    (order,) = orders(rows, ACCURACY, 0.02)
    assert {order.one.series, order.other.series} == {("infini", ""), ("landmark", "")}
    assert order.rungs == ("4.00e9 FLOPs", "1.60e10 FLOPs")
    sign = 1 if order.one.series[0] == "infini" else -1
    assert (order.before, order.now, order.is_settled) == (sign, -sign, False)
    (order,) = orders(rows, ACCURACY, 0.9)
    assert (order.before, order.now, order.is_settled) == (0, 0, True)


def test_figures_have_each_point_on_its_highest_finished_rung():
    climbed, settled = rows_of("infini", 0.2, 0.5, 0.6), rows_of("landmark", 0.1, 0.1)
    unfinished = [dataclasses.replace(row, rung=None) for row in climbed[-2:]]
    assert top_rows([*climbed, *settled]) == [*climbed[-2:], *settled[-2:]]
    assert top_rows([*climbed[:-2], *unfinished, *settled]) == [*climbed[-4:-2], *settled[-2:]]
    plain = [dataclasses.replace(row, rung=None) for row in climbed]
    assert top_rows(plain) == plain


def test_a_rate_at_the_edge_is_named_with_its_point():
    rows = [*rows_of("infini", 0.5, inside=False), *rows_of("landmark", 0.5), *rows_of("full", 0.5, inside=None)]
    assert rate_sentences(rows) == [
        "Learning rates: at 1 of 2 points validation chose a rate at the edge of those tried, so that their scores may be too "
        "low: infini at 16 KiB on mqar (0.01)."
    ]
    assert rate_sentences(rows_of("landmark", 0.5)) == []


def test_the_score_against_flops_is_drawn_for_every_point_on_every_rung_and_seed():
    rows = [*rows_of("infini", 0.2, 0.5), *rows_of("landmark", 0.1, 0.1, 0.3), *rows_of("full", 0.9, 0.95, size=65536)]
    found = Found(rows, [], {row.run: config_of(row).to_dict() for row in rows}, {}, [], {})
    (drawn,) = score_against_flops(found, styles_of(rows))
    assert isinstance(drawn, Drawn)
    near, far = [axes for axes in drawn.figure.axes if axes.get_title(loc="left")]
    assert (near.get_title(loc="left"), far.get_title(loc="left")) == ("16 KiB", "64 KiB")
    clouds = [line for line in near.lines if line.get_linestyle() == "None"]
    markers = sorted((x, y) for line in clouds for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert markers == sorted((row.flops_planned, row.accuracy) for row in rows if row.mechanism != "full")
    plain = [dataclasses.replace(row, rung=None) for row in rows]
    (missing,) = score_against_flops(dataclasses.replace(found, rows=plain), styles_of(rows))
    assert isinstance(missing, NotMeasured)


def page_of(folder, rows: list[Row], ladder: Ladder | None) -> str:
    fill(folder, rows)
    return write_report([StudySource(folder, ladder=ladder)], folder).read_text()


def test_the_page_says_what_is_settled_and_shows_the_highest_rung(tmp_path):
    rows = [*rows_of("infini", 0.2, 0.5, 0.5), *rows_of("landmark", 0.1, 0.4, 0.9, inside=False)]
    page = page_of(tmp_path / "ladder", rows, LADDER)
    assert page.index("Settled or not") > page.index("What was found")
    assert "mqar: not settled at 1.60e10 FLOPs. The order turned for infini and landmark at 16 KiB" in page
    assert "validation chose a rate at the edge of those tried" in page
    assert "F11-mqar: Score against training FLOPs: mqar" in page
    assert "The highest median validation accuracy is 90.1 % (landmark at 16 KiB)" in page
    assert ONE_BUDGET not in page


def test_a_study_without_a_ladder_says_once_that_it_has_one_budget(tmp_path):
    plain = [dataclasses.replace(row, rung=None) for row in rows_of("infini", 0.2)]
    assert page_of(tmp_path / "one", plain, None).count(ONE_BUDGET) == 1
