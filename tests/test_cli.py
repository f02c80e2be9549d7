"""The command line as a user types it."""

import functools
import itertools
import json
import re
import shlex
import subprocess
import sys

import pytest
import tyro
from tyro import extras

from infini_jax.cli import main as cli
from infini_jax.cli.corpus import ListCorpora, PrepareCorpus
from infini_jax.cli.main import main
from infini_jax.records.rows import read_rows
from infini_jax.units import human_bytes

TINY = [
    "--model.vocab",
    "32",
    "--model.layers",
    "1",
    "--model.d-model",
    "16",
    "--model.segment",
    "8",
    "--train.sequence",
    "24",
]
TRAIN = ["train", "infini", "mqar", *TINY, "--train.batch", "2", "--data.pairs", "3", "--data.symbols", "32"]

EXPERIMENT = '''
"""A tiny study."""
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.study.study import Study

def study():
    model = ModelConfig(vocab=32, layers=1, d_model=16, segment=8)
    run = RunConfig(name="one", model=model, data=MqarConfig(pairs=2, symbols=32),
                    train=TrainConfig(batch=2, sequence=16, evaluation_steps=1), budget=Budget("steps", 3))
    return Study("tiny", "does it run?", (run,))
'''


def fails(capsys, *arguments: str) -> str:
    """What a command prints that ends with code 2."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    out = capsys.readouterr()
    return out.out + out.err


def help_of(capsys, *command: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def commands_in(text: str) -> list[str]:
    """The names that a usage line offers."""
    return re.search(r"\{([a-z,_-]+)\}", text)[1].split(",")


def examples_in(documentation: str) -> list[list[str]]:
    """The commands between backticks in the paragraph of examples, as arguments."""
    paragraph = re.search(r"Examples?:(.*?)(\n\s*\n|\Z)", documentation, re.DOTALL)[1]
    return [shlex.split(found)[1:] for found in re.findall(r"`(infini-jax [^`]+)`", " ".join(paragraph.split()))]


def next_steps() -> list[list[str]]:
    """The commands that `infini-jax` alone names, as arguments."""
    return [shlex.split(found) for found in re.findall(r"^  infini-jax (.+?)  ", cli.WHAT_NEXT, re.MULTILINE)]


def test_every_command_has_an_example_in_its_help(capsys):
    names = [[name] for name in commands_in(help_of(capsys))]
    assert len(names) >= 11
    for command in [*names, ["corpus", "prepare"], ["corpus", "list"]]:
        assert re.search(r"Examples?:", help_of(capsys, *command)), command
    assert "--memory.update" in help_of(capsys, "train", "infini", "mqar")


def test_every_example_can_be_parsed(capsys):
    """With the commands' own settings, but nothing is done."""
    names = commands_in(help_of(capsys))
    functions = [cli.command(name) for name in names]
    parsed = {name: functools.wraps(function)(lambda *_, **__: None) for name, function in zip(names, functions, strict=True)}
    examples = [examples_in(owner.__doc__) for owner in (*functions, PrepareCorpus, ListCorpora)]
    assert all(examples)
    for example in (*itertools.chain(*examples), *next_steps()):
        extras.subcommand_cli_from_dict(parsed, args=example, config=(tyro.conf.CascadeSubcommandArgs,))


