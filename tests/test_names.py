"""Names are one to one with files on every system: what is refused, wherever a name is taken."""

import dataclasses

import pytest

from infini_jax.codes.capacity import CapacityRun
from infini_jax.codes.random_codes import RandomCodesRun
from infini_jax.config import RunConfig
from infini_jax.data.prepared import prepared_folder
from infini_jax.errors import ConfigError, require_file_name
from infini_jax.report.page import unlike
from infini_jax.study.study import Study
from infini_jax.training.mirrors import Mirroring
from tests.support.commands import TINY, told

REFUSED = [
    "",
    "-rf",
    "--help",
    ".hidden",
    ".",
    "..",
    "x.",
    "x ",
    " x",
    "a/b",
    "a\\b",
    "a\nb",
    "a\0b",
    "a\x1b[2J",
    "a:b",
    "a*b",
    "\ud800",
    "CON",
    "con",
    "Nul",
    "NUL.txt",
    "aux.tar.gz",
    "COM1",
    "com¹",
    "lpt9.json",
    "x" * 300,
    "é" * 100,
]
TAKEN = [
    "x",
    "a_b",
    "a-b",
    "-".join("ab"),
    "mqar-infini-8k-lr3e-3-s0",
    "1.5",
    "_x",
    "x_",
    "x-",
    "console",
    "nulls",
    "com",
    "COM10",
]
TAKEN += ["é", "研究", "x" * 180]
MAKERS = {
    "name": lambda name: RunConfig(name=name),
    "name of capacity": lambda name: CapacityRun(name=name),
    "name of random codes": lambda name: RandomCodesRun(name=name),
    "mirrors.project": lambda name: Mirroring(project=name),
    "data.name": prepared_folder,
    "study.name": lambda name: Study(name, "?", (RunConfig(),)),
}


@pytest.mark.parametrize("name", REFUSED, ids=repr)
def test_what_is_no_files_name_everywhere_is_refused_in_one_line(name):
    for field, make in MAKERS.items():
        with pytest.raises(ConfigError) as error:
            make(name)
        assert error.value.field == field.partition(" ")[0]
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", TAKEN)
def test_other_names_are_taken(name):
    for make in MAKERS.values():
        make(name)


@pytest.mark.parametrize("name", ["-rf", ".hidden", "CON", "x.", "x" * 300])
def test_a_command_refuses_a_name_before_it_makes_a_folder(name, tmp_path, capsys):
    command = ["train", "infini", "mqar", *TINY, f"--name={name}", "--results", str(tmp_path)]
    assert told(capsys, command, 2).startswith("name: ")
    assert not list(tmp_path.iterdir())


def test_runs_that_differ_in_case_only_are_no_two_folders_everywhere():
    runs = (RunConfig(name="one"), RunConfig(name="One"))
    with pytest.raises(ConfigError, match="two runs are called 'one'"):
        Study("mine", "?", runs)
    Study("mine", "?", (runs[0], dataclasses.replace(runs[1], name="Two")))


def test_a_studys_scale_is_part_of_the_name_that_is_checked():
    with pytest.raises(ConfigError, match=r"^study\.name: "):
        Study("mine", "?", (RunConfig(),), scale="a/b")


def test_figures_of_like_names_have_a_file_each():
    taken: set[str] = set()
    for _ in range(3):
        taken.add(unlike("score-a-b", taken))
    taken.add(unlike("Score-a-b", taken))
    assert taken == {"score-a-b", "score-a-b-2", "score-a-b-3", "Score-a-b-4"}


def test_the_longest_name_leaves_room_for_files_beside_it(tmp_path):
    """File systems take 255 bytes: a name, a dot in front and an ending."""
    name = "x" * 180
    require_file_name("name", name)
    (tmp_path / f".{name}.partial").mkdir()
