"""What a machine lacks is told in one line: a home folder, buckets as folders, characters of a terminal."""

import io
import pwd
import sys
from pathlib import Path

import pytest

from infini_jax.cli.doctor import Health, data_place, machine_table
from infini_jax.cli.main import main, show_all_text
from infini_jax.cli.output import terminal
from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import ConfigError, require_local
from infini_jax.files import data_folder
from infini_jax.records.folder import RunFolder, StudyFolder
from infini_jax.results import load
from infini_jax.study.study import Study, save_study
from infini_jax.training.execute import execute
from infini_jax.training.trained import Trained
from tests.support import streams
from tests.support.as_is import made_model
from tests.support.commands import PAIRS, TINY, told
from tests.support.saved import saved_run

BUCKETS = ["gs://bucket/results", "s3://bucket/results"]
MEND = "mount the bucket, or copy it, and give that folder"
NO_HOME = "data folder: this user has no home folder; set INFINI_JAX_DATA to a folder for corpora, or HOME"
COMMANDS = [  # setting, command that ends in its value
    ("results", [*PAIRS, "--results"]),
    ("results", ["study", "quick", "--results"]),
    ("experiment", ["study"]),
    ("folders", ["report"]),
    ("folders", ["report", "results/quick"]),
    ("output", ["report", "results/quick", "--output"]),
    ("from", ["train", "infini", "mqar", "--from"]),
    ("run", ["evaluate"]),
    ("output", ["evaluate", "results/runs/run", "--output"]),
    ("run", ["generate", "--prompt", "a", "--run"]),
    ("prompt_file", ["generate", "results/runs/run", "--prompt-file"]),
    ("memory", ["generate", "results/runs/run", "--prompt", "a", "--memory"]),
    ("save_memory", ["generate", "results/runs/run", "--prompt", "a", "--save-memory"]),
    ("config", ["plan"]),
    ("path", ["watch"]),
    ("first", ["compare"]),
    ("second", ["compare", "results/runs/run"]),
    ("path", ["corpus", "prepare", "text_folder", "--path"]),
    ("model", ["corpus", "prepare", "python_stdlib", "--tokenizer", "sentencepiece", "--model"]),
    ("test", ["corpus", "prepare", "text_folder", "--path", "texts", "--test"]),
]


@pytest.mark.parametrize("address", BUCKETS)
@pytest.mark.parametrize(
    ("field", "command"), COMMANDS, ids=lambda value: value if isinstance(value, str) else " ".join(value[:2])
)
def test_a_bucket_is_refused_at_once_wherever_a_command_takes_a_path(field, command, address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [*command[:-1], address] if command[-1] == "--run" else [*command, address]
    command += ["b"] if command[:2] == ["compare", address] else []
    assert told(capsys, command, 2) == f"{field}: {address} is not a folder on this machine; {MEND}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [[*PAIRS, "--data.pairs", "2"], ["study", "quick"], ["import", "models/llama"]], ids=lambda command: command[0]
)
def test_a_folder_in_which_checkpoints_are_not_found_again_is_refused_before_anything_is_written(
    command, tmp_path, monkeypatch, capsys
):
    """The checkpoints' files are found by patterns of the whole path; a quote is none."""
    monkeypatch.chdir(tmp_path)
    made_model(tmp_path / "models" / "llama")
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    for folder, wrong in (("a[b]", "'['"), ("a*", "'*'"), ("a\\b", r"'\\'")):
        line = told(capsys, [*command, "--results", folder], 2)
        assert line.startswith(f"results: in a folder with {wrong} in its path checkpoints are not found again; give a path")
    assert {file.name for file in tmp_path.iterdir()} <= {"models", "data"}


def test_a_run_in_a_folder_with_a_quote_is_found_again(tmp_path):
    settings = {"data": StdlibConfig(), "model": streams.tiny("local", layers=1, vocab=256)}
    run = RunConfig(**settings, train=TrainConfig(batch=1, sequence=64), budget=Budget("steps", 1))
    assert Trained.open(saved_run(run, tmp_path / "it's" / "run")).step == 2


