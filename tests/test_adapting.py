"""Studies whose runs begin at one checkpoint: what they spend, what is told before they run, and that killed ones go on."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infini_jax.cli.main import main
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import ConfigError
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.records.folder import ROW_FILE, RunFolder, StudyFolder
from infini_jax.study.comparison import adapting, at_window, training_only, with_memory
from infini_jax.study.spending import spendings
from infini_jax.study.study import Study, check_origins, save_study, study_in
from infini_jax.study.workers import do_all
from infini_jax.training.checkpoint import Saving
from infini_jax.training.execute import execute
from tests.support.saved import saved_run
from tests.test_resume import logged, timeless, until_logged

PARENT = RunConfig(
    name="first",
    model=ModelConfig(memory=LocalConfig(), vocab=48, layers=1, d_model=16, segment=8),
    data=MqarConfig(pairs=4, symbols=32, repeats=2),
    train=TrainConfig(batch=2, sequence=16, log_every=1, evaluation_steps=1),
    budget=Budget("steps", 2),
)
BASE = dataclasses.replace(PARENT, name="base", model=ModelConfig(), train=dataclasses.replace(PARENT.train, sequence=64))
EVERY_STEP = Saving(every_steps=1)


@pytest.fixture
def parent(tmp_path) -> Path:
    return saved_run(PARENT, tmp_path / "first")


def runs_from(parent: Path, budget: Budget) -> tuple[RunConfig, ...]:
    """Continued training, the floor, and a memory of which all, its own parameters, or factors are trained."""
    continued = adapting(dataclasses.replace(BASE, budget=budget), parent)
    memory = with_memory(continued, InfiniConfig())
    parts = (training_only(memory, "memory"), training_only(memory, "lora", rank=2))
    return (dataclasses.replace(continued, name="continued"), at_window(continued, 8), memory, *parts)


def test_all_runs_begin_at_one_checkpoint_and_a_budget_buys_more_steps_of_a_part(parent):
    runs = runs_from(parent, Budget("flops", 2e7))
    assert len({run.origin for run in runs}) == 1
    study = Study("adapted", "?", runs)
    _, _, every, memory, factors = spendings(study, study.jobs_now({}))
    assert (memory.steps or 0) > (factors.steps or 0) > (every.steps or 0) > 0
    assert all(one.flops == pytest.approx(2e7, rel=0.1) for one in (every, memory, factors))


def test_a_memory_that_does_not_fit_the_checkpoint_is_told_when_the_study_is_made(parent):
    run = runs_from(parent, Budget("steps", 1))[2]
    wider = dataclasses.replace(run, model=dataclasses.replace(run.model, key_dim=16))
    with pytest.raises(ConfigError, match=r"^run mqar-infini: model\.key_dim: 16 does not fit the parameters of first, "):
        Study("adapted", "?", (wider,))


def test_a_checkpoint_that_is_missing_is_told_before_anything_runs(parent, tmp_path, capsys):
    study, folder = Study("adapted", "?", runs_from(parent, Budget("steps", 1))), tmp_path / "adapted"
    check_origins(study, folder)
    save_study(study, folder)
    assert study_in(folder) == study
    moved = shutil.move(parent, tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"^run continued: from: .*first is not a folder; "):
        check_origins(study, folder)
    for words in ([], ["--dry-run"]):
        with pytest.raises(SystemExit):
            main(["study", str(folder), *words])
        assert capsys.readouterr().err.startswith("infini-jax: run continued: from: ")
    saved_run(PARENT, parent, steps=(3,))
    with pytest.raises(ConfigError, match=r"^run continued: from-step: there is no checkpoint of step 2; choose one of 3$"):
        check_origins(study, folder)
    shutil.rmtree(parent)
    shutil.move(moved, parent)
    check_origins(study, folder)
    with pytest.raises(ConfigError, match=r"^from: .*nowhere is not a folder; "):
        adapting(BASE, tmp_path / "nowhere")


@pytest.mark.slow
def test_workers_do_them_and_those_that_have_begun_need_the_checkpoint_no_more(parent, tmp_path):
    runs, folder = runs_from(parent, Budget("steps", 2)), tmp_path / "adapted"
    study = Study("adapted", "?", runs)
    save_study(study, folder)
    do_all(study.desk(folder), runs[:4])
    for run in runs[:4]:
        assert (StudyFolder(folder).run(run.name).path / ROW_FILE).exists(), run.name
    shutil.rmtree(parent)
    (StudyFolder(folder).run("mqar-infini-memory").path / ROW_FILE).unlink()
    do_all(study.desk(folder), runs[3:4])
    assert (StudyFolder(folder).run("mqar-infini-memory").path / ROW_FILE).exists()


def killed(folder: str, parent: str, number: str) -> None:
    """Does a run slowly, so that a test can kill it in the middle."""
    run = runs_from(Path(parent), Budget("steps", 6))[int(number)]
    execute(run, Path(folder), study="", watch=lambda line: time.sleep(1.0), saving=EVERY_STEP)


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 4], ids=["memory", "lora"])
def test_an_adaptation_that_is_killed_ends_as_if_nothing_had_happened(parent, tmp_path, number):
    """To the bit on a CPU; the parameters that it does not train are those that were saved when it began."""
    run = runs_from(parent, Budget("steps", 6))[number]
    whole = execute(run, tmp_path / "whole", study="", saving=EVERY_STEP)
    folder = tmp_path / "killed"
    words = f"from tests.test_adapting import killed; killed({str(folder)!r}, {str(parent)!r}, '{number}')"
    process = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.DEVNULL)
    until_logged(folder, 4, process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=300) == -signal.SIGKILL
    assert not (folder / ROW_FILE).exists()
    assert RunFolder(folder).frozen.is_dir()
    shutil.rmtree(parent)
    resumed = execute(run, folder, study="", saving=EVERY_STEP)
    assert (resumed.loss, resumed.train_loss, resumed.steps) == (whole.loss, whole.train_loss, whole.steps)
    assert [timeless(line) for line in logged(folder)] == [timeless(line) for line in logged(tmp_path / "whole")]
