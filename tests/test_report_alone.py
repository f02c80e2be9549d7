"""A report of runs that belong to no study: their rows, figures and settings, and how those ended that have no row."""

import dataclasses
import json

from infini_jax.config import RunConfig
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure, write_measures
from infini_jax.records.rows import write_rows
from infini_jax.report.found import StudySource, find
from tests.support.commands import told
from tests.support.made_results import row_of


def test_runs_of_no_study_are_found_with_figures_settings_and_ends(tmp_path):
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(RunConfig(name=name).to_dict()))
    rows = {}
    for number, name in enumerate(("first", "second")):
        rows[name] = dataclasses.replace(row_of("mqar", "infini", "delta", 4096, number), run=name)
        write_rows([rows[name]], tmp_path / name / "row.parquet")
    place = RunFolder(tmp_path / "first")
    write_measures("first", [Measure("mqar", "accuracy", 0.5, 10, labels={"length": 64.0})], place.measures_of("mqar"))
    (tmp_path / "third" / "error.json").write_text(json.dumps({"end": "diverged", "error": "it diverged"}))
    found = find([StudySource(tmp_path)])
    assert {row.run: row.loss for row in found.rows} == {name: row.loss for name, row in rows.items()}
    assert {row.study for row in found.rows} == {tmp_path.name}
    assert [(run, one.value) for run, one in found.measures] == [("first", 0.5)]
    assert [(one.run, one.error) for one in found.missing] == [("third", "it diverged")]
    assert found.configs["second"]["name"] == "second"
    assert found.commands["first"] == f"infini-jax train --config {tmp_path / 'first' / 'config.json'}"
    (alone,) = find([StudySource(tmp_path / "first")]).rows
    assert alone.run == "first"


def test_a_folder_without_a_finished_run_gets_one_line(tmp_path, capsys):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    assert told(capsys, ["report", str(tmp_path)], 2).startswith(f"folder: no finished run in {tmp_path}; ")
    assert told(capsys, ["report", str(tmp_path / "none")], 2).startswith(f"folder: {tmp_path / 'none'} holds no study")
