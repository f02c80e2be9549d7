"""One folder, one writer: the second is refused in a line that names the first, or waits for it; the dead hold nothing."""

import json
import os
import signal
import socket
import subprocess
import threading

import pytest

from infini_jax.codes.capacity import CapacityRun
from infini_jax.errors import ConfigError
from infini_jax.files import replaced_at_once, write_at_once
from infini_jax.locks import Holder, awaited, claimed, holder, only_writer
from infini_jax.records.folder import RunFolder
from infini_jax.study.jobs import execute_job
from infini_jax.training.execute import execute
from tests.support.commands import PAIRS, PROGRAM, held_by_another, told
from tests.support.corpora import write_stories
from tests.test_study import GOOD

ROWS = ["--data.pairs", "2", "--train.batch", "2", "--train.sequence", "16", "--train.log-every", "1"]
TRAIN = [*PAIRS, *ROWS, "--budget.unit", "steps"]


def test_the_second_writer_hears_which_process_is_the_first_and_the_dead_hold_nothing(tmp_path):
    lock = tmp_path / "deep" / "lock"
    assert holder(lock) is None
    with held_by_another(lock) as first:
        who = Holder(first.pid, socket.gethostname())
        with pytest.raises(ConfigError) as refused, only_writer(lock, "name", "this", "wait"):
            pass
        assert str(refused.value) == f"name: this is being written by {who}; wait"
        assert str(who) == f"process {first.pid} on {socket.gethostname()}"
        with claimed(lock) as ours:
            assert not ours
        assert holder(lock) == who  # asking changes nothing
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        with claimed(lock) as ours:
            assert ours
            assert holder(lock) == Holder.here(os.getpid())


def test_the_thread_that_holds_a_lock_enters_again_and_no_other_does(tmp_path):
    lock, said = tmp_path / "lock", []

    def enter() -> None:
        try:
            with only_writer(lock, "name", "this", "wait"):
                said.append("entered")
        except ConfigError as error:
            said.append(str(error))

    with claimed(lock) as ours:
        assert ours
        enter()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        with claimed(lock) as again:
            assert not again
    enter()
    assert said == ["entered", f"name: this is being written by {Holder.here(os.getpid())}; wait", "entered"]


def test_who_waits_is_told_for_whom_and_enters_when_it_is_done(tmp_path):
    lock, told_of = tmp_path / "lock", []
    with held_by_another(lock) as first:

        def tell(line: str) -> None:
            told_of.append(line)
            first.kill()

        with awaited(lock, tell), claimed(lock) as again:
            assert not again
        assert told_of == [f"waiting for process {first.pid} on {socket.gethostname()}"]
    with awaited(lock, told_of.append):
        assert len(told_of) == 1  # there was nothing to wait for


def test_a_second_train_of_one_name_is_refused_and_takes_nothing_from_the_first(tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    with held_by_another(run.lock) as first:
        run.metrics.write_text('{"step": 1}\n')
        line = told(capsys, [*TRAIN, "--budget.amount", "3", "--results", str(tmp_path)], 2)
        assert line == (
            f"name: {run.path} is being written by process {first.pid} on {socket.gethostname()}; "
            "wait until it is done, or give another name"
        )
        assert run.metrics.read_text() == '{"step": 1}\n'
        assert sorted(file.name for file in run.path.iterdir()) == ["lock", "metrics.jsonl"]


def test_a_job_of_every_kind_refuses_a_folder_that_another_process_writes_into(tmp_path):
    with held_by_another(RunFolder(tmp_path).lock):
        for job in (GOOD, CapacityRun(name="codes")):
            with pytest.raises(ConfigError, match=rf"^name: {tmp_path} is being written by process "):
                execute_job(job, tmp_path, "")
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_a_worker_of_a_study_that_claimed_a_run_does_it(tmp_path):
    """The lock of the claim is that of the run, and the worker's own."""
    with claimed(RunFolder(tmp_path).lock) as ours:
        assert ours
        assert execute(GOOD, tmp_path, "").steps == 5


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """As two reports of one study, or two studies that join their tables: both end, and the last one counts."""
    file, first_is_at_it, second_is_done = tmp_path / "table", threading.Event(), threading.Event()

    def write_first() -> None:
        with replaced_at_once(file) as partial:
            partial.write_text("first")
            first_is_at_it.set()
            second_is_done.wait()

    thread = threading.Thread(target=write_first)
    thread.start()
    first_is_at_it.wait()
    with replaced_at_once(file) as partial:
        partial.write_text("second")
    assert file.read_text() == "second"
    second_is_done.set()
    thread.join()
    assert file.read_text() == "first"
    with pytest.raises(UnicodeEncodeError):
        write_at_once("third \ud800", file)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("table", "first")]


@pytest.mark.slow
def test_of_two_trains_of_one_name_one_ends_with_all_its_lines_and_the_other_in_one_line(tmp_path):
    command = [*PROGRAM, *TRAIN, "--budget.amount", "30", "--results", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    ends = [(process, *process.communicate(timeout=300)) for process in both]
    (first, *_), (second, _, said) = sorted(ends, key=lambda end: end[0].returncode)
    assert (first.returncode, second.returncode) == (0, 2)
    assert said == (
        f"infini-jax: name: {tmp_path / 'run'} is being written by process {first.pid} on {socket.gethostname()}; "
        "wait until it is done, or give another name\n"
    )
    lines = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "gradient_norm" in line] == list(range(1, 31))


@pytest.mark.slow
def test_one_folder_is_prepared_under_two_names_at_the_same_time(tmp_path):
    """Both need the same data set of its texts: one makes it, the other waits for it."""
    stories = write_stories(tmp_path / "stories", {f"{number}.txt": f"story {number}, " * 2000 for number in range(40)})
    environment = {**os.environ, "INFINI_JAX_DATA": str(tmp_path / "data")}
    command = [*PROGRAM, "corpus", "prepare", "text_folder", "--path", str(stories), "--jobs", "1", "--name"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, name], env=environment, **pipes) for name in ("one", "two")]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in both]
    assert ends == [("", 0), ("", 0)]
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / "data" / "prepared" / name).iterdir()} for name in ("one", "two")
    )
    assert one == two
