"""Two processes train as one with two devices does: same losses, one set of files, checkpoints that cross to one process."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import Mqar, MqarConfig
from infini_jax.devices.processes import SILENT_SECONDS, Agreement, own_rows
from infini_jax.devices.sharding import batch_sharding, data_mesh
from infini_jax.errors import Stopped
from infini_jax.memory.infini import InfiniConfig
from infini_jax.records.folder import CONFIG_FILE, METRICS_FILE, ROW_FILE
from infini_jax.records.rows import read_rows
from infini_jax.training.checkpoint import Saving
from infini_jax.training.execute import execute
from tests.support.commands import PAIRS, PROGRAM, told

RUN = RunConfig(
    model=ModelConfig(vocab=32, layers=1, d_model=16, heads=2, segment=8, memory=InfiniConfig()),
    data=MqarConfig(pairs=4, symbols=32),
    train=TrainConfig(batch=4, sequence=32, learning_rate=1e-2, log_every=1, evaluation_steps=1),
    budget=Budget("steps", 8),
)
STOPPED = 75


def child(folder: str, pause: str, address: str = "", number: str = "0", count: str = "1") -> None:
    """Trains `RUN`, alone or as one of several processes, and prints what it read and where."""
    if address:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(count), int(number), heartbeat_timeout_seconds=20)
    read, rows = [], Mqar.rows

    def noted(self: Mqar, step: int, first: int, many: int):
        read.append((first, many))
        return rows(self, step, first, many)

    Mqar.rows = noted
    try:
        row = execute(RUN, Path(folder), "", lambda line: time.sleep(float(pause)), Saving(every_steps=3))
    except Stopped:
        sys.exit(STOPPED)
    devices = len(jax.devices())
    print(json.dumps({"loss": row.loss, "devices": devices, "processes": jax.process_count(), "read": sorted(set(read))}))


def started(folder, processes, devices=1, pause=0.0) -> list[subprocess.Popen]:
    """`processes` of them with `devices` virtual devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    program = "import sys; from tests.test_processes import child; child(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(folder), str(pause)]
    return [
        subprocess.Popen(
            [*command, *([address, str(number), str(processes)] if processes > 1 else [])],
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def ended(children, code=0) -> list[dict]:
    """What each printed, once all have ended with `code`."""
    found = [one.communicate(timeout=300) for one in children]
    assert [one.returncode for one in children] == [code] * len(children), found[0][1][-2000:]
    return [json.loads(line) for out, _ in found for line in out.splitlines() if line.startswith("{")]  # gloo prints too


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Losses and row of the run on the one device of this process."""
    folder = tmp_path_factory.mktemp("one")
    row = execute(RUN, folder, study="")
    return losses(folder), row


@pytest.mark.slow
def test_two_processes_train_as_one_with_two_devices(tmp_path, one_device):
    """Each process reads its own rows; gradients summed over devices differ from one sum in float32's last bits only."""
    (alone,) = ended(started(tmp_path / "devices", processes=1, devices=2))
    both = ended(started(tmp_path / "processes", processes=2))
    assert [(one["devices"], one["processes"]) for one in (alone, *both)] == [(2, 1), (2, 2), (2, 2)]
    assert [one["read"] for one in both] == [[[0, 1], [0, 2]], [[0, 1], [2, 2]]]  # and one row for the shapes
    assert both[0]["loss"] == both[1]["loss"]
    for folder in ("devices", "processes"):
        np.testing.assert_allclose(losses(tmp_path / folder), one_device[0], rtol=2e-5)
        (row,) = read_rows(tmp_path / folder / ROW_FILE)
        assert row.loss == pytest.approx(one_device[1].loss, rel=2e-5)
    assert (tmp_path / "processes" / CONFIG_FILE).read_text() == (tmp_path / "devices" / CONFIG_FILE).read_text()


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_stops_both_and_any_number_goes_on(tmp_path, one_device):
    """The checkpoint of two processes is resumed by two, by one with two devices and by one with one."""
    children = started(tmp_path / "two", processes=2, pause=0.4)
    file = tmp_path / "two" / METRICS_FILE
    until = time.monotonic() + 300
    while not (file.exists() and file.read_text().count("\n") >= 2):
        assert time.monotonic() < until, [one.communicate()[1][-1000:] for one in children if one.poll()]
        time.sleep(0.05)
    children[1].send_signal(signal.SIGTERM)  # the one that writes no metrics
    ended(children, STOPPED)
    assert len(losses(tmp_path / "two")) < RUN.budget.amount
    for name in ("devices", "one"):
        shutil.copytree(tmp_path / "two", tmp_path / name)
    ended(started(tmp_path / "two", processes=2))
    ended(started(tmp_path / "devices", processes=1, devices=2))
    execute(RUN, tmp_path / "one", study="")
    for name in ("two", "devices", "one"):
        np.testing.assert_allclose(losses(tmp_path / name), one_device[0], rtol=2e-5)
        (row,) = read_rows(tmp_path / name / ROW_FILE)
        assert row.loss == pytest.approx(one_device[1].loss, rel=2e-5)


# ---- a process that dies -------------------------------------------------------------------------------------------------


def job(folder: Path, processes: int) -> list[subprocess.Popen]:
    """The command line as Open MPI starts it: every process is told how many there are, and where the first one is."""
    number = random.randrange(4096) * 4096  # JAX makes a port of it
    place = {"OMPI_MCA_orte_hnp_uri": f"{number}.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": str(processes)}
    rows = ["--data.pairs", "4", "--train.batch", "6", "--train.sequence", "32", "--train.evaluation-steps", "1"]
    often = ["--train.log-every", "1", "--saving.every-steps", "20", "--budget.unit", "steps", "--budget.amount", str(LONG)]
    command = [*PROGRAM, *PAIRS, *rows, *often, "--processes", "job", "--results", str(folder)]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **place, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


LONG = 150  # steps; enough to be in the middle of them


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_all_of_them_go_on_to_the_same_numbers(tmp_path):
    """Of three, so that two are left: whichever notices first says why, and the other may be ended by JAX.

    They go on from the newest finished checkpoint.
    """
    children, file = job(tmp_path / "killed", 3), tmp_path / "killed" / "run" / METRICS_FILE
    until = time.monotonic() + 300
    while not (file.exists() and file.read_text().count("\n") >= 50):
        assert time.monotonic() < until, [one.communicate()[1][-1000:] for one in children if one.poll()]
        time.sleep(0.05)
    children[1].kill()
    found = [one.communicate(timeout=SILENT_SECONDS + 30) for one in children]
    assert all(one.returncode for one in children)
    said = "".join(err for _, err in found)
    assert "another one of this run is gone" in said or "another task died" in said, said[-3000:]
    assert len(losses(file.parent)) < LONG
    for name in ("killed", "whole"):
        children = job(tmp_path / name, 3)
        found = [one.communicate(timeout=300) for one in children]
        assert [one.returncode for one in children] == [0] * 3, found[0][1][-2000:]
    assert losses(file.parent) == losses(tmp_path / "whole" / "run")


def test_a_process_of_no_job_is_told_so(capsys, monkeypatch):
    def finds_none(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", finds_none)  # here it would be too late: JAX is in use
    said = told(capsys, ["train", "infini", "mqar", "--processes", "job"], code=2)
    mend = "start it by srun or mpirun, or leave it out"
    assert said == f"processes: this process is in no SLURM step, TPU slice or Open MPI run; {mend}"


def test_one_process_reads_all_rows_and_agrees_with_itself_at_once():
    mesh = data_mesh(4)
    assert own_rows(batch_sharding(mesh).tokens, 4) == (0, 4)
    agreed = Agreement(mesh)
    assert agreed(True, False) == (True, False)
    assert agreed(False, False) == (False, False)
