"""What is examined, scored and evaluated of a fleet's members is that of the runs alone, read side by side."""

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.devices import chosen_form
from infini_jax.devices.chosen_form import RowsAtOnce, documents_at_once, most_members, reading_bytes
from infini_jax.evals.gates import GateEvaluation
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.model.cost import parameter_count, state_bytes
from infini_jax.records.folder import StudyFolder
from infini_jax.records.measures import Measure, read_measures
from infini_jax.records.rows import read_rows
from infini_jax.study.evaluations import measured_alike
from infini_jax.study.fleets import ALONE, Companions
from infini_jax.study.study import Study
from infini_jax.study.workers import do_all
from tests.support.calls import calls_from_now
from tests.support.commands import killed_at, on_devices
from tests.support.streams import tiny
from tests.test_fleet import RATES, UNLIKE, assert_lines, done, few, with_train
from tests.test_resume import logged
from tests.test_side_by_side import assert_same

CLOSE = 1e-5  # of scores of parameters that were trained for some steps at the rates of `RATES`


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    return calls_from_now(monkeypatch)


def on_documents(count: int = 3, **train_settings) -> list[RunConfig]:
    """Runs on text that differ in seed and rates, and are examined on the way."""
    settings = {"batch": 2, "sequence": 32, "log_every": 2, "evaluate_every": 2, "warmup": 0.0} | train_settings
    base = RunConfig(
        model=dataclasses.replace(tiny("local"), vocab=256),
        data=StdlibConfig(),
        train=TrainConfig(**settings),
        budget=Budget("steps", 4),
        evaluation=EvaluationConfig(documents=2, tokens=40, rows=2),
    )
    return [
        dataclasses.replace(with_train(base, learning_rate=rate), name=f"run-{seed}", seed=seed)
        for seed, rate, _ in RATES[:count]
    ]


def assert_same_rows(ours, theirs) -> None:
    for row, expected in zip(ours, theirs, strict=True):
        found = dataclasses.asdict(row)
        for name, value in dataclasses.asdict(expected).items():
            if name not in UNLIKE:
                assert found[name] == (pytest.approx(value, rel=CLOSE) if isinstance(value, float) else value), name


def test_held_out_documents_are_read_side_by_side_on_the_way_and_at_the_end(tmp_path, calls):
    runs = on_documents()
    (rows, failures), of_fleet = done(tmp_path / "fleet", runs, 3), calls.copy()
    calls.clear()
    (alone, _), of_all = done(tmp_path / "alone", runs, ALONE), calls.copy()
    assert failures == [None] * 3
    assert [row.fleet for row in rows] == [3] * 3
    assert_same_rows(rows, alone)
    assert all(row.test_loss is not None for row in rows)
    for run in runs:
        found, expected = (logged(tmp_path / where / "runs" / run.name) for where in ("fleet", "alone"))
        assert [line["step"] for line in found if "validation_loss" in line] == [2, 4]
        assert_lines(found, expected, CLOSE)
    assert len(of_all) == 3 * len(of_fleet) > 0
    assert {one.split()[1] for one in of_fleet} == {"members"}


def test_held_out_batches_are_scored_side_by_side_where_the_data_are_equal(tmp_path, calls):
    """The second of three has other data, and is scored alone."""
    (rows, failures), of_fleet = done(tmp_path / "fleet", few(), 3), calls.copy()
    assert failures == [None] * 3
    assert_same_rows(rows, done(tmp_path / "alone", few(), ALONE)[0])
    batches = few()[0].train.evaluation_steps
    assert of_fleet.count("score_batch members") == of_fleet.count("score_batch alone") == 2 * batches


def test_a_member_whose_figures_fail_goes_on_without_them_alone(tmp_path, monkeypatch):
    """Figures of the last reading of one cannot be made; the others are those of a fleet in which nothing fails."""
    from infini_jax.training import held_out

    runs, made = on_documents(), held_out.with_metrics
    expected, _ = done(tmp_path / "good", runs, 3)
    numbers = iter(range(99))

    def second_fails(found):
        if next(numbers) == 4:  # the three of step 2 are behind it
            raise ValueError("no figures")
        return made(found)

    monkeypatch.setattr(held_out, "with_metrics", second_fails)
    (first, second, last), failures = done(tmp_path / "bad", runs, 3)
    assert failures[0] is failures[2] is None
    assert failures[1].startswith("evaluation validation: ValueError: no figures")
    assert_same_rows([first, last], [expected[0], expected[2]])
    assert second.loss != second.loss
    assert second.test_loss == pytest.approx(expected[1].test_loss, rel=CLOSE)


