"""A mechanism that nobody knew: one file, one row in the registry, and the capacity study and its report have it."""

import pytest

from experiments import capacity_law
from infini_jax.errors import ConfigError
from infini_jax.memory import MECHANISMS, memory_of
from infini_jax.records.folder import MEASURES_FILE
from infini_jax.records.measures import read_measures
from infini_jax.report import StudySource, write_report
from infini_jax.study.study import Study, save_study, saved_study, write_tables
from infini_jax.study.workers import do
from tests.support import streams
from tests.support.registering import without_stream
from tests.test_capacity import Tally


@pytest.mark.slow
def test_a_mechanism_of_one_row_is_in_the_capacity_study_and_its_report(tmp_path, monkeypatch):
    monkeypatch.setitem(MECHANISMS, "tally", Tally)
    whole = capacity_law.study("smoke")
    assert {run.mechanism for run in whole.runs if run.task == "capacity"} == set(without_stream())
    few = tuple(run for run in whole.runs if run.mechanism in ("tally", "gated_delta"))
    study = Study(whole.name, whole.question, few, whole.held_equal)
    save_study(study, tmp_path)
    for run in few:  # in this process: the workers of a study would import a registry without it
        do(study.desk(tmp_path), run)
    write_tables(study, study.desk(tmp_path))
    restored, rows, failures = saved_study(tmp_path)
    assert (restored.runs, failures) == (few, [])
    (row,) = (row for row in rows if row.mechanism == "tally")
    assert row.memory_bytes == 12 * 8 * 4  # the most keys of float32 values of eight that fit into 400 bytes
    assert {one.metric for run, one in read_measures([tmp_path / MEASURES_FILE]) if run == row.run} >= {"accuracy", "nmse"}
    page = write_report([StudySource(tmp_path, study.question, {}, "a command")], tmp_path).read_text()
    assert Tally.summary in page
    assert page.count("tally") > 3


def test_two_rows_with_one_class_of_settings_are_refused_where_a_model_is_made(monkeypatch):
    """Settings name their mechanism by their class: of two rows the second would never run."""
    monkeypatch.setitem(MECHANISMS, "tally", Tally)
    memory_of(Tally.Config(), streams.tiny("local").dims)
    monkeypatch.setitem(MECHANISMS, "tally_again", type("TallyAgain", (Tally,), {}))
    with pytest.raises(ConfigError, match=r"^memory: TallyConfig is in 2 rows of the registry; give each"):
        memory_of(Tally.Config(), streams.tiny("local").dims)


def test_settings_of_no_row_are_refused():
    with pytest.raises(ConfigError, match=r"^memory: TallyConfig is in no row of the registry; add it to MECHANISMS$"):
        memory_of(Tally.Config(), streams.tiny("local").dims)
