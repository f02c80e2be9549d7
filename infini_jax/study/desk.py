"""The desk of a study: the folders of its jobs, the claims of workers, failures.

A job is done when its row.parquet is there and lacks no figure, and finished when all that is measured of it is there too. A
file that was cut short counts as missing. A claim is a lock that the system releases when its process dies, so that no two
workers, of one study or of two on the same folder, ever do the same job.
"""

import contextlib
import dataclasses
import functools
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infini_jax.evals.base import Evaluation
from infini_jax.files import object_or_none, write_json
from infini_jax.locks import Holder, claimed, holder
from infini_jax.records.folder import RunFolder, StudyFolder
from infini_jax.records.inventory import NOW, Disk, looked_at
from infini_jax.records.remembered import Joined
from infini_jax.study.evaluations import applies, measure_name, own_files
from infini_jax.study.jobs import Job


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that ended without a result.

    Attributes:
      run: name of the run.
      error: what went wrong, in one line.
    """

    run: str
    error: str


@dataclasses.dataclass(frozen=True)
class Desk:
    """The place where the jobs of a study are worked on.

    Attributes:
      folder: folder of the study.
      study: name for the rows' column `study`.
      evaluations: evaluations of the study.
      session: mark of this call on its failures.
      files: the files of the jobs as they are now, or as one pass over the study found them.
      is_growing: whether results decide which jobs there are; a run that diverged is then not tried again.
    """

    folder: Path
    study: str
    evaluations: tuple[Evaluation, ...] = ()
    session: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    files: Disk = NOW
    is_growing: bool = False

    @contextlib.contextmanager
    def looked_at(self) -> Iterator["Desk"]:
        """A context with this desk as one pass over the folders of all jobs finds it, for questions about many jobs."""
        with looked_at(StudyFolder(self.folder).all_runs) as files:
            yield dataclasses.replace(self, files=files)

    def of(self, job: Job) -> RunFolder:
        """The folder of a job."""
        return run_folder(self.folder, job.name)

    def measure_files(self, job: Job) -> list[Path]:
        """All files of evaluations' figures that the job must have."""
        folder = self.of(job)
        names = (name for evaluation, name in self.measures if applies(evaluation, job))
        return [*own_files(folder, job), *(folder.measures_of(name) for name in names)]

    @functools.cached_property
    def measures(self) -> list[tuple[Evaluation, str]]:
        """The evaluations, each with the name of its files of figures."""
        return [(evaluation, measure_name(evaluation)) for evaluation in self.evaluations]

    def has_row(self, job: Job) -> bool:
        """Whether the job's row is there, and the figures that it makes itself."""
        return all(map(self.files.is_whole, [self.of(job).row, *own_files(self.of(job), job)]))

    def is_done(self, job: Job) -> bool:
        """Whether the job need not be executed again: its row is there and lacks no figure whose evaluation failed."""
        return self.has_row(job) and not self.files.exists(self.of(job).unscored)

    def is_finished(self, job: Job) -> bool:
        """Whether the job's row and all of its figures are there."""
        return self.is_done(job) and all(map(self.files.is_whole, self.measure_files(job)))

    def cut_short(self, job: Job) -> list[Path]:
        """Files of the job that are there but damaged or incomplete."""
        files = [self.of(job).row, *self.measure_files(job)]
        return [file for file in files if self.files.exists(file) and not self.files.is_whole(file)]

    def rows(self, jobs: Sequence[Job]) -> Joined:
        """The rows of jobs as one table; a job whose row, or a figure that it makes itself, is missing has none."""
        found = self.files.joined([self.of(job).row for job in jobs], "row")
        return found.only([self.has_row(job) for job in jobs])

    def figures(self, jobs: Sequence[Job]) -> Joined:
        """The figures of jobs as one table, those that are there; none of a job whose row is missing."""
        return self.files.joined([file for job in jobs if self.has_row(job) for file in self.measure_files(job)], "figures")

    def error(self, job: Job) -> str | None:
        """The error with which the job failed in this call, or for good; None if it did not."""
        found = self._noted(job)
        is_final = self.is_growing and found.get("diverged") is True
        return str(found.get("error")) if is_final or (found and found.get("session") == self.session) else None

    def diverged(self, job: Job) -> bool:
        """Whether the job's loss was no longer finite when it was last tried: the same settings give the same again."""
        return self._noted(job).get("diverged") is True

    def _noted(self, job: Job) -> dict[str, Any]:
        """The note about the job's last failure, empty without one."""
        return (object_or_none(self.of(job).error) or {}) if self.files.exists(self.of(job).error) else {}

    def fail(self, job: Job, error: str, details: str = "", diverged: bool = False) -> None:
        """Notes the failure of a job; the next call tries the job again, unless it diverged in a study whose list grows."""
        self.of(job).path.mkdir(parents=True, exist_ok=True)
        note = {"session": self.session, "error": error, "details": details, "diverged": diverged}
        write_json(note, self.of(job).error)

    def is_open(self, job: Job) -> bool:
        """Whether something is to be done for the job: it is not finished, and has not failed in this call or for good."""
        return not self.is_finished(job) and self.error(job) is None

    @contextlib.contextmanager
    def claim(self, job: Job) -> Iterator[bool]:
        """A context that holds the job's lock; its value tells whether the job is this worker's to do.

        It is unless the job is finished, has failed in this call, or is claimed by another worker.
        """
        with claimed(self.of(job).lock) as ours:
            yield ours and self.is_open(job)

    def claimed_by(self, job: Job) -> Holder | None:
        """The process that last claimed the job, None without one."""
        return holder(self.of(job).lock)


@functools.lru_cache(maxsize=2**14)
def run_folder(study: Path, name: str) -> RunFolder:
    """The folder of a run of a study; its path is checked once."""
    return StudyFolder(study).run(name)