EVALUATIONS = (
    MqarEvaluation(lengths=(32, 64), pairs=(2,), examples=3, rows=3),
    GateEvaluation(),
    MqarEvaluation(pairs=(3,), examples=2, rows=2),
)


def alike(count: int = 3, mechanism: str = "infini") -> list[RunConfig]:
    """Runs that differ in seed and rate alone."""
    base = RunConfig(
        model=tiny(mechanism),
        data=MqarConfig(pairs=2, symbols=32),
        train=TrainConfig(batch=2, sequence=32, evaluation_steps=1, warmup=0.0),
        budget=Budget("steps", 2),
    )
    return [
        dataclasses.replace(base.with_learning_rate(1e-3 / (1 + seed)), name=f"run-{seed}", seed=seed) for seed in range(count)
    ]


def evaluated(folder: Path, runs: list[RunConfig], fleet: int, evaluations=EVALUATIONS) -> list[list]:
    """The files of figures of each run, that a worker made in fleets of so many."""
    desk = Study("together", "does it matter?", tuple(runs), evaluations=evaluations).desk(folder)
    do_all(desk, tuple(runs), fleet)
    return [[figures_in(file, run) for file in desk.measure_files(run) if file.exists()] for run in runs]


def figures_in(file: Path, run: RunConfig) -> list[Measure]:
    found = read_measures([file])
    assert {name for name, _ in found} == {run.name}
    return [one for _, one in found]


