"""Mechanisms of installed packages: found by name, loaded when asked for, and never in the way of the others."""

import json
import os
import subprocess
import sys

import pytest

from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import Budget
from infini_jax.errors import ConfigError, lookup
from infini_jax.memory import COMPOSED, MECHANISMS
from infini_jax.memory.full import Full, FullConfig
from infini_jax.memory.local import Local
from infini_jax.memory.registry import Registry
from infini_jax.records.folder import RunFolder, StudyFolder
from infini_jax.records.rows import read_rows
from infini_jax.study import Study, save_study
from tests.support.commands import spawned
from tests.support.packages import install, install_fading

OWN = {"local": Local, "full": Full}
BROKEN = "raise RuntimeError('no luck\\nat all')"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages in front of the installed ones; modules that were imported from it are forgotten."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_package_is_found_by_its_metadata_and_imported_when_its_row_is_asked_for(site):
    install_fading(site)
    registry = Registry(OWN)
    assert "fading" in registry
    assert "fading_memory" not in sys.modules
    assert registry["local"] is Local
    assert registry.names_of(Local.Config) == ["local"]
    assert "fading_memory" not in sys.modules
    fading = registry["fading"]
    assert fading is sys.modules["fading_memory"].Fading
    assert registry.names_of(fading.Config) == ["fading"]
    assert list(registry) == ["local", "full", "fading"]
    assert dict(registry.items()) == OWN | {"fading": fading}


def test_settings_find_their_row_before_anybody_asked_for_its_name(site):
    install_fading(site)
    import fading_memory  # pyright: ignore[reportMissingImports]

    assert Registry(OWN).names_of(fading_memory.FadingConfig) == ["fading"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (BROKEN, "RuntimeError: no luck"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("Fading = 3", "fading_memory:Fading: it is not a Memory; name the class"),
        ("from infini_jax.memory.local import Local as Base\nclass Fading(Base): pass", "its Config is that of local"),
    ],
)
def test_a_package_that_does_not_load_is_one_line_with_its_name_and_the_others_work(site, caplog, source, problem):
    install(site, "fading-memory", source, fading="Fading")
    registry = Registry(OWN)
    with pytest.raises(ConfigError) as error:
        lookup("mechanism", "fading", registry)
    line = str(error.value)
    assert line.startswith("mechanism fading: package fading-memory does not load: ")
    assert problem in line
    assert line.endswith("; mend or uninstall fading-memory")
    assert "\n" not in line
    assert not caplog.records
    assert dict(registry.items()) == OWN == {name: registry[name] for name in registry}
    assert [record.getMessage() for record in caplog.records] == [f"infini-jax: {line}"]  # told once, however often left out


def test_names_that_are_taken_are_refused_in_one_line(site, caplog):
    install(site, "a-package", "", full="Full", twice="Twice")
    install(site, "b-package", "", twice="Twice")
    registry = Registry(OWN)
    assert registry["full"] is Full
    assert "twice" in registry
    lines = {record.getMessage().removeprefix("infini-jax: infini_jax.mechanisms: ") for record in caplog.records}
    end = "; have it renamed, until then it is left out"
    assert "package a-package calls a mechanism 'full', as infini_jax does" + end in lines
    others = [
        f"package {one}-package calls a mechanism 'twice', as package {two}-package does{end}" for one, two in ("ab", "ba")
    ]
    assert len(lines & set(others)) == 1 == len(lines) - 1


@pytest.mark.parametrize("name", COMPOSED)
def test_names_of_composed_settings_are_no_mechanism_s(name, site, caplog):
    problem = (
        f"MECHANISMS: '{name}' means settings that are composed of mechanisms, or of none; give the mechanism another name"
    )
    with pytest.raises(ConfigError) as error:
        MECHANISMS[name] = type("Own", (Full,), {})
    assert str(error.value) == problem
    install(site, "a-package", "", **{name: "Own"})
    assert name not in Registry(OWN, COMPOSED)
    told = f"package a-package calls a mechanism '{name}', as infini_jax does; have it renamed, until then it is left out"
    assert [record.getMessage() for record in caplog.records] == [f"infini-jax: infini_jax.mechanisms: {told}"]


def test_a_row_that_a_file_assigns_stands_before_a_package_and_leaves_it_again(site):
    """As a user's experiment file does, in every process that loads it."""
    install_fading(site)
    registry, own = Registry(OWN), type("Own", (Full,), {})
    registry["fading"] = own
    assert registry["fading"] is own
    assert "fading_memory" not in sys.modules
    del registry["fading"]
    assert registry["fading"] is sys.modules["fading_memory"].Fading


def test_the_registry_of_the_package_has_rows_that_no_package_may_take():
    assert list(MECHANISMS)[:3] == ["local", "full", "transformer_xl"]


def test_the_command_line_lists_a_package_and_leaves_out_a_broken_one(tmp_path):
    install_fading(tmp_path)
    install(tmp_path, "bad-luck", BROKEN, luckless="Luckless")
    done = spawned(["mechanisms"], f"import sys\nsys.path.append({str(tmp_path)!r})")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fading: a sum that fades (none)" in done.stdout
    assert "infini: matrix memory" in done.stdout
    assert done.stderr == (
        "infini-jax: mechanism luckless: package bad-luck does not load: RuntimeError: no luck; mend or uninstall bad-luck\n"
    )


@pytest.mark.slow
def test_a_worker_that_a_scheduler_started_knows_a_package_by_the_name_in_the_saved_study(tmp_path):
    install_fading(tmp_path)
    run = CapacityRun(memory=FullConfig(), symbols=64, budget=Budget("steps", 2), rows=2, questions=1, grid=2)
    save_study(Study("mine", "does it run?", (run,)), tmp_path)
    file = StudyFolder(tmp_path).study
    plain = json.loads(file.read_text())
    plain["runs"][0]["memory"] = {"kind": "fading", "kept": 0.25}
    file.write_text(json.dumps(plain))
    program = f"from pathlib import Path; from infini_jax.study import work_on; work_on(Path({str(tmp_path)!r}), 0, 1, '')"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = read_rows(RunFolder(tmp_path / "runs" / run.name).row)
    assert row.mechanism == "fading"
