"""Damaged small files: each is one line with the file and the mend, or it counts as missing and is made again."""

import dataclasses
import json
import logging
import os

import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.errors import ConfigError
from infini_jax.files import to_disk, write_at_once
from infini_jax.records.folder import StudyFolder
from infini_jax.records.measures import Measure, read_measures, write_measures
from infini_jax.records.parquet import MARK, holds_what_was_written
from infini_jax.records.rows import SCHEMA, is_whole, read_rows, write_rows
from infini_jax.records.training_log import newest_line, read_metrics
from infini_jax.report.found import StudySource, find
from infini_jax.results.load import load
from infini_jax.study.desk import Desk
from infini_jax.study.launch import slurm
from infini_jax.study.study import Study, cut_short, missing_of, save_study, saved_study, write_tables
from infini_jax.training.execute import metrics_after
from infini_jax.training.mirrors import identity
from infini_jax.training.timed_budget import kept_steps
from infini_jax.training.trained import saved_config
from tests.support.commands import told
from tests.support.made_results import row_of
from tests.test_watch import run_of

GARBAGE = (b"", b"{", b"[]", b"null", b"\0\0\0", b"\xff\xfe{}", b'"text"', b"[" * 100_000)
garbage = pytest.mark.parametrize("content", GARBAGE, ids=lambda content: repr(content[:8]))
RUNS = tuple(run_of(name) for name in ("one", "two"))


@pytest.fixture
def study(tmp_path):
    """The folder of a study of two finished runs, made without training."""
    folder = tmp_path / "tiny"
    study = Study("tiny", "is it whole?", RUNS)
    save_study(study, folder)
    for run in RUNS:
        place = StudyFolder(folder).run(run.name)
        place.write_config(run.to_dict())
        place.metrics.write_text('{"step": 1, "tokens": 64, "loss": 2.5}\n')
        row = row_of("mqar", "infini", "delta", 4096, 0)
        write_rows([dataclasses.replace(row, run=run.name, fingerprint=run.fingerprint())], place.row)
    write_tables(study, study.desk(folder))
    return folder


