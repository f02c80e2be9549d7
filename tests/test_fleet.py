"""Fleets: runs that take their steps in one program have the numbers, files and ends of the same runs alone."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.devices import chosen_form
from infini_jax.devices.chosen_form import MOST_MEMBERS, most_members
from infini_jax.errors import ConfigError, Stopped, require
from infini_jax.memory import MECHANISMS
from infini_jax.memory.memorizing import MemorizingConfig
from infini_jax.model.cost import state_bytes
from infini_jax.records.folder import METRICS_FILE, ROW_FILE, StudyFolder
from infini_jax.records.rows import read_rows
from infini_jax.study.fleets import ALONE, AUTO, Companions, fleet_size, fleets_described, program_of
from infini_jax.study.launch import LAUNCHERS, Resources
from infini_jax.study.launch.slurm import Worker
from infini_jax.study.launch.written import Written
from infini_jax.study.study import Study, save_study
from infini_jax.study.workers import do_all
from infini_jax.training.checkpoint import Checkpoints, Saving
from infini_jax.training.execute import execute
from infini_jax.training.fleet import Fleet, execute_fleet
from infini_jax.training.loop import Finished, FinishedState, train, training_steps, unexamined
from tests.support.asking import noted_by
from tests.support.commands import on_devices, told
from tests.support.marks import slow_but
from tests.support.streams import tiny
from tests.test_launch import ASKED
from tests.test_resume import EVERY_STEP, logged, timeless, until_logged

RATES = ((0, 1e-3, 1e-2), (1, 3e-4, 3e-3), (2, 6e-4, 1e-2))  # seed, learning rate, rate of the gates
# float32: sums of a mapped product may have another order, which Adam's division carries on for 100 steps, the further the
# higher the rate is: memorizing at 3e-3 ends 1.2e-6 apart. Relative, and absolute for differences of gates, near 0.5 each.
CLOSE = 1e-6
# Without a warm-up Adam's first updates are signs, also of gradients that are zero but for rounding.
STEEP = 1e-5


def three(mechanism: str, steps: int = 100, **train_settings: Any) -> list[RunConfig]:
    """Runs that differ in seed, rates and data."""
    model = tiny(mechanism)
    settings: dict[str, Any] = {"batch": 2, "sequence": 2 * model.segment, "log_every": 10, "evaluation_steps": 1}
    base = TrainConfig(**settings | train_settings)
    return [
        RunConfig(
            name=f"run-{seed}",
            model=model,
            seed=seed,
            data=MqarConfig(pairs=2, symbols=32 - 2 * (seed % 2)),
            train=dataclasses.replace(base, learning_rate=rate, gate_learning_rate=gates),
            budget=Budget("steps", steps),
        )
        for seed, rate, gates in RATES
    ]


def few(steps: int = 6) -> list[RunConfig]:
    """`three` of the cheapest kind."""
    return three("local", steps, log_every=2, warmup=0.0)


def with_train(run: RunConfig, **changes: Any) -> RunConfig:
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **changes))


def together(runs: list[RunConfig], devices=None) -> tuple[list, list[list[dict]]]:
    """(results or exceptions, metric lines) of runs in a fleet, without folders."""
    fleet, lines, found = Fleet(runs, devices), [[] for _ in runs], {}
    loops = [
        training_steps(seat, own.append, None, lambda: False, unexamined) for seat, own in zip(fleet.seats, lines, strict=True)
    ]

    def ended(number: int, result: Any) -> None:
        if isinstance(result, Finished):
            state = fleet.seats[number].state
            result = FinishedState(**vars(result), state=state, learned=state.learned)
        found[number] = result

    fleet.drive(loops, ended)
    return [found[number] for number in range(len(runs))], lines


def norm(leaves: list) -> float:
    return float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in leaves)))


def assert_same(ours: FinishedState, theirs: FinishedState) -> None:
    """Parameters within `CLOSE` of their own norm, and the newest line."""
    found, expected = (jax.tree.leaves(one.learned) for one in (ours, theirs))
    assert norm([np.asarray(a) - np.asarray(b) for a, b in zip(found, expected, strict=True)]) <= CLOSE * norm(expected)
    assert_lines([ours.last], [theirs.last])
    assert (ours.steps, ours.skipped, ours.stopped) == (theirs.steps, theirs.skipped, theirs.stopped)


def assert_lines(ours: list[dict], theirs: list[dict], close: float = CLOSE) -> None:
    """Metric lines are equal but for what a clock says; JSON has null for what is not a number."""
    for one, other in zip(ours, theirs, strict=True):
        of_one, of_other = ({n: np.nan if x is None else x for n, x in timeless(line).items()} for line in (one, other))
        assert of_one == pytest.approx(of_other, rel=close, abs=CLOSE, nan_ok=True)


def alone(run: RunConfig) -> tuple[FinishedState, list[dict]]:
    lines = []
    return train(run, lines.append), lines


@pytest.mark.parametrize("mechanism", slow_but(("local",), MECHANISMS))
def test_members_end_with_the_numbers_of_the_runs_alone(mechanism):
    runs = three(mechanism)
    results, lines = together(runs)
    for run, found, said in zip(runs, results, lines, strict=True):
        expected, told_alone = alone(run)
        assert_same(found, expected)
        assert_lines(said, told_alone, STEEP if mechanism == "log_linear" else CLOSE)  # norms of its gradients: 2.4e-6 apart


@pytest.mark.slow
def test_masks_of_dropout_are_those_of_each_members_own_seed():
    runs = three("local", steps=5, dropout=0.3)[:2]
    results, _ = together(runs)
    for run, found in zip(runs, results, strict=True):
        assert_same(found, alone(run)[0])
    assert program_of(runs[0]) == program_of(runs[1])


@pytest.mark.slow
def test_a_member_that_diverges_stops_alone_with_the_line_of_the_run_alone():
    good, other, _ = few()
    bad = with_train(other, learning_rate=1e30)
    (first, error), lines = together([good, bad])
    assert_lines([first.last], [alone(good)[0].last], STEEP)
    with pytest.raises(type(error)) as raised:
        train(bad, (told_alone := []).append)
    assert str(error) == str(raised.value)
    assert_lines(lines[1], told_alone, STEEP)
    assert len(lines[1]) < len(lines[0])


def test_what_the_step_itself_raises_reaches_every_member(monkeypatch):
    runs, closed = few()[:2], []
    monkeypatch.setattr(Fleet, "take_step", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))

    def noted(number, loop):
        try:
            yield from loop
        finally:
            closed.append(number)

    fleet, found = Fleet(runs), {}
    loops = [training_steps(seat, lambda line: None, None, lambda: False, unexamined) for seat in fleet.seats]
    fleet.drive([noted(*one) for one in enumerate(loops)], found.__setitem__)
    assert [str(found[number]) for number in (0, 1)] == ["out of memory"] * 2
    assert closed == [0, 1]


def on_two() -> list[list[list[float]]]:
    """`fleet_of` two runs, and of three."""
    return [fleet_of(count) for count in (2, 3)]


def fleet_of(count: int) -> list[list[float]]:
    """[loss, training loss, members] of each of `count` runs that a worker did as a fleet on all devices of this process."""
    with tempfile.TemporaryDirectory() as folder:
        rows, failures = done(Path(folder), three("local", steps=20)[:count], count)
    assert len(jax.devices()) == 2
    assert not any(failures)
    return [[row.loss, row.train_loss, row.fleet] for row in rows]


@pytest.mark.slow
def test_members_are_laid_over_devices(tmp_path):
    """Held-out scores are those of two devices that share the rows, as for a run alone; with three, a place is empty."""
    expected, _ = done(tmp_path, three("local", steps=20), ALONE)
    for found in on_devices(2, "test_fleet", "on_two()"):
        rows = expected[: len(found)]
        assert found == [pytest.approx([row.loss, row.train_loss, len(found)], rel=CLOSE) for row in rows]


UNLIKE = ("fleet", "finished", "seconds", "compile_seconds")


def done(folder: Path, runs: list[RunConfig], fleet: int) -> tuple[list[Any], list[Any]]:
    """(rows, failures) of runs that a worker did, in fleets of so many; None where there is none."""
    study = Study("together", "does it matter?", tuple(runs))
    desk = study.desk(folder)
    do_all(desk, tuple(runs), fleet)
    files = [StudyFolder(folder).run(run.name).row for run in runs]
    return [read_rows(file)[0] if file.exists() else None for file in files], [desk.error(run) for run in runs]


@pytest.mark.slow
def test_rows_logs_and_failures_are_those_of_runs_alone(tmp_path):
    """One diverges; one is of another program and is done by itself."""
    first, second, third = few()
    third = with_train(third, learning_rate=1e30)
    other = dataclasses.replace(first, name="longer", budget=Budget("steps", 7))
    runs = [first, other, second, third]
    (rows, failures), (rows_alone, failures_alone) = done(tmp_path / "fleet", runs, 8), done(tmp_path / "alone", runs, ALONE)
    assert failures == failures_alone
    assert [bool(failure) for failure in failures] == [False, False, False, True]
    assert [row and row.fleet for row in rows] == [3, None, 3, None]
    for run, row, expected in zip(runs, rows, rows_alone, strict=True):
        assert_lines(logged(tmp_path / "fleet/runs" / run.name), logged(tmp_path / "alone/runs" / run.name), STEEP)
        if row is None or expected is None:
            assert row is expected
            continue
        ours, theirs = (dataclasses.asdict(one) for one in (row, expected))
        for name, value in theirs.items():
            if name not in UNLIKE:
                assert ours[name] == (pytest.approx(value, rel=STEEP) if isinstance(value, float) else value), name
        assert row.seconds > 0


@pytest.mark.slow
def test_a_member_without_data_fails_alone(tmp_path):
    good, other, _ = three("local", steps=2)
    bad = dataclasses.replace(good, name="bad", data=MqarConfig(pairs=2, symbols=GONE))
    (missing, *rows), (failure, *none) = done_with_broken_data(tmp_path, [bad, good, other])
    assert missing is None
    assert failure.startswith("data: gone")
    assert [row.fleet for row in rows] == [3, 3]
    assert none == [None, None]


GONE = 28


def done_with_broken_data(folder: Path, runs: list[RunConfig]) -> tuple[list, list]:
    """`done`, where data of `GONE` symbols is not there."""
    with pytest.MonkeyPatch.context() as patch:
        there = MqarConfig.open

        def opened(data, rows):
            require(data.symbols != GONE, "data", "gone", "bring it back")
            return there(data, rows)

        patch.setattr(MqarConfig, "open", opened)
        return done(folder, runs, 3)


STUDY = few(steps=10)
CHILD = "import sys; from tests.test_fleet import child; child(sys.argv[1])"


def child(folder: str) -> None:
    """Trains `STUDY` as a fleet that is saved at every step, and waits after each logged line of the last one."""
    import time

    from infini_jax.training import loop

    loop.metric_line = functools.partial(lambda line, *values: time.sleep(0.2) or line(*values), loop.metric_line)
    folders = [Path(folder) / run.name for run in STUDY]
    try:
        execute_fleet(STUDY, folders, "", lambda *_: None, EVERY_STEP)
    except Stopped:
        sys.exit(75)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(row, lines) of each run of `STUDY` alone."""
    folders = [tmp_path_factory.mktemp(run.name) for run in STUDY]
    return [(execute(run, folder, ""), logged(folder)) for run, folder in zip(STUDY, folders, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_fleet_that_was_ended_by_a_signal_goes_on_at_different_steps(tmp_path, undisturbed, number, code):
    """The first member goes on alone, the others as a fleet with one that was never begun."""
    folders = [tmp_path / run.name for run in STUDY]
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.DEVNULL)
    until_logged(folders[-1], 4, process)
    os.kill(process.pid, number)
    assert process.wait(timeout=300) == code
    assert not any((folder / ROW_FILE).exists() for folder in folders)
    fresh = tmp_path / "fresh"
    found = {0: execute(STUDY[0], folders[0], "")}
    execute_fleet([STUDY[2], STUDY[1]], [folders[2], fresh], "", lambda place, row: found.update({2 - place: row}))
    for place, folder in enumerate((folders[0], fresh, folders[2])):
        row, lines = undisturbed[place]
        assert (found[place].loss, found[place].train_loss) == pytest.approx((row.loss, row.train_loss), rel=STEEP)
        assert_lines(logged(folder), lines, STEEP)
        assert read_rows(folder / ROW_FILE) == [found[place]]


def test_a_signal_saves_every_member_and_members_go_on_from_different_steps(tmp_path, monkeypatch):
    """Both stop behind step 1; one is then stopped alone behind step 3, and both go on together."""
    runs, folders = few()[:2], [tmp_path / run.name for run in few()[:2]]
    step = Fleet.take_step

    def signaled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(Fleet, "take_step", signaled)
    with pytest.raises(Stopped, match="stopped after step 1 of 6") as stopped:
        execute_fleet(runs, folders, "", lambda *_: pytest.fail("none has ended"))
    assert stopped.value.signal == signal.SIGTERM
    for run, folder in zip(runs, folders, strict=True):
        with Checkpoints(run, folder, Saving()) as checkpoints:
            assert checkpoints.steps() == [1]
            if run is runs[0]:
                stop = iter([False, True])
                with pytest.raises(Stopped, match="stopped after step 3 of 6"):
                    train(run, lambda line: None, checkpoints, stop=lambda stop=stop: next(stop))
    monkeypatch.setattr(Fleet, "take_step", step)
    found = {}
    execute_fleet(runs, folders, "", found.__setitem__)
    for place, run in enumerate(runs):
        assert logged(folders[place])[-1]["step"] == 6
        assert found[place].train_loss == pytest.approx(alone(run)[0].last["loss"], rel=STEEP)


@pytest.mark.slow
def test_a_member_that_ends_early_leaves_the_others_to_go_on(tmp_path, monkeypatch):
    """Patience is no part of the program: one run stops after readings that do not fall, the other does not ask."""
    model = dataclasses.replace(tiny("local"), vocab=256)
    base = RunConfig(
        name="patient",
        model=model,
        data=StdlibConfig(),
        train=TrainConfig(batch=2, sequence=32, log_every=2, evaluate_every=2, patience=1, improvement=9.0),
        budget=Budget("steps", 8),
        evaluation=EvaluationConfig(documents=1, tokens=40, rows=1, conditions=("carried",)),
    )
    plain = dataclasses.replace(base.train, evaluate_every=0, patience=0, improvement=0.0)
    other = dataclasses.replace(base, name="plain", seed=1, train=plain)
    (early, late), failures = done(tmp_path, [base, other], 2)
    assert failures == [None, None]
    assert (early.steps, late.steps) == (4, 8)
    assert early.stopped_early.startswith("validation loss did not fall")
    assert np.isfinite([early.loss, late.loss]).all()


def test_the_clock_of_members_stands_still_while_one_is_examined(monkeypatch):
    """A second in each step, a minute in each examination, which no member's training has."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    runs, step, seconds = [with_train(run, log_every=1, evaluate_every=2) for run in few()[:2]], Fleet.take_step, {}

    def slow_step(*arguments):
        measured = step(*arguments)
        now[0] += 1.0
        return measured

    def take_a_minute(number):
        now[0] += 60.0

    monkeypatch.setattr(Fleet, "take_step", slow_step)
    fleet = Fleet(runs)
    lines = [[], []]
    loops = [
        training_steps(seat, own.append, None, lambda: False, noted_by(take_a_minute))
        for seat, own in zip(fleet.seats, lines, strict=True)
    ]
    fleet.drive(loops, seconds.__setitem__)
    assert [[line["seconds"] for line in own] for own in lines] == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 2
    assert [one.seconds for one in seconds.values()] == [6.0, 6.0]


def test_runs_that_differ_in_seeds_rates_rhythms_and_data_share_a_program():
    run, other, _ = three("infini")
    assert program_of(run) == program_of(other)
    assert program_of(with_train(run, log_every=3, evaluate_every=5, patience=2)) == program_of(run)


@pytest.mark.parametrize(
    "change", [{"budget": Budget("steps", 99)}, {"model": tiny("local")}, {"clip": 2.0}, {"dropout": 0.1}]
)
def test_runs_of_other_steps_models_and_settings_do_not(change):
    run = three("infini")[0]
    other = dataclasses.replace(run, **change) if {*change} & {"budget", "model"} else with_train(run, **change)
    assert program_of(other) != program_of(run)


def test_runs_of_seconds_and_memories_of_the_host_train_alone():
    run = three("memorizing")[0]
    assert program_of(run) is not None
    assert program_of(dataclasses.replace(run, budget=Budget("seconds", 5.0))) is None
    held = dataclasses.replace(run.model, memory=MemorizingConfig(held="host"))
    assert program_of(dataclasses.replace(run, model=held)) is None


def test_a_fleet_takes_what_nobody_else_does(tmp_path):
    runs = [dataclasses.replace(run, name=f"{run.name}-{number}") for number in range(2) for run in three("local")]
    desk = Study("many", "who is at it?", tuple(runs)).desk(tmp_path)
    with desk.claim(runs[1]), Companions(runs, 3).claimed(desk, runs[0]) as others:
        assert [run.name for run in others] == [runs[2].name, runs[3].name]
        with desk.claim(runs[2]) as ours:
            assert not ours
    with Companions(runs, AUTO).claimed(desk, runs[0]) as others:  # on a CPU
        assert others == []
    with Companions(runs, ALONE).claimed(desk, runs[0]) as others:
        assert others == []


def test_as_many_as_fit_train_side_by_side_on_an_accelerator(monkeypatch):
    run = three("infini")[0]
    assert most_members(run) == 1
    monkeypatch.setattr(chosen_form, "platform", lambda: "cuda")
    monkeypatch.setattr(chosen_form, "available_bytes", lambda: 2**40)
    assert most_members(run) == MOST_MEMBERS
    monkeypatch.setattr(chosen_form, "kept_bytes", lambda *_: 3 * state_bytes(run))
    monkeypatch.setattr(chosen_form, "available_bytes", lambda: 21 * state_bytes(run))
    assert most_members(run) == 4  # 0.8 x 21 / 4
    monkeypatch.setattr(chosen_form, "available_bytes", lambda: state_bytes(run))
    assert most_members(run) == 1


def test_a_dry_run_says_what_would_share_programs():
    runs = [*three("local"), dataclasses.replace(three("local")[0], name="longer", budget=Budget("steps", 7))]
    assert fleets_described(runs, 2) == "3 runs share 1 programs, in fleets of 2 at most; 1 train alone"
    assert fleets_described(runs, ALONE) == ""
    assert "as many as fit on an accelerator" in fleets_described(runs, AUTO)


def test_runs_whose_rows_score_other_numbers_of_places_do_not_share_a_program():
    run = three("local")[0]
    more = dataclasses.replace(run, name="more", data=MqarConfig(pairs=3, symbols=32))
    assert more.most_scored > run.most_scored
    assert program_of(more) != program_of(run)
    with pytest.raises(ConfigError, match=r"^runs: the runs differ in .* scored places; train them in turn$"):
        Fleet([run, more])


def test_launchers_hand_the_size_on():
    study = Study("together", "does it?", tuple(few()))
    for name, asked in ASKED.items():
        if issubclass(LAUNCHERS[name], Written):
            for size, option in ((ALONE, ""), (AUTO, " --fleet auto"), (4, " --fleet 4")):
                text = LAUNCHERS[name](0, asked, size).described(study, Path("results/together"))
                assert f"infini-jax study /study{option}" in text
                assert option or "--fleet" not in text
    assert (LAUNCHERS["slurm"](1, Resources(), 4).fleet, Worker(Path(), 0, 1, "").fleet) == (4, ALONE)


@pytest.mark.parametrize("asked", ["0", "-1", "many", "1.5", "", "99999999999"])
def test_what_is_no_size_of_a_fleet_is_refused_in_one_line(asked, capsys):
    with pytest.raises(ConfigError, match=r"^fleet: "):
        fleet_size(asked)
    assert "give auto, or a number such as 8" in told(capsys, ["study", "quick", f"--fleet={asked}"], 2)


@pytest.mark.slow
def test_the_command_passes_the_size_on_to_its_workers(tmp_path):
    from infini_jax.cli.main import main

    save_study(Study("together", "does it?", tuple(three("local", steps=3))), tmp_path)
    main(["study", str(tmp_path), "--fleet", "3", "--jobs", "1"])
    files = [StudyFolder(tmp_path).run(run.name).row for run in three("local")]
    assert [read_rows(file)[0].fleet for file in files] == [3, 3, 3]
    assert json.loads((StudyFolder(tmp_path).run("run-0").path / METRICS_FILE).read_text().splitlines()[-1])["step"] == 3
