"""Types do not depend on JAX_ENABLE_X64: every array states its own, and a whole run passes under it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import infini_jax
from infini_jax.memory import MECHANISMS

PACKAGE = Path(infini_jax.__file__).parent
# Place of the type among the arguments of functions whose default type is that of Python's floats.
MAKERS = {"zeros": 1, "ones": 1, "empty": 1, "full": 2, "eye": 3, "linspace": 5}


def untyped(source: str) -> list[int]:
    """The lines that make an array of floats without its type."""
    return [
        call.lineno
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in {f"jnp.{name}" for name in MAKERS}
        and len(call.args) <= MAKERS[ast.unparse(call.func).removeprefix("jnp.")]
        and all(word.arg != "dtype" for word in call.keywords)
    ]


def test_an_array_without_a_type_is_found():
    assert untyped(
        "a = jnp.zeros(3)\nb = jnp.zeros(3, jnp.float32)\nc = jnp.full((2,), 0.5)\nd = jnp.ones(2, dtype=bool)"
    ) == [1, 3]


def test_every_array_of_the_package_states_its_type():
    found = {str(file.relative_to(PACKAGE)): untyped(file.read_text()) for file in PACKAGE.rglob("*.py")}
    assert {file: lines for file, lines in found.items() if lines} == {}


WHOLE_RUN = """
import tempfile
from pathlib import Path
import jax
from infini_jax.config import Budget, EvaluationConfig, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.memory import MECHANISMS
from infini_jax.training.execute import execute
from infini_jax.training.trained import Trained

assert jax.config.jax_enable_x64
model = ModelConfig(memory=MECHANISMS["{name}"].Config(), vocab=256, layers=1, d_model=16, heads=1, mlp_dim=32, segment=8)
run = RunConfig(name="x", model=model, data=StdlibConfig(), train=TrainConfig(batch=2, sequence=16),
                budget=Budget("steps", 2), evaluation=EvaluationConfig(documents=2, tokens=32, rows=2))
with tempfile.TemporaryDirectory() as folder:
    row = execute(run, Path(folder) / "x", study="")
    params = Trained.open(Path(folder) / "x").params
assert 0 < row.loss < 20
assert {{leaf.dtype.name for leaf in jax.tree.leaves(params)}} == {{"float32"}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_whole_run_passes_under_x64(name):
    """Trained, saved, read and evaluated in a process of its own."""
    command, environment = [sys.executable, "-c", WHOLE_RUN.format(name=name)], {**os.environ, "JAX_ENABLE_X64": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
