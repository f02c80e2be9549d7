"""A desk of many finished runs: each file is read once, what has not changed is remembered, and no step is quadratic."""

import contextlib
import dataclasses
import io
import json
import os
import stat
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.table import Table

from infini_jax.cli.main import main
from infini_jax.cli.output import MANY, plain_lines, print_table, terminal
from infini_jax.cli.watch import all_seen, watchlist_of
from infini_jax.errors import ConfigError
from infini_jax.records import inventory
from infini_jax.records.folder import REMEMBERED_FILE, StudyFolder
from infini_jax.records.inventory import RECENT, looked_at
from infini_jax.records.measures import Measure, write_measures
from infini_jax.records.rows import read_rows, write_rows
from infini_jax.report.found import StudySource, find
from infini_jax.results.load import load
from infini_jax.study.study import Study, missing_of, save_study, study_in, write_tables
from tests.support.made_results import row_of
from tests.test_watch import LINE, run_of

HOUR = 3600


def filled(folder: Path, count: int) -> Path:
    """The folder of a study of `count` finished runs, whose files are an hour old; nothing is trained."""
    study = Study("many", "how long does it take?", tuple(run_of(f"run-{number:03}") for number in range(count)))
    save_study(study, folder)
    for number, run in enumerate(study.runs):
        place = StudyFolder(folder).run(run.name)
        place.write_config(run.to_dict())
        place.metrics.write_text("".join(json.dumps(LINE | {"step": step}) + "\n" for step in (25, 50)))
        write_measures(run.name, [Measure("x", "y", float(number), 1, labels={"length": 8})], place.measures_of("own"))
        row = row_of("mqar", "infini", "delta", 4096, number % 2)
        write_rows([dataclasses.replace(row, run=run.name, seed=number, fingerprint=run.fingerprint())], place.row)
    return folder


@pytest.fixture
def an_hour_later(monkeypatch):
    """The clock of passes, by which all files are old enough to be remembered."""
    now = time.time_ns
    monkeypatch.setattr(inventory.time, "time_ns", lambda: now() + HOUR * 1_000_000_000)


@contextlib.contextmanager
def opened(folder: Path):
    """A context with the files below a folder that are opened in it, by name, and how often; whoever opens them, but Arrow."""
    found: Counter[str] = Counter()
    is_on = [True]

    def note(event: str, arguments: tuple) -> None:
        if is_on and event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(str(folder)):
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.stat(arguments[0]).st_mode):
                    found[os.path.basename(arguments[0])] += 1

    sys.addaudithook(note)
    try:
        yield found
    finally:
        is_on.clear()


