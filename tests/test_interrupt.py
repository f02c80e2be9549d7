"""What announces the end, such as Ctrl-C: a run is saved, a study keeps what is finished, a line names what goes on."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from infini_jax.errors import Announced, Interrupted, Stopped
from infini_jax.locks import holder
from infini_jax.records.folder import LOCK_FILE
from infini_jax.study.study import saved_study
from infini_jax.study.workers import GRACE
from infini_jax.training.execute import execute
from infini_jax.training.interrupts import ANNOUNCING, announced, terminated
from tests.support.commands import TINY
from tests.test_study import GOOD

ROOT = Path(__file__).parents[1]
LONG = """
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.study.study import Study

def study():
    model = ModelConfig(vocab=32, layers=1, d_model=16, segment=8)
    train = TrainConfig(batch=2, sequence=16, evaluation_steps=1, log_every=1)
    runs = [RunConfig(name=name, model=model, data=MqarConfig(pairs=2, symbols=32), train=train, budget=Budget("steps", steps))
            for name, steps in (("short", 3), ("long", 1000000))]
    return Study("two", "does it go on?", tuple(runs))
"""
MQAR = ["train", "infini", "mqar", *TINY, "--data.pairs", "2", "--data.symbols", "32"]


@pytest.fixture(autouse=True)
def in_a_terminal():
    """Signals arrive as they do in a terminal, also where a shell or nohup started the tests with some ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopped_by(*numbers: signal.Signals) -> None:
    """What training does: it raises `Stopped` where it is told to stop."""
    with terminated() as stop:
        for number in numbers:
            assert not stop()
            signal.raise_signal(number)
            assert stop()
        raise Stopped("stopped after step 3 of 9")


def test_a_run_that_was_saved_says_who_stopped_it():
    with pytest.raises(Interrupted, match="stopped after step 3 of 9 and saved"):
        stopped_by(signal.SIGINT)


def test_what_announces_the_end_is_named():
    assert {signal.Signals(one).name for one in ANNOUNCING} == {"SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"}


