"""Evaluations of a study's trained runs: which apply, in which files their figures lie, and which are missing."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import jax

from infini_jax.config import RunConfig
from infini_jax.config.plain import science_of
from infini_jax.devices.side_by_side import SideBySide, tried
from infini_jax.evals.base import Evaluation, Subject, Subjects, Watch, unwatched
from infini_jax.files import json_text
from infini_jax.model.cost import budget_steps
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure, write_measures
from infini_jax.records.rows import is_whole
from infini_jax.study.jobs import Job, measures_itself
from infini_jax.training.trained import Trained

FailOne = Callable[[int, Evaluation, Exception], None]  # gets the number of a run, its evaluation and the error


def evaluations_of(evaluations: Sequence[Evaluation], job: Job) -> tuple[Evaluation, ...]:
    """The evaluations that apply to a job; none for jobs that leave no model to evaluate."""
    return tuple(one for one in evaluations if applies(one, job))


def applies(evaluation: Evaluation, job: Job) -> bool:
    """Whether an evaluation applies to a job; never to one that leaves no model to evaluate."""
    return isinstance(job, RunConfig) and evaluation.applies(job)


def measure_name(evaluation: Evaluation) -> str:
    """The name of a run's file of figures: that of the evaluation, and eight hex digits of its settings."""
    settings = json_text(science_of(evaluation), sort_keys=True)
    return f"{evaluation.name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def measure_file(folder: RunFolder, evaluation: Evaluation) -> Path:
    """The file of a run's figures of an evaluation; figures of other settings beside it do not count."""
    return folder.measures_of(measure_name(evaluation))


def own_files(folder: RunFolder, job: Job) -> list[Path]:
    """The files of figures that doing the job itself leaves."""
    return [folder.own_measures] if measures_itself(job) else []


def missing_in(folder: RunFolder, job: Job, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations of a job whose figures are not there."""
    return [one for one in evaluations_of(evaluations, job) if not is_whole(measure_file(folder, one))]


def measure_missing(
    folder: RunFolder,
    job: Job,
    evaluations: Sequence[Evaluation],
    fail: Callable[[Evaluation, Exception], None],
    watch: Watch = unwatched,
) -> None:
    """Makes the evaluations of a trained run whose figures are not there, from its newest checkpoint.

    `fail` gets an evaluation that ends with an error, and the error; the others go on.

    Raises:
      ConfigError: the run left no parameters.
      CheckpointError: the run's parameters cannot be read.
    """
    missing = missing_in(folder, job, evaluations)
    if not missing:
        return
    trained = Trained.open(folder.path)
    for evaluation in missing:
        try:
            evaluation.check(trained.run)
            found = evaluation.measure(Subject(trained.run, trained.params), watch)
            write_measures(job.name, found, measure_file(folder, evaluation))
        except Exception as error:  # the other evaluations must be made whatever went wrong in this one
            fail(evaluation, error)


def measured_alike(runs: Mapping[int, RunConfig]) -> list[list[int]]:
    """The numbers of runs, in groups whose evaluations read the same with models of the same settings."""
    groups: dict[Hashable, list[int]] = {}
    for number, run in runs.items():
        groups.setdefault(run.program(budget_steps(run)), []).append(number)
    return [*groups.values()]


def learned_together(folders: Sequence[RunFolder]) -> SideBySide:
    """The parameters of trained runs of equal models, from their newest checkpoints.

    Raises:
      ConfigError: a run left no parameters.
      CheckpointError: a run's parameters cannot be read.
    """
    return SideBySide.of([jax.device_get(Trained.open(folder.path).params) for folder in folders])


def measure_side_by_side(
    learned: SideBySide,
    folders: Sequence[RunFolder],
    runs: Sequence[RunConfig],
    evaluations: Sequence[Evaluation],
    fail: FailOne,
) -> None:
    """Makes the evaluations of trained runs whose figures are not there, those of all runs in the same calls.

    Args:
      learned: parameters of the runs.
      folders: folder of each run.
      runs: runs that differ in name, version, variant, seed and rates alone.
      evaluations: the evaluations.
      fail: gets the number of a run, its evaluation that ended with an error, and the error; the others go on.
    """
    missing = [missing_in(folder, run, evaluations) for folder, run in zip(folders, runs, strict=True)]
    for evaluation in evaluations:
        numbers = [number for number, of_run in enumerate(missing) if evaluation in of_run]
        if not numbers:
            continue
        subjects = Subjects(tuple(runs[number] for number in numbers), learned.only(numbers))
        for number, found in zip(numbers, measured(evaluation, subjects), strict=True):
            try:
                if isinstance(found, Exception):
                    raise found
                write_measures(runs[number].name, found, measure_file(folders[number], evaluation))
            except Exception as error:  # the other evaluations must be made whatever went wrong in this one
                fail(number, evaluation, error)


def measured(evaluation: Evaluation, subjects: Subjects) -> list[list[Measure] | Exception]:
    """The figures of each run, or the exception with which its evaluation ended."""

    def of_all() -> list[list[Measure] | Exception]:
        evaluation.check(subjects.runs[0])
        return evaluation.measure_each(subjects)

    found = tried(of_all)
    return [found] * len(subjects.runs) if isinstance(found, Exception) else found
