"""Nothing from a setting reaches a shell: hostile values in all that launchers write, run with stub commands."""

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from infini_jax.errors import ConfigError, quoted
from infini_jax.study.launch import LAUNCHERS, Resources
from infini_jax.study.study import Study, save_study
from tests.test_launch import ASKED
from tests.test_slurm import run_of

STUDY = Study("queued", "Does it start?", (run_of("one", 20),))
WANTED = {**ASKED, "slurm": Resources(partition="short")}  # of each launcher with texts: what it cannot do without
TEXTS = [(name, field) for name, asked in WANTED.items() for field in vars(asked) if isinstance(getattr(asked, field), str)]
TEXTS = [(name, field) for name, field in TEXTS if field in LAUNCHERS[name].uses]
QUOTED = [  # of which a shell makes a command where it is not quoted
    "x'; touch y; '",
    'x"; touch y; "',
    "x; touch y",
    "x && touch y",
    "x | touch y",
    "$(touch y)",
    "`touch y`",
    "x > y",
    "x # y",
    "x \\",
    "${HOME:-y}",
    "*",
    "x: {y: [z",
    "é ∞ 研究",
]
REFUSED = ["x\ntouch y", "x\r\ntouch y", "x\0y", "x\x1b[2Jy", "x\u2028touch y", "x\x85y", "x\ud800"]


def asked_with(name: str, field: str, value: str) -> Resources:
    return dataclasses.replace(WANTED[name], **{field: value})


def script_of(name: str, asked: Resources, folder: Path) -> tuple[str, list[str]]:
    """(a script as the machine runs it, the command that starts it) of what a launcher writes."""
    save_study(STUDY, folder)
    launcher = LAUNCHERS[name](2, asked)
    if name == "slurm":
        return submitted(launcher, folder), []
    left = launcher.run(STUDY, folder, lambda desk: None)
    assert left.startswith("start with: ")
    text = (folder / launcher.file).read_text()
    if name == "sky":
        task = yaml.safe_load(text)
        text = f"{task['setup']}\n{task['run']}\n"
    return text, shlex.split(left.removeprefix("start with: "))


def submitted(launcher, folder: Path) -> str:
    """The script that submitit gives to sbatch."""
    slurm = pytest.importorskip("submitit.slurm.slurm")
    settings = {name.removeprefix("slurm_"): value for name, value in launcher.settings(folder, 2).items()}
    return slurm._make_sbatch_string(command="infini-jax", folder=folder / "slurm", **settings)


def run_with_stubs(script: str, folder: Path) -> list[list[str]]:
    """The words of each command that a script calls, where every command is a stub that notes its words."""
    stubs, here, calls = folder / "stubs", folder / "here", folder / "calls"
    stubs.mkdir()
    here.mkdir()
    for command in ("pip", "infini-jax", "xpk", "sky", "srun", "touch"):
        (stubs / command).write_text(f'#!/bin/sh\nprintf "%s\\n" "$0" "$@" >> "{calls}"\necho >> "{calls}"\n')
        (stubs / command).chmod(0o755)
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    path = f"{stubs}:{os.environ['PATH']}"
    done = subprocess.run(["bash"], input=script, text=True, cwd=here, env={**os.environ, "PATH": path}, check=False)
    assert done.returncode == 0
    assert not list(here.iterdir())  # no side file
    blocks = calls.read_text().removesuffix("\n\n").split("\n\n")
    return [[Path(block.split("\n")[0]).name, *block.split("\n")[1:]] for block in blocks]


def test_all_launchers_but_the_one_of_this_machine_are_in_the_table():
    assert {*WANTED, "local"} == {*LAUNCHERS}
    assert {field for _, field in TEXTS} == {field.name for field in dataclasses.fields(Resources) if field.type is str}


@pytest.mark.parametrize("value", QUOTED)
@pytest.mark.parametrize(("name", "field"), TEXTS)
def test_a_hostile_text_stays_one_word(name, field, value, tmp_path):
    script, _ = script_of(name, asked_with(name, field, value), tmp_path / "study")
    calls = run_with_stubs(script, tmp_path)
    assert {command for command, *_ in calls} == {"sky": {"pip", "infini-jax"}, "xpk": {"xpk"}, "slurm": {"srun"}}[name]
    if name == "xpk" or field == "package":
        assert any(value in words for words in calls)
    if name == "slurm":
        assert f"#SBATCH --{field}={shlex.quote(value)}" in script.splitlines()


@pytest.mark.parametrize("value", QUOTED)
def test_a_hostile_value_of_a_further_option_stays_one_word(value, tmp_path):
    script, _ = script_of("slurm", Resources(extra=(f"comment={value}", "exclusive")), tmp_path / "study")
    assert {command for command, *_ in run_with_stubs(script, tmp_path)} == {"srun"}
    assert {f"#SBATCH --comment={shlex.quote(value)}", "#SBATCH --exclusive"} < {*script.splitlines()}


@pytest.mark.parametrize("value", REFUSED)
@pytest.mark.parametrize("option", ["comment={}", "{}", "{}=x", "#SBATCH --comment={}"])
def test_a_further_option_with_a_control_character_is_refused(option, value):
    with pytest.raises(ConfigError, match=r"^resources\.extra: it holds the control character .*; leave it out$"):
        Resources(extra=("exclusive", option.format(value)))


@pytest.mark.parametrize(
    "option",
    [*QUOTED, "", "-", "--", "-A lab", "-x", "x", "=y", "--=y", "a b=c", "a;touch y", "$(touch y)=c", "COMMENT=x", "é=x"],
)
def test_what_is_no_option_of_sbatch_is_refused(option):
    with pytest.raises(ConfigError) as error:
        LAUNCHERS["slurm"](1, Resources(extra=(option,)))
    said = "is not an option; give the long name of an option of sbatch, such as exclusive or mail-type=END"
    assert str(error.value) == f"resources.extra: '{quoted(option)}' {said}"


@pytest.mark.parametrize("value", [*REFUSED, "-rf", "--index-url=http://example.com"])
@pytest.mark.parametrize(("name", "field"), TEXTS)
def test_control_characters_and_options_are_refused(name, field, value):
    with pytest.raises(ConfigError, match=rf"^resources\.{field}: (it holds the control|.* begins with '-')") as error:
        asked_with(name, field, value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize("folder", ["x'; touch y; '", "$(touch y)", "a b", "-rf", "é"])
def test_a_hostile_folder_stays_one_word(name, folder, tmp_path, monkeypatch):
    (tmp_path / "at").mkdir()
    monkeypatch.chdir(tmp_path / "at")
    script, start = script_of(name, WANTED[name], Path(folder))
    calls = run_with_stubs(script, tmp_path)
    assert not any("touch" in words[0] for words in calls)
    assert all(not word.startswith("-rf") for word in start)
    assert not start or start[-1].startswith(str(tmp_path / "at" / folder))


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize("folder", ["x\ntouch y", "x\x1b[2J"])
def test_a_folder_with_control_characters_is_refused(name, folder, tmp_path):
    launcher = LAUNCHERS[name](2, WANTED[name])
    with pytest.raises(ConfigError, match=r"^results: it holds the control character"):
        launcher.described(STUDY, tmp_path / folder)


def test_a_link_to_a_folder_with_control_characters_is_refused(tmp_path):
    (tmp_path / "x\ntouch y").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "x\ntouch y")
    with pytest.raises(ConfigError, match=r"^results: it holds the control character"):
        LAUNCHERS["xpk"](2, WANTED["xpk"]).described(STUDY, tmp_path / "link")
