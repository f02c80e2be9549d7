"""The campaign on an accelerator: its parts in their order, its record, and all of it at a tiny size on the CPU."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accelerator.parts import SCALES, Part, parts_of
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.tables import tables_of

ROOT = Path(__file__).parents[1]
CAMPAIGN = [sys.executable, "-m", "benchmarks.accelerator"]


def part(name: str, code: str) -> Part:
    return Part(name, 1.0, "nothing", ("-c", code))


def test_a_part_that_ended_well_is_not_run_again_and_a_bad_one_once_more_behind_the_others(tmp_path):
    record = Record(tmp_path / "parts.jsonl")
    parts = [part("bad", "raise SystemExit(3)"), part("good", "print('{}')"), part("late", "print('{}')")]
    assert [one.name for one in record.left(parts)] == ["bad", "good", "late"]
    for one in parts[:2]:
        record.add(one.run(30))
    assert [one.name for one in record.left(parts)] == ["late", "bad"]
    record.add(parts[0].run(30))
    assert [one.name for one in record.left(parts)] == ["late"]
    assert [line["outcome"] for line in record.lines] == ["failed", "done", "failed"]


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    code = f"import subprocess, sys; print('began', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    line = part("endless", code).run(2)
    assert (line["outcome"], line["said"]) == ("timed out", "began\n")
    subprocess.run([sys.executable, "-c", "import time; time.sleep(4)"], check=True)
    assert not (tmp_path / "alive").exists()


def test_a_part_that_prints_no_figures_failed_and_its_last_words_are_kept():
    line = part("mute", "print('no figures')").run(30)
    assert (line["outcome"], line["said"]) == ("failed", "no figures\n")


def test_the_parts_have_names_of_their_own_and_name_tests_that_are_there():
    for extent in SCALES.values():
        parts = parts_of(extent)
        assert len({one.name for one in parts}) == len(parts)
        for name, _ in extent.tests:
            assert (ROOT / "tests" / f"test_{name}.py").is_file()


def test_a_call_too_short_for_any_part_runs_none_and_says_what_is_left(tmp_path):
    asked = [*CAMPAIGN, "--into", str(tmp_path), "--minutes", "0.1", "--scale", "tiny"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == f"left: {', '.join(one.name for one in parts_of(SCALES['tiny']))}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # three programs are compiled in processes of their own
def test_the_whole_campaign_runs_at_a_tiny_size_without_what_the_device_lacks(tmp_path):
    for missing in ("grain", "tensorflow_datasets", "array_record"):
        (tmp_path / f"{missing}.py").write_text("raise ImportError('not on the device')")
    asked = [*CAMPAIGN, "--into", str(tmp_path / "out"), "--minutes", "20", "--scale", "tiny"]
    there = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    subprocess.run(asked, cwd=ROOT, env=there, check=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "parts.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == [one.name for one in parts_of(SCALES["tiny"])]
    assert [line.get("said") for line in lines if line["outcome"] != "done"] == []
    speed = lines[0]["figures"]
    assert speed["profile"]["operations"] > 0
    assert speed["chosen"]["kernels"] > 0
    assert [len(speed[form]["seconds"]) for form in ("before", "chosen")] == [3, 3]
    fleet = lines[1]["figures"]
    assert fleet["members"] == 2
    assert 0 < fleet["faster"][0] <= fleet["faster"][2]
    table = (tmp_path / "out" / "tables.md").read_text()
    assert table == tables_of(lines)
    assert all(f"| {name} |" in table for name in ("tiny/infini", "tiny/infini/2", "recurrence"))
    again = subprocess.run(asked, cwd=ROOT, env=there, check=True, capture_output=True, text=True).stdout
    assert again == "left: nothing\n"


def test_what_did_not_end_well_stands_below_the_tables():
    bad = part("exact/bad", "raise SystemExit(3)")
    line = dataclasses.replace(bad, minutes=0.1).run(30)
    assert f"- exact/bad: failed after {line['seconds']} s" in tables_of([line])
