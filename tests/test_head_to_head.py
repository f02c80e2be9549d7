"""The head to head at its smallest scale, from the command line to the report: every mechanism on some of the tasks."""

import os
import subprocess
import sys

import pytest

from infini_jax.evals.registry import EVALUATIONS
from infini_jax.memory import MECHANISMS
from infini_jax.records.folder import MEASURES_FILE, REPORT_FILE, TABLE_FILE
from infini_jax.records.measures import read_measures
from infini_jax.records.rows import read_rows

# A third of the study's runs: two tasks for each mechanism, three mechanisms for each task; sixty models compile for minutes.
OWN = """
import dataclasses
from experiments import head_to_head
from infini_jax.memory import MECHANISMS

def study(scale):
    whole = head_to_head.study(scale)
    places = {name: number for number, name in enumerate(MECHANISMS)}
    tasks = {name: number for number, name in enumerate(sorted({run.task for run in whole.runs}))}
    runs = (run for run in whole.runs if (places[run.mechanism] + tasks[run.task]) % 3 == 0)
    return dataclasses.replace(whole, runs=tuple(runs))
"""
TEXT = "python_stdlib"
TASKS = ("capacity", "haystack", "mqar", "passkey", TEXT, "sorting")
ASKED = {"haystack", "mqar", "passkey", "perplexity", "sorting"}


@pytest.mark.slow
def test_every_mechanism_and_every_task_is_in_the_report(tmp_path):
    """A user's own file, which takes some of the runs of a study of ours."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    command = [sys.executable, "-m", "infini_jax", "study", str(file), "--scale", "smoke", "--results", str(tmp_path)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "head_to_head-smoke"
    rows = read_rows(folder / TABLE_FILE)
    assert {row.task for row in rows} == set(TASKS)
    assert {row.mechanism for row in rows} == set(MECHANISMS)
    measured = read_measures([folder / MEASURES_FILE])
    assert {one.eval for _, one in measured} == {*ASKED, "capacity"} <= {*EVALUATIONS, "capacity"}
    for name in ASKED:
        task = TEXT if name == "perplexity" else name
        assert {run for run, one in measured if one.eval == name} >= {row.run for row in rows if row.task == task}
    page = (folder / REPORT_FILE).read_text()
    assert "failed" not in done.stdout
    assert all(f">{name}" in page for name in MECHANISMS)
