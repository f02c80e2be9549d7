"""Where a study stands on its desk: what is known of the jobs that ended, and the list of jobs that follows."""

import math
from collections.abc import Sequence

from infini_jax.records.measures import Measure, measures_in, of_own_data
from infini_jax.records.rows import rows_as_they_stand
from infini_jax.study.climb import Climb, Ended, Plan, climb
from infini_jax.study.desk import Desk
from infini_jax.study.jobs import Job
from infini_jax.study.scores import score_of, scored_by


def climb_on(plan: Plan, desk: Desk) -> Climb:
    """The list of jobs by the results on a desk; only the results of listed jobs are read."""
    ended: dict[str, Ended] = {}
    asked: set[str] = set()
    while True:
        found = climb(plan, ended)
        fresh = [job for job in found.jobs if job.name not in asked]
        if not fresh:
            return found
        asked |= {job.name for job in fresh}
        ended |= ended_of(fresh, desk)


def ended_of(jobs: Sequence[Job], desk: Desk) -> dict[str, Ended]:
    """The jobs that ended for good, by name: those whose row lacks nothing that a later call would add, and that diverged."""
    done = [job for job in jobs if desk.is_done(job)]
    half_points = half_points_of([job for job in done if scored_by(job.task) == "n50"], desk)
    found = {job.name: Ended() for job in jobs if not desk.has_row(job) and desk.diverged(job)}
    for row in rows_as_they_stand(desk.rows(done).table):
        score = score_of(row.task, half_points)
        found[row.run] = Ended(row.loss if math.isfinite(row.loss) else math.nan, score.goodness(score.of(row)))
    return found


def half_points_of(jobs: Sequence[Job], desk: Desk) -> dict[str, list[Measure]]:
    """The figures of n50 of jobs that measure it themselves, by name."""
    figures = of_own_data(measures_in(desk.figures(jobs).table)) if jobs else []
    return {run: [one] for run, one in figures if one.metric == "n50"}
