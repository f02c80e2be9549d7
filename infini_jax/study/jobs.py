"""Jobs, of which a study is made: each has settings, a folder and one row in the table. Each kind has a row in `JOB_KINDS`.

A job is a frozen dataclass of everything that decides its result. Most are `RunConfig`, a transformer that is trained; others
need no transformer: a memory layer alone, random codes without any training. A new kind is

  1. a frozen dataclass with the members of `Job`, which raises `ConfigError` when it is made where it cannot work;
  2. a function `(job, folder, study) -> Row` that does it, see `execute_job` below;
  3. one row in `JOB_KINDS`.

Studies, workers, progress, saved studies and dry runs know nothing else of it.
"""

import dataclasses
import importlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from infini_jax.codes import capacity, random_codes, retrieval
from infini_jax.config import RunConfig
from infini_jax.config.plain import kind_of
from infini_jax.data.base import Scored
from infini_jax.errors import lookup, require
from infini_jax.model.cost import planned_flops as planned_flops_of_run
from infini_jax.records.rows import Row


class Job(Protocol):
    """The members that every kind of job has.

    Attributes:
      name: name of the job and of its folder, a file name that no other job of the study has.
      version: version of the name; raise it when the same name should mean something new.
      seed: seed of everything that is drawn.
      variant: name that tells the job from others of its mechanism in tables, or "".
      task: name of the task, such as mqar or capacity.
      mechanism: name of the mechanism, such as infini.
      memory_bytes: bytes of memory per sequence, all layers together.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def variant(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def mechanism(self) -> str: ...

    @property
    def memory_bytes(self) -> int: ...

    def fingerprint(self) -> str:
        """Twelve hex digits of the settings that decide the result, without name and variant; the row has it, too."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, without the kind; `from_dict` of the class is the inverse."""
        ...

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "Job":
        """The inverse of `to_dict`. Raises `ConfigError` for unknown fields."""
        ...

    def with_learning_rate(self, rate: float) -> "Job":
        """This job at another learning rate; called for jobs that learn, and for no others."""
        ...


@dataclasses.dataclass(frozen=True)
class JobKind:
    """A kind of job.

    Attributes:
      settings: class of the job's settings.
      execute: "module:function" that does the job, imported by the worker that needs it.
      planned_flops: training FLOPs that a job will spend (forward FLOPs where nothing is trained), counted; None where only
        its device can tell. Raises `ConfigError` where the job can spend nothing.
      together: "module:function" that does several jobs that share a program, where the kind has one, see `execute_together`.
      measures_itself: whether executing the job also writes figures, to `RunFolder.own_measures`.
      scored_by: figure by which jobs whose `task` is the kind's name are compared; for runs their data say it.
      learns: whether its jobs have a learning rate and a `budget`; those that have none try no rates and climb no ladder.
    """

    settings: type
    execute: str
    planned_flops: Callable[[Any], float | None]
    together: str = ""
    measures_itself: bool = False
    scored_by: Scored = "loss"
    learns: bool = True


NAMING = ("name", "version", "variant", "seed")  # settings that tell jobs of the same cost apart
RUN = "run"
JOB_KINDS: dict[str, JobKind] = {
    RUN: JobKind(
        RunConfig,
        "infini_jax.training.execute:execute",
        planned_flops_of_run,
        together="infini_jax.training.fleet:execute_fleet",
    ),
    capacity.NAME: JobKind(
        capacity.CapacityRun,
        "infini_jax.codes.standalone:execute_capacity",
        capacity.planned_flops,
        measures_itself=True,
        scored_by="n50",
    ),
    random_codes.NAME: JobKind(
        random_codes.RandomCodesRun,
        "infini_jax.codes.standalone:execute_random_codes",
        random_codes.planned_flops,
        measures_itself=True,
        scored_by="n50",
        learns=False,
    ),
    retrieval.NAME: JobKind(
        retrieval.RetrievalRun,
        "infini_jax.codes.standalone:execute_retrieval",
        retrieval.planned_flops,
        measures_itself=True,
    ),
}
"""Registry of kinds of jobs: name in saved studies -> kind. Add your own kind here."""


def kind_name(job: Job) -> str:
    """The row of `JOB_KINDS` that a job belongs to. Raises `ConfigError` where there is none."""
    known = {name: kind.settings for name, kind in JOB_KINDS.items()}
    require(type(job) in known.values(), "study.runs", f"{type(job).__name__} is not a kind of job", "add it to KINDS")
    return kind_of(job, known)


