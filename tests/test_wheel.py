"""A wheel alone is enough: experiments and presets lie in it, and the repository is needed for nothing."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from infini_jax.config.presets import checked_in
from tests.test_cli import EXPERIMENT

ROOT = Path(__file__).parents[1]
OF_PYTHON = ("PYTHONPATH", "PYTHONHOME")


def said(command: list[str | Path], folder: Path) -> str:
    """What a command prints that is called in a folder where nothing of the repository is seen."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_PYTHON} | {"COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The programs of an environment that has the wheel, and of the running one the dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    said([*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT], folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    said([*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    paths = sysconfig.get_paths(vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    (Path(paths["purelib"]) / "dependencies.pth").write_text(
        sysconfig.get_paths()["purelib"]
    )  # its own .pth files are not read
    return python.parent


@pytest.mark.slow
def test_a_wheel_finds_its_experiments_and_presets_from_any_folder(installed, tmp_path):
    (tmp_path / "experiments").mkdir()  # somebody else's, which must not be mistaken for ours
    (tmp_path / "experiments" / "__init__.py").write_text("raise ImportError")
    where = said([installed / "python", "-c", "import infini_jax; print(infini_jax.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    printed = said([installed / "infini-jax", "study", "quick", "--dry-run"], tmp_path)
    assert all(part in printed for part in ("mqar-local-2", "python_stdlib-infinite_former"))
    printed = said(
        [installed / "python", "-m", "infini_jax", "study", "capacity_law", "--scale", "smoke", "--dry-run"], tmp_path
    )
    assert "codes-gated_delta-key_dim-400b" in printed
    name = next(iter(checked_in()))
    assert f'"{name}"' in said([installed / "infini-jax", "plan", name, "--json"], tmp_path)


@pytest.mark.slow
def test_a_wheel_does_a_users_own_study_and_writes_its_report(installed, tmp_path):
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    printed = said([installed / "infini-jax", "study", "mine.py", "--jobs", "1"], tmp_path)
    assert "report: results/tiny/report.html" in printed
    assert "does it run?" in (tmp_path / "results" / "tiny" / "report.html").read_text()
