"""Workers of a study whose list of jobs grows: alone, several, killed and gone on with; what is saved, told and counted."""

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from infini_jax.cli.main import main
from infini_jax.cli.watch import watchlist_of
from infini_jax.codes.capacity import CapacityRun
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.records.folder import FAILED_FILE, METRICS_FILE, TABLE_FILE, StudyFolder
from infini_jax.records.measures import Measure, write_measures
from infini_jax.records.rows import read_rows, write_rows
from infini_jax.results.load import load
from infini_jax.study import Ladder, Rates, Study, missing_of, run_study, save_study, saved_study, work_on
from infini_jax.study.comparison import SMALL_TEXT
from infini_jax.study.jobs import JOB_KINDS
from infini_jax.study.spending import range_described, range_plain
from infini_jax.study.standing import ended_of
from infini_jax.study.study import collect
from infini_jax.study.workers import Share, do_study
from tests.support.commands import told
from tests.support.made_results import row_of
from tests.support.slopes import KIND, Slope

# late: 1e-2 is an edge, then 3e-2, then 9e-2 shows that it lies inside; still: 3e-2 diverges
LATE = [f"late-b{rung}-lr{rate}" for rung in ("1e0", "2e0", "4e0") for rate in ("3e-3", "1e-2", "3e-2", "9e-2")]
STILL = [f"still-b{rung}-lr{rate}" for rung in ("1e0", "2e0") for rate in ("3e-3", "1e-2")]
BROKEN = [f"still-b{rung}-lr3e-2" for rung in ("1e0", "2e0")]
TINY = RunConfig(
    name="tiny",
    model=ModelConfig(vocab=256, layers=1, d_model=16, heads=1, segment=8),
    data=StdlibConfig(),
    train=TrainConfig(batch=1, sequence=16, evaluation_steps=1, log_every=1),
    budget=Budget("steps", 1),
)
# at rates so low the loss falls with the rate, and with the steps by more than nothing
TRAINED = Study("trained", "does it grow?", (TINY,), ladder=Ladder((2.0, 4.0, 8.0), 0.0), rates=Rates((1e-5, 2e-5), growths=1))
GROWN = {f"tiny-b{steps}-lr{rate}" for steps in ("2e0", "4e0", "8e0") for rate in ("1e-5", "2e-5", "6e-5")}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(JOB_KINDS, "slope", KIND)


@functools.cache
def slopes() -> Study:
    """One point that learns late and one that does not, whose grid ends where its runs diverge."""
    return Study(
        "slopes",
        "does it climb?",
        (
            Slope("late", mechanism="late", fall=4.0, best=3e-2),
            Slope("still", mechanism="still", breaks=2e-2, memory_bytes=9999),
        ),
        ladder=Ladder((1.0, 2.0, 4.0), 0.5),
        rates=Rates((3e-3, 1e-2)),
    )


@pytest.fixture
def done(tmp_path) -> Path:
    """The folder of a study that one worker of a scheduler did."""
    save_study(slopes(), tmp_path)
    work_on(tmp_path, 0, 1, "session")
    collect(slopes(), slopes().desk(tmp_path))
    return tmp_path


def test_a_worker_does_the_runs_that_come_to_the_list_and_what_diverged_is_not_tried_again(done):
    assert {row.run for row in read_rows(done / TABLE_FILE)} == {*LATE, *STILL}
    assert missing_of(slopes(), done) == ()
    notes = {note["run"]: note["error"] for note in json.loads((done / FAILED_FILE).read_text())}
    assert notes == dict.fromkeys(BROKEN, "loss: not finite")
    before = [StudyFolder(done).run(name).error.stat().st_mtime_ns for name in BROKEN]
    do_study(slopes(), slopes().desk(done), Share(0, 1))
    assert [StudyFolder(done).run(name).error.stat().st_mtime_ns for name in BROKEN] == before


def test_tables_have_the_rung_and_whether_the_rate_lies_inside(done):
    rows = read_rows(done / TABLE_FILE)
    assert {(row.mechanism, row.rung, row.budget_amount) for row in rows} == {
        *(("late", rung, amount) for rung, amount in ((1, 1.0), (2, 2.0), (3, 4.0))),
        *(("still", rung, amount) for rung, amount in ((1, 1.0), (2, 2.0))),
    }
    assert all(row.rate_inside for row in rows)
    assert set(load(done).runs.rung) == {1, 2, 3}
    StudyFolder(done).run(LATE[-1]).row.unlink()
    again, _ = collect(slopes(), slopes().desk(done))
    assert {row.run for row in again if row.rung is None} == set(LATE[-4:-1])  # nothing is said of a rung that is not over
    assert {row.rate_inside for row in again if row.rung is None} == {None}


