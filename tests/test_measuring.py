"""Evaluations of a study: measured once from what was trained, without training again, and never from half a file."""

import dataclasses
import json
from typing import ClassVar

import jax
import numpy as np
import pytest

from infini_jax.config import RunConfig
from infini_jax.devices.side_by_side import OneModel
from infini_jax.errors import ConfigError
from infini_jax.evals.base import Evaluation, Subject, Watch, unwatched
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.records.folder import MEASURES_FILE, ROW_FILE, STUDY_FILE, StudyFolder
from infini_jax.records.measures import Measure, read_measures, write_measures
from infini_jax.records.rows import is_whole, read_rows, write_rows
from infini_jax.study.evaluations import measure_file
from infini_jax.study.study import Study, collect, cut_short, save_study, saved_study
from infini_jax.study.workers import do, run_study
from infini_jax.training.scoring import score_batches
from infini_jax.training.trained import Trained
from tests.test_study import GOOD


@dataclasses.dataclass(frozen=True)
class Norm(Evaluation):
    """A norm of the parameters."""

    order: int = 2
    seeds: tuple[int, ...] = (0, 1)  # of the runs that it applies to
    name: ClassVar[str] = "norm"

    def applies(self, run: RunConfig) -> bool:
        return run.seed in self.seeds

    def check(self, run: RunConfig) -> None:
        if self.order < 1:
            raise ConfigError("norm.order", f"{self.order} is none", "give at least 1")

    def cost(self, run: RunConfig) -> float:
        return 1e6 * self.order

    def measure(self, subject: Subject, watch: Watch = unwatched) -> list[Measure]:
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(subject.params)])
        return [Measure("norm", "norm", float(np.linalg.norm(flat, self.order)), flat.size, labels={"order": self.order})]


class Broken(Norm):
    name: ClassVar[str] = "broken"

    def measure(self, subject: Subject, watch: Watch = unwatched) -> list[Measure]:
        raise ZeroDivisionError("nothing to divide by\nin two lines")


def study_of(*evaluations: Evaluation) -> Study:
    return Study("tiny", "what is measured?", (GOOD,), evaluations=evaluations)


def norms(study: Study, folder) -> dict[int, float]:
    """Order -> norm in the table of all figures."""
    found = read_measures([folder / MEASURES_FILE])
    assert all(run == "good" for run, _ in found)
    return {one.labels["order"]: one.value for _, one in found}


