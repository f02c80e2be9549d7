"""The rooms of the package: imports point one way, nothing goes in circles, files stay short."""

import importlib.util
from pathlib import Path

import pytest

from tests.support.imports import ROOMS, against_the_list, imports_of, modules_of, rings, room_of

ROOT = Path(__file__).parents[1]
DRAWING = ROOT / "docs" / "figures" / "house.py"


def test_no_import_goes_against_the_list_of_rooms():
    assert against_the_list(imports_of(ROOT)) == []


def test_neither_rooms_nor_files_import_each_other_in_circles():
    imports = imports_of(ROOT)
    assert rings({(one.importer, one.imported) for one in imports}) == []
    between = {(room_of(one.importer), room_of(one.imported)) for one in imports}
    assert rings({(one, other) for one, other in between if one != other}) == []


def test_every_room_is_on_the_list_and_the_list_has_no_other():
    assert {room_of(module) for module in modules_of(ROOT)} == set(ROOMS)


def test_at_most_six_files_stand_directly_in_the_package_and_none_is_longer_than_a_sitting():
    assert len(list((ROOT / "infini_jax").glob("*.py"))) <= 6
    long = {str(file): count for file in modules_of(ROOT).values() if (count := file.read_text().count("\n")) > 400}
    assert long == {}


@pytest.mark.parametrize(
    "line",
    [
        "from infini_jax.cli import main",
        "import infini_jax.cli.main",
        "def late():\n    from infini_jax.cli.main import main",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from infini_jax.cli.main import main",
        "WORK = {'run': 'infini_jax.cli.main:main'}",
    ],
)
def test_a_planted_violation_is_told_with_both_files(tmp_path, line):
    for name in ("__init__", "memory/__init__", "memory/planted", "cli/__init__", "cli/main"):
        file = tmp_path / "infini_jax" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{line}\n" if name == "memory/planted" else "")
    (told,) = against_the_list(imports_of(tmp_path))
    assert told.startswith("infini_jax/memory/planted.py:")
    assert "imports infini_jax/cli/main.py: cli stands above memory" in told


def test_a_planted_circle_is_found():
    assert rings({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [["a", "b", "c"]]


def test_the_picture_in_the_design_is_that_of_the_real_imports():
    spec = importlib.util.spec_from_file_location("house", DRAWING)
    assert spec is not None
    assert spec.loader is not None
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    mend = "draw it again: python -m docs.figures.house"
    assert (ROOT / "docs" / "figures" / "house.svg").read_text() == house.drawn(ROOT), mend