def test_a_saved_study_climbs_as_it_did(done):
    study, rows, _ = saved_study(done)
    assert study == slopes()
    assert len(rows) == len(LATE + STILL)
    plain = json.loads(StudyFolder(done).study.read_text())
    for name in ("ladder", "rates"):
        del plain[name]  # as earlier versions wrote it
    StudyFolder(done).study.write_text(json.dumps(plain))
    assert saved_study(done)[0] == dataclasses.replace(slopes(), ladder=None, rates=None)


def test_watch_shows_rungs_and_grown_rates(done):
    watchlist = watchlist_of(done)
    assert {run.job.name for run in watchlist.runs} == {*LATE, *STILL, *BROKEN}
    assert watchlist.note == (
        "rung 1: 2 of 2 points over, rung 2: 2 of 2 points over, rung 3: 1 of 1 points over, 8 rates added to 5 grids"
    )


def test_a_run_that_failed_otherwise_holds_up_its_point_alone(tmp_path):
    desk = slopes().desk(tmp_path)
    desk.fail(slopes().jobs_now({})[0], "no memory")
    do_study(slopes(), desk, Share(0, 1))
    names = {job.name for job in slopes().jobs_on(desk)}
    assert "late-b1e0-lr3e-2" not in names
    assert {*STILL, *BROKEN} < names
    do_study(slopes(), slopes().desk(tmp_path), Share(0, 1))  # the next call tries it again
    assert {job.name for job in slopes().jobs_on(desk)} == {*LATE, *STILL, *BROKEN}


def test_what_ended_is_known_by_the_figure_of_its_task_and_only_when_nothing_will_be_added_to_it(tmp_path):
    run, capacity = dataclasses.replace(TINY, data=MqarConfig(pairs=2, symbols=32)), CapacityRun(name="codes")
    study = Study("ends", "?", (run, dataclasses.replace(TINY, name="text"), capacity))
    desk = study.desk(tmp_path)
    made_up = dataclasses.replace(row_of("mqar", "infini", "delta", 4096, 0), accuracy=0.25, loss=2.0)
    for job in study.runs:
        place = desk.of(job)
        place.write_config({})
        write_rows([dataclasses.replace(made_up, run=job.name, task=job.task)], place.row)
    assert set(ended_of(study.runs, desk)) == {"tiny", "text"}  # codes has a row and no figures of its own yet
    write_measures("codes", [Measure("capacity", "n50", 12.5, 8)], desk.of(capacity).own_measures)
    found = ended_of(study.runs, desk)
    assert {name: one.score for name, one in found.items()} == {"tiny": 0.25, "text": -2.0, "codes": 12.5}
    assert {one.loss for one in found.values()} == {2.0}
    desk.of(run).unscored.write_text("{}")
    assert set(ended_of(study.runs, desk)) == {"text", "codes"}


def test_a_dry_run_says_the_least_and_the_most():
    least, most = 2 * 2 * (1 + 2), 2 * 8 * (1 + 2 + 4)
    assert range_plain(slopes()) == {"least_flops": least, "most_flops": most}
    assert range_described(slopes()) == (
        f"{least} training FLOPs at least (the runs above), {most} at most: 2 points; first 2 of 3 rungs, 1, 2, 4; "
        "2 rates, 3 more at each edge at most"
    )
    assert range_described(dataclasses.replace(slopes(), ladder=None, rates=None)) == ""


EXPERIMENT = """
import dataclasses
from infini_jax.study import Ladder, Rates, Study
from infini_jax.study.comparison import SMALL_TEXT

def study():
    found = dataclasses.replace(SMALL_TEXT, sizes=(16 << 10,), growths=2, ladder=Ladder((1e10, 4e10, 1.6e11), 0.02))
    return Study("climbs", "?", found.runs("infini"), found.held_equal, ladder=found.ladder, rates=found.grids)
"""


