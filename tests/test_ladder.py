"""Ladders and grids of rates: the list of jobs follows from what ended, only grows, and is the same whoever asks."""

import dataclasses
import math
import random
from collections import Counter

import pytest

from infini_jax.config import Budget
from infini_jax.errors import ConfigError
from infini_jax.study.climb import Climb, Ended, Plan, climb
from infini_jax.study.jobs import JOB_KINDS
from infini_jax.study.ladder import Ladder, Rates, order_of
from infini_jax.study.study import Study
from infini_jax.study.trials import seeded
from tests.support.slopes import KIND, Slope

RUNGS = (1.0, 2.0, 4.0, 8.0)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(JOB_KINDS, "slope", KIND)


def ended(job: Slope) -> Ended:
    """What is known of a job that was done."""
    return Ended() if job.learning_rate >= job.breaks else Ended(job.loss, -job.loss)


def final(plan: Plan, known: dict[str, Ended] | None = None) -> Climb:
    """The list when all that is in it has ended."""
    known = dict(known or {})
    while fresh := [job for job in climb(plan, known).jobs if job.name not in known]:
        known.update({job.name: ended(job) for job in fresh})
    return climb(plan, known)


def places(found: Climb) -> set[tuple[str, float, float]]:
    """(mechanism, budget, rate) of all jobs."""
    return {(job.mechanism, job.budget.amount, job.learning_rate) for job in found.jobs}


def rungs_of(found: Climb, mechanism: str = "one") -> list[float]:
    """The budgets at which a mechanism is run, in ascending order."""
    return sorted({amount for name, amount, _ in places(found) if name == mechanism})


def plan_of(*slopes: Slope, ladder: Ladder | None = None, rates: Rates | None = None, seeds: int = 1) -> Plan:
    return Plan(tuple(job for one in slopes for job in seeded(one, seeds)), ladder, rates)


def slope(mechanism: str = "one", **settings) -> Slope:
    return Slope(name=mechanism, mechanism=mechanism, **settings)


def test_without_results_a_study_has_its_first_two_rungs_at_the_starting_rates():
    plan = plan_of(slope(), ladder=Ladder(RUNGS, 0.1), rates=Rates((3e-3, 1e-2)), seeds=2)
    jobs = climb(plan, {}).jobs
    assert [job.name for job in jobs[:4]] == [
        "one-s0-b1e0-lr3e-3",
        "one-s1-b1e0-lr3e-3",
        "one-s0-b1e0-lr1e-2",
        "one-s1-b1e0-lr1e-2",
    ]
    assert Counter(job.budget.amount for job in jobs) == {1.0: 4, 2.0: 4}
    assert (plan.least_flops, plan.most_flops) == (4 * 1.0 + 4 * 2.0, 2 * (2 + 6) * sum(RUNGS))


@pytest.mark.parametrize(
    ("best", "grid", "inside"),
    [
        (1e-2, (3e-3, 1e-2, 3e-2), True),
        (9e-2, (3e-3, 1e-2, 3e-2, 9e-2, 2.7e-1), True),  # grown until what is chosen lies inside
        (1e-4, (1.11e-4, 3.33e-4, 1e-3, 3e-3, 1e-2, 3e-2), False),  # three times at most
        (1e3, (3e-3, 1e-2, 3e-2, 9e-2, 2.7e-1, 8.1e-1), False),
    ],
)
def test_a_grid_grows_at_the_edge_that_was_chosen(best, grid, inside):
    found = final(plan_of(slope(best=best), rates=Rates((3e-3, 1e-2, 3e-2)), seeds=2))
    ((rung,),) = found.rungs
    assert rung.grid == pytest.approx(grid)
    assert rung.rate_inside is inside
    assert {mark for mark in found.marks().values()} == {(None, inside)}
    assert len(found.jobs) == 2 * len(grid)


