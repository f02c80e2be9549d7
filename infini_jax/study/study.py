"""Studies: lists of jobs to finished results, resumable; workers.py does the jobs side by side in processes of their own.

Results live in `<folder>/runs/<name>/`; a job is finished when its row.parquet and the figures of its evaluations are there,
and is then never done again. Workers claim a job by a lock that the system releases when they die, so that two workers, or two
studies on one folder, never do the same job twice.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from infini_jax.config import Origin, RunConfig
from infini_jax.config.plain import each_made_once, from_plain, to_plain
from infini_jax.errors import (
    CheckpointError,
    ConfigError,
    one_line,
    require,
    require_file_name,
    require_no_pattern,
)
from infini_jax.evals.base import Evaluation
from infini_jax.evals.registry import evaluation_from_plain, evaluation_to_plain
from infini_jax.files import json_value, make_folder, read_object, write_json
from infini_jax.model.inheritance import inheritance
from infini_jax.records.folder import StudyFolder
from infini_jax.records.measures import write_joined
from infini_jax.records.parquet import write_table
from infini_jax.records.rows import Row, marked, rows_as_they_stand
from infini_jax.study.climb import Ended, Plan, climb
from infini_jax.study.desk import Desk, Failure
from infini_jax.study.evaluations import evaluations_of
from infini_jax.study.factors import Design, check_design
from infini_jax.study.jobs import Job, first_of_each, job_from_plain, job_to_plain, learning_rate_of, planned_flops
from infini_jax.study.ladder import Ladder, Rates
from infini_jax.study.own_code import load_once
from infini_jax.study.standing import climb_on
from infini_jax.training.origin import kept_origin, origin_there

BOUNDS = ("local", "full")  # mechanisms that are the floor and the ceiling of a comparison


@dataclasses.dataclass(frozen=True)
class Study:
    """The jobs that answer one question, and the evaluations of their models.

    Attributes:
      name: name of the study and of its folder.
      question: question that the study answers, for the report.
      runs: jobs of any kind, see `infini_jax.study.jobs`; with a ladder or rates each stands for all that are made of it, at
        the ladder's budgets and the rates' learning rates, and only seeds differ between those of a point.
      held_equal: (name, value) pairs of what is the same in all runs, for the report.
      evaluations: evaluations of trained runs, each made of every run to which it applies.
      scale: scale of an experiment that has several, or "".
      own_code: path of the user's Python file that made the study and registers what it needs, or "".
      ladder: budgets that the runs climb, None for the one that each has.
      rates: learning rates that each run tries, None for the one that each has.
      only: mechanisms to which the runs were restricted, see `restricted`; none where all are there.
      design: factors whose levels the runs combine, None where they are no such design.

    Raises:
      ConfigError: no run, two of the same name (in small letters), no file name, or settings that cannot work.
    """

    name: str
    question: str
    runs: tuple[Job, ...]
    held_equal: tuple[tuple[str, str], ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    scale: str = ""
    own_code: str = ""
    ladder: Ladder | None = None
    rates: Rates | None = None
    only: tuple[str, ...] = ()
    design: Design | None = None

    def __post_init__(self):
        require_file_name("study.name", self.label)
        jobs = self.jobs_now({}) if self.runs else ()
        names = [run.name.lower() for run in jobs]  # `A` and `a` are one folder where case does not tell files apart
        twice = {name for name, count in Counter(names).items() if count > 1}
        require(bool(names), "study.runs", "there is none", "give at least one run")
        require(not twice, "study.runs", f"two runs are called '{min(twice, default='')}'", "give each its own name")
        for run in first_of_each(jobs):
            with errors_of(run):
                planned_flops(run)
                if isinstance(run, RunConfig):
                    if run.origin and run.origin.model:
                        inheritance(run.origin.model, run.model, run.origin.name)
                    for evaluation in self.evaluations_of(run):
                        evaluation.check(run)
        if self.grows:
            self._check_points()
        if self.design and not self.only:  # a part of a study may lack a factor of the whole
            check_design(self.design, [run for run in self.runs if run.mechanism not in BOUNDS])

    def _check_points(self) -> None:
        """Checks that each point can climb: seeds that differ, a budget on every rung, FLOPs where there is a ceiling."""
        for point in self.plan.points:
            seeds = Counter((job.seed, None if self.rates else learning_rate_of(job)) for job in point.given)
            twice = f"{point.given[0].name} and another run differ in nothing that the study does not vary itself"
            require(max(seeds.values()) == 1, "study.runs", twice, "give them different seeds, or one of them")
            top = point.jobs(len(point.amounts) - 1, point.start[0])[0]
            with errors_of(top):
                is_counted = planned_flops(top) is not None or not (self.ladder and self.ladder.ceiling)
                require(is_counted, "ladder.ceiling", "seconds have no FLOPs before they run", "leave it out")

    @property
    def grows(self) -> bool:
        """Whether results decide which jobs there are."""
        return self.ladder is not None or self.rates is not None

    @functools.cached_property
    def plan(self) -> Plan:
        """What the list of jobs is made of."""
        return Plan(self.runs, self.ladder, self.rates)

    def jobs_now(self, ended: Mapping[str, Ended]) -> tuple[Job, ...]:
        """The jobs that are to be done by what is known of those that ended, by name; see `infini_jax.study.climb`."""
        return climb(self.plan, ended).jobs if self.grows else self.runs

    def jobs_on(self, desk: Desk) -> tuple[Job, ...]:
        """The jobs that are to be done by the results on a desk."""
        return climb_on(self.plan, desk).jobs if self.grows else self.runs

    @property
    def label(self) -> str:
        """The name of the study's folder, and of the study in its rows."""
        return "-".join(filter(None, (self.name, *self.only, self.scale)))

    @property
    def command(self) -> str:
        """The command that does the study, where it is one in experiments/."""
        scale, only = f" --scale {self.scale}" if self.scale else "", f" --only {','.join(self.only)}" if self.only else ""
        return f"infini-jax study {self.name}{scale}{only}"

    def restricted(self, *mechanisms: str) -> "Study":
        """The part of this study about some mechanisms, beside the floor and the ceiling, with a folder of its own.

        Parts may be done in any order and on several machines; a report of their folders has them on one page. Raises
        `ConfigError` for a mechanism of which the study has no run.
        """
        known = list(dict.fromkeys(run.mechanism for run in self.runs))
        for name in mechanisms:
            require(name in known, "only", f"the study has no run of '{name:.40}'", f"choose among {', '.join(known)}")
        kept = tuple(run for run in self.runs if run.mechanism in (*mechanisms, *BOUNDS))
        return dataclasses.replace(self, runs=kept, only=tuple(sorted(set(mechanisms))))

    def evaluations_of(self, run: Job) -> tuple[Evaluation, ...]:
        """The evaluations that apply to a run."""
        return evaluations_of(self.evaluations, run)

    def desk(self, folder: Path) -> Desk:
        """The desk on which the study is worked on in `folder`."""
        return Desk(folder, self.label, self.evaluations, is_growing=self.grows)


