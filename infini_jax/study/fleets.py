"""Which jobs of a study train side by side in one program, as a fleet (`infini_jax.training.fleet`), and how many of them.

Runs that trained and lack figures are evaluated side by side in the same groups.
"""

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

from infini_jax.config import RunConfig
from infini_jax.devices.chosen_form import RowsAtOnce, most_members
from infini_jax.errors import LARGEST, require
from infini_jax.model.cost import budget_steps
from infini_jax.model.transformer import layer_groups
from infini_jax.study.desk import Desk
from infini_jax.study.evaluations import evaluations_of
from infini_jax.study.jobs import Job, settings_of

AUTO, ALONE = 0, 1  # sizes of fleets: as many as fit on an accelerator and none on a CPU; none


def fleet_size(asked: str) -> int:
    """The most members of a fleet, `AUTO` for auto. Raises `ConfigError` for what is neither auto nor a number above zero."""
    is_size = asked.isascii() and asked.isdecimal() and 1 <= int(asked[:12]) <= LARGEST
    require(asked == "auto" or is_size, "fleet", f"'{asked:.20}' is not a number of runs", "give auto, or a number such as 8")
    return AUTO if asked == "auto" else int(asked)


def program_of(job: Job) -> Hashable | None:
    """The identity of the program in which a job may train beside others that have an equal one; None for a job alone.

    Rates, seeds, data of the same shapes and scored places, rhythms and early ends may differ. Runs of seconds train alone,
    because a member shares its seconds with others; so do memories in the host's memory, which `jax.vmap` does not map.
    """
    if not isinstance(job, RunConfig) or job.budget.unit == "seconds" or keeps_on_host(job):
        return None
    return job.in_common(budget_steps(job))


def keeps_on_host(run: RunConfig) -> bool:
    """Whether a memory of the run's layers lies in the host's memory."""
    return any(getattr(config, "held", "device") == "host" for config, _ in layer_groups(run.model))


def programs_of(jobs: Iterable[Job]) -> list[Hashable | None]:
    """`program_of` each job, found once for those that differ in nothing but name and seed."""
    found: dict[Hashable, Hashable | None] = {}
    for job in jobs:
        if settings_of(job) not in found:
            found[settings_of(job)] = program_of(job)
    return [found[settings_of(job)] for job in jobs]


class Companions:
    """The jobs of a worker by their program, of which it takes several at once.

    Args:
      jobs: the jobs.
      size: most members of a fleet, or `AUTO`.
    """

    def __init__(self, jobs: Sequence[Job], size: int):
        self.size, self._program, self._waiting = size, {}, {}
        if size == ALONE:
            return
        for job, program in zip(jobs, programs_of(jobs), strict=True):
            if program is not None:
                self._program[job.name] = program
                self._waiting.setdefault(program, []).append(job)

    @contextlib.contextmanager
    def claimed(self, desk: Desk, job: Job) -> Iterator[list[Job]]:
        """A context that holds the claims of others that go beside `job`, which is claimed; its value are they.

        Those that are trained and lack figures are evaluated beside such a one, the others are trained beside such a one.
        """
        waiting = self._waiting.get(self._program.get(job.name), [])
        with contextlib.ExitStack() as claims:
            found: list[Job] = []
            if isinstance(job, RunConfig) and waiting:
                is_trained, most = desk.is_done(job), self.size or most_members(job, rows_at_once(desk, job))
                for other in [one for one in waiting if one is not job]:
                    if len(found) + 1 >= most:
                        break
                    if desk.is_done(other) != is_trained and not desk.is_finished(other):
                        continue
                    waiting.remove(other)
                    if claims.enter_context(desk.claim(other)) and desk.is_done(other) == is_trained:
                        found.append(other)
            yield found


def rows_at_once(desk: Desk, run: RunConfig) -> list[RowsAtOnce]:
    """The rows that each of the study's evaluations of a run reads at once."""
    return [evaluation.at_once(run) for evaluation in evaluations_of(desk.evaluations, run)]


def fleets_described(jobs: Sequence[Job], size: int) -> str:
    """A line that says which of the jobs would share programs; "" where each has one to itself."""
    if size == ALONE:
        return ""
    programs = programs_of(jobs)
    counts = Counter(program for program in programs if program is not None)
    shared = {program: count for program, count in counts.items() if count > 1}
    most = f"of {size} at most" if size else "of as many as fit on an accelerator, and alone on a CPU"
    alone = len(programs) - sum(shared.values())
    return f"{sum(shared.values())} runs share {len(shared)} programs, in fleets {most}; {alone} train alone"
