"""The command line in a terminal and outside of one: width, colours, bars, Ctrl-C, and what it starts."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from infini_jax.cli import main
from infini_jax.progress import evaluation_progress, waiting
from infini_jax.study import saved_study
from tests.commands import TINY, spawned

ROOT = Path(__file__).parents[1]
LONG = """
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.study import Study

def study():
    model = ModelConfig(vocab=32, layers=1, d_model=16, segment=8)
    train = TrainConfig(batch=2, sequence=16, evaluation_steps=1, log_every=1)
    runs = [RunConfig(name=name, model=model, data=MqarConfig(pairs=2, symbols=32), train=train, budget=Budget("steps", steps))
            for name, steps in (("short", 3), ("long", 1000000))]
    return Study("two", "does it go on?", tuple(runs))
"""
MQAR = ["train", "infini", "mqar", *TINY, "--data.pairs", "2", "--data.symbols", "32"]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A run and some texts, as short paths from this folder."""
    folder = tmp_path_factory.mktemp("made")
    main([*MQAR, "--results", str(folder), "--name", "run"])
    for split in ("train", "validation"):
        (folder / "texts" / split).mkdir(parents=True)
        (folder / "texts" / split / "one.txt").write_text("a text of few words")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["mechanisms"],
        ["doctor"],
        ["corpus", "list"],
        ["corpus", "prepare", "text_folder", "--path", "texts", "--name", "small"],
        ["study", "quick", "--dry-run"],
        ["plan", "run/config.json"],
        [*MQAR, "--results", ".", "--name", "run"],
        ["evaluate", "run", "--task", "mqar", "--examples", "2"],
        ["evaluate", "run", "--task", "gates"],
        ["compare", "run", "run"],
        ["watch", ".", "--once"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_tables_fit_80_columns(command, results, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    monkeypatch.chdir(results)
    main(command)
    text = capsys.readouterr().out
    assert len(text.splitlines()) > 4
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", [["mechanisms"], ["doctor"]], ids=" ".join)
def test_there_are_no_colours_where_there_is_no_terminal(command):
    text = spawned(command, TERM="xterm-256color").stdout
    assert len(text) > 200
    assert "\x1b" not in text


def test_there_are_colours_in_a_terminal():
    """Otherwise the test before this one would say nothing."""
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "infini_jax", "mechanisms"]
    with subprocess.Popen(command, stdout=writer, env={**os.environ, "TERM": "xterm-256color"}) as process:
        os.close(writer)
        text = b""
        while (piece := read(reader)) != b"":
            text += piece
    os.close(reader)
    assert process.returncode == 0
    assert b"\x1b[" in text


def read(terminal: int) -> bytes:
    """What a terminal shows next; nothing at its end, which Linux tells by an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_scripts_read_json_of_a_dry_run_a_list_and_an_evaluation(results, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    found = {}
    for name, command in {
        "study": ["study", "quick", "--dry-run", "--json"],
        "corpora": ["corpus", "list", "--json"],
        "evaluation": ["evaluate", str(results / "run"), "--task", "mqar", "--examples", "2", "--json"],
        "plan": ["plan", str(results / "run" / "config.json"), "--json"],
    }.items():
        capsys.readouterr()
        main(command)
        found[name] = json.loads(capsys.readouterr().out)
    assert found["study"]["runs"][0]["memory_bytes"] > 0
    assert "python_stdlib" in [one["corpus"] for one in found["corpora"]["corpora"]]
    assert found["corpora"]["prepared"] == []
    assert found["evaluation"] == json.loads((results / "run" / "evaluation-mqar.json").read_text())
    assert found["plan"]["run"] == "run"


def test_a_bar_shows_its_rate_and_the_time_that_is_left():
    file = io.StringIO()
    with evaluation_progress("reading", Console(file=file, force_terminal=True, width=100)) as watch:
        watch(0, 5_000_000)
        for done in (1_000_000, 2_000_000):
            time.sleep(0.15)
            watch(done, 5_000_000)
    assert "M/s" in file.getvalue()
    assert "left 0:00:0" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def test_what_has_no_measure_shows_that_it_goes_on_in_a_terminal_only():
    shown = {terminal: io.StringIO() for terminal in (True, False)}
    for terminal, file in shown.items():
        with waiting("compiling", Console(file=file, force_terminal=terminal, width=100)):
            pass
    assert "compiling" in shown[True].getvalue()
    assert shown[False].getvalue() == ""


def test_help_starts_no_device_and_the_package_imports_in_a_second():
    asked = """
from jax._src import xla_bridge
from infini_jax.cli import main
try:
    main(["--help"])
except SystemExit:
    print("backends", len(xla_bridge._backends))
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "backends 0"
    timed = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import infini_jax"], capture_output=True, text=True, check=True
    )
    assert "jax._src" not in timed.stderr
    (line,) = (line for line in timed.stderr.splitlines() if line.endswith("| infini_jax"))
    assert int(line.split("|")[1]) < 1_000_000  # microseconds


def interrupted(arguments: list[str], is_under_way) -> subprocess.CompletedProcess:
    """The command in a process of its own, with Ctrl-C once it is under way."""
    command = [sys.executable, "-m", "infini_jax", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        end = time.monotonic() + 120
        while not is_under_way() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def lines_in(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
def test_ctrl_c_saves_a_run_and_the_command_that_is_named_goes_on(tmp_path):
    log = tmp_path / "run" / "metrics.jsonl"
    arguments = [*MQAR, "--train.log-every", "1", "--results", str(tmp_path), "--budget.amount"]
    done = interrupted([*arguments, "1000000"], lambda: lines_in(log) > 5)
    assert done.returncode == 130
    said = done.stderr.splitlines()[-1]
    named = f"go on with: infini-jax {' '.join(arguments)} 1000000"
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
        f"infini-jax: stopped; what was finished or saved is kept; go on with: infini-jax {' '.join(arguments)}"
    )
    assert [row.run for row in saved_study(folder)[1]] == ["short"]
    row, log = (folder / "runs" / "short" / "row.parquet").stat(), folder / "runs" / "long" / "metrics.jsonl"
    log.unlink()
    assert interrupted(arguments, lambda: lines_in(log) > 3).returncode == 130
    assert (folder / "runs" / "short" / "row.parquet").stat().st_mtime_ns == row.st_mtime_ns