def test_limits_are_given_on_the_command_line_and_refused_without_a_ladder(tmp_path, capsys):
    file = tmp_path / "climbs.py"
    file.write_text(EXPERIMENT)
    main(["study", str(file), "--dry-run", "--json", "--results", str(tmp_path)])
    plain = json.loads(capsys.readouterr().out)
    assert len(plain["runs"]) == 4 * 2 * 3  # window, full attention and two update rules, on two rungs at three rates
    assert plain["least_flops"] < plain["most_flops"]
    main(["study", str(file), "--dry-run", "--json", "--results", str(tmp_path), "--until", "3", "--ceiling", "3e12"])
    limited = json.loads(capsys.readouterr().out)
    assert len(limited["runs"]) == 4 * 3 * 3
    assert limited["most_flops"] == max(3e12, limited["least_flops"])
    given = ["study", str(file), "--dry-run", "--results", str(tmp_path)]
    assert told(capsys, [*given, "--until", "up"], 2).startswith(
        "until: 'up' is not a rung; give settled, or a number such as 3"
    )
    assert told(capsys, [*given, "--until", "9"], 2).startswith("ladder.until: there are 3 rungs; give 1 to 3, or settled")
    line = told(capsys, ["study", "quick", "--dry-run", "--ceiling", "1e12"], 2)
    assert line.startswith("ceiling: the study quick has no ladder; leave it out, or give the experiment one")


def test_a_comparison_declares_a_ladder_and_growth_in_a_line():
    found = dataclasses.replace(SMALL_TEXT, ladder=Ladder((1e11, 4e11), 0.02), growths=3, seeds=2)
    runs = found.runs("infini")
    assert len(runs) == 2 * (2 + 2 * 3)  # a run for each seed, none for each rate
    assert dict(found.held_equal)["training"].startswith("1e+11, 4e+11 flops, ")
    assert dict(found.held_equal)["learning rates"] == "0.003, 0.01, 0.03, 3 more at each edge at most, chosen on validation"
    assert len(Study("both", "?", runs, ladder=found.ladder, rates=found.grids).jobs_now({})) == len(runs) * 2 * 3
    assert SMALL_TEXT.grids is None


def run_in_own_group(study: Study, folder: Path) -> None:
    os.setpgid(0, 0)
    run_study(study, folder, jobs=2)


@pytest.mark.slow
def test_a_study_that_is_killed_while_it_grows_ends_with_the_same_runs(tmp_path):
    """Two workers; the whole process group dies without a word while a rate that was added is being trained."""
    folder = tmp_path / "killed"
    save_study(TRAINED, folder)
    process = multiprocessing.get_context("spawn").Process(target=run_in_own_group, args=(TRAINED, folder))
    process.start()
    deadline = time.monotonic() + 900
    while not any(StudyFolder(folder).all_runs.glob("*-lr6e-5/" + METRICS_FILE)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    rows, failures = run_study(TRAINED, folder, jobs=2)
    assert failures == []
    assert {row.run for row in rows} == GROWN
    assert {(row.rung, row.rate_inside) for row in rows} == {(1, False), (2, False), (3, False)}
    whole, _ = run_study(TRAINED, tmp_path / "whole", jobs=1)
    assert {row.run: row.loss for row in rows} == {row.run: row.loss for row in whole}
    assert missing_of(TRAINED, folder) == ()


@pytest.mark.slow
def test_workers_of_an_array_share_what_comes_to_the_list(tmp_path):
    """Two processes, as a scheduler starts them, and no parent that watches over them."""
    save_study(TRAINED, tmp_path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work_on, args=(tmp_path, number, 2, "array")) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=900)
    assert [worker.exitcode for worker in workers] == [0, 0]
    rows, failures = collect(TRAINED, TRAINED.desk(tmp_path))
    assert ({row.run for row in rows}, failures) == (GROWN, [])


@pytest.mark.slow
def test_runs_that_came_to_the_list_train_side_by_side(tmp_path):
    """Three seeds of an added rate share a program."""
    runs = tuple(dataclasses.replace(TINY, name=f"s{n}", seed=n) for n in range(3))
    study = dataclasses.replace(TRAINED, runs=runs, rates=Rates((1e-5, 2e-5), growths=1, pilots=0))
    save_study(study, tmp_path)
    work_on(tmp_path, 0, 1, "", fleet=8)
    rows = [row for row in collect(study, study.desk(tmp_path))[0] if row.run.endswith("-lr6e-5")]
    assert len(rows) == 3 * 3
    assert {row.fleet for row in rows} == {3}