def flipped_inside(file) -> None:
    """A bit of the file's middle; its begin and end stay as the format wants them."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert content[:4] == content[-4:] == b"PAR1"


def refused(call, *arguments) -> str:
    with pytest.raises(ConfigError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@garbage
def test_study_json_is_one_line_that_says_what_makes_it_again(study, content, capsys):
    file = StudyFolder(study).study
    file.write_bytes(content)
    for arguments in (["report", str(study)], ["watch", str(study), "--once"], ["study", str(study)]):
        line = told(capsys, arguments, 2)
        assert line.startswith(f"study: {file} is damaged (")
        assert line.endswith("; make it again with the command of the study, such as `infini-jax study tiny`, or restore it")


@pytest.mark.parametrize(
    "change", [{"runs": 5}, {"runs": [7]}, {"held_equal": 3}, {"own_code": 1}, {"name": None, "runs": None}]
)
def test_study_json_of_other_values_is_the_same_line(study, change):
    file = StudyFolder(study).study
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert refused(saved_study, study).startswith((f"study: {file} is damaged (", "run"))


@garbage
def test_failed_json_counts_as_missing(study, content):
    StudyFolder(study).failed.write_bytes(content)
    assert saved_study(study)[2] == []
    assert len(find([StudySource(study)]).rows) == 2
    main(["watch", str(study), "--once"])


@garbage
def test_error_json_and_the_lock_count_as_missing(study, content):
    desk = Desk(study, "tiny")
    desk.fail(RUNS[0], "it broke")
    assert desk.error(RUNS[0]) == "it broke"
    desk.of(RUNS[0]).error.write_bytes(content)
    assert desk.error(RUNS[0]) is None
    desk.of(RUNS[0]).lock.write_bytes(content)
    assert desk.claimed_by(RUNS[0]) is None
    main(["watch", str(study), "--once"])


def test_a_flipped_row_counts_as_missing_for_a_study_and_is_made_again(study, capsys):
    bad = StudyFolder(study).run("one").row
    flipped_inside(bad)
    asked, rows, _ = saved_study(study)
    assert [row.run for row in rows] == ["two"]
    assert [run.name for run in missing_of(asked, study)] == ["one"]
    assert cut_short(asked, study) == [bad]
    main(["watch", str(study), "--once"])
    assert "1 finished" in capsys.readouterr().out
    main(["report", str(study)])
    assert [row.run for row in read_rows(StudyFolder(study).table)] == ["two"]


def test_a_flipped_row_counts_as_missing_for_load_with_a_warning(study, caplog):
    StudyFolder(study).table.unlink()
    bad = StudyFolder(study).run("one").row
    flipped_inside(bad)
    found = load(study)
    assert list(found.runs.run) == ["two"]
    assert set(found.curves.run) == {"one", "two"}
    assert f"{bad} is damaged and left out" in caplog.text
    assert load(bad.parent).runs.empty


def test_a_flipped_table_of_a_study_is_one_line_and_the_report_makes_it_again(study):
    table = StudyFolder(study).table
    whole = read_rows(table)
    flipped_inside(table)
    assert refused(load, study).startswith(f"path: {table} is damaged or no Parquet; make it again with")
    assert refused(find, [StudySource(study)]).startswith(f"study: {table} is damaged or no Parquet; make it again with")
    main(["report", str(study)])
    assert read_rows(table) == whole


def test_no_flipped_bit_of_a_row_is_read_as_another_row(tmp_path):
    """A bit of every seventh byte; what is accepted was flipped in the digest's own name, and holds the same values."""
    file, row = tmp_path / "row.parquet", row_of("mqar", "infini", "delta", 4096, 0)
    write_rows([row], file)
    whole, random, accepted = file.read_bytes(), np.random.default_rng(0), 0
    for place in range(3, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        file.write_bytes(flipped)
        if is_whole(file):
            assert read_rows(file) == [row]
            accepted += 1
    assert accepted <= len(MARK)


def test_a_table_without_a_digest_is_read_if_it_can_be_decoded(tmp_path):
    """As earlier versions wrote them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, row = tmp_path / "row.parquet", row_of("mqar", "infini", "delta", 4096, 0)
    pq.write_table(pa.Table.from_pylist([dataclasses.asdict(row)], schema=SCHEMA), file)
    assert read_rows(file) == [row]
    assert is_whole(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + bytes(400) + whole[404:])
    assert not is_whole(file)


def test_figures_tell_that_they_were_altered(tmp_path):
    file = tmp_path / "measures" / "a.parquet"
    write_measures("a", [Measure("x", "y", 1.0, 1, labels={"length": 8})], file)
    assert read_measures([file])[0][1].labels == {"length": 8}
    assert holds_what_was_written(file)
    flipped_inside(file)
    assert not is_whole(file)


@garbage
def test_a_damaged_line_of_the_log_is_one_line_or_left_out(study, content, caplog):
    log = StudyFolder(study).run("one").metrics
    kept = b'{"step": 1, "loss": 2.5}\n'
    log.write_bytes(kept + content + b"\n" + b'{"step": 2, "loss": 2.0}\n')
    assert newest_line(log) == {"step": 2, "loss": 2.0}
    said = f"metrics: line 2 of {log} is damaged; take the line out, or train the run again"
    assert refused(read_metrics, log) == said
    assert refused(load, study) == said
    assert refused(find, [StudySource(study)]) == said
    main(["watch", str(study), "--once"])
    with caplog.at_level(logging.WARNING), metrics_after(log, 2):
        pass
    assert log.read_bytes() == kept + b'{"step": 2, "loss": 2.0}\n'
    assert f"metrics: line 2 of {log} is damaged and left out" in caplog.text
    log.write_bytes(kept + content + b"\n")
    assert newest_line(log) == {}
    main(["watch", str(study), "--once"])


@garbage
def test_config_json_is_one_line_or_as_if_it_were_lost(study, content, capsys):
    run = StudyFolder(study).run("one")
    run.config.write_bytes(content)
    assert refused(saved_config, run.path).startswith(f"run: {run.config} cannot be read (")
    assert "config.json" in told(capsys, ["plan", str(run.config)], 2)
    assert "config.json" in told(capsys, ["compare", str(run.path), str(run.path)], 2)
    assert refused(load, study).startswith(f"path: {run.config} is damaged (")
    assert [*find([StudySource(study)]).configs] == ["two"]
    assert kept_steps(RUNS[0], run.path) == 0
    run.checkpoints.mkdir()
    (run.checkpoints / "10").mkdir()
    assert refused(kept_steps, RUNS[0], run.path).startswith(
        f"run: {run.config} is damaged, and the steps that its seconds buy"
    )


@garbage
def test_the_id_in_trackers_is_made_again_and_the_note_of_an_array_is_one_line(tmp_path, content):
    (tmp_path / "mirrors.json").write_bytes(content)
    made = identity(tmp_path, RUNS[0])
    assert identity(tmp_path, RUNS[0]) == made
    file = tmp_path / slurm.JOBS_FILE
    file.write_bytes(content)
    assert refused(slurm.noted, tmp_path).startswith(f"launch: {file} is damaged")


def test_what_is_written_at_once_is_on_the_disk_before_and_after_it_has_its_name(tmp_path, monkeypatch):
    """The file first, then its name, then the folder that holds the name."""
    seen, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(os.readlink(f"/proc/self/fd/{number}")), fsync(number)))
    write_at_once("text", tmp_path / "a.json")
    (partial, folder) = seen
    assert partial.startswith(str(tmp_path / ".a.json."))
    assert partial.endswith(".partial")
    assert folder == str(tmp_path)
    assert (tmp_path / "a.json").read_text() == "text"
    to_disk(tmp_path)