def test_two_seeds_try_every_rate_and_the_others_run_at_the_one_that_these_chose():
    plan = plan_of(slope(), rates=Rates((3e-3, 1e-2, 3e-2)), seeds=5)
    first = climb(plan, {})
    assert Counter((job.learning_rate, job.seed) for job in first.jobs) == Counter(
        (rate, seed) for rate in (3e-3, 1e-2, 3e-2) for seed in (0, 1)
    )
    assert plan.least_flops == 3 * 2 + 3  # counts those that follow, whichever rate they get
    known = {job.name: ended(job) for job in first.jobs}
    ((rung,),) = (chosen := climb(plan, known)).rungs
    assert (rung.chosen, rung.is_over, rung.rate_inside) == (1e-2, False, None)
    assert {(job.learning_rate, job.seed) for job in chosen.jobs if job.name not in known} == {(1e-2, 2), (1e-2, 3), (1e-2, 4)}
    ((rung,),) = final(plan, known).rungs
    assert (rung.is_over, rung.score) == (True, pytest.approx(-1.0002))  # the median of all five


def test_seeds_follow_when_the_grid_is_complete():
    plan = plan_of(slope(best=9e-2), rates=Rates((3e-3, 1e-2, 3e-2)), seeds=3)
    known = {job.name: ended(job) for job in climb(plan, {}).jobs}
    assert {job.seed for job in climb(plan, known).jobs} == {0, 1}  # the grid grows first
    assert {(job.learning_rate, job.seed) for job in final(plan).jobs if job.seed == 2} == {(9e-2, 2)}


def test_all_seeds_try_all_rates_where_no_pilots_are_asked_for():
    jobs = climb(plan_of(slope(), rates=Rates((3e-3, 1e-2), pilots=0), seeds=4), {}).jobs
    assert Counter(job.seed for job in jobs) == dict.fromkeys(range(4), 2)


def test_a_grid_of_one_rate_grows_at_both_sides():
    ((rung,),) = final(plan_of(slope(), rates=Rates((1e-2,)))).rungs
    assert rung.grid == (3.33e-3, 1e-2, 3e-2)
    assert rung.rate_inside


def test_each_rung_has_a_grid_of_its_own():
    """The best rate is moved by hand where the budget is larger."""
    plan = plan_of(slope(), ladder=Ladder(RUNGS[:2], 1.0), rates=Rates((3e-3, 1e-2, 3e-2)))
    known = {
        job.name: ended(dataclasses.replace(job, best=(1e-2, 9e-2)[job.budget.amount > 1])) for job in climb(plan, {}).jobs
    }
    assert climb(plan, known).rungs[0][0].grid == (3e-3, 1e-2, 3e-2)
    assert climb(plan, known).rungs[0][1].grid == (3e-3, 1e-2, 3e-2, 9e-2)


def test_a_rate_that_diverges_is_an_edge_and_all_that_diverge_ask_for_lower_ones():
    ((rung,),) = final(plan_of(slope(best=1.0, breaks=2e-2), rates=Rates((3e-3, 1e-2, 3e-2)))).rungs
    assert (rung.grid, rung.chosen, rung.rate_inside) == ((3e-3, 1e-2, 3e-2), 1e-2, True)
    ((rung,),) = final(plan_of(slope(breaks=1e-3), rates=Rates((3e-3, 1e-2)))).rungs
    assert (rung.grid[:3], rung.chosen, rung.rate_inside) == ((1.11e-4, 3.33e-4, 1e-3), 3.33e-4, True)


def test_rates_that_a_study_gives_itself_are_judged_and_never_grown():
    runs = [
        dataclasses.replace(slope(best=best), name=f"{best}-{rate}", learning_rate=rate)
        for best in (1e-2, 1.0)
        for rate in (3e-3, 1e-2, 3e-2)
    ]
    found = final(Plan(tuple(runs)))
    assert set(found.jobs) == set(runs)
    assert [rung.rate_inside for (rung,) in found.rungs] == [True, False]
    assert [rung.rate_inside for (rung,) in final(Plan(tuple(runs[:1]))).rungs] == [None]


