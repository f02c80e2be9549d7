"""JSON is JSON: a number that is not finite is null wherever this package writes, and NaN again where it reads."""

import ast
import json
import math

import numpy as np
import pytest

from infini_jax.cli.output import print_json
from infini_jax.files import json_text, json_value, with_nan, write_json
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure
from infini_jax.records.training_log import newest_line, read_metrics
from infini_jax.results.load import load
from infini_jax.training.checkpoint import Checkpoints, Progress
from infini_jax.training.notes import checked_notes, progress_in, sealed
from tests.support import sources
from tests.test_checkpoint import RUN, numbered, restored

LINE = {"step": 3, "loss": 2.5, "gradient_norm": math.inf, "accuracy": math.nan, "mfu": -math.inf}


def strict(text: str):
    """The value of JSON, by a reader that takes nothing else."""

    def refuse(word: str):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_become_null_wherever_they_stand():
    value = {"a": [1.5, math.nan, (math.inf, [-math.inf])], "b": {"c": np.float64("nan"), "d": True, "e": "NaN", "f": 3}}
    assert strict(json_text(value)) == {"a": [1.5, None, [None, [None]]], "b": {"c": None, "d": True, "e": "NaN", "f": 3}}


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"sort_keys": True}])
def test_finite_values_are_written_as_before(layout):
    value = {"b": [1, 2.5e-7, "ä", None], "a": {"z": (1, 2), "y": True}}
    assert json_text(value, **layout) == json.dumps(value, **layout)


def test_a_log_with_numbers_that_are_not_finite_is_json_and_read_as_nan(tmp_path):
    log = RunFolder(tmp_path).metrics
    log.write_text(json_text(LINE) + "\n")
    assert strict(log.read_text()) == {"step": 3, "loss": 2.5, "gradient_norm": None, "accuracy": None, "mfu": None}
    for found in (newest_line(log), *read_metrics(log)):
        assert (found["step"], found["loss"]) == (3, 2.5)
        assert all(math.isnan(found[name]) for name in ("gradient_norm", "accuracy", "mfu"))
    write_json(RUN.to_dict(), RunFolder(tmp_path).config)
    curves = load(tmp_path, "polars").curves
    values = dict(zip(curves["metric"], curves["value"], strict=True))
    assert values["loss"] == 2.5
    assert all(math.isnan(values[name]) for name in ("gradient_norm", "accuracy", "mfu"))


def test_logs_of_earlier_versions_with_words_of_their_own_are_read(tmp_path):
    log = RunFolder(tmp_path).metrics
    log.write_text('{"step": 1, "gradient_norm": Infinity, "loss": NaN}\n')
    (found,) = read_metrics(log)
    assert found["gradient_norm"] == math.inf
    assert math.isnan(found["loss"])


def test_the_last_line_in_a_checkpoint_is_json_and_comes_back(tmp_path):
    notes = json_value(json_text(sealed(RUN, Progress(3, last=LINE), {})))
    assert strict(json.dumps(notes))["last"]["gradient_norm"] is None
    assert math.isnan(progress_in(checked_notes(notes, 3)).last["gradient_norm"])
    with Checkpoints(RUN, tmp_path) as checkpoints:
        checkpoints.save(Progress(3, last=LINE), *numbered(3))
    found = restored(tmp_path)[0].last
    assert found["loss"] == 2.5
    assert math.isnan(found["gradient_norm"])


def test_figures_without_an_interval_are_printed_as_null(capsys):
    print_json({"measures": [vars(Measure("x", "y", 1.0, 1))]})
    assert strict(capsys.readouterr().out)["measures"][0]["low"] is None


def test_null_is_nan_among_numbers():
    found = with_nan({"a": None, "b": 1.0})
    assert math.isnan(found["a"])
    assert found["b"] == 1.0


def test_nothing_but_one_function_makes_json():
    """`json.dumps` has words that no JSON has; it is called in infini_jax/files.py alone."""
    calls = [
        place
        for place, node in sources.nodes()
        if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps") and isinstance(node.value, ast.Name)
        if node.value.id != "marshal"  # a key of values in memory, no text that anybody reads
    ]
    assert {place.split(":")[0] for place in calls} == {"infini_jax/files.py"}