def save_study(study: Study, folder: Path) -> None:
    """Writes study.json, from which the report can be made again.

    Raises `ConfigError` for an evaluation in no registry, and for a path in which checkpoints are not found again.
    """
    require_no_pattern("results", folder)
    file = StudyFolder(folder).study
    make_folder(folder)
    plain = {
        "name": study.name,
        "question": study.question,
        "runs": [job_to_plain(run) for run in study.runs],
        "held_equal": study.held_equal,
        "evaluations": [evaluation_to_plain(one) for one in study.evaluations],
        "scale": study.scale,
        "own_code": study.own_code,
        "ladder": to_plain(study.ladder),
        "rates": to_plain(study.rates),
        "only": study.only,
        "design": to_plain(study.design),
    }
    write_json(plain, file)


def saved_study(folder: Path) -> tuple[Study, list[Row], list[Failure]]:
    """(study, its rows so far, its failures) of the study in a folder.

    Raises `ConfigError` where there is none, or it is damaged.
    """
    study = study_in(folder)
    with study.desk(folder).looked_at() as desk:
        return study, finished_rows(study, desk), noted_failures(folder)


def study_in(folder: Path) -> Study:
    """The study in a folder, read without its results. Raises `ConfigError` where there is none, or it is damaged."""
    file = StudyFolder(folder).study
    require(file.exists(), "folder", f"{folder} holds no study", "name the folder that `infini-jax study` wrote")
    mend = f"make it again with the command of the study, such as `infini-jax study {folder.name}`, or restore it"
    plain = read_object(file, "study", mend)
    own_code = plain.get("own_code", "")
    for name, value in (("own_code", own_code), ("question", plain.get("question", ""))):
        require(isinstance(value, str), "study", f"{file} is damaged ({name})", mend)
    load_once(own_code)
    try:
        with each_made_once():
            jobs = tuple(job_from_plain(run) for run in plain["runs"])
        return Study(
            plain["name"],
            plain["question"],
            jobs,
            tuple((str(name), str(value)) for name, value in plain["held_equal"]),
            tuple(evaluation_from_plain(one) for one in plain.get("evaluations", ())),
            plain.get("scale", ""),
            own_code,
            from_plain(Ladder | None, plain.get("ladder"), "ladder"),
            from_plain(Rates | None, plain.get("rates"), "rates"),
            from_plain(tuple[str, ...], plain.get("only", []), "only"),
            from_plain(Design | None, plain.get("design"), "design"),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError("study", f"{file} is damaged ({one_line(error)})", mend) from error


def noted_failures(folder: Path) -> list[Failure]:
    """What the newest call left undone, by failed.json.

    None where the file is missing or damaged: the next call writes it again.
    """
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        return [Failure(str(note["run"]), str(note["error"])) for note in json_value(StudyFolder(folder).failed.read_bytes())]
    return []


@contextlib.contextmanager
def errors_of(run: Job) -> Iterator[None]:
    """A context that puts the run's name in front of what a user can mend."""
    try:
        yield
    except (ConfigError, CheckpointError) as error:
        error.args = (f"run {run.name}: {error}",)
        raise


def check_same_settings(study: Study, desk: Desk) -> None:
    """Checks that no finished run in the folder had other settings under the same name: results are never mixed.

    Raises `ConfigError` where a run had.
    """
    with desk.looked_at() as now:
        jobs = study.jobs_on(now)
        found = now.rows(jobs)
        of_rows = iter(found.table.column("fingerprint").to_pylist())
        for run, count in zip(jobs, found.counts, strict=True):
            require(
                all(one == run.fingerprint() for one in itertools.islice(of_rows, count or 0)),
                "study",
                f"run {run.name} was finished with other settings",
                f"give the study a new name, or delete {desk.of(run).path}",
            )


def missing_of(study: Study, folder: Path) -> tuple[Job, ...]:
    """The runs of a study that are not finished in `folder`, without those that never will be."""
    return open_on(study, study.desk(folder))


def open_on(study: Study, desk: Desk) -> tuple[Job, ...]:
    """The runs of a study for which something is to be done, by the results and failures on its desk."""
    with desk.looked_at() as now:
        return tuple(run for run in study.jobs_on(now) if now.is_open(run))


def check_origins(study: Study, folder: Path) -> None:
    """Checks, before anything runs, that runs which have yet to begin at another run's parameters find them.

    Raises, with the name of a run:
      ConfigError: the other run or its checkpoint is gone.
      CheckpointError: its notes are damaged, or it has other parameters than the study's runs were to begin from.
    """
    desk, waiting = study.desk(folder), dict[Origin, Job]()
    for run in open_on(study, desk):
        if isinstance(run, RunConfig) and run.origin and kept_origin(desk.of(run).path) is None:
            waiting.setdefault(run.origin, run)
    for origin, run in waiting.items():
        with errors_of(run):
            origin_there(origin)


def part_of(runs: tuple[Job, ...], number: int, count: int) -> tuple[Job, ...]:
    """All runs, beginning with the part of worker `number` of `count`; runs that share programs stand together."""
    begin = number * len(runs) // count
    return runs[begin:] + runs[:begin]


def collect(study: Study, desk: Desk) -> tuple[list[Row], list[Failure]]:
    """Writes the tables and the list of unfinished runs: (rows, failures).

    A run with a row but without all of its figures is in both.
    """
    with desk.looked_at() as now:
        rows = write_tables(study, now)
        missing = [run for run in study.jobs_on(now) if not now.is_finished(run)]
        failures = [
            Failure(run.name, now.error(run) or "not done: its worker could not start, or another runner is at it")
            for run in missing
        ]
    failed = [dataclasses.asdict(failure) for failure in failures]
    write_json(failed, StudyFolder(desk.folder).failed)
    return rows, failures


def write_tables(study: Study, desk: Desk) -> list[Row]:
    """Writes the rows and the figures that are there so far as one table each, and returns the rows.

    The rows say on which rung of the study's ladder they stand, and whether their point's rate lies inside those tried.
    """
    stands = climb_on(study.plan, desk)
    jobs = stands.jobs if study.grows else study.runs
    rows, figures = marked(desk.rows(jobs).table, stands.marks()), desk.figures(jobs)
    if rows.num_rows:
        write_table(rows.combine_chunks(), StudyFolder(desk.folder).table)
    is_measured = any(count is not None for count in figures.counts)
    write_joined([figures.table] if is_measured else [], StudyFolder(desk.folder).measures)
    return rows_as_they_stand(rows)


def cut_short(study: Study, folder: Path) -> list[Path]:
    """Damaged or incomplete files of a study's results: its next call makes them again."""
    with study.desk(folder).looked_at() as desk:
        return [file for run in study.jobs_on(desk) for file in desk.cut_short(run)]


def finished_rows(study: Study, desk: Desk) -> list[Row]:
    """The rows that are there, in the order of the study's runs."""
    return rows_as_they_stand(desk.rows(study.jobs_on(desk)).table)