@pytest.mark.parametrize(
    ("fall", "tolerance", "rungs"),
    [(0.0, 0.1, 2), (1.0, 0.6, 2), (1.0, 0.3, 3), (1.0, 0.2, 4), (1.0, 0.0, 4), (8.0, 0.1, 4)],
)
def test_a_point_climbs_while_its_score_changed_by_more_than_the_tolerance(fall, tolerance, rungs):
    """The change from 1 to 2 is fall / 2, from 2 to 4 a quarter of it, from 4 to 8 an eighth."""
    found = final(plan_of(slope(fall=fall), ladder=Ladder(RUNGS, tolerance)))
    assert rungs_of(found) == list(RUNGS[:rungs])
    assert found.marks()["one-s0-b1e0"] == (1, None)


def test_points_whose_order_turned_climb_together():
    """One comes as near as the tolerance to another that was ahead, though its own change is within it."""
    late, still = slope("late", floor=0.6, fall=0.9), slope("still", floor=0.9)  # late: 1.5, 1.05, 0.825
    ladder = Ladder(RUNGS, 0.5)
    assert rungs_of(final(plan_of(late, ladder=ladder)), "late") == [1.0, 2.0]
    found = final(plan_of(late, still, ladder=ladder))
    assert rungs_of(found, "late") == rungs_of(found, "still") == [1.0, 2.0, 4.0]  # behind, equal, equal
    far = dataclasses.replace(still, floor=0.1)
    assert rungs_of(final(plan_of(late, far, ladder=ladder)), "still") == [1.0, 2.0]  # ahead on both


def test_only_the_same_bytes_of_other_mechanisms_are_compared():
    moving = slope("a", floor=0.0, fall=2.0)
    for still in (slope("b", memory_bytes=2048), slope("a2", variant="x", memory_bytes=1400)):
        found = final(plan_of(moving, still, ladder=Ladder(RUNGS, 0.1)))
        assert rungs_of(found, still.mechanism) == [1.0, 2.0]
    found = final(plan_of(moving, slope("b", memory_bytes=1200), ladder=Ladder(RUNGS, 0.1)))
    assert len(rungs_of(found, "b")) > 2


def test_one_that_settled_follows_when_another_passes_its_last_score():
    """b is still from the start; a passes it on the third rung only, and b is run there, too."""
    found = final(plan_of(slope("a", floor=0.5, fall=3.0), slope("b", floor=1.5), ladder=Ladder(RUNGS, 0.1)))
    scores = {amount: 0.5 + 3.0 / amount for amount in RUNGS}
    assert [scores[amount] < 1.5 for amount in RUNGS] == [False, False, True, True]
    assert rungs_of(found, "b") == [1.0, 2.0, 4.0, 8.0]  # and once more, because the order turned between its last two


def test_nothing_is_decided_before_a_group_is_complete():
    plan = plan_of(slope(best=1.0, fall=4.0), ladder=Ladder(RUNGS, 0.1), rates=Rates((3e-3, 1e-2)), seeds=2)
    first = climb(plan, {}).jobs
    for missing in first[:4]:
        known = {job.name: ended(job) for job in first[:4] if job != missing}
        assert climb(plan, known).jobs == first
    assert len(climb(plan, {job.name: ended(job) for job in first[:4]}).jobs) == len(first) + 2  # one rate of two seeds


def test_until_a_rung_every_point_is_run_there_and_no_further():
    for fall in (0.0, 100.0):
        found = final(plan_of(slope(fall=fall), ladder=Ladder(RUNGS, 0.1, until=3)))
        assert rungs_of(found) == [1.0, 2.0, 4.0]


def test_a_ceiling_holds_back_what_it_does_not_pay_for_and_lower_rungs_come_first():
    moving = slope(fall=100.0)
    for ceiling, rungs in ((0.0, 4), (15.0, 4), (14.9, 3), (7.0, 3), (6.9, 2), (1.0, 2)):  # 1 + 2 + 4 + 8
        plan = plan_of(moving, ladder=Ladder(RUNGS, 0.1, ceiling=ceiling))
        found = final(plan)
        assert len(rungs_of(found)) == rungs
        assert found.is_capped is (rungs < 4)
        assert plan.most_flops == (max(3.0, ceiling) if ceiling else 15.0)
    grown = final(plan_of(slope(best=1.0), ladder=Ladder(RUNGS, 1.0, ceiling=10.0), rates=Rates((3e-3, 1e-2))))
    assert Counter(job.budget.amount for job in grown.jobs) == {1.0: 4, 2.0: 3}  # 2 + 4, then 1 + 2, then 1
    assert all(rung.is_over for rung in grown.rungs[0])


