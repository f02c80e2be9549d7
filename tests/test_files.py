"""What lies in the repository fits the code: resolved configs, notebooks, names of machines."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest

from experiments import quick
from infini_jax.config import RunConfig
from infini_jax.presets import checked_in
from infini_jax.rows import Row, write_rows

ROOT = Path(__file__).parents[1]


def test_checked_in_configs_are_those_of_the_quick_study():
    """A change of a preset shows in the diff. Remake: python -m configs."""
    saved = checked_in()
    assert saved == {run.name: run.to_dict() for run in quick.study().runs}
    assert [RunConfig.from_dict(plain) for plain in saved.values()] == list(quick.study().runs)


def test_notebook_shows_the_results_of_a_study(tmp_path, monkeypatch):
    rows = [row_of(run) for run in quick.study().runs]
    folder = tmp_path / "results" / "quick"
    for row in rows:
        (folder / "runs" / row.run).mkdir(parents=True)
        (folder / "runs" / row.run / "metrics.jsonl").write_text('{"step": 1, "tokens": 64, "loss": 3.5}\n')
    write_rows(rows, folder / "results.parquet")
    monkeypatch.chdir(tmp_path)
    shown = runpy.run_path(str(ROOT / "notebooks" / "quick.py"))
    assert shown["figure"].axes
    assert shown["curves"].axes
    assert len(shown["found"].runs) == len(rows)


def row_of(run: RunConfig) -> Row:
    """A row with the run's own names and made-up measures."""
    values = {name: {int: 1, float: 0.5, str: "x"}.get(kind) for name, kind in Row.__annotations__.items()}
    names = {"run": run.name, "task": run.task, "mechanism": run.model.mechanism, "variant": run.variant}
    return Row(**values | names | {"memory_bytes": run.model.memory_bytes})


def test_no_file_names_a_path_of_one_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        file = ROOT / name
        if file.suffix in (".py", ".md", ".toml", ".txt", ".json", ".j2", "") and file.is_file():
            assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/[a-z]", file.read_text()), name
