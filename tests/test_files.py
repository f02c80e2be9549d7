"""What lies in the repository fits the code: resolved configs, notebooks, names of machines."""

import re
import subprocess
from pathlib import Path

import pytest

from experiments import quick
from infini_jax.config import RunConfig
from infini_jax.config.presets import checked_in

ROOT = Path(__file__).parents[1]


def test_checked_in_configs_are_those_of_the_quick_study():
    """A change of a preset shows in the diff. Remake: python -m configs."""
    saved = checked_in()
    assert saved == {run.name: run.to_dict() for run in quick.study().runs}
    assert [RunConfig.from_dict(plain) for plain in saved.values()] == list(quick.study().runs)


def test_no_file_names_a_path_of_one_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        file = ROOT / name
        if file.suffix in (".py", ".md", ".toml", ".txt", ".json", ".j2", "") and file.is_file():
            assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/[a-z]", file.read_text()), name