def planned_flops(job: Job) -> float | None:
    """Training FLOPs that a job will spend, counted; None where only its device can tell.

    Where nothing is trained they are forward FLOPs. Raises `ConfigError` where the job can spend nothing.
    """
    return JOB_KINDS[kind_name(job)].planned_flops(job)


def settings_of(job: Job) -> Hashable:
    """What decides whether a job can work and what it costs: its settings without its name, version, variant and seed."""
    if isinstance(job, RunConfig):
        return (job.model, job.data, job.train, job.budget, job.evaluation, job.origin)
    fields = dataclasses.fields(job)  # pyright: ignore[reportArgumentType]  a frozen dataclass, which a protocol cannot say
    return (type(job), *(getattr(job, field.name) for field in fields if field.name not in NAMING))


def learning_rate_of(job: Job) -> float | None:
    """The learning rate of a job; None where nothing is learned, or its kind has another name for it."""
    return job.train.learning_rate if isinstance(job, RunConfig) else getattr(job, "learning_rate", None)


def trial_of(job: Job) -> Hashable:
    """What a job has in common with others that differ in nothing but seed and learning rate: a point's identity."""
    if isinstance(job, RunConfig):
        train = dataclasses.replace(job.train, learning_rate=1.0)
        return (job.variant, job.model, job.data, train, job.budget, job.evaluation, job.origin)
    same: Any = job if learning_rate_of(job) is None else job.with_learning_rate(1.0)
    return dataclasses.replace(same, name="point", version=1, seed=0)


def task_of(job: Job) -> Hashable:
    """The task of a job with its settings: only jobs of one task are compared."""
    return (job.task, job.data) if isinstance(job, RunConfig) else job.task


def at_budget(job: Job, amount: float) -> Job:
    """The job with another amount of its budget's unit; called for jobs that have a budget."""
    base: Any = job  # a frozen dataclass, which a protocol cannot say
    return dataclasses.replace(base, budget=dataclasses.replace(base.budget, amount=amount))


def named(job: Job, *parts: str) -> Job:
    """The job with parts added to its name, those that are not empty."""
    base: Any = job
    return dataclasses.replace(base, name="-".join((job.name, *filter(None, parts))))


def learns(job: Job) -> bool:
    """Whether a job has a learning rate and a budget."""
    return JOB_KINDS[kind_name(job)].learns


def first_of_each(jobs: Iterable[Job]) -> list[Job]:
    """The first of the jobs that differ in nothing but their names and seeds, in their order."""
    found: dict[Hashable, Job] = {}
    for job in jobs:
        found.setdefault(settings_of(job), job)
    return [*found.values()]


def measures_itself(job: Job) -> bool:
    """Whether executing a job also writes figures."""
    return JOB_KINDS[kind_name(job)].measures_itself


def execute_job(job: Job, folder: Path, study: str) -> Row:
    """Does a job and returns its row; `study` is the name for the row's column `study`.

    The function of the job's kind has these duties in `RunFolder(folder)`: `write_config(job.to_dict())`; do the work, going
    on from what an earlier call left if it can; leave figures of its own with `write_measures(job.name, found, own_measures)`;
    and `write_rows([row], row)` last, because a row says that all before it is there. Where it leaves a metrics.jsonl, each
    line is a JSON object with "step" and "share" (done, 0 to 1) for progress.

    Raises `ConfigError`, `TrainingDiverged` or `CheckpointError` for what a user can mend.
    """
    return imported(JOB_KINDS[kind_name(job)].execute)(job, folder, study)


def execute_together(jobs: Sequence[Job], folders: Sequence[Path], study: str, ended: Callable[[int, Any], None]) -> None:
    """Does jobs of one kind that share a program, each as `execute_job` would.

    `ended` gets the number of each job as soon as it ends, and its row, or the exception with which `execute_job` would have
    ended. Raises `Stopped` where a signal came: what had not ended is saved.
    """
    imported(JOB_KINDS[kind_name(jobs[0])].together)(jobs, folders, study, ended)


def imported(place: str) -> Callable[..., Any]:
    """The function at "module:function"."""
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


def job_to_plain(job: Job) -> dict[str, Any]:
    """A job as JSON values with the name of its kind; a run has none, as in its own config.json."""
    name = kind_name(job)
    return job.to_dict() if name == RUN else {"kind": name, **job.to_dict()}


def job_from_plain(plain: dict[str, Any]) -> Job:
    """The job of JSON values, the inverse of `job_to_plain`. Raises `ConfigError` for an unknown kind."""
    settings = {name: value for name, value in plain.items() if name != "kind"}
    return lookup("kind", plain.get("kind", RUN), JOB_KINDS).settings.from_dict(settings)