def test_without_a_command_it_says_what_to_do_next(capsys):
    main([])
    text = capsys.readouterr().out
    assert text == cli.WHAT_NEXT + "\n"
    assert 4 <= len(next_steps()) <= 5
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (["train", "infini", "mqar", "--memory.updat", "delta"], "--memory.update"),
        (["train", "infini", "mqar", "--train.bacth", "4"], "--train.batch"),
        (["study", "quick", "--job", "2"], "--jobs"),
        (["study", "quik"], "did you mean 'quick'?"),
        (["train", "infni", "mqar"], "memory: 'infni' is not known; did you mean 'infini'?"),
        (["train", "infini", "needle"], "data: 'needle' is not known; did you mean 'haystack'?"),
        (["train", "infini", "mqar", "--train.lr", "1"], "did you mean --train.learning-rate?"),
        (["train", "infini", "mqar", "--memory.update", "dleta"], "did you mean 'delta'?"),
        (["trian"], "command: 'trian' is not known; did you mean 'train'?"),
        (["eval"], "did you mean 'evaluate'?"),
    ],
)
def test_a_typo_is_refused_with_a_suggestion(arguments, suggested, capsys):
    assert suggested in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--model.segment", "48"], "model.segment: 48 tokens are longer than the sequence of 24"),
        (["--model.heads", "3"], "model.heads: 3 heads do not divide d_model 16"),
        (["--budget.amount", "-1"], "budget.amount: -1 steps is not a budget"),
        (["--memory-bytes", "100"], "memory bytes: 100 per layer are too few: Infini needs at least"),
        (
            ["--memory-bytes", "9999", "--memory-axis", "slots"],
            "memory axis: Infini does not grow along 'slots'; choose key_dim or value_dim or heads or feature_map",
        ),
        (["--memory-axis", "heads"], "memory axis: nothing says how far to grow; give --memory-bytes, too"),
        (["--train.bptt", "99"], "train.bptt: 99 segments are more than the 3 of train.sequence; give at most 3"),
        (["--train.learning-rate", "-1"], "train.learning_rate: -1.0 is not positive; give a positive number, such as 0.001"),
        (["--train.learning-rate", "nan"], "train.learning_rate: nan is not finite; give a finite number"),
        (["--memory-bytes", "1e15"], "--memory-bytes: '1e15' is not a whole number; give digits, such as 4096"),
        (["--data.pairs", "9"], "train.sequence: 24 tokens do not hold 9 pairs"),
    ],
)
def test_impossible_values_get_one_line_before_anything_runs(change, said, capsys, tmp_path):
    text = fails(capsys, *TRAIN, *change, "--results", str(tmp_path))
    assert f"infini-jax: {said}" in text
    assert text.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_train_leaves_a_row_and_shows_it(capsys, tmp_path):
    main([*TRAIN, "--budget.amount", "3", "--memory.update", "delta", "--results", str(tmp_path), "--name", "mine"])
    (row,) = read_rows(tmp_path / "mine" / "row.parquet")
    assert (row.run, row.steps, row.mechanism) == ("mine", 3, "infini")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["model"]["memory"]["update"] == "delta"
    text = capsys.readouterr().out
    parts = ("held-out loss", f"{row.loss:.4f} nats/token", "tokens/s", str(tmp_path / "mine"))
    assert all(part in text for part in parts)
    assert f"next: infini-jax evaluate {tmp_path / 'mine'} --task mqar" in text


def test_mechanisms_lists_all_of_them_in_80_columns(capsys):
    from infini_jax.memory import MECHANISMS

    main(["mechanisms", "--memory-bytes", "262144"])
    text = capsys.readouterr().out
    assert all(name in text for name in MECHANISMS)
    assert max(map(len, text.splitlines())) <= 80


def test_mechanisms_tells_the_bytes_of_documents_by_their_length_where_they_grow(capsys):
    """By tokens, by their logarithm and by segments, two layers of heads of 16: keys and values, matrices, states."""
    main(["mechanisms", "--model.segment", "256", "--model.d-model", "32", "--model.heads", "2", "--model.layers", "2"])
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    found = {name.strip(): [cell.strip() for cell in cells] for _, name, *cells, _ in (row for row in rows if len(row) == 6)}
    key, matrix, token = 2 * 2 * 16 * 4, 2 * 2 * 16 * 16 * 4, 2 * 2 * 2 * 16 * 4
    assert {name: found[name] for name in ("full", "log_linear", "memory_caching")} == {
        "full": [human_bytes(tokens * token + 8) for tokens in (2**12, 2**16, 2**20)],
        "log_linear": [human_bytes(levels * matrix + 8) for levels in (12, 16, 20)],
        "memory_caching": [human_bytes(matrix + states * (matrix + key) + 8) for states in (16, 256, 4096)],
    }
    assert "infini" not in found


def test_mechanisms_lists_those_that_grow_along_an_axis(capsys):
    main(["mechanisms", "--memory-bytes", "262144", "--memory-axis", "heads"])
    text = capsys.readouterr().out
    assert "infini" in text
    assert "gated_delta" in text
    assert "landmark" not in text
    assert "no mechanism grows along 'head'; did you mean 'heads'?" in fails(
        capsys, "mechanisms", "--memory-bytes", "262144", "--memory-axis", "head"
    )


@pytest.mark.slow
def test_a_study_from_a_file_ends_in_a_report(tmp_path):
    """In a process of its own, as a user calls it: workers are spawned from the command."""
    file = tmp_path / "tiny.py"
    file.write_text(EXPERIMENT)
    command = [sys.executable, "-m", "infini_jax", "study", str(file), "--results", str(tmp_path), "--jobs", "1"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "tiny" / "report.html").read_text().count("<html") == 1
    assert "report.html" in first.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "infini" in again.stdout