def calls_of(function) -> int:
    """The number of Python functions called."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def quiet(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        main([*arguments])


def is_made(folder: Path) -> bool:
    return (StudyFolder(folder).all_runs / REMEMBERED_FILE).exists()


def test_every_file_of_a_run_is_opened_once_and_then_only_what_is_remembered(tmp_path, an_hour_later):
    folder = filled(tmp_path / "many", 4)
    runs = StudyFolder(folder).all_runs
    with opened(runs) as first:
        load(runs)
    assert {name: first[name] for name in ("row.parquet", "own.parquet", "metrics.jsonl", "config.json")} == {
        "row.parquet": 4,
        "own.parquet": 4,
        "metrics.jsonl": 4,
        "config.json": 4,
    }
    with opened(runs) as later:
        load(runs)
        load(folder)
        all_seen(watchlist_of(folder).runs)
        missing_of(study_in(folder), folder)
        with study_in(folder).desk(folder).looked_at() as desk:
            write_tables(study_in(folder), desk)
    assert set(later) == {REMEMBERED_FILE}


def test_what_is_remembered_gives_the_same_tables(tmp_path, an_hour_later):
    folder = filled(tmp_path / "many", 3)
    runs = StudyFolder(folder).all_runs
    first, later = load(runs), load(runs)
    assert is_made(folder)
    for name in ("runs", "curves", "measures"):
        assert getattr(first, name).equals(getattr(later, name))
    (runs / REMEMBERED_FILE).unlink()
    assert load(runs).runs.equals(first.runs)


def test_a_log_that_grew_has_its_new_lines_and_a_damaged_one_is_told_by_every_pass(tmp_path, an_hour_later):
    folder = filled(tmp_path / "many", 2)
    runs, log = StudyFolder(folder).all_runs, StudyFolder(folder).run("run-001").metrics
    assert list(load(runs).curves.query("run == 'run-001'").step.unique()) == [25, 50]
    log.write_text(log.read_text() + json.dumps(LINE | {"step": 75}) + "\n")
    for _ in range(2):
        assert list(load(runs).curves.query("run == 'run-001'").step.unique()) == [25, 50, 75]
        assert list(load(folder).curves.query("run == 'run-000'").step.unique()) == [25, 50]
    for damaged in ('{"step": 100', '{"step": 1e3, "loss": 1}', '{"step": 100, "loss": "low"}', f'{{"step": {10**30}}}'):
        log.write_text(json.dumps(LINE | {"step": 75}) + "\n" + damaged + "\n")
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"^metrics: line 2 of {log} is damaged; take the line out"):
                load(runs)


def test_a_changed_bit_is_found_though_size_and_time_of_change_are_as_before(tmp_path, an_hour_later):
    """The system's own time of the entry's last change cannot be set back."""
    folder = filled(tmp_path / "many", 2)
    file = StudyFolder(folder).run("run-001").row
    with looked_at(StudyFolder(folder).all_runs) as found:
        assert found.is_whole(file)
    before, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with looked_at(StudyFolder(folder).all_runs) as found:
        assert not found.is_whole(file)
        assert found.table(file) is None
        assert found.table(StudyFolder(folder).run("run-000").row) is not None
    assert [run.name for run in missing_of(study_in(folder), folder)] == ["run-001"]


def test_a_file_that_changed_just_now_is_read_by_every_pass(tmp_path, monkeypatch):
    folder = filled(tmp_path / "many", 2)
    runs = StudyFolder(folder).all_runs
    load(runs)
    with opened(runs) as later:
        load(runs)
    assert later["row.parquet"] == later["metrics.jsonl"] == 2
    newest = max(file.stat().st_ctime_ns for file in runs.glob("*/*"))
    monkeypatch.setattr(inventory.time, "time_ns", lambda: newest + RECENT + 1)
    load(runs)
    with opened(runs) as later:
        load(runs)
    assert set(later) == {REMEMBERED_FILE}


def test_a_row_of_a_study_in_progress_is_there_at_once(tmp_path, an_hour_later):
    folder = filled(tmp_path / "many", 3)
    place = StudyFolder(folder).run("run-001")
    content = place.row.read_bytes()
    place.row.unlink()
    assert [run.name for run in missing_of(study_in(folder), folder)] == ["run-001"]
    assert len(load(folder).runs) == 2
    place.row.write_bytes(content)
    assert missing_of(study_in(folder), folder) == ()
    assert len(load(folder).runs) == 3


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None], ids=["empty", "cut", "flipped"])
def test_what_is_remembered_is_ignored_where_it_is_damaged(tmp_path, an_hour_later, content):
    folder = filled(tmp_path / "many", 2)
    runs = StudyFolder(folder).all_runs
    first, file = load(runs), runs / REMEMBERED_FILE
    flipped = bytearray(file.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    file.write_bytes(flipped if content is None else content)
    assert load(runs).runs.equals(first.runs)


def test_what_is_remembered_is_ignored_where_it_is_of_another_version(tmp_path, an_hour_later):
    folder = filled(tmp_path / "many", 2)
    runs = StudyFolder(folder).all_runs
    first = load(runs)
    write_rows(read_rows(StudyFolder(folder).run("run-000").row), runs / REMEMBERED_FILE)
    assert load(runs).runs.equals(first.runs)


def test_a_folder_that_cannot_be_written_to_is_read_without(tmp_path, an_hour_later, monkeypatch):
    folder = filled(tmp_path / "many", 2)

    def refused(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(inventory, "write_table", refused)
    assert len(load(folder).runs) == 2
    assert not is_made(folder)


def test_runs_that_are_gone_are_forgotten(tmp_path, an_hour_later):
    folder = filled(tmp_path / "many", 2)
    runs = StudyFolder(folder).all_runs
    load(runs)
    gone = StudyFolder(folder).run("run-001")
    gone.row.unlink()
    gone.config.unlink()
    assert list(load(runs).runs.run) == ["run-000"]


def test_calls_grow_as_the_number_of_runs(tmp_path, an_hour_later):
    """Twice the runs are at most twice the calls of each path, and what does not depend on them."""
    counts: dict[str, list[int]] = {}
    for count in (4, 8, 16):
        folder = filled(tmp_path / str(count), count)
        study = study_in(folder)
        write_tables(study, study.desk(folder))
        paths = {
            "dry run": lambda folder=folder: quiet("study", str(folder), "--dry-run", "--jobs", "2"),
            "watch": lambda folder=folder: quiet("watch", str(folder), "--once"),
            "load": lambda folder=folder: load(folder / "runs"),
            "missing": lambda study=study, folder=folder: missing_of(study, folder),
            "find": lambda folder=folder: find([StudySource(folder)]),
        }
        for name, path in paths.items():
            path()
            counts.setdefault(name, []).append(calls_of(path))
    for name, (few, more, most) in counts.items():
        assert most - more <= 2.1 * (more - few), name


def test_a_table_of_many_rows_has_a_line_for_each_and_one_of_few_its_frame(capsys):
    few, many = (Table(title="runs", show_footer=True, caption="all of them") for _ in range(2))
    for table, count in ((few, 2), (many, MANY + 1)):
        table.add_column("run", "sum")
        table.add_column("tokens", "9", justify="right")
        for number in range(count):
            table.add_row(f"run-{number}", str(number))
    assert plain_lines(many)[:3] == ["runs", "run      tokens", "run-0         0"]
    assert plain_lines(many)[-2:] == ["sum           9", "all of them"]
    print_table(terminal(), many)
    assert capsys.readouterr().out.splitlines() == plain_lines(many)
    print_table(terminal(), few)
    assert "┃" in capsys.readouterr().out