def norm_of(folder, order: int) -> float:
    """The same from the checkpoint itself."""
    leaves = [np.abs(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(Trained.open(folder / "runs" / "good").params)]
    return sum((leaf**order).sum() for leaf in leaves) ** (1 / order)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder in which a study with two settings of an evaluation was done, and one that breaks."""
    folder = tmp_path_factory.mktemp("measured")
    rows, failures = run_study(study_of(Broken(), Norm(2), Norm(1)), folder, jobs=1)
    return folder, rows, failures


def test_every_setting_is_measured_of_the_final_parameters(measured):
    folder, *_ = measured
    found = norms(study_of(), folder)
    assert found == pytest.approx({order: norm_of(folder, order) for order in (1, 2)}, rel=1e-5)
    files = {measure_file(StudyFolder(folder).run("good"), Norm(order)) for order in (1, 2)}
    assert len(files) == 2
    assert all(file.name.startswith("norm-") and is_whole(file) for file in files)


def test_an_evaluation_that_breaks_is_told_in_one_line_and_costs_no_row(measured):
    _, rows, failures = measured
    assert [row.run for row in rows] == ["good"]
    assert [(failure.run, failure.error) for failure in failures] == [
        ("good", "evaluation broken: ZeroDivisionError: nothing to divide by")
    ]


def test_what_is_missing_is_measured_without_training_again(measured):
    folder, rows, _ = measured
    file = folder / "runs" / "good" / ROW_FILE
    before, study = file.stat().st_mtime_ns, study_of(Norm(2), Norm(3))
    desk = study.desk(folder)
    assert desk.is_done(GOOD)
    assert not desk.is_finished(GOOD)
    do(desk, GOOD)
    assert desk.is_finished(GOOD)
    assert file.stat().st_mtime_ns == before
    assert collect(study, desk) == (rows, [])
    assert norms(study, folder) == pytest.approx({order: norm_of(folder, order) for order in (2, 3)}, rel=1e-5)


def test_files_that_were_cut_in_half_are_noticed_and_made_again(measured):
    folder, (row,), _ = measured
    study = study_of(Norm(2))
    desk, run = study.desk(folder), StudyFolder(folder).run("good")
    files = [run.row, measure_file(run, Norm(2))]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert cut_short(study, folder) == files
    assert not desk.is_done(GOOD)
    rows, failures = collect(study, desk)
    assert rows == []
    assert [failure.run for failure in failures] == ["good"]
    do(desk, GOOD)
    assert cut_short(study, folder) == []
    (again,), failures = collect(study, desk)
    assert failures == []
    assert (again.loss, again.test_loss, again.steps) == (row.loss, row.test_loss, row.steps)
    assert norms(study, folder)[2] == pytest.approx(norm_of(folder, 2), rel=1e-5)


def test_the_test_split_is_scored_with_the_final_parameters(measured):
    folder, (row,), _ = measured
    learned = OneModel(Trained.open(folder / "runs" / "good").params)
    ((loss, accuracy),), (tested,) = (score_batches(GOOD, learned, split) for split in ("validation", "test"))
    assert (row.loss, row.accuracy) == pytest.approx((loss, accuracy), rel=1e-5)
    assert (row.test_loss, row.test_accuracy) == pytest.approx(tested, rel=1e-5)
    assert row.test_loss != row.loss
    assert row.learning_rate == GOOD.train.learning_rate


def test_a_table_from_before_the_new_columns_can_be_read(measured, tmp_path):
    import pyarrow.parquet as pq

    _, (row,), _ = measured
    write_rows([row], tmp_path / "new.parquet")
    later = ["learning_rate", "gives", "test_loss", "test_accuracy"]
    pq.write_table(pq.read_table(tmp_path / "new.parquet").drop_columns(later), tmp_path / "old.parquet")
    (old,) = read_rows(tmp_path / "old.parquet")
    assert old == dataclasses.replace(row, learning_rate=None, gives="steps", test_loss=None, test_accuracy=None)
    assert read_rows(tmp_path / "new.parquet") == [row]


def test_a_saved_study_has_its_evaluations_again(tmp_path, monkeypatch):
    study = study_of(Norm(3), Norm(1, seeds=(4,)))
    with pytest.raises(ConfigError, match=r"^study.evaluations: Norm is in no row of the registry"):
        save_study(study, tmp_path)
    monkeypatch.setitem(EVALUATIONS, "norm", Norm)
    save_study(study, tmp_path)
    assert saved_study(tmp_path)[0] == study
    plain = json.loads((tmp_path / STUDY_FILE).read_text())
    plain["evaluations"][0]["kind"] = "nrom"
    (tmp_path / STUDY_FILE).write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match="did you mean 'norm'"):
        saved_study(tmp_path)


def test_evaluations_are_checked_before_anything_runs_and_only_where_they_apply():
    with pytest.raises(ConfigError, match=r"^run good: norm.order: 0 is none"):
        study_of(Norm(0))
    assert study_of(Norm(0, seeds=(1,))).evaluations_of(GOOD) == ()


def test_a_file_without_its_end_is_not_whole(tmp_path):
    file = tmp_path / "a.parquet"
    assert not is_whole(file)
    write_measures("a", [Measure("x", "y", 1.0, 1)], file)
    whole = file.read_bytes()
    assert is_whole(file)
    for end in (0, 4, 7, len(whole) - 1):
        file.write_bytes(whole[:end])
        assert not is_whole(file)
