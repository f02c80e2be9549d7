"""The head to head at its smallest scale, from the command line to the report: every mechanism on every task."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.memory import MECHANISMS
from infini_jax.records.folder import MEASURES_FILE, REPORT_FILE, TABLE_FILE
from infini_jax.records.measures import read_measures
from infini_jax.records.rows import read_rows

TASKS = ("capacity", "haystack", "mqar", "passkey", "python_stdlib", "sorting")
ASKED = {"haystack", "mqar", "passkey", "perplexity", "sorting"}


@pytest.mark.slow
def test_every_mechanism_does_every_task_and_is_in_the_report(tmp_path):
    """A path instead of a name, as README has it; minutes, because some sixty models compile."""
    file = Path(experiments.__file__).with_name("head_to_head.py")
    command = [sys.executable, "-m", "infini_jax", "study", str(file), "--scale", "smoke", "--results", str(tmp_path)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "head_to_head-smoke"
    rows = read_rows(folder / TABLE_FILE)
    assert {(row.task, row.mechanism) for row in rows} == {(task, name) for task in TASKS for name in MECHANISMS}
    measured = read_measures([folder / MEASURES_FILE])
    assert {one.eval for _, one in measured} == {*ASKED, "capacity"} <= {*EVALUATIONS, "capacity"}
    of_run = {row.run: row.mechanism for row in rows}
    for name in ASKED:
        assert {of_run[run] for run, one in measured if one.eval == name} == set(MECHANISMS)
    page = (folder / REPORT_FILE).read_text()
    assert "failed" not in done.stdout
    assert all(f">{name}" in page for name in MECHANISMS)
