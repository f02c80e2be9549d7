"""What `infini-jax doctor` says of this machine and installation."""

import json
import re
import tomllib
from pathlib import Path

import flax
import jax

from infini_jax.cli.doctor import PARTS, bytes_in, version
from infini_jax.cli.main import main
from tests.support.commands import spawned

ROOT = Path(__file__).parents[1]


def test_versions_devices_and_parts_are_shown(capsys):
    main(["doctor"])
    text = capsys.readouterr().out
    assert all(
        re.search(rf"\b{name} +\S +{re.escape(made.__version__)}\b", text) for name, made in (("jax", jax), ("flax", flax))
    )
    assert "device 0" in text
    assert "cpu (cpu)" in text
    assert all((part.install in text) != part.is_here for part in PARTS)


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


def test_a_platform_that_cannot_start_is_told_and_everything_else_too():
    done = spawned(["doctor", "--json"], JAX_PLATFORMS="nonsense")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["devices"] == []
    assert "nonsense" in found["trouble"]
