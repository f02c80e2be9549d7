"""Runs that are killed, stopped or broken: what goes on from the last checkpoint ends as if nothing had happened."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import Stopped, TrainingDiverged
from infini_jax.memory.infini import InfiniConfig
from infini_jax.records.folder import METRICS_FILE, ROW_FILE
from infini_jax.records.rows import read_rows
from infini_jax.training.checkpoint import Saving
from infini_jax.training.execute import execute
from infini_jax.training.loop import train
from tests.support.streams import MODEL

RUN = RunConfig(
    model=dataclasses.replace(MODEL, layers=1, memory=InfiniConfig()),
    data=MqarConfig(pairs=4, symbols=32, repeats=2),
    train=TrainConfig(batch=4, sequence=32, learning_rate=1e-2, log_every=2, evaluation_steps=1),
    budget=Budget("steps", 10),
)
EVERY_STEP = Saving(every_steps=1)
PROGRAM = "import sys; from tests.test_resume import child; child(*sys.argv[1:])"


def child(folder: str, pause: str) -> None:
    """Runs `RUN` and waits after each logged line, so that a test can kill it in the middle."""
    try:
        execute(RUN, Path(folder), study="", watch=lambda line: time.sleep(float(pause)), saving=EVERY_STEP)
    except Stopped:
        sys.exit(75)


def started(folder, pause=0.0):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(pause)], stdout=subprocess.DEVNULL)


def until_logged(folder, step, process):
    for _ in range(1200):
        lines = (folder / METRICS_FILE).read_text().splitlines() if (folder / METRICS_FILE).exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    pytest.fail("the run logged nothing for a minute")


def logged(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def timeless(line):
    """A metric line without what a clock says."""
    return {name: value for name, value in line.items() if "second" not in name}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return execute(RUN, folder, study="", saving=EVERY_STEP), logged(folder)


@pytest.mark.parametrize(("number", "code"), [pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow), (signal.SIGTERM, 75)])
def test_a_run_that_was_ended_by_a_signal_goes_on_to_the_same_numbers(tmp_path, undisturbed, number, code):
    process = started(tmp_path, pause=1.0)
    until_logged(tmp_path, 6, process)  # then the save of step 4 is finished: the next one has waited for it
    os.kill(process.pid, number)
    assert process.wait(timeout=300) == code
    assert not (tmp_path / ROW_FILE).exists()
    resumed = execute(RUN, tmp_path, study="", saving=EVERY_STEP)
    row, lines = undisturbed
    assert (resumed.loss, resumed.train_loss, resumed.steps) == (row.loss, row.train_loss, row.steps)
    assert [timeless(line) for line in logged(tmp_path)] == [timeless(line) for line in lines]
    assert read_rows(tmp_path / ROW_FILE) == [resumed]
    assert resumed.seconds > 1.0  # the pause before step 4 counts: training time survives


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = execute(RUN, tmp_path, study="")
    again = execute(RUN, tmp_path, study="", watch=lambda line: pytest.fail("it trained"))
    assert (again.loss, again.train_loss, again.seconds) == (first.loss, first.train_loss, first.seconds)


def test_a_loss_that_is_not_a_number_is_never_saved(tmp_path):
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, learning_rate=1e30, warmup=0.0))
    with pytest.raises(TrainingDiverged):
        execute(run, tmp_path, study="", saving=EVERY_STEP)
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    finite = [line["step"] for line in logged(tmp_path) if np.isfinite(line["loss"])]
    assert saved
    assert saved[-1] <= (finite[-1] if finite else 0) + 1


def test_gradients_added_up_in_parts_are_those_of_the_whole_batch():
    """Metrics and parameters after two steps; float32 sums in another order, which Adam's division can enlarge."""
    run = dataclasses.replace(RUN, budget=Budget("steps", 2))
    parts = dataclasses.replace(run, train=dataclasses.replace(run.train, accumulate=2))
    assert parts.fingerprint() == run.fingerprint()
    first, second = (train(one, lambda line: None) for one in (run, parts))
    assert second.last["loss"] == pytest.approx(first.last["loss"], rel=1e-5)
    assert second.last["gradient_norm"] == pytest.approx(first.last["gradient_norm"], rel=1e-4)
    for a, b in zip(jax.tree.leaves(first.state.carry), jax.tree.leaves(second.state.carry), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