@pytest.mark.parametrize("number", ANNOUNCING)
def test_every_signal_that_announces_the_end_saves(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        stopped_by(number)
    assert stopped.value.signal == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", ANNOUNCING)
def test_the_first_announcement_ends_who_has_nothing_to_save_and_later_ones_cut_nothing_short(number):
    cleaned_up = []

    def work() -> None:
        with announced():
            try:
                signal.raise_signal(number)
            finally:
                for again in ANNOUNCING:
                    signal.raise_signal(again)
                cleaned_up.append(True)

    with pytest.raises(Announced, match=f"^{signal.Signals(number).name}$"):
        work()
    assert cleaned_up == [True]


def test_a_signal_that_is_ignored_stays_so_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminated() as stop, announced():
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_whose_output_nobody_reads_any_more_is_saved(tmp_path):
    """As of a pipe behind a connection that is gone, before or without a signal."""

    def say(line: dict[str, float]) -> None:
        if line["step"] == 2:
            raise BrokenPipeError

    with pytest.raises(Stopped, match="stopped after step 3 of 5"):
        execute(GOOD, tmp_path, "", watch=say)
    assert saved_step(tmp_path) == 3  # behind the step under way


def test_a_second_ctrl_c_does_not_wait(capsys):
    before, under_way = signal.getsignal(signal.SIGINT), []

    def press_twice() -> None:
        with terminated() as stop:
            signal.raise_signal(signal.SIGINT)
            under_way.append(stop())
            signal.raise_signal(signal.SIGINT)
            under_way.append(stop())

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert under_way == [True]
    assert capsys.readouterr().err == "finishing this step, then saving; press Ctrl-C again to stop at once\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_worker_that_leaves_ctrl_c_to_its_parent_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminated() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


def started(arguments: list[str]) -> subprocess.Popen:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "infini_jax", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def wait_until(is_under_way, process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not is_under_way() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def interrupted(arguments: list[str], is_under_way, number: int = signal.SIGINT) -> subprocess.CompletedProcess:
    """The command in a process of its own, with Ctrl-C, or another signal, once it is under way."""
    with started(arguments) as process:
        wait_until(is_under_way, process)
        process.send_signal(number)
        out, error = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, error)


def saved_step(run: Path) -> int:
    """Of the newest checkpoint."""
    return max(int(folder.name) for folder in (run / "checkpoints").iterdir() if folder.name.isdigit())


def process_of(lock: Path) -> int:
    """The process that holds a lock."""
    found = holder(lock)
    assert found is not None
    return found.pid


def lines_in(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
def test_ctrl_c_saves_a_run_and_the_command_that_is_named_goes_on(tmp_path):
    log = tmp_path / "run" / "metrics.jsonl"
    arguments = [*MQAR, "--train.log-every", "1", "--results", str(tmp_path), "--budget.amount"]
    done = interrupted([*arguments, "1000000"], lambda: lines_in(log) > 5)
    assert done.returncode == 130
    said = done.stderr.splitlines()[-1]
    named = f"continue with: infini-jax {' '.join(arguments)} 1000000"
    assert said.startswith("infini-jax: stopped after step ")
    assert said.endswith(f" of 1000000 and saved; {named}")
    step = int(said.split()[4])
    assert (tmp_path / "run" / "checkpoints" / str(step)).exists()
    again = interrupted([*arguments, "1000000"], lambda: lines_in(log) > step + 5)
    assert int(again.stderr.splitlines()[-1].split()[4]) > step + 5
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if "gradient_norm" in line]
    assert steps == list(range(1, len(steps) + 1))  # none lost, none twice


@pytest.mark.slow
def test_ctrl_c_ends_a_study_and_keeps_what_is_finished(tmp_path):
    file, folder = tmp_path / "two.py", tmp_path / "two"
    file.write_text(LONG)
    arguments = ["study", str(file), "--results", str(tmp_path), "--jobs", "1"]
    done = interrupted(arguments, lambda: lines_in(folder / "runs" / "long" / "metrics.jsonl") > 3)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == (
        f"infini-jax: stopped; finished and saved work is kept; continue with: infini-jax {' '.join(arguments)}"
    )
    assert [row.run for row in saved_study(folder)[1]] == ["short"]
    row, log = (folder / "runs" / "short" / "row.parquet").stat(), folder / "runs" / "long" / "metrics.jsonl"
    saved = saved_step(folder / "runs" / "long")
    assert saved > 3
    assert interrupted(arguments, lambda: lines_in(log) > saved + 3).returncode == 130
    assert (folder / "runs" / "short" / "row.parquet").stat().st_mtime_ns == row.st_mtime_ns
    assert saved_step(folder / "runs" / "long") > saved
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if "gradient_norm" in line]
    assert steps == list(range(1, len(steps) + 1))  # none lost, none twice


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_a_worker_that_hangs(tmp_path):
    file, long = tmp_path / "two.py", tmp_path / "two" / "runs" / "long"
    file.write_text(LONG)
    with started(["study", str(file), "--results", str(tmp_path), "--jobs", "1"]) as process:
        wait_until(lambda: lines_in(long / "metrics.jsonl") > 3, process)
        worker = process_of(long / LOCK_FILE)
        os.kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "saving the runs under way; Ctrl-C again stops at once\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    assert time.monotonic() - began < GRACE / 2
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.slow
def test_a_study_whose_end_is_announced_lets_its_runs_save(tmp_path):
    file, folder = tmp_path / "two.py", tmp_path / "two"
    file.write_text(LONG)
    arguments = ["study", str(file), "--results", str(tmp_path), "--jobs", "1"]
    log = folder / "runs" / "long" / "metrics.jsonl"
    done = interrupted(arguments, lambda: lines_in(log) > 3, signal.SIGUSR1)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == (
        f"infini-jax: stopped; finished and saved work is kept; continue with: infini-jax {' '.join(arguments)}"
    )
    assert saved_step(folder / "runs" / "long") == lines_in(log)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "study"])
def test_a_terminal_that_is_closed_saves(kind, tmp_path):
    """The whole session gets SIGHUP, and what is written from then on is an error."""
    file = tmp_path / "two.py"
    file.write_text(LONG)
    run = tmp_path / "run" if kind == "train" else tmp_path / "two" / "runs" / "long"
    alone = [*MQAR, "--train.log-every", "1", "--budget.amount", "1000000"]
    arguments = [*(alone if kind == "train" else ["study", str(file), "--jobs", "1"]), "--results", str(tmp_path)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "infini_jax", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    os.set_blocking(ours, False)

    def is_under_way() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 1 << 16)  # a full terminal would make it wait
        return lines_in(run / "metrics.jsonl") > 3

    wait_until(is_under_way, process)
    os.close(ours)
    process.wait(timeout=300)
    assert saved_step(run) == lines_in(run / "metrics.jsonl") > 3
