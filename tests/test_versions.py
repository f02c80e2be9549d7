"""Versions of what pyproject.toml asks for: lower bounds, and the pinned set between all bounds.

`make test-floors` runs this and the tests of whatever other packages do for us where every lower bound is what is installed.
"""

import importlib.metadata
import os
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
LOWEST = "LOWEST_VERSIONS"  # set where the lowest versions were installed


def asked() -> dict[str, list[Requirement]]:
    """All requirements on a package, of every extra, by its name; extras that join others of ours are none."""
    found: dict[str, list[Requirement]] = {}
    for line in [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]:
        one = Requirement(line)
        if one.name != PROJECT["name"]:
            found.setdefault(canonicalize_name(one.name), []).append(one)
    return found


def lowest(requirements: list[Requirement]) -> Version | None:
    """The highest lower bound of all requirements on a package; None without one."""
    bounds = [Version(part.version) for one in requirements for part in one.specifier if part.operator == ">="]
    return max(bounds, default=None)


def installed(package: str) -> Version:
    return Version(importlib.metadata.version(package))


def test_every_package_that_is_asked_for_has_a_lower_bound():
    assert [name for name, requirements in asked().items() if lowest(requirements) is None] == []


def test_the_pinned_set_has_every_package_and_is_within_its_bounds():
    pinned = {canonicalize_name(pin.name) for pin in PINS}
    assert asked().keys() - pinned == set()
    ranges = {name: [one.specifier for one in requirements] for name, requirements in asked().items()}
    versions = [(canonicalize_name(pin.name), part.version) for pin in PINS for part in pin.specifier]
    outside = [
        f"{name} {version} is not {limits}"
        for name, version in versions
        for limits in ranges.get(name, ())
        if not limits.contains(version)
    ]
    assert outside == []


@pytest.mark.skipif(not os.environ.get(LOWEST), reason="the lowest versions are not installed: make test-floors")
def test_the_lowest_versions_are_those_that_run_here():
    """A bound below what the other packages allow cannot be installed, so that nobody can have tried it."""
    bounds = {name: lowest(found) for name, found in asked().items() if not name.startswith(("mkdocs", "zensical", "lm-eval"))}
    assert {name: installed(name) for name in bounds} == bounds
    assert sys.version_info[:2] == tuple(Version(PROJECT["requires-python"].removeprefix(">=")).release)