def random_plan(seed: int, ceiling: float) -> Plan:
    """Some points of two tasks' worth of mechanisms, of which some learn late, some diverge and some are alike."""
    draw = random.Random(seed)
    slopes = [
        slope(
            f"m{number}",
            memory_bytes=draw.choice((1000, 1100, 4000)),
            best=10 ** draw.uniform(-4, 0),
            floor=draw.uniform(0, 1),
            fall=draw.choice((0.0, 1.0, 5.0)),
            breaks=10 ** draw.uniform(-2, 2),
        )
        for number in range(5)
    ]
    grids = Rates((3e-3, 1e-2), growths=draw.choice((1, 3)), pilots=draw.choice((0, 1, 2)))
    ladder = Ladder(RUNGS, draw.choice((0.05, 0.2)), ceiling=ceiling)
    return plan_of(*slopes, ladder=ladder, rates=grids if draw.random() < 0.8 else None, seeds=3)


@pytest.mark.parametrize("ceiling", [0.0, 375.0])
@pytest.mark.parametrize("seed", range(6))
def test_the_list_only_grows_and_ends_the_same_whatever_ends_first(seed, ceiling):
    plan = random_plan(seed, ceiling)
    whole = final(plan)
    if ceiling:
        assert sum(job.budget.amount for job in whole.jobs) <= max(ceiling, plan.least_flops)
    for order in range(4):
        draw, known, before = random.Random(order), {}, set()
        while True:
            jobs = {job.name: job for job in climb(plan, known).jobs}
            assert before <= set(jobs)
            before, left = set(jobs), sorted(set(jobs) - set(known))
            if not left:
                break
            for name in draw.sample(left, min(len(left), draw.choice((1, 5, 20)))):
                known[name] = ended(jobs[name])
        assert before == {job.name for job in whole.jobs}


@pytest.mark.parametrize("ceiling", [0.0, 375.0])
def test_rows_in_any_order_even_above_what_is_decided_take_no_job_away(ceiling):
    """Such as a folder that is copied from elsewhere, file by file."""
    plan = random_plan(1, ceiling)
    whole = list(final(plan).jobs)
    for order in range(5):
        random.Random(order).shuffle(whole)
        known, before = {}, set()
        for job in whole:
            known[job.name] = ended(job)
            now = {one.name for one in climb(plan, known).jobs}
            assert before <= now
            before = now
        assert before == {job.name for job in whole}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Ladder((1.0,), 0.1), "ladder.rungs: 1 show no change; give at least 2"),
        (lambda: Ladder((1.0, 1.5), 0.1), r"ladder.rungs: 1.5 is less than 2 times 1; let each"),
        (lambda: Ladder(RUNGS, -0.1), "ladder.tolerance: -0.1 is negative"),
        (lambda: Ladder(RUNGS, 0.1, until=5), "ladder.until: there are 4 rungs; give 1 to 4, or settled"),
        (lambda: Rates(()), "rates.start: there is none"),
        (lambda: Rates((1e-3, 1.0001e-3)), "rates.start: two are called 1e-3"),
        (lambda: Rates((1e-3,), factor=1.0), "rates.factor: 1 adds no other rate"),
        (
            lambda: Study("x", "?", (slope(), dataclasses.replace(slope(), name="two")), rates=Rates((1e-3,))),
            "study.runs: one and another run differ in nothing that the study does not vary itself",
        ),
        (
            lambda: Study("x", "?", (slope(budget=Budget("flops", 0.5)), slope()), ladder=Ladder(RUNGS, 0.1)),
            "study.runs: two runs are called 'one-b1e0'",
        ),
    ],
)
def test_what_cannot_climb_is_one_line(made, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        made()


def test_equal_is_what_lies_within_the_tolerance_and_no_score_is_behind_any():
    assert [order_of(one, 1.0, 0.1) for one in (0.5, 0.95, 1.05, 1.5, -math.inf)] == [-1, 0, 0, 1, -1]
    assert order_of(-math.inf, -math.inf, 0.1) == 0
