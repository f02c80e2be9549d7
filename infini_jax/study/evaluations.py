"""Evaluations of a study's trained runs: which apply, in which files their figures lie, and which are missing."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from infini_jax.config import RunConfig
from infini_jax.config.plain import to_plain
from infini_jax.evals.base import Evaluation, Subject, Watch, unwatched
from infini_jax.files import json_text
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import write_measures
from infini_jax.records.rows import is_whole
from infini_jax.study.jobs import Job, measures_itself
from infini_jax.training.trained import Trained


def evaluations_of(evaluations: Sequence[Evaluation], job: Job) -> tuple[Evaluation, ...]:
    """The evaluations that apply to a job; none for jobs that leave no model to evaluate."""
    return tuple(one for one in evaluations if applies(one, job))


def applies(evaluation: Evaluation, job: Job) -> bool:
    """Whether an evaluation applies to a job; never to one that leaves no model to evaluate."""
    return isinstance(job, RunConfig) and evaluation.applies(job)


def measure_name(evaluation: Evaluation) -> str:
    """The name of a run's file of figures: that of the evaluation, and eight hex digits of its settings."""
    settings = json_text(to_plain(evaluation), sort_keys=True)
    return f"{evaluation.name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def measure_file(folder: RunFolder, evaluation: Evaluation) -> Path:
    """The file of a run's figures of an evaluation; figures of other settings beside it do not count."""
    return folder.measures_of(measure_name(evaluation))


def own_files(folder: RunFolder, job: Job) -> list[Path]:
    """The files of figures that doing the job itself leaves."""
    return [folder.own_measures] if measures_itself(job) else []


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
    missing = [one for one in evaluations_of(evaluations, job) if not is_whole(measure_file(folder, one))]
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