@pytest.mark.parametrize("address", BUCKETS)
def test_a_bucket_is_refused_in_python_too(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, run = Path(address), RunConfig()
    for call in (
        lambda: RunFolder(folder),
        lambda: StudyFolder(folder),
        lambda: execute(run, folder, ""),
        lambda: save_study(Study("mine", "?", (run,)), folder),
        lambda: Trained.open(folder),
        lambda: load(folder),
    ):
        with pytest.raises(ConfigError, match=f"^(folder|path): {address} is not a folder on this machine; "):
            call()
    assert not list(tmp_path.iterdir())


def test_a_bucket_is_no_place_for_corpora(monkeypatch, capsys):
    monkeypatch.setenv("INFINI_JAX_DATA", "gs://bucket")
    assert told(capsys, ["corpus", "list"], 2) == f"INFINI_JAX_DATA: gs://bucket is not a folder on this machine; {MEND}"


@pytest.mark.parametrize("path", ["results", "/a/b", "a:b", "C:/results", "C:\\results", "http", "", "a//b"])
def test_folders_are_no_addresses(path):
    require_local("results", Path(path))


@pytest.mark.parametrize("path", ["gs://b", "S3://b/c", "hdfs://b/c", "file:///a", "https://b.c/d"])
def test_all_addresses_are_told_as_they_were_given(path):
    with pytest.raises(ConfigError, match=r"^results: \w+://[abc/.d]+ is not a folder"):
        require_local("results", Path(path))


@pytest.fixture
def no_home(monkeypatch):
    """A user who is a number only, as in a container: no HOME, no line in the list of users."""

    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "INFINI_JAX_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_without_a_home_folder_corpora_have_no_place_and_one_line_says_so(no_home, capsys):
    for command in (["corpus", "list"], ["corpus", "list", "--json"], ["corpus", "prepare", "python_stdlib"]):
        assert told(capsys, command, 2) == NO_HOME
    assert told(capsys, ["train", "infini", "corpus", *TINY, "--data.name", "x"], 2) == NO_HOME


def test_without_a_home_folder_the_variable_is_enough(no_home, monkeypatch, tmp_path):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    main(["corpus", "list"])


def test_doctor_says_that_corpora_have_no_place_and_goes_on(no_home):
    data, trouble = data_place()
    assert (data, trouble) == ("", NO_HOME)
    found = Health({}, {}, "a processor", 1, 1, (), "", "", 0, data, trouble, {})
    console = terminal(file=io.StringIO(), width=200)
    console.print(machine_table(found))
    assert f"none: {NO_HOME}" in console.file.getvalue()
    assert found.wrong == []  # runs on other tasks need no such place


def stream(encoding: str, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, write_through=True)


@pytest.mark.parametrize(
    ("encoding", "errors", "text", "said"),
    [
        ("ascii", "strict", "é ∞", rb"\xe9 \u221e"),
        ("ascii", "surrogateescape", "é", rb"\xe9"),
        ("latin-1", "strict", "é ∞", b"\xe9 \\u221e"),
        ("utf-8", "strict", "é\ud800", "é".encode() + rb"\ud800"),
        ("utf-8", "surrogateescape", "é\udcff", "é".encode() + b"\xff"),  # a file's name that is no UTF-8 stays whole
    ],
)
def test_text_that_a_terminal_lacks_is_escaped(encoding, errors, text, said, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream(encoding, errors))
    show_all_text()
    sys.stdout.write(text)
    assert sys.stdout.buffer.getvalue() == said


@pytest.mark.slow
def test_generate_goes_on_where_the_terminal_has_ascii_only(tmp_path, monkeypatch):
    """Drawn bytes are rarely UTF-8: what stands for them is no ASCII."""
    few = ["--evaluation.documents", "1", "--evaluation.tokens", "16", "--evaluation.conditions", "carried"]
    main(["train", "infini", "python_stdlib", *TINY, *few, "--results", str(tmp_path)])
    shown = stream("ascii", "strict")
    monkeypatch.setattr(sys, "stdout", shown)
    main(["generate", str(tmp_path / "run"), "--prompt", "é", "--tokens", "100"])
    text = shown.buffer.getvalue()
    assert text.endswith(b"\n")
    assert len(text) > 100
    assert rb"\ufffd" in text
