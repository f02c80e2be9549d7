"""Folders of results: the name of each file, and which folders hold results.

A run's folder holds its settings, log, checkpoints, figures and row; a study's folder holds the tables of all its runs and the
runs themselves. No other module knows these names.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal

from infini_jax.errors import require_local, require_no_pattern
from infini_jax.files import write_json
from infini_jax.locks import only_writer

CONFIG_FILE, METRICS_FILE, ROW_FILE = "config.json", "metrics.jsonl", "row.parquet"
ERROR_FILE, LOCK_FILE, UNSCORED_FILE = "error.json", "lock", "unscored.json"
SOURCE_FILE = "source.json"
CHECKPOINTS_FOLDER, MEASURES_FOLDER, OWN_FILE = "checkpoints", "measures", "own.parquet"
FROZEN_FOLDER = "frozen"
STUDY_FILE, FAILED_FILE, TABLE_FILE, MEASURES_FILE = "study.json", "failed.json", "results.parquet", "measures.parquet"
EarlyEnd = Literal["stopped", "diverged", "refused", "failed", "crashed"]  # how a run ended before its row was written
RUNS_FOLDER, COMPILED_FOLDER = "runs", "compiled"
RUN_SIGNS, STUDY_SIGNS = (CONFIG_FILE, ROW_FILE), (TABLE_FILE, STUDY_FILE)  # a folder of theirs has one of these at least
REPORT_FILE, FIGURES_FOLDER = "report.html", "report-figures"
MODELS = Path("results/models")  # folders of imported models, by name
REMEMBERED_FILE = ".remembered.parquet"  # beside the runs, see inventory.py; may be deleted at any time


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of one run, or of a job of another kind.

    Attributes:
      path: path of the folder, which ends in the run's name.

    Raises:
      ConfigError: the path is the address of a bucket.
    """

    path: Path

    def __post_init__(self):
        require_local("folder", self.path)

    @property
    def config(self) -> Path:
        """The file of the run's settings."""
        return self.path / CONFIG_FILE

    @property
    def metrics(self) -> Path:
        """The file of the training log: one JSON object per line."""
        return self.path / METRICS_FILE

    @property
    def row(self) -> Path:
        """The file of the run's row, written last: where it exists, the run is done."""
        return self.path / ROW_FILE

    @property
    def error(self) -> Path:
        """The file that says how the run failed, there only if it did."""
        return self.path / ERROR_FILE

    @property
    def unscored(self) -> Path:
        """The file that says which figures the row lacks because their evaluation failed, there only if one did."""
        return self.path / UNSCORED_FILE

    @property
    def source(self) -> Path:
        """The file that says where an imported model is from."""
        return self.path / SOURCE_FILE

    @property
    def lock(self) -> Path:
        """The file that a process holds while it works on the run, see locks.py."""
        return self.path / LOCK_FILE

    def only_writer(self) -> contextlib.AbstractContextManager[None]:
        """A context in which nobody else writes into the folder.

        Raises `ConfigError` where another process does, and for a path in which checkpoints are not found again.
        """
        require_no_pattern("results", self.path)
        return only_writer(self.lock, "name", str(self.path), "wait until it is done, or give another name")

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, which has one folder per step."""
        return self.path / CHECKPOINTS_FOLDER

    @property
    def frozen(self) -> Path:
        """The folder of the parameters that the run does not train, there only if there are some."""
        return self.path / FROZEN_FOLDER

    @property
    def own_measures(self) -> Path:
        """The file of figures of a job that measures itself."""
        return self.measures_of("own")

    def measures_of(self, name: str) -> Path:
        """The file of figures of one evaluation, as Parquet."""
        return self.path / f"{MEASURES_FOLDER}/{name}.parquet"

    def evaluation(self, task: str = "") -> Path:
        """The JSON file of `infini-jax evaluate`: of a task, or by default of the documents that the run is trained on."""
        return self.path / (f"evaluation-{task}.json" if task else "evaluation.json")

    @property
    def all_measures(self) -> Path:
        """The folder of the files of figures of all evaluations."""
        return self.path / MEASURES_FOLDER

    def write_config(self, settings: dict[str, Any]) -> None:
        """Makes the folder and writes plain settings to its file."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(settings, self.config)


@dataclasses.dataclass(frozen=True)
class StudyFolder:
    """The folder of one study.

    Attributes:
      path: path of the folder.

    Raises:
      ConfigError: the path is the address of a bucket.
    """

    path: Path

    def __post_init__(self):
        require_local("folder", self.path)

    @property
    def study(self) -> Path:
        """The file of all settings of the study, from which it can be resumed."""
        return self.path / STUDY_FILE

    @property
    def failed(self) -> Path:
        """The file of the runs that are not finished, with reasons."""
        return self.path / FAILED_FILE

    @property
    def table(self) -> Path:
        """The file of the rows of all finished runs."""
        return self.path / TABLE_FILE

    @property
    def measures(self) -> Path:
        """The file of the figures of all evaluations."""
        return self.path / MEASURES_FILE

    @property
    def compiled(self) -> Path:
        """The folder of compiled programs, which the study's workers share."""
        return self.path / COMPILED_FOLDER

    @property
    def report(self) -> Path:
        """The file of the report, an HTML page."""
        return self.path / REPORT_FILE

    @property
    def figures(self) -> Path:
        """The folder of the report's figures, as SVG and PDF, and of the runs behind each as CSV."""
        return self.path / FIGURES_FOLDER

    @property
    def all_runs(self) -> Path:
        """The folder that holds the folders of all runs."""
        return self.path / RUNS_FOLDER

    def run(self, name: str) -> RunFolder:
        """The folder of the run with this name."""
        return RunFolder(self.all_runs / name)


def runs_below(path: Path) -> list[RunFolder]:
    """The runs in a folder that is no study's: the folder itself and those directly in it, by name."""
    return [RunFolder(file.parent) for file in sorted([*path.glob(CONFIG_FILE), *path.glob(f"*/{CONFIG_FILE}")])]
