"""What can befall a study on its machines: no memory, a full disk, two runners at once. It tells, and loses nothing."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.records.folder import FAILED_FILE, METRICS_FILE, TABLE_FILE
from infini_jax.records.rows import read_rows
from infini_jax.study.study import Study, save_study, saved_study
from infini_jax.study.workers import do_all, run_study
from tests.support.commands import disk

pytestmark = pytest.mark.slow
GOOD = RunConfig(
    name="good",
    model=ModelConfig(vocab=32, layers=1, d_model=16, heads=1, segment=8),
    data=MqarConfig(pairs=2, symbols=32),
    train=TrainConfig(batch=1, sequence=16, log_every=1, evaluation_steps=1),
    budget=Budget("steps", 3),
)
GIB = 2**30


def study_of(*runs: RunConfig) -> Study:
    return Study("tiny", "does it go on?", runs)


def runner(folder: Path, before: str = "") -> subprocess.Popen:
    """Another process that does what is missing of a folder's study; `before` is Python that runs in it first."""
    program = f"""
{before}
import sys
from pathlib import Path
from infini_jax.study.study import saved_study
from infini_jax.study.workers import run_study
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_study(saved_study(folder)[0], folder, jobs=1)
"""
    file = folder.parent / "runner.py"  # workers are spawned, and import the program that started them
    file.write_text(program)
    command = [sys.executable, str(file), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names(folder: Path) -> list[str]:
    return [row.run for row in read_rows(folder / TABLE_FILE)]


def test_a_run_that_has_no_memory_is_reported_and_the_others_finish(tmp_path):
    """Parameters of 4 GiB, and three times that for the optimiser and gradient, in a process that may have 10 GiB."""
    large = dataclasses.replace(GOOD.model, vocab=2**26)
    study = study_of(dataclasses.replace(GOOD, name="large", model=large), GOOD)
    save_study(study, tmp_path / "study")
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({10 * GIB}, {10 * GIB}))"
    _, err = runner(tmp_path / "study", limit).communicate(timeout=300)
    assert names(tmp_path / "study") == ["good"], err[-2000:]
    (failure,) = json.loads((tmp_path / "study" / FAILED_FILE).read_text())
    assert failure["run"] == "large"
    assert any(words in failure["error"] for words in ("RESOURCE_EXHAUSTED", "memory")), failure


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        ImportError("/somewhere/a.so: failed to map segment from shared object"),
    ],
    ids=["thread", "library"],
)
def test_what_finds_no_room_is_told_with_its_usual_cause(tmp_path, monkeypatch, error):
    """Where memory is nearly used up, Python or the loader of libraries may be the first to notice."""

    def full(*_) -> None:
        raise error

    monkeypatch.setattr("infini_jax.study.workers.do", full)
    desk = study_of(GOOD).desk(tmp_path)
    do_all(desk, (GOOD,))
    assert desk.error(GOOD) == f"{type(error).__name__}: {error} (out of memory is the usual cause)"


def test_a_disk_that_is_full_ends_the_study_and_with_room_it_goes_on(tmp_path):
    """Whatever was finished stays finished; what cannot even note its failure is told by the command."""
    runs = [dataclasses.replace(GOOD, name=name) for name in ("one", "two")]
    with disk(tmp_path / "small", "64m") as small:
        folder = small / "study"
        save_study(study_of(*runs), folder)
        run_study(study_of(runs[0]), folder, jobs=1)
        room = os.statvfs(small)
        (small / "other").write_bytes(bytes(room.f_bavail * room.f_frsize - 2**14))  # somebody else's
        _, err = runner(folder).communicate(timeout=300)
        failed = json.loads(file.read_text()) if (file := folder / FAILED_FILE).exists() else []
        assert "No space left on device" in err + json.dumps(failed), err[-2000:]
        (small / "other").unlink()
        rows, failures = run_study(study_of(*runs), folder, jobs=1)
        assert [row.run for row in rows] == ["one", "two"]
        assert failures == []


def test_two_runners_do_no_run_twice_and_lose_none(tmp_path):
    """Both are at the study from the start; whichever ends last has all rows in the table."""
    runs = [dataclasses.replace(GOOD, name=f"run{number}", seed=number) for number in range(6)]
    folder = tmp_path / "study"
    save_study(study_of(*runs), folder)
    noted = f"""
import infini_jax.study.workers
done = infini_jax.study.workers.execute_job
def execute(run, *more):
    with open({str(tmp_path / "done")!r}, "a") as file:
        file.write(run.name + "\\n")
    return done(run, *more)
infini_jax.study.workers.execute_job = execute
"""
    for one in [runner(folder, noted) for _ in range(2)]:
        _, err = one.communicate(timeout=300)
        assert one.returncode == 0, err[-2000:]
    assert sorted((tmp_path / "done").read_text().split()) == sorted(run.name for run in runs)
    assert names(folder) == [run.name for run in runs]
    assert saved_study(folder)[2] == []
    for run in runs:
        lines = (folder / "runs" / run.name / METRICS_FILE).read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
