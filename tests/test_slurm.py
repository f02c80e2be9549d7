"""Studies on a real SLURM node: an array of workers, a worker that is preempted and queued again, a run of two processes."""

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.records.folder import FAILED_FILE, METRICS_FILE, TABLE_FILE
from infini_jax.records.rows import read_rows
from infini_jax.study.launch import LAUNCHERS, Resources
from infini_jax.study.launch.slurm import queued
from infini_jax.study.study import Study, save_study
from infini_jax.study.workers import run_study
from tests.support.commands import PAIRS, PROGRAM
from tests.support.slurm_node import node, told, wait_for, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
MODEL = ModelConfig(vocab=32, layers=1, d_model=16, heads=1, segment=8)
TRAIN = TrainConfig(batch=1, sequence=16, evaluation_steps=1, log_every=10)


def run_of(name: str, steps: int, rate: float = 1e-2) -> RunConfig:
    train = TrainConfig(**{**vars(TRAIN), "learning_rate": rate})
    return RunConfig(name=name, model=MODEL, data=MqarConfig(pairs=2, symbols=32), train=train, budget=Budget("steps", steps))


def study_of(*runs: RunConfig) -> Study:
    return Study("queued", "Does it come back?", runs)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    with node(folder) as problem:
        if problem:
            pytest.skip(f"SLURM does not start on this machine: {problem}")
        yield


def launched(study: Study, folder: Path, jobs: int, **resources) -> None:
    save_study(study, folder)
    LAUNCHERS["slurm"](jobs, Resources(minutes=10, partition="low", **resources)).run(study, folder, lambda desk: None)


def losses(folder: Path) -> dict[str, float]:
    return {row.run: row.loss for row in read_rows(folder / TABLE_FILE)}


@pytest.mark.slow
def test_an_array_does_a_study_and_what_failed_is_tried_again(slurm, tmp_path):
    """A rate that no training stands fails, is told, and costs the others nothing; another call does what is missing."""
    good = [run_of("one", 20), run_of("two", 20, 2e-2), run_of("three", 20, 3e-2)]
    study = study_of(*good, run_of("bad", 20, 1e30))
    launched(study, tmp_path / "slurm", jobs=2)
    (failure,) = json.loads((tmp_path / "slurm" / FAILED_FILE).read_text())
    assert (failure["run"], "not finite" in failure["error"]) == ("bad", True)
    run_study(study_of(*good), tmp_path / "local", 1)
    assert losses(tmp_path / "slurm") == losses(tmp_path / "local")
    (tmp_path / "slurm" / "runs" / "two" / "row.parquet").unlink()
    launched(study_of(*good), tmp_path / "slurm", jobs=2)
    assert losses(tmp_path / "slurm") == losses(tmp_path / "local")
    assert not queued(tmp_path / "slurm")


