"""Studies: finished runs stay finished, killed ones go on, failed ones do not stop the others."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from experiments import quick
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import ConfigError
from infini_jax.locks import Holder
from infini_jax.memory.infini import InfiniConfig
from infini_jax.records.folder import CONFIG_FILE, METRICS_FILE, ROW_FILE, TABLE_FILE
from infini_jax.records.rows import read_rows
from infini_jax.study.desk import Desk
from infini_jax.study.experiment import load_experiment
from infini_jax.study.study import Study, save_study, saved_study, study_in
from infini_jax.study.workers import run_study

GOOD = RunConfig(
    name="good",
    model=ModelConfig(memory=InfiniConfig(), vocab=32, layers=1, d_model=16, heads=2, segment=8),
    data=MqarConfig(pairs=2, symbols=32),
    train=TrainConfig(batch=2, sequence=16, log_every=2, evaluation_steps=1),
    budget=Budget("steps", 5),
)
OTHER = dataclasses.replace(GOOD, name="other", seed=1)
# what only reading the data can tell: more rows than the split has documents
BAD = dataclasses.replace(
    GOOD,
    name="bad",
    data=StdlibConfig(),
    model=dataclasses.replace(GOOD.model, vocab=256),
    train=TrainConfig(batch=100_000, sequence=16),
)
# long enough to be killed in the middle
LONG = dataclasses.replace(GOOD, name="long", budget=Budget("steps", 10_000_000))


def study_of(*runs: RunConfig) -> Study:
    return Study("tiny", "does it run?", runs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which a study with one bad run was done."""
    folder = tmp_path_factory.mktemp("study")
    save_study(study_of(GOOD, BAD, OTHER), folder)
    run_study(study_of(GOOD, BAD, OTHER), folder, jobs=1)
    return folder


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_the_others_finish(finished):
    study, rows, failures = saved_study(finished)
    assert study == study_of(GOOD, BAD, OTHER)
    assert [row.run for row in rows] == ["good", "other"]
    assert [failure.run for failure in failures] == ["bad"]
    assert failures[0].error.startswith("train.batch: 100000 rows need as many documents")


