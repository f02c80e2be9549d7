"""The command line in a terminal and outside of one: width, colours, bars, and what it starts."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from infini_jax.cli.main import main
from infini_jax.cli.progress import evaluation_progress, waiting
from tests.support.commands import TINY, spawned

ROOT = Path(__file__).parents[1]
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


def test_there_are_no_colours_where_there_is_no_terminal():
    text = spawned(["mechanisms"], TERM="xterm-256color").stdout
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


def test_help_starts_no_device_and_nothing_slow_and_the_package_imports_in_a_second():
    asked = """
import sys
from jax._src import xla_bridge
from infini_jax.cli.main import main
try:
    main(["--help"])
except SystemExit:
    slow = ("matplotlib", "scipy.stats", "pandas", "polars", "tensorflow_datasets", "grain")
    print(len(xla_bridge._backends), [name for name in slow if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    timed = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import infini_jax"], capture_output=True, text=True, check=True
    )
    assert "jax._src" not in timed.stderr
    (line,) = (line for line in timed.stderr.splitlines() if line.endswith("| infini_jax"))
    assert int(line.split("|")[1]) < 1_000_000  # microseconds
