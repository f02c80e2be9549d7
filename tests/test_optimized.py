"""Checks do not vanish where Python leaves asserts out (`python -O`, PYTHONOPTIMIZE=1)."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infini_jax.errors import ConfigError, instance, present
from infini_jax.study.own_code import loaded
from tests.support import sources
from tests.test_checkpoint import filled, in_format_2, noted

ROOT = Path(__file__).parents[1]
READS = """
import sys
from pathlib import Path
from infini_jax.errors import CheckpointError
from tests.test_checkpoint import restored
assert False, "asserts are left out"
for folder in sys.argv[1:]:
    try:
        print(restored(Path(folder))[0].step)
    except CheckpointError as error:
        print(error)
"""


def altered_array(notes: dict) -> dict:
    """Notes with another digest of an array, under a hash that fits."""
    from infini_jax.training.notes import hash_of

    arrays = notes["arrays"]
    other = {**notes, "arrays": {**arrays, "state/step": arrays["state/step"][:-1] + "?"}}
    return {**other, "hash": hash_of(other)}


@pytest.mark.slow
def test_altered_checkpoints_are_refused_without_asserts(tmp_path):
    """A whole one; notes of another step; a digest, a checksum and names that do not fit."""
    alterations = {
        "whole": lambda notes, folder: notes,
        "step": lambda notes, folder: {**notes, "step": 2},
        "digest": lambda notes, folder: altered_array(notes),
        "checksum": lambda notes, folder: {**(old := in_format_2(folder)), "checksum": old["checksum"] ^ 1},
        "names": lambda notes, folder: {name: value for name, value in notes.items() if name != "hash"},
    }
    for name, altered in alterations.items():
        folder = filled(tmp_path / name, steps=(3,))
        notes = json.loads(noted(folder).read_text())
        noted(folder).write_text(json.dumps(altered(notes, folder)))
    command = [sys.executable, "-c", READS, *(str(tmp_path / name) for name in alterations)]
    environment = {**os.environ, "PYTHONOPTIMIZE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, *others = done.stdout.splitlines()
    assert whole == "3"
    assert len(others) == len(alterations) - 1
    assert all("3 is damaged or incomplete; delete it" in line for line in others), others


def test_there_is_no_assert_in_the_package():
    """What the linter's S101 says too, here beside the reason."""
    found = [
        place
        for place, node in sources.nodes()
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Name) and node.id in ("__debug__", "AssertionError"))
    ]
    assert found == []


def test_what_cannot_be_is_told_by_an_error_of_its_own():
    assert present(0, "zero is a value") == 0
    assert instance(True, int, "a bool is one") is True
    with pytest.raises(RuntimeError, match=r"^missing: it was made before$"):
        present(None, "it was made before")
    with pytest.raises(TypeError, match=r"^str is no int: it was counted$"):
        instance("1", int, "it was counted")


def test_an_experiment_that_is_no_python_file_is_one_line(tmp_path):
    (tmp_path / "study.txt").write_text("study = 1")
    with pytest.raises(
        ConfigError, match=r"^experiment: .*study.txt is not a Python file; give a file whose name ends in .py$"
    ):
        loaded(tmp_path / "study.txt")