def test_each_run_leaves_its_config_its_metrics_and_one_row(finished):
    folder = finished / "runs" / "good"
    assert RunConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text())) == GOOD
    steps = [json.loads(line)["step"] for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert steps == [2, 4, 5]
    (row,) = read_rows(folder / ROW_FILE)
    assert (row.steps, row.tokens, row.mechanism, row.task) == (5, 5 * 32, "infini", "mqar")
    assert row.memory_bytes == GOOD.model.memory_bytes
    assert row.flops_actual == row.flops_planned == pytest.approx(row.flops_counted, rel=0.02)
    assert (row.form, row.flops_executed) == ("segments 2, rematerialise none, layers scan", row.flops_counted)
    assert row.fingerprint == GOOD.fingerprint()
    assert 0 <= row.accuracy <= 1
    assert row.loss > 0
    assert read_rows(finished / TABLE_FILE) == sorted(
        [row, *read_rows(finished / "runs" / "other" / ROW_FILE)], key=lambda row: row.seed
    )


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_and_a_failed_one_is_tried_again(finished):
    files = [finished / "runs" / name / ROW_FILE for name in ("good", "other")]
    before = [file.stat().st_mtime_ns for file in files]
    mended = dataclasses.replace(BAD, data=GOOD.data, train=GOOD.train)
    rows, failures = run_study(study_of(GOOD, mended, OTHER), finished, jobs=1)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert [row.run for row in rows] == ["good", "bad", "other"]
    assert failures == []


def test_results_of_other_settings_are_never_mixed_in(finished):
    changed = dataclasses.replace(GOOD, seed=9)
    with pytest.raises(ConfigError, match="run good was finished with other settings"):
        run_study(study_of(changed), finished, jobs=1)


def watching(until, act):
    """A watcher that acts once when `until(desk)` holds."""
    state = {"done": False}

    def watch(desk):
        if not state["done"] and until(desk):
            state["done"] = True
            act(desk)

    return watch


def long_is_training(desk: Desk) -> bool:
    file = desk.of(LONG).metrics
    return file.exists() and file.stat().st_size > 0


@pytest.mark.slow
def test_a_worker_that_is_killed_is_reported_and_another_goes_on(tmp_path):
    def kill(desk):
        os.kill(desk.claimed_by(LONG).pid, signal.SIGKILL)

    rows, failures = run_study(study_of(LONG, GOOD), tmp_path, jobs=1, watch=watching(long_is_training, kill))
    assert [row.run for row in rows] == ["good"]
    assert [failure.run for failure in failures] == ["long"]
    assert "signal 9" in failures[0].error


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_where_it_stopped(tmp_path):
    """The whole process group dies without a word; the next call keeps the finished run and frees the other's lock."""
    process = multiprocessing.get_context("spawn").Process(target=run_in_own_group, args=(study_of(GOOD, LONG), tmp_path))
    process.start()
    deadline = time.monotonic() + 300
    while not long_is_training(Desk(tmp_path, "tiny")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    before = (tmp_path / "runs" / "good" / ROW_FILE).stat().st_mtime_ns
    short = dataclasses.replace(LONG, budget=Budget("steps", 5))
    rows, failures = run_study(study_of(GOOD, short), tmp_path, jobs=1)
    assert [row.run for row in rows] == ["good", "long"]
    assert failures == []
    assert (tmp_path / "runs" / "good" / ROW_FILE).stat().st_mtime_ns == before


@pytest.mark.slow
def test_workers_die_with_the_study_that_started_them(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=run_in_own_group, args=(study_of(LONG), tmp_path))
    process.start()
    desk, deadline = Desk(tmp_path, "tiny"), time.monotonic() + 300
    while not long_is_training(desk):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)  # the parent only
    process.join()
    while True:
        with desk.claim(LONG) as ours:
            if ours:
                return
        assert time.monotonic() < deadline
        time.sleep(0.2)


def run_in_own_group(study: Study, folder: Path) -> None:
    os.setpgid(0, 0)
    run_study(study, folder, jobs=1)


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    desk, rival = Desk(tmp_path, "tiny"), Desk(tmp_path, "tiny")
    with desk.claim(GOOD) as ours, rival.claim(GOOD) as theirs:
        assert ours
        assert not theirs
        assert desk.claimed_by(GOOD) == rival.claimed_by(GOOD) == Holder.here(os.getpid())
    with rival.claim(GOOD) as theirs:
        assert theirs


def test_studies_that_cannot_work_are_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="two runs are called 'good'"):
        study_of(GOOD, GOOD)
    with pytest.raises(ConfigError, match=r"study.runs: there is none"):
        study_of()
    poor = dataclasses.replace(GOOD, budget=Budget("flops", 10.0))
    with pytest.raises(ConfigError, match=r"^run good: budget.amount: 10 flops do not pay for one step"):
        study_of(poor)


@pytest.mark.parametrize("name", ["local", "transformer_xl", "infini", "memorizing", "landmark", "infinite_former"])
def test_quick_study_has_its_mechanisms_at_three_sizes_on_both_tasks(name):
    runs = quick.study().runs
    for task in ("mqar", "python_stdlib"):
        found = [run for run in runs if run.task == task and run.model.mechanism == name]
        assert len({run.model.memory_bytes for run in found}) == 3
        assert len({run.budget for run in found}) == 1


def test_window_of_the_quick_study_cannot_reach_the_pairs():
    recall = quick.RECALL
    reach = recall.model.layers * (max(quick.WINDOWS["mqar"]) - 1) + recall.model.key_taps - 1
    assert 2 * reach <= recall.data.gap(recall.train.sequence)


def test_a_part_of_a_study_has_its_mechanisms_between_floor_and_ceiling_and_a_folder_of_its_own(tmp_path):
    whole = load_experiment("mqar_pareto", "smoke")
    part = whole.restricted("memorizing", "infini")
    assert {run.mechanism for run in part.runs} == {"infini", "memorizing", "local", "full"}
    assert part.label == "mqar_pareto-infini-memorizing-smoke"
    assert part.command == "infini-jax study mqar_pareto --scale smoke --only infini,memorizing"
    assert [run for run in whole.runs if run in part.runs] == list(part.runs)
    save_study(part, tmp_path)
    assert study_in(tmp_path) == part
    with pytest.raises(ConfigError, match="the study has no run of 'infinity'; choose among"):
        whole.restricted("infinity")
