"""`infini-jax watch` says how far runs are, from their files alone, and ends when nothing goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infini_jax.cli import watch
from infini_jax.cli.main import main
from infini_jax.cli.watch import Seen, Watched, looks, seen, seen_table, watchlist_of
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import ConfigError, TrainingDiverged
from infini_jax.locks import Holder
from infini_jax.records.folder import RunFolder
from infini_jax.records.rows import write_rows
from infini_jax.study.desk import Desk
from infini_jax.study.study import Study, save_study
from infini_jax.training.execute import end_noted
from tests.support.commands import told
from tests.support.made_results import row_of

NAMES = ("done", "broken", "going", "next")
LINE = {"step": 25, "tokens": 1600, "loss": 2.5, "recent_tokens_per_second": 100.0}


def run_of(name: str) -> RunConfig:
    model = ModelConfig(vocab=32, layers=1, d_model=16, segment=8)
    train = TrainConfig(batch=2, sequence=32, evaluation_steps=1)
    return RunConfig(name=name, model=model, data=MqarConfig(pairs=2, symbols=32), train=train, budget=Budget("steps", 100))


def begin(folder: Path, run: RunConfig, *lines: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(run.to_dict()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def finish(folder: Path) -> None:
    write_rows([row_of("mqar", "infini", "delta", 4096, 0)], folder / "row.parquet")


@pytest.fixture
def desk(tmp_path) -> Desk:
    """A study of which one run is finished, one failed, one is being trained and one was not begun."""
    study = Study("four", "how far are they?", tuple(map(run_of, NAMES)))
    save_study(study, tmp_path)
    desk = study.desk(tmp_path)
    for name in NAMES[:3]:
        begin(desk.of(run_of(name)).path, run_of(name), LINE)
    finish(desk.of(run_of("done")).path)
    with desk.claim(run_of("broken")):
        desk.fail(run_of("broken"), "it broke")
    return desk


def states(folder: Path) -> dict[str, str]:
    return {one.name: one.state for one in map(seen, watchlist_of(folder).runs)}


def test_a_studys_runs_are_in_the_states_that_their_files_say(desk):
    assert states(desk.folder) == dict(zip(NAMES, ("finished", "failed", "training", "waiting"), strict=True))


def test_a_run_in_training_has_step_loss_speed_and_the_time_left(desk):
    """75 of 100 steps of 64 tokens are left: 48 seconds at 100 tokens per second."""
    found = seen(Watched(desk.of(run_of("going"))))
    assert (found.step, found.steps, found.loss, found.tokens_per_second, found.left) == (25, 100, 2.5, 100.0, 48.0)
    assert 0 <= found.age < 60


def test_a_failed_run_is_in_training_again_once_a_worker_takes_it(desk):
    lock = desk.of(run_of("broken")).lock
    os.utime(lock, (time.time() + 5, time.time() + 5))
    assert states(desk.folder)["broken"] == "training"


def test_a_line_that_is_being_written_is_not_read(desk):
    with desk.of(run_of("going")).metrics.open("a") as log:
        log.write('{"step": 26, "lo')
    assert seen(Watched(desk.of(run_of("going")))).step == 25


def test_nothing_of_a_study_is_touched(desk):
    def files() -> dict[Path, tuple]:
        return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(desk.folder.rglob("*"))}

    before = files()
    main(["watch", str(desk.folder), "--once"])
    assert files() == before


def test_it_ends_when_all_runs_are_finished_or_failed(desk, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.0)
    counts = []
    for _, found in looks(watchlist_of(desk.folder)):
        counts.append([one.state for one in found].count("finished"))
        if len(counts) == 2:
            for name in ("going", "next"):
                desk.of(run_of(name)).path.mkdir(exist_ok=True)
                finish(desk.of(run_of(name)).path)
    assert counts == [1, 1, 3]


def test_a_run_alone_and_a_folder_of_runs_are_watched_without_a_study(tmp_path, capsys):
    begin(tmp_path / "one", run_of("one"), LINE)
    begin(tmp_path / "two", run_of("two"))
    assert states(tmp_path / "one") == {"one": "training"}
    assert states(tmp_path) == {"one": "training", "two": "training"}
    finish(tmp_path / "one")
    capsys.readouterr()
    main(["watch", str(tmp_path / "one")])  # without a terminal the last table is printed, and it ends
    text = capsys.readouterr().out
    assert "finished" in text
    assert "25/100" in text
    assert text.count("1 finished") == 1


def test_what_asks_for_attention_comes_first_and_what_has_no_room_is_counted(desk):
    table = seen_table([Seen(name, state) for name, state in states(desk.folder).items()], most=2)
    assert list(table.columns[0].cells) == ["going", "broken"]
    assert table.caption == "1 training, 1 failed, 1 waiting, 1 finished"


def test_runs_that_ended_early_are_told_from_those_in_training(tmp_path, monkeypatch):
    """By the notes that `execute` leaves; a process that is gone without one has crashed. Watching them comes to an end."""
    for error, name in ((TrainingDiverged("no"), "diverged"), (ConfigError("a", "b", "c"), "refused"), (OSError(), "crashed")):
        begin(tmp_path / name, run_of(name), LINE)
        with pytest.raises(type(error)), end_noted(RunFolder(tmp_path / name)):
            raise error
    begin(tmp_path / "stopped", run_of("stopped"), LINE)
    with pytest.raises(KeyboardInterrupt), end_noted(RunFolder(tmp_path / "stopped")):
        raise KeyboardInterrupt
    begin(tmp_path / "killed", run_of("killed"), LINE)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    (tmp_path / "killed" / "lock").write_text(f"{int(gone.stdout)} {Holder.here(0).host}\n")
    expected = {"diverged": "diverged", "refused": "refused", "crashed": "crashed", "stopped": "stopped", "killed": "crashed"}
    assert states(tmp_path) == expected
    monkeypatch.setattr(watch, "SECONDS", 0.0)
    assert len(list(looks(watchlist_of(tmp_path)))) == 1
    with end_noted(RunFolder(tmp_path / "diverged")):  # tried again
        assert not (tmp_path / "diverged" / "error.json").exists()


def test_a_run_whose_process_lives_is_in_training(tmp_path):
    begin(tmp_path / "one", run_of("one"), LINE)
    (tmp_path / "one" / "lock").write_text(f"{os.getpid()} {Holder.here(0).host}\n")
    assert states(tmp_path / "one") == {"one": "training"}
    (tmp_path / "one" / "lock").write_text("1 another-machine\n")
    assert states(tmp_path / "one") == {"one": "training"}


def test_what_holds_no_runs_gets_one_line(tmp_path, capsys):
    assert told(capsys, ["watch", str(tmp_path)], 2).startswith(f"path: {tmp_path} holds no runs; name a study's folder")
    assert told(capsys, ["watch", str(tmp_path / "x")], 2).startswith(f"path: there is no folder {tmp_path / 'x'}")
