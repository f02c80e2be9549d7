"""The planned spending of a study: steps, tokens and FLOPs, before it runs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from infini_jax.config import RunConfig
from infini_jax.evals.base import Evaluation
from infini_jax.model.cost import budget_steps
from infini_jax.study.jobs import Job, first_of_each, planned_flops, settings_of
from infini_jax.study.study import Study
from infini_jax.units import human_bytes, human_count

UNKNOWN = "timed first"  # of a budget in seconds, which only its device can tell


@dataclasses.dataclass(frozen=True)
class Spending:
    """The planned spending of one job; None stands for what is not known before it runs, or what it does not have.

    Attributes:
      steps: number of training steps.
      tokens: number of training tokens.
      flops: training FLOPs.
      evaluations: (evaluation, its forward FLOPs) pairs.
    """

    steps: int | None
    tokens: int | None
    flops: float | None
    evaluations: tuple[tuple[Evaluation, float], ...]

    @property
    def all_flops(self) -> float:
        """FLOPs of training and evaluations together, as far as they are known."""
        return (self.flops or 0.0) + self.evaluation_flops

    @property
    def evaluation_flops(self) -> float:
        """Forward FLOPs of all evaluations."""
        return sum(flops for _, flops in self.evaluations)


def spending_of(study: Study, job: Job) -> Spending:
    """The planned spending of a job, counted from its settings alone; nothing is compiled."""
    flops = planned_flops(job)
    if not isinstance(job, RunConfig):
        return Spending(None, None, flops, ())
    steps = budget_steps(job) if flops is not None else None
    tokens = None if steps is None else steps * job.tokens_per_step
    return Spending(steps, tokens, flops, tuple((one, one.cost(job)) for one in study.evaluations_of(job)))


def spendings(study: Study, jobs: Sequence[Job]) -> list[Spending]:
    """The planned spending of each of a study's jobs, counted once for those that differ in nothing but name and seed."""
    counted = {settings_of(job): spending_of(study, job) for job in first_of_each(jobs)}
    return [counted[settings_of(job)] for job in jobs]


def spending_plain(study: Study) -> list[dict[str, Any]]:
    """The lines of `spending_table` as JSON values, one per run; null where only the run's device can tell."""
    jobs = study.jobs_now({})
    return [
        {
            "run": run.name,
            "task": run.task,
            "mechanism": run.mechanism,
            "memory_bytes": run.memory_bytes,
            "steps": plan.steps,
            "tokens": plan.tokens,
            "training_flops": plan.flops,
            "evaluation_flops": plan.evaluation_flops,
        }
        for run, plan in zip(jobs, spendings(study, jobs), strict=True)
    ]


def range_plain(study: Study) -> dict[str, float]:
    """The least and the most training FLOPs of a study whose list of jobs grows, as JSON values; none of another."""
    plan = study.plan
    return {"least_flops": plan.least_flops, "most_flops": plan.most_flops} if study.grows else {}


def range_described(study: Study) -> str:
    """A line with the least and the most training FLOPs of a study; "" where its list of jobs does not grow."""
    if not study.grows:
        return ""
    asked = [f"{len(study.plan.points)} points"]
    if ladder := study.ladder:
        least = "all" if ladder.until else "first 2"
        asked.append(f"{least} of {ladder.most} rungs, {', '.join(f'{one:.3g}' for one in ladder.rungs[: ladder.most])}")
        asked += [f"ceiling {human_count(ladder.ceiling)}"] if ladder.ceiling else []
    if rates := study.rates:
        asked.append(f"{len(rates.start)} rates, {rates.growths} more at each edge at most")
    first = (
        "the runs above and those of the seeds that follow"
        if any(one.followers for one in study.plan.points)
        else "the runs above"
    )
    least, most = (human_count(flops) for flops in (study.plan.least_flops, study.plan.most_flops))
    return f"{least} training FLOPs at least ({first}), {most} at most: {'; '.join(asked)}"


def spending_table(study: Study) -> Table:
    """The planned spending of a study's runs before there are results, for the terminal: one line per run, and the sums."""
    first = "what it will do first" if study.grows else "what it will do"
    table, jobs = Table(title=f"{study.label}: {first}", show_footer=True), study.jobs_now({})
    plans = spendings(study, jobs)
    total = {
        "run": f"{len(plans)} runs",
        "tokens": human_count(sum(plan.tokens or 0 for plan in plans)),
        "training FLOPs": human_count(sum(plan.flops or 0.0 for plan in plans)),
        "evaluation FLOPs": human_count(sum(plan.evaluation_flops for plan in plans)),
    }
    table.add_column("run", total["run"], overflow="fold")
    for name in ("memory", "tokens", "training FLOPs", "evaluation FLOPs"):
        table.add_column(name, total.get(name, ""), justify="right")
    for run, plan in zip(jobs, plans, strict=True):
        table.add_row(
            run.name,
            human_bytes(run.memory_bytes),
            "-" if plan.tokens is None else human_count(plan.tokens),
            UNKNOWN if plan.flops is None else human_count(plan.flops),
            human_count(plan.evaluation_flops),
        )
    unknown = sum(plan.flops is None for plan in plans)
    table.caption = f"{unknown} runs have seconds to spend: their steps are timed first" if unknown else None
    return table
