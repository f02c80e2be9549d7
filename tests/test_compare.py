"""Two runs side by side: what differs in their settings, their results, and their logs at a step that both have."""

import dataclasses
import json
from pathlib import Path

import pytest

from infini_jax.cli.compare import compared, difference
from infini_jax.cli.main import main
from infini_jax.config import RunConfig
from infini_jax.records.rows import Row, write_rows
from tests.support.commands import told
from tests.support.made_results import config_of, row_of


def write_run(folder: Path, config: RunConfig, lines: list[dict], row: Row | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if row is not None:
        write_rows([row], folder / "row.parquet")
    return folder


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    """The first is finished and logged 30 steps; the second 20, with another rate and seed."""
    row = row_of("mqar", "infini", "delta", 4096, 0)
    config = config_of(row)
    train = dataclasses.replace(config.train, learning_rate=0.5)
    lines = [{"step": step, "tokens": 64 * step, "loss": 4.0 - step / 10} for step in (10, 20, 30)]
    validated = {"step": 20, "tokens": 1280, "validation_loss": 2.5}
    return (
        write_run(tmp_path / "first", config, [*lines[:2], validated, lines[2]], row),
        write_run(
            tmp_path / "second", dataclasses.replace(config, seed=7, train=train), [line | {"loss": 1.0} for line in lines[:2]]
        ),
    )


def test_only_settings_that_differ_are_named(runs):
    found = compared(*runs)
    rate = json.loads((runs[0] / "config.json").read_text())["train"]["learning_rate"]
    assert found.settings == {"seed": (0, 7), "train.learning_rate": (rate, 0.5)}


def test_logs_are_compared_at_the_last_step_of_both(runs):
    found = compared(*runs)
    assert found.step == 20
    assert found.log == {"tokens": (1280, 1280), "loss": (2.0, 1.0), "validation_loss": (2.5, None)}


def test_results_are_there_for_the_run_that_is_finished(runs):
    loss = row_of("mqar", "infini", "delta", 4096, 0).loss
    assert compared(*runs).results["loss"] == (loss, None)
    assert compared(*runs[::-1]).results["loss"] == (None, loss)


def test_tables_and_json_say_the_same(runs, capsys):
    main(["compare", *map(str, runs)])
    text = capsys.readouterr().out
    assert "train.learning_rate" in text
    assert "-1 (-50.0 %)" in text  # the loss
    main(["compare", *map(str, runs), "--json"])
    plain = json.loads(capsys.readouterr().out)
    assert plain["runs"] == [str(run) for run in runs]
    assert plain["log"]["loss"] == [2.0, 1.0]


def test_a_run_is_the_same_as_itself(runs, capsys):
    main(["compare", str(runs[0]), str(runs[0])])
    assert "the settings are the same" in capsys.readouterr().out


def test_what_is_no_run_gets_one_line(runs, tmp_path, capsys):
    assert told(capsys, ["compare", str(runs[0]), str(tmp_path / "none")], 2).startswith(
        f"run: {tmp_path / 'none'} is not a folder"
    )
    assert f"run: {tmp_path} has no config.json" in told(capsys, ["compare", str(runs[0]), str(tmp_path)], 2)
    (runs[1] / "config.json").write_text("[1")
    assert "config.json cannot be read" in told(capsys, ["compare", *map(str, runs)], 2)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [(2.0, 1.0, "-1 (-50.0 %)"), (-2.0, 1.0, "+3 (+150.0 %)"), (0.0, 1.5, "+1.5"), (3, 3, ""), (None, 1.0, "")],
)
def test_a_difference_has_its_sign_and_its_share_of_the_first(first, second, said):
    assert difference(first, second) == said
