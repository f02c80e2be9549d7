"""What `infini-jax doctor` says of this machine and installation."""

import ast
import contextlib
import functools
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import flax
import jax
import pytest

from infini_jax.cli import doctor
from infini_jax.cli.doctor import PACKAGES, PARTS, bytes_in, needs, version
from infini_jax.cli.main import main
from infini_jax.forecast.topology import is_installed
from tests.support.commands import spawned

ROOT = Path(__file__).parents[1]
ASKED = needs("infini_jax")  # package -> what pip is to install


@pytest.fixture
def tried_once(monkeypatch):
    """What the process with all packages says of this machine is asked for once."""
    monkeypatch.setattr(doctor, "tried", answers)


answers = functools.cache(doctor.tried)


@pytest.mark.usefixtures("tried_once")
def test_versions_devices_and_parts_are_shown(capsys):
    main(["doctor"])
    text = capsys.readouterr().out
    assert all(
        re.search(rf"\b{name} +\S +{re.escape(made.__version__)}\b", text) for name, made in (("jax", jax), ("flax", flax))
    )
    assert "device 0" in text
    assert "cpu (cpu)" in text
    assert all((part.install in text) != part.is_here for part in PARTS)


@pytest.mark.usefixtures("tried_once")
def test_json_says_the_same(capsys):
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["jax"] == jax.__version__
    assert [device["platform"] for device in found["devices"]] == [device.platform for device in jax.local_devices()]
    assert 0 < found["memory_free_bytes"] <= found["memory_bytes"]
    assert found["parts"]["explore"] is True
    assert found["cache"] == jax.config.jax_compilation_cache_dir


def test_every_extra_that_users_install_is_a_part():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {part.extra for part in PARTS} == set(extras) - {"dev", "mirrors", "docs"}  # for contributors, or joins of others


def test_a_part_lacks_as_soon_as_one_of_its_modules_does():
    explore = next(part for part in PARTS if part.extra == "explore")
    assert explore.is_here
    assert not type(explore)("explore", "", (*explore.modules, "no_such_module")).is_here
    assert version("no-such-package") is None


def test_compiled_programs_are_counted_with_those_in_inner_folders(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "one").write_bytes(bytes(1000))
    (tmp_path / "inner" / "two").write_bytes(bytes(24))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert bytes_in(tmp_path) == 1024
    assert bytes_in(tmp_path / "nothing") == 0


@pytest.mark.parametrize("platform", ["nonsense", "tpu"])
def test_a_platform_that_cannot_start_is_told_and_everything_else_too(platform):
    if platform == "tpu" and is_installed("tpu"):
        pytest.skip("it may start here")
    done = spawned(["doctor", "--json"], JAX_PLATFORMS=platform)
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert found["devices"] == []
    assert found["problems"] == {}
    assert found["versions"]["jax"] == jax.__version__
    assert found["trouble"].startswith(f"JAX_PLATFORMS={platform} cannot start (RuntimeError: ")
    assert "; unset it" in found["trouble"]
    assert ("pip install 'infini_jax[tpu]'" in found["trouble"]) == (platform == "tpu")


def diagnosed(python: str, **environment: str) -> dict[str, str]:
    """What `doctor` of an interpreter calls wrong; the tables of the same findings say so, and nothing is a traceback."""
    with_ours = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT), **environment}
    command = [python, "-m", "infini_jax", "doctor", "--json"]
    done = subprocess.run(command, env=with_ours, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    health = doctor.Health(**{**found, "devices": tuple(doctor.Device(**one) for one in found["devices"])})
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setenv("COLUMNS", "80")
        patch.setattr(doctor, "examine", lambda: health)
        with pytest.raises(SystemExit, match=r"^1$"):
            main(["doctor"])
    assert all(f"\n{name}: {problem}\n" in shown.getvalue() for name, problem in health.problems.items())
    return health.problems


@pytest.mark.parametrize(
    ("package", "parts", "others"),
    [
        ("jax", ("jax",), {"flax", "optax", "orbax-checkpoint"}),
        pytest.param("orbax-checkpoint", ("orbax", "orbax_checkpoint"), {"flax"}, marks=pytest.mark.slow),
        pytest.param("tensorflow-datasets", ("tensorflow_datasets",), set(), marks=pytest.mark.slow),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(package, parts, others, tmp_path):
    """In an environment that has everything of this one but the package and its metadata."""
    venv.create(tmp_path, symlinks=True, with_pip=False)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    for found in Path(jax.__file__).parents[1].iterdir():
        if found.name.partition("-")[0] not in parts and not (site / found.name).exists():
            (site / found.name).symlink_to(found)
    problems = diagnosed(str(tmp_path / "bin" / "python"))
    assert problems.pop(package) == f"not installed; pip install '{ASKED[package]}'"
    assert problems.keys() <= others  # those that cannot be imported without it
    assert all(problem.startswith("needs ") for problem in problems.values())


@pytest.mark.parametrize(
    ("package", "module", "breaks", "said"),
    [
        ("jax", "jax", "raise ImportError('wheel for another machine\\nand more')", "ImportError: wheel for another machine"),
        pytest.param(
            "orbax-checkpoint",
            "orbax/checkpoint",
            "import sys; sys.lost",
            "AttributeError: module 'sys' has no attribute 'lost'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "tensorflow-datasets",
            "tensorflow_datasets",
            "import os; os.abort()",
            "it ends Python with SIGABRT",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_package_whose_import_fails_is_named_with_the_reason(package, module, breaks, said, tmp_path):
    folder = tmp_path / module
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(breaks)
    problems = diagnosed(sys.executable, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert problems.pop(package) == f"cannot be imported ({said}); pip install --force-reinstall '{ASKED[package]}'"
    assert all(problem.startswith("needs ") for problem in problems.values())


@pytest.mark.slow
def test_a_version_that_the_package_does_not_ask_for_is_named(tmp_path):
    """Metadata of another version stands in front of the package's own."""
    folder = tmp_path / "optax-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.1.0\n")
    problems = diagnosed(sys.executable, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert problems == {"optax": f"version 0.1.0 is out of range; pip install '{ASKED['optax']}'"}


def test_all_that_the_package_asks_for_is_looked_at():
    assert ASKED.keys() <= PACKAGES.keys()


@pytest.mark.parametrize("module", ["infini_jax.cli.main", "infini_jax.cli.doctor"])
def test_the_command_line_itself_needs_none_of_what_may_be_broken(module):
    program = f"import sys, {module}; print(sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"jax", "orbax", "flax", "numpy", "tensorflow_datasets"}.intersection(ast.literal_eval(done.stdout))


def test_a_command_that_cannot_be_imported_names_doctor(tmp_path):
    done = spawned(["mechanisms"], before="import sys; sys.modules['jax'] = None")
    assert done.returncode == 2
    assert done.stderr.startswith("infini-jax: installation: ")
    assert done.stderr.endswith("; run infini-jax doctor to see what is missing or broken\n")
    assert done.stderr.count("\n") == 1
