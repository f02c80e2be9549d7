"""Experiments with scales, and what a dry run prints."""

import pytest

from infini_jax.cli.main import main
from infini_jax.errors import ConfigError
from infini_jax.study.experiment import load_experiment
from tests.test_cli import EXPERIMENT, fails

SCALED = EXPERIMENT.replace("def study():", "def study(scale: str):").replace(
    'Budget("steps", 3)', 'Budget("steps", {"smoke": 3, "cpu": 30, "accelerator": 300}[scale])'
)


@pytest.fixture
def scaled(tmp_path) -> str:
    file = tmp_path / "scaled.py"
    file.write_text(SCALED)
    return str(file)


def test_a_scale_sets_the_study_and_its_folder(scaled):
    study = load_experiment(scaled, "cpu")
    assert (study.name, study.scale, study.label) == ("tiny", "cpu", "tiny-cpu")
    assert study.runs[0].budget.amount == 30
    assert study.command == "infini-jax study tiny --scale cpu"


@pytest.mark.parametrize(
    ("scale", "said"), [("", "has several; give --scale smoke, cpu or accelerator"), ("cup", "'cup' is none; give --scale")]
)
def test_a_scale_must_be_named_and_known(scaled, scale, said):
    with pytest.raises(ConfigError, match=f"^scale: .*{said}") as error:
        load_experiment(scaled, scale)
    assert "\n" not in str(error.value)


def test_an_experiment_without_scales_takes_none():
    assert load_experiment("quick").label == "quick"
    with pytest.raises(ConfigError, match=r"^scale: 'quick' has one scale only; leave --scale out"):
        load_experiment("quick", "cpu")


def test_an_experiment_may_have_settings_whose_annotations_are_strings(tmp_path):
    file = tmp_path / "mine.py"
    settings = "import dataclasses\n\n@dataclasses.dataclass(frozen=True)\nclass Mine:\n    steps: int = 3\n"
    file.write_text(f"from __future__ import annotations\n{settings}{EXPERIMENT.split(chr(34) * 3)[2]}")
    assert load_experiment(str(file)).name == "tiny"


def test_a_misspelt_experiment_is_told_the_nearest():
    with pytest.raises(ConfigError, match=r"^experiment: 'quik' is not known; did you mean 'quick'\?"):
        load_experiment("quik")


def test_a_dry_run_says_what_would_be_done_and_does_nothing(scaled, tmp_path, capsys):
    main(["study", scaled, "--scale", "smoke", "--dry-run", "--results", str(tmp_path / "results")])
    text = capsys.readouterr().out
    assert "tiny-smoke" in text
    assert " 96 " in text  # tokens: three steps of two rows of 16
    assert not (tmp_path / "results").exists()
    assert "scale: 'fast' is none" in fails(capsys, "study", scaled, "--scale", "fast", "--dry-run")
