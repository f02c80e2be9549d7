"""A run that is stopped goes on with another number of devices: parameters, optimiser and memory are spread anew.

Equal within float32's rounding, not bit for bit: the loss and the gradients are summed over the devices in another order, and
twelve steps of Adam enlarge the difference of two sums where a gradient is near zero.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.prepare import TokenizerSettings, prepare
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.errors import Stopped
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.records.folder import METRICS_FILE, ROW_FILE
from infini_jax.records.rows import read_rows
from infini_jax.training.checkpoint import Checkpoints
from infini_jax.training.execute import execute
from infini_jax.training.loop import begin
from infini_jax.training.program import Training
from tests.support.commands import TINY, spawned, with_devices
from tests.support.corpora import write_stories

MEMORIES = {"infini": InfiniConfig(), "memorizing": MemorizingConfig(slots=16, top_k=4)}
STEPS = 12
# Documents longer than a run: the memory of all steps before is read in the next.
TEXTS = {
    f"{split}/{row}.txt": f"{row}: " + f"{row} and {split} " * 30 for split in ("train", "validation") for row in range(8)
}


def run_of(mechanism: str) -> RunConfig:
    return RunConfig(
        model=ModelConfig(vocab=256, layers=1, d_model=16, heads=2, segment=8, memory=MEMORIES[mechanism]),
        data=CorpusConfig("rows-bytes"),
        train=TrainConfig(batch=8, sequence=16, learning_rate=1e-2, log_every=1, evaluation_steps=1),
        budget=Budget("steps", STEPS),
    )


def child(folder: str, mechanism: str, stop_after: str, rules: str, per_row: str) -> None:
    """Trains, and is told by a signal behind a step to stop after the next; prints how many devices it had."""
    print(len(jax.devices()))

    def watch(line: dict[str, float]) -> None:
        if line["step"] == int(stop_after):
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        execute(run_of(mechanism), Path(folder), study="", watch=watch, sharding=Sharding(rules, int(per_row)))
    except Stopped:
        sys.exit(75)


def trained(folder: Path, mechanism: str, devices: int, sharding: Sharding, stop_after: int) -> None:
    program = "import sys; from tests.test_devices import child; child(*sys.argv[1:])"
    spread = (sharding.rules, str(sharding.per_row))
    command = [sys.executable, "-c", program, str(folder), mechanism, str(stop_after), *spread]
    done = subprocess.run(command, env=with_devices(devices), capture_output=True, text=True, check=False)
    assert done.returncode == (75 if stop_after else 0), done.stderr[-2000:]
    assert done.stdout.split()[0] == str(devices)


def losses(folder: Path) -> list[float]:
    lines = (json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def end_state(run: RunConfig, folder: Path):
    """What was saved behind the last step, on one device."""
    with Checkpoints(run, folder) as checkpoints:
        state, progress = begin(Training(run, layout_of(run)), checkpoints)
    assert progress.step == STEPS
    return state


def assert_equal_runs(mechanism: str, folder: Path, whole: Path) -> None:
    """Losses of every step, the score, the memory and the place in the documents."""
    np.testing.assert_allclose(losses(folder), losses(whole), rtol=1e-5)
    ((one,), (other,)) = (read_rows(path / ROW_FILE) for path in (folder, whole))
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    found, expected = (end_state(run_of(mechanism), path) for path in (folder, whole))
    for a, b in zip(jax.tree.leaves(found.carry), jax.tree.leaves(expected.carry), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found.carry.memory))


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """The texts, prepared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINI_JAX_DATA", str(tmp_path_factory.mktemp("data")))
        texts = write_stories(tmp_path_factory.mktemp("texts") / "rows", TEXTS)
        prepare("text_folder", TokenizerSettings(), path=texts, jobs=1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of undisturbed runs on one device."""
    folders = {}

    def of(mechanism: str) -> Path:
        if mechanism not in folders:
            folders[mechanism] = tmp_path_factory.mktemp(mechanism)
            execute(run_of(mechanism), folders[mechanism], study="")
        return folders[mechanism]

    return of


CROSSINGS = {  # devices and how they share the work, until a step; the last until the end
    "infini": ((8, Sharding("fsdp+tensor", 2), 4), (2, Sharding("fsdp"), 7), (1, Sharding(), 0)),
    "memorizing": ((2, Sharding(), 5), (8, Sharding("fsdp+tensor", 4), 0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", CROSSINGS)
def test_a_run_crosses_devices_and_ways_to_share_them(mechanism, tmp_path, whole):
    for devices, sharding, stop_after in CROSSINGS[mechanism]:
        trained(tmp_path, mechanism, devices, sharding, stop_after)
        assert len(losses(tmp_path)) == (stop_after + 1 if stop_after else STEPS)
    assert_equal_runs(mechanism, tmp_path, whole(mechanism))


def test_a_batch_that_the_devices_cannot_share_is_told_in_one_line(tmp_path):
    command = ["train", "infini", "python_stdlib", *TINY, "--results", str(tmp_path)]
    done = spawned(command, **with_devices(8))
    assert done.returncode == 2
    line = "infini-jax: train.batch: 2 rows (batch / accumulate) cannot be shared by 8 devices; give a multiple of 8\n"
    assert done.stderr == line