def assert_same_figures(ours: list[list], theirs: list[list]) -> None:
    for of_run, expected in zip(ours, theirs, strict=True):
        for found, figures in zip(of_run, expected, strict=True):
            assert_same(found, figures)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Figures of four runs, each trained and evaluated alone."""
    return evaluated(tmp_path_factory.mktemp("alone"), alike(4), ALONE)


def test_evaluations_of_a_study_are_made_side_by_side(tmp_path, alone, calls):
    found = evaluated(tmp_path, alike(), 3)
    assert [len(of_run) for of_run in found] == [3] * 3
    assert_same_figures(found, alone[:3])
    assert {one.split()[1] for one in calls} == {"members"}


def test_an_evaluation_that_came_later_is_made_side_by_side_without_training(tmp_path, alone, calls):
    evaluated(tmp_path, alike(), 3, EVALUATIONS[:1])
    calls.clear()
    found = evaluated(tmp_path, alike(), 3)
    assert_same_figures(found, alone[:3])
    assert set(calls) == {"score_segments members"}


def test_a_run_whose_evaluation_fails_fails_alone(tmp_path, alone, monkeypatch):
    figures = MqarEvaluation.figures

    def some_fail(self, run, cell, readings):
        if run.name == "run-1" and self == EVALUATIONS[0]:
            raise ValueError("no figure")
        return figures(self, run, cell, readings)

    monkeypatch.setattr(MqarEvaluation, "figures", some_fail)
    runs = alike()
    first, second, last = evaluated(tmp_path, runs, 3)
    assert_same_figures([first, second, last], [alone[0], alone[1][1:], alone[2]])
    desk = Study("together", "does it matter?", tuple(runs), evaluations=EVALUATIONS).desk(tmp_path)
    assert [desk.of(run).error.exists() for run in runs] == [False, True, False]
    assert "evaluation mqar: ValueError: no figure" in desk.of(runs[1]).error.read_text()


def test_a_run_without_parameters_fails_alone(tmp_path, alone):
    import shutil

    runs = alike()
    evaluated(tmp_path, runs, 3, ())
    shutil.rmtree(StudyFolder(tmp_path).run("run-1").checkpoints)
    first, second, last = evaluated(tmp_path, runs, 3)
    assert second == []
    assert_same_figures([first, last], [alone[0], alone[2]])


def on_two() -> list[list[float | None]]:
    """Scores and figures of each of three runs, done as a fleet on two devices, so that one of four places is empty."""
    assert len(jax.devices()) == 2
    runs = alike()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        calls = calls_from_now(patch)
        figures = evaluated(Path(folder), runs, 3)
        assert {one.split()[1] for one in calls} == {"members"}
        rows = [read_rows(StudyFolder(Path(folder)).run(run.name).row)[0] for run in runs]
    return [[row.loss, row.test_loss, *values_of(of_run)] for row, of_run in zip(rows, figures, strict=True)]


def values_of(figures: list[list[Measure]]) -> list[float]:
    return [one.value for of_file in figures for one in of_file]


@pytest.mark.slow
def test_members_on_several_devices_are_evaluated_side_by_side(tmp_path, alone):
    found, (rows, _) = on_devices(2, "test_fleet_evaluations", "on_two()"), done(tmp_path, alike(), ALONE)
    expected = [[row.loss, row.test_loss, *values_of(of_run)] for row, of_run in zip(rows, alone, strict=False)]
    assert found == [pytest.approx(one, rel=CLOSE) for one in expected]


CHILD = "from pathlib import Path; from tests.test_fleet_evaluations import child; child(Path(sys.argv[1]))"


def child(folder: Path) -> None:
    """Trains and evaluates four runs as a fleet."""
    evaluated(folder, alike(4), 4)


@pytest.mark.slow
def test_evaluations_that_were_killed_go_on_with_what_is_missing(tmp_path, alone, calls):
    """The process dies while it writes the second file of figures; the other runs lack all of theirs."""
    program = killed_at("measures/mqar", 2, ("os.rename",)) + CHILD
    process = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert process.returncode == -9, process.stderr[-2000:]
    folders = [StudyFolder(tmp_path).run(run.name) for run in alike(4)]
    assert all(folder.row.exists() for folder in folders)
    before = {file: file.stat().st_mtime_ns for folder in folders for file in folder.path.glob("measures/*.parquet")}
    assert 0 < len(before) < 12
    found = evaluated(tmp_path, alike(4), 4)
    assert_same_figures(found, alone)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert set(calls) == {"score_segments members"}  # nothing is trained or scored again


def test_trained_and_untrained_runs_go_in_groups_of_their_own(tmp_path):
    runs = alike(4)
    evaluated(tmp_path, runs[:2], 2, ())
    desk = Study("together", "does it matter?", tuple(runs), evaluations=EVALUATIONS).desk(tmp_path)
    companions = Companions(runs, 4)
    with companions.claimed(desk, runs[0]) as others:
        assert [run.name for run in others] == ["run-1"]
    with companions.claimed(desk, runs[2]) as others:
        assert [run.name for run in others] == ["run-3"]


def test_runs_are_measured_alike_where_they_differ_in_seed_and_rate():
    first, second, third = alike()
    other = dataclasses.replace(second, data=MqarConfig(pairs=2, symbols=30))
    assert measured_alike({0: first, 3: other, 5: third}) == [[0, 5], [3]]


def test_fleets_are_as_large_as_evaluations_allow(monkeypatch):
    """By the estimates: 0.8 of 10.5 times the state's bytes, of which a member that trains needs one."""
    (run,), (text,) = alike(1), on_documents(1)
    monkeypatch.setattr(chosen_form, "platform", lambda: "cuda")
    monkeypatch.setattr(chosen_form, "kept_bytes", lambda *_: 0.0)
    monkeypatch.setattr(chosen_form, "available_bytes", lambda: 10.5 * state_bytes(run))
    assert most_members(run) == 8
    few_rows, many_rows = RowsAtOnce(1), RowsAtOnce(4, memories=2)
    behind = 4 * parameter_count(run.model) + reading_bytes(run.model, many_rows)
    assert most_members(run, [few_rows, many_rows]) == max(1, int(8.4 * state_bytes(run) / behind)) < 8
    monkeypatch.setattr(chosen_form, "available_bytes", lambda: 10.5 * state_bytes(text))
    beside = state_bytes(text) + reading_bytes(text.model, documents_at_once(text.evaluation))
    assert most_members(text) == max(1, int(8.4 * state_bytes(text) / beside)) < 8


def test_what_reading_needs_grows_with_rows_memories_and_vocabulary():
    model, rows = tiny("infini"), RowsAtOnce(4, memories=2)
    more = dataclasses.replace(model, vocab=2 * model.vocab)
    assert reading_bytes(model, RowsAtOnce(8, memories=2)) == 2 * reading_bytes(model, rows)
    assert reading_bytes(model, RowsAtOnce(4, memories=3)) == reading_bytes(model, rows) + 4 * model.memory_bytes
    assert reading_bytes(more, rows) == reading_bytes(model, rows) + 3 * 4 * model.vocab * 4 * model.segment
    assert documents_at_once(EvaluationConfig(rows=3, conditions=("carried", "reset"))) == RowsAtOnce(3, memories=3)