@pytest.mark.slow
def test_a_preempted_worker_is_queued_again_and_ends_with_the_same_numbers(slurm, tmp_path):
    """A job of the higher partition takes the node in the middle of the run."""
    study, folder = study_of(run_of("long", 1500)), tmp_path / "slurm"
    metrics = folder / "runs" / "long" / METRICS_FILE
    waiting = threading.Thread(target=launched, args=(study, folder, 1), kwargs={"cpus": 2}, daemon=True)
    waiting.start()
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 20, 120, "the middle of the run")
    (worker,) = queued(folder)
    told("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: "Restarts=1" in told("scontrol", "show", "job", worker), 60, "a second start")
    saved = len(metrics.read_text().splitlines())
    assert saved < 150  # it was not done

    def runs_again() -> bool:
        told("scontrol", "update", f"jobid={worker}", "StartTime=now")  # a requeued job is held for two minutes
        return "JobState=RUNNING" in told("scontrol", "show", "job", worker)

    wait_for(runs_again, 60, "a second run")
    waiting.join(timeout=300)
    assert not waiting.is_alive()
    assert (folder / "runs" / "long" / "checkpoints").exists()
    run_study(study, tmp_path / "local", 1)
    assert losses(folder) == losses(tmp_path / "local")


@pytest.mark.slow
def test_a_worker_that_is_told_of_its_time_limit_saves_and_is_queued_again(slurm, tmp_path):
    """`scancel --signal` sends now what SLURM sends before the limit; nothing else saves this run."""
    study, folder = study_of(run_of("long", 10**7)), tmp_path / "slurm"
    run = folder / "runs" / "long"
    save_study(study, folder)
    launcher = LAUNCHERS["slurm"](1, Resources(minutes=10, partition="low"))
    launcher.submit(folder, missing=1)
    wait_for(lambda: (run / METRICS_FILE).exists() and len((run / METRICS_FILE).read_text().splitlines()) > 20, 120, "a run")
    (worker,) = queued(folder)
    assert "TimeLimit=00:10:00" in told("scontrol", "show", "job", worker)
    told("scancel", "--signal=USR2", worker)
    wait_for(lambda: "Restarts=1" in told("scontrol", "show", "job", worker), 60, "a second start")
    saved = [int(one.name) for one in (run / "checkpoints").iterdir() if one.name.isdigit()]
    last = json.loads((run / METRICS_FILE).read_text().splitlines()[-1])["step"]
    assert len(saved) == 1
    assert last <= saved[0] < last + 10
    launcher.cancel(folder)
    wait_for(lambda: not queued(folder), 60, "an empty queue")


@pytest.mark.slow
def test_two_tasks_of_a_job_train_one_run(slurm, tmp_path):
    """`--processes job` reads what SLURM says; the losses are those of one process but for the order of sums."""
    rows = ["--data.pairs", "2", "--train.batch", "2", "--train.sequence", "16", "--train.log-every", "1"]
    program = [*PROGRAM, *PAIRS, *rows, "--budget.unit", "steps", "--budget.amount", "4"]
    task = ["srun", "--partition=low", "--ntasks=2", *program, "--processes", "job", "--results", str(tmp_path / "two")]
    for started in (task, [*program, "--results", str(tmp_path / "one")]):
        done = subprocess.run(started, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    two, one = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "run" / METRICS_FILE).read_text().splitlines()]
        for name in ("two", "one")
    )
    assert len(two) == 4
    assert two == pytest.approx(one, rel=2e-5)


@pytest.fixture
def reservation(slurm):
    """A reservation of the node, for no longer than the test."""
    made = ("ReservationName=course", "StartTime=now", "Duration=60", "Users=root", "Nodes=ALL", "Flags=IGNORE_JOBS")
    assert "course" in told("scontrol", "create", *made)
    yield "course"
    told("scontrol", "delete", "ReservationName=course")


def test_what_is_asked_of_slurm_arrives_and_cancelling_ends_the_workers(slurm, reservation, tmp_path):
    """The node has no accounts to look up a qos in; SLURM's own lines say what it understood."""
    study, folder, comment = study_of(run_of("endless", 10**7)), tmp_path / "slurm", 'it\'s "free" $(text); # = é'
    save_study(study, folder)
    extra = (f"comment={comment}", "#SBATCH --nice=7", "exclusive")
    asked = Resources(partition="low", account="lab", constraint="fast", reservation=reservation, extra=extra)
    launcher = LAUNCHERS["slurm"](1, asked)
    launcher.submit(folder, missing=1)
    wait_for(lambda: queued(folder), 30, "a worker in the queue")
    found = told("scontrol", "show", "job", queued(folder)[0])
    for said in ("Partition=low", "Account=lab", "Features=fast", "Reservation=course", "Nice=7", "OverSubscribe=NO"):
        assert said in found, found
    assert f"Comment={comment}" in found, found
    assert launcher.cancel(folder).startswith("cancelled: ")
    began = time.monotonic()
    wait_for(lambda: not queued(folder), 60, "an empty queue")
    assert time.monotonic() - began < 60
