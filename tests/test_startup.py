"""A wrong command line, or one that asks for help, is answered before anything heavy is imported."""

import dataclasses
import json
import subprocess
import sys

import pytest

from infini_jax import __version__
from infini_jax.cli.arguments import descriptions, parse
from infini_jax.cli.commands import COMMANDS, STORED, command
from infini_jax.cli.described import all_described
from infini_jax.cli.main import main
from infini_jax.cli.run_file import read_run_file
from infini_jax.config import Budget, EvaluationConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.memory.infini import InfiniConfig
from tests.support.commands import told

HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "numpy", "scipy", "pyarrow", "matplotlib", "tensorflow_datasets", "grain")
PROGRAM = """
import sys
from infini_jax.cli.main import main
for arguments in {calls!r}:
    try:
        main(arguments)
    except SystemExit:
        pass
print(sorted({{name.partition(".")[0] for name in sys.modules}} & set({heavy!r})), file=sys.stderr)
"""
CALLS = [
    ["--version"],
    ["--help"],
    ["--tyro-print-completion", "bash"],
    ["bogus"],
    *([name, "--help"] for name in COMMANDS),
    ["train", "--help-all"],
    ["train", "infini", "mqar", "--train.lr", "1"],
    ["train", "infini", "mqar", "--memory-bytes", "1e15"],
    ["train", "infni", "mqar"],
]
TINY = ["--model.layers", "1", "--model.d-model", "16", "--model.segment", "8", "--train.sequence", "24", "--data.pairs", "3"]


def test_stored_descriptions_are_those_of_the_commands():
    """A setting that changes shows in the diff. Remake: python -m configs."""
    assert json.loads(STORED.read_text()) == json.loads(json.dumps(all_described()))


def test_help_mistakes_and_completion_import_nothing_heavy():
    """By counting modules, in one process: a clock would measure the machine."""
    program = PROGRAM.format(calls=CALLS, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert f"infini-jax {__version__}" in done.stdout
    assert done.stdout.count("usage: ") == len(COMMANDS) + 2


def test_arguments_become_the_settings_that_the_classes_have_by_default():
    parsed = parse(["train", "infini", "mqar", "--train.batch", "2", "--memory.layers", "0", "1"], list(COMMANDS))
    options = parsed.options(command("train"))
    assert options["memory"] == InfiniConfig(layers=(0, 1))
    assert options["data"] == MqarConfig()
    assert options["train"] == dataclasses.replace(TrainConfig(), batch=2)
    assert (options["budget"], options["evaluation"]) == (Budget(), EvaluationConfig())


def test_a_command_without_arguments_has_its_defaults():
    assert vars(parse(["doctor"], list(COMMANDS)).values) == {"as_json": False}
    assert parse(["mechanisms"], list(COMMANDS)).values.context == 32_768


def test_the_help_of_train_fits_two_screens_and_help_all_has_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    texts = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main(["train", option])
        texts[option] = capsys.readouterr().out
    assert texts["--help"].count("\n") <= 2 * 50
    assert "infini-jax train --help-all" in texts["--help"]
    for field in dataclasses.fields(TrainConfig):
        assert f"--train.{field.name.replace('_', '-')}" in texts["--help-all"]


def test_every_option_of_every_command_is_described():
    def missing(fields, path):
        for one in fields:
            inner = one.get("group", {}).get("fields", [])
            groups = [inner, *(choice["fields"] for choice in one.get("choices", {}).values())]
            for group in groups:
                yield from missing(group, f"{path} {one['name']}")
            if not inner and not one["help"]:
                yield f"{path} {one['name']}"

    described = descriptions(list(COMMANDS))
    assert [name for command in described for name in missing(described[command]["fields"], command)] == []


def printed(capsys, *arguments: str) -> str:
    capsys.readouterr()
    main(["train", *arguments, "--print-config"])
    return capsys.readouterr().out


def test_a_run_from_a_file_is_the_run_of_its_options_and_options_take_precedence(capsys, tmp_path):
    file = tmp_path / "run.yaml"
    text = printed(capsys, "infini", "mqar", *TINY, "--memory.update", "delta", "--train.learning-rate", "3e-4")
    file.write_text(text)
    assert printed(capsys, "--config", str(file)) == text
    changed = printed(capsys, "--config", str(file), "--seed", "3", "--memory.update", "linear")
    assert changed == text.replace("seed: 0", "seed: 3", 1).replace("update: delta", "update: linear")
    other = printed(capsys, "full", "mqar", f"--config={file}")
    assert "kind: full" in other
    assert "learning_rate: 0.0003" in other
    plain = tmp_path / "config.json"
    plain.write_text(json.dumps(read_run_file(file)))
    assert printed(capsys, "--config", str(plain)) == text


def test_a_number_with_an_exponent_is_a_number_as_in_json(tmp_path):
    """YAML 1.1 takes 1e-3 for a text."""
    (tmp_path / "run.yaml").write_text("train: {learning_rate: 1e-3, clip: 2E+1, batch: 4}")
    assert read_run_file(tmp_path / "run.yaml") == {"train": {"learning_rate": 1e-3, "clip": 20.0, "batch": 4}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {lr: 3}", "train.lr: there is no such setting; did you mean 'learning_rate'?"),
        ("train: {learning_rate: fast}", "train.learning_rate: fast is not a number; give a number such as 0.5"),
        ("model: {memory: {kind: infini, slots: 3}}", "model.memory.slots: there is no such setting; choose one of"),
        ("model: {memory: {kind: infni}}", "model.memory.kind: 'infni' is not known; did you mean 'infini'?"),
        ("model: [1]", "model: [1] is not a table of settings"),
        ("[1]", "config: "),
        ("{", "config: "),
        ("seed: 1", "model.memory.kind: the file does not say; add it, or name one of"),
    ],
)
def test_a_file_that_is_wrong_gets_one_line(capsys, tmp_path, text, said):
    (tmp_path / "run.yaml").write_text(text)
    assert told(capsys, ["train", "--config", str(tmp_path / "run.yaml")], 2).startswith(said)


def test_the_vocabulary_is_that_of_the_data_where_none_is_given(capsys):
    assert "vocab: 256" in printed(capsys, "infini", "mqar", *TINY)
    assert "vocab: 1000" in printed(capsys, "infini", "mqar", *TINY, "--data.symbols", "1000")
    assert "vocab: 2000" in printed(capsys, "infini", "mqar", *TINY, "--model.vocab", "2000")


def test_a_study_that_is_none_and_a_folder_that_cannot_be_get_one_line(capsys, tmp_path):
    (tmp_path / "three.py").write_text("def study():\n    return 3\n")
    said = told(capsys, ["study", str(tmp_path / "three.py")], 2)
    assert said.endswith("returned int 3; return an infini_jax.study.study.Study")
    said = told(capsys, ["train", "infini", "mqar", *TINY, "--results", "/proc/x"], 2)
    assert said == "folder: /proc/x/run cannot be created (No such file or directory); give another folder"
