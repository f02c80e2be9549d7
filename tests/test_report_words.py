"""Four faults that a conclusion must not survive, each planted in results and looked for in the words of the page."""

import dataclasses
import re

import numpy as np
import pytest

from infini_jax.analysis.half_points import half_point, labelled
from infini_jax.config import RunConfig
from infini_jax.memory.full import FullConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.records.folder import MEASURES_FILE
from infini_jax.records.measures import Measure, join_measures, write_measures
from infini_jax.records.rows import Row
from infini_jax.report import StudySource, write_report
from infini_jax.study.ladder import Ladder
from tests.support.made_results import SIZES, config_of, fill, row_of

LADDER = Ladder((1e11, 4e11), 0.02)
SEEDS = 3


def run_of(mechanism: str, rung: int, seed: int, accuracy: float, **columns) -> Row:
    made = dataclasses.replace(row_of("mqar", "infini", "delta", SIZES[0], seed), mechanism=mechanism, variant="", rung=rung)
    budget = {"budget_amount": LADDER.rungs[rung - 1], "flops_actual": LADDER.rungs[rung - 1]}
    known = {"run": f"{mechanism}-{rung}-{seed}", "accuracy": accuracy + 0.002 * seed, "rate_inside": True}
    return dataclasses.replace(made, **budget, **known | columns)


def climbed(scores: dict[str, tuple[float, float]], **columns) -> list[Row]:
    """Three seeds of each mechanism on both rungs of the ladder."""
    return [
        run_of(mechanism, rung, seed, score, **columns)
        for mechanism, of in scores.items()
        for rung, score in enumerate(of, 1)
        for seed in range(SEEDS)
    ]


def config(row: Row) -> RunConfig:
    """Settings of a made-up row; the questions stand 105 tokens behind the pairs, the window reaches 14."""
    memory = {"full": FullConfig(slots=512), "local": LocalConfig(window=8)}
    found = config_of(row)
    model = dataclasses.replace(found.model, layers=2, memory=memory.get(row.mechanism, found.model.memory))
    return dataclasses.replace(found, model=model)


def page_of(folder, rows: list[Row], measures: dict[str, list[Measure]] | None = None, ladder: Ladder | None = LADDER) -> str:
    fill(folder, rows, configs={row.run: config(row) for row in rows})
    parts = [folder / f"{run}.parquet" for run in measures or {}]
    for part, (run, found) in zip(parts, (measures or {}).items(), strict=True):
        write_measures(run, found, part)
    if parts:
        join_measures(parts, folder / MEASURES_FILE)
    return write_report([StudySource(folder, ladder=ladder)], folder).read_text(encoding="utf-8").replace("&#39;", "'")


SOUND = {"full": (0.98, 0.98), "local": (0.03, 0.03), "infini": (0.5, 0.5), "memorizing": (0.3, 0.3)}


def test_without_a_fault_the_page_says_that_it_is_settled_and_decided(tmp_path):
    page = page_of(tmp_path, climbed(SOUND))
    assert "mqar: settled at 4.00e11 FLOPs" in page
    assert "The controls hold" in page
    for word in ("not settled at", "decided nothing", "at the edge of those tried", "is a conclusion"):
        assert word not in page


def test_a_planted_unsettled_order_is_told(tmp_path):
    page = page_of(tmp_path, climbed(SOUND | {"memorizing": (0.3, 0.8)}))
    assert "mqar: not settled at 4.00e11 FLOPs. The order turned for infini and memorizing at 4 KiB" in page
    assert "(infini ahead at 1.00e11 FLOPs, memorizing ahead at 4.00e11 FLOPs)" in page
    assert "mqar: settled" not in page


def test_a_planted_edge_rate_is_told(tmp_path):
    rows = [dataclasses.replace(row, rate_inside=row.mechanism != "infini") for row in climbed(SOUND)]
    page = page_of(tmp_path, rows)
    assert "at 1 of 4 points validation chose a rate at the edge of those tried" in page
    assert "too low: infini at 4 KiB on mqar (0.01)." in page


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ({"full": (0.03, 0.03)}, "the positive control (full attention, 512 slots) has 3.2 %, not above the floor's 3.2 %"),
        ({"full": ()}, "no positive control was run: full attention with enough slots"),
    ],
)
def test_a_planted_control_that_fails_is_told_before_anything_else_of_its_task(tmp_path, scores, why):
    page = page_of(tmp_path, climbed(SOUND | scores))
    line = f"This task decided nothing, because {why}"
    assert page.index('<dl class="verdicts">') < page.index(line) < page.index("The highest median")
    assert "The controls hold" not in page


PAIRS, ASKED = (2, 4, 8, 16, 32, 64), 1000
FALLING = tuple(1 / (1 + (n / 12) ** 2.5) for n in PAIRS)  # a logistic in log n
BACK = (0.99, 0.4, 0.9, 0.7, 0.3, 0.05)  # falls below one half, rises again: no curve of a memory that fills


def codes(shares: tuple[float, ...], seed: int, size: int) -> tuple[Row, list[Measure]]:
    """A memory layer alone whose recall over n was planted, and its n50 as such a job finds it."""
    made = row_of("mqar", "infini", "delta", SIZES[0], 0)
    row = dataclasses.replace(made, run=f"codes-{size}-{seed}", task="capacity", seed=seed, memory_bytes=size)
    right = np.array(shares) * ASKED * (1 - 0.001 * seed)
    found = half_point(np.array(PAIRS) * size / SIZES[0], right, np.full(len(PAIRS), ASKED))
    return row, [Measure("capacity", "n50", found.n50, ASKED, labels=labelled(found))]


@pytest.mark.parametrize(("shares", "crossings"), [(FALLING, 0), (BACK, 9)])
def test_a_planted_curve_that_is_not_monotone_is_read_by_its_crossing_and_marked(tmp_path, shares, crossings):
    made = [codes(shares, seed, size) for size in SIZES for seed in range(SEEDS)]
    page = page_of(tmp_path, [row for row, _ in made], {row.run: found for row, found in made}, None)
    (table,) = re.findall(r"<table[^>]*>\s*<caption>n50 = prefactor.*?</table>", page, flags=re.DOTALL)
    assert f"<td>{crossings} of 9</td>" in table
    predictions = page[page.index('<h2 id="predictions">') :]
    assert ("9 of 9 n50 by crossing" in predictions) == bool(crossings)
