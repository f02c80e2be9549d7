"""Mirrors: what trackers get, and that none of them can hold up or end a run."""

import json
import logging
import os
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.errors import ConfigError, Stopped
from infini_jax.records.folder import METRICS_FILE
from infini_jax.training import mirrors, trackers
from infini_jax.training.checkpoint import Checkpoints, Progress
from infini_jax.training.execute import execute
from infini_jax.training.mirrors import IDENTITY_FILE, QUEUE, Mirroring, Mirrors
from tests.test_cli import TRAIN, fails

RUN = RunConfig(
    name="mirrored",
    model=ModelConfig(vocab=32, layers=1, d_model=16, segment=8),
    data=MqarConfig(pairs=2, symbols=32),
    train=TrainConfig(batch=2, sequence=16, log_every=2, evaluation_steps=1),
    budget=Budget("steps", 6),
)


@pytest.fixture
def tracker(monkeypatch):
    """Registers a tracker under the name wandb, whose package need not be there."""

    def register(**methods) -> Mirroring:
        calls = {"open": lambda self, source: None, "log": lambda self, step, values: None, "close": lambda self: None}
        kind = type("Tracker", (), {"needs": (), **calls, **methods})
        monkeypatch.setitem(trackers.TRACKERS, "wandb", kind)
        return Mirroring(("wandb",))

    return register


def given(mirroring, folder, lines, after=0):
    with Mirrors(mirroring) as opened:
        opened.begin(RUN, folder, after)
        for line in lines:
            opened.log(line)


def lines(first, last, loss=1.0):
    return [{"step": step, "loss": loss / step, "gate_mean": 0.5} for step in range(first, last + 1)]


def raises(*_):
    raise ConnectionError("network is unreachable\nwith details")


UNREACHABLE = "mirror wandb: network is unreachable (ConnectionError); the run goes on, metrics.jsonl has every line"


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.name == mirrors.__name__]


def test_a_tracker_gets_the_lines_in_order_and_the_step_they_follow(tmp_path, tracker):
    got = []
    mirroring = tracker(
        open=lambda self, source: got.append(source),
        log=lambda self, step, values: got.append((step, values)),
        close=lambda self: got.append("closed"),
    )
    given(mirroring, tmp_path, [{**line, "note": "words"} for line in lines(5, 7)], after=4)  # trackers take numbers
    source, *logged, closed = got
    assert (source.name, source.after, source.folder, source.config) == ("mirrored", 4, tmp_path, RUN.to_dict())
    assert logged == [(step, {"loss": 1 / step, "gate_mean": 0.5}) for step in (5, 6, 7)]
    assert closed == "closed"


def test_a_run_keeps_its_id_wherever_its_folder_goes_and_a_new_folder_is_a_new_run(tmp_path, tracker):
    seen = []
    mirroring = tracker(open=lambda self, source: seen.append(source.id))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    given(mirroring, tmp_path / "a", [])
    (tmp_path / "a").rename(tmp_path / "moved")
    given(mirroring, tmp_path / "moved", [])
    given(mirroring, tmp_path / "b", [])
    assert seen[0] == seen[1] != seen[2]
    assert all(one.startswith("mirrored-") for one in seen)
    assert json.loads((tmp_path / "moved" / IDENTITY_FILE).read_text()) == {"id": seen[0]}


def test_a_tracker_that_raises_is_told_of_once_and_the_run_ends_as_always(tmp_path, tracker, caplog):
    row = execute(RUN, tmp_path, study="", mirroring=tracker(log=raises))
    assert (row.steps, row.fingerprint) == (6, RUN.fingerprint())
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS_FILE).read_text().splitlines()] == [2, 4, 6]
    assert told(caplog) == [UNREACHABLE, "mirror wandb: 3 of 3 lines were not copied; metrics.jsonl has them"]


@pytest.mark.parametrize("broken", ["open", "close"])
def test_opening_and_closing_may_fail_too(broken, tmp_path, tracker, caplog):
    given(tracker(**{broken: raises}), tmp_path, lines(1, 3))
    lost = "mirror wandb: 3 of 3 lines were not copied; metrics.jsonl has them"
    assert told(caplog) == [UNREACHABLE] + ([lost] if broken == "open" else [])


def test_a_run_that_goes_on_tells_its_trackers_from_where(tmp_path, tracker, monkeypatch):
    """The training itself is not needed here: a checkpoint of step 4, and a process that is told to stop at once."""
    got = []

    def training_steps(seat, log, *_):
        for line in lines(5, 6):
            log(line)
        raise Stopped("told to")
        yield

    monkeypatch.setattr("infini_jax.training.execute.training_steps", training_steps)
    monkeypatch.setattr(Checkpoints, "progress", lambda self: Progress(step=4))
    mirroring = tracker(
        open=lambda self, source: got.append(source.after),
        log=lambda self, step, values: got.append(step),
        close=lambda self: got.append("closed"),
    )
    with pytest.raises(Stopped):
        execute(RUN, tmp_path, study="", mirroring=mirroring)
    assert got == [4, 5, 6, "closed"]


@pytest.mark.parametrize("exit_code", [SystemExit(1), KeyboardInterrupt()])
def test_a_tracker_cannot_end_the_process_or_its_thread(exit_code, tmp_path, tracker, caplog):
    got = []

    def log(self, step, values):
        if step == 1:
            raise exit_code
        got.append(step)

    given(tracker(log=log), tmp_path, lines(1, 3))
    assert got == [2, 3]  # a line that fails does not take the others with it
    assert "1 of 3 lines were not copied" in caplog.text


def test_a_tracker_that_hangs_costs_the_run_no_time_but_a_short_end(tmp_path, tracker, caplog, monkeypatch):
    monkeypatch.setattr(mirrors, "CLOSE_SECONDS", 0.2)
    released = threading.Event()
    mirroring = tracker(log=lambda self, step, values: released.wait(60))
    with Mirrors(mirroring) as opened:
        opened.begin(RUN, tmp_path, 0)
        began = time.perf_counter()
        (relay,) = opened._relays
        first, *others = lines(1, 3 * QUEUE)
        opened.log(first)
        while relay._lines:  # until it has taken the line that it hangs with
            time.sleep(0.01)
        for line in others:
            opened.log(line)
        assert time.perf_counter() - began < 2.0  # it takes milliseconds; the machine may be busy
        waiting = [line["step"] for line in relay._lines]
        assert waiting == list(range(2 * QUEUE + 1, 3 * QUEUE + 1))  # the oldest made room
        began = time.perf_counter()
    assert time.perf_counter() - began < 5.0
    assert "mirror wandb: does not answer" in caplog.text
    assert f"{3 * QUEUE} of {3 * QUEUE} lines were not copied" in caplog.text
    released.set()
    relay._thread.join(10)


def test_a_process_ends_though_a_tracker_hangs(tmp_path):
    program = (
        "import sys, time, pathlib; from infini_jax.training import mirrors, trackers;"
        "from tests.test_mirrors import given, lines;"
        "wait = lambda self, *_: time.sleep(1000);"
        "trackers.TRACKERS['wandb'] = type('T', (), dict(needs=(), open=wait, log=wait, close=wait));"
        "mirrors.CLOSE_SECONDS = 0.2;"
        "given(mirrors.Mirroring(('wandb',)), pathlib.Path(sys.argv[1]), lines(1, 3))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
    )
    assert "3 of 3 lines were not copied" in done.stderr


def test_a_tracker_that_is_not_installed_is_refused_in_one_line_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers.MLflow, "needs", ("no_such_module",))
    text = fails(capsys, *TRAIN, "--mirrors.to", "mlflow", "--results", str(tmp_path))
    assert text == "infini-jax: mirrors.to: mlflow is not installed; pip install 'infini_jax[mlflow]'\n"
    assert not list(tmp_path.iterdir())


def test_every_tracker_has_an_extra_of_its_name():
    """What the refusal tells people to install is there."""
    extras = tomllib.loads((Path(trackers.__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(trackers.TRACKERS) <= set(extras)
    assert extras["mirrors"] == [f"infini_jax[{','.join(trackers.TRACKERS)}]"]


def test_a_misspelt_tracker_is_refused():
    with pytest.raises(ConfigError, match=r"^mirrors.to: 'wandbb' is not known; did you mean 'wandb'\?$"):
        Mirroring(("wandbb",))


def scalars(folder):
    """Step -> values of the event files, read record by record: length, its checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found, purged = {}, []
    for file in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                purged.append(event.step)
                found = {step: values for step, values in found.items() if step < event.step}
            for value in event.summary.value:
                found.setdefault(event.step, {})[value.tag] = value.simple_value
    return found, purged


def test_tensorboard_has_the_metrics_of_a_run_that_went_on(tmp_path):
    """Stopped behind step 4 with a checkpoint at 2: the lines of 3 and 4 come again and hide the earlier ones."""
    pytest.importorskip("tensorboardX")
    given(Mirroring(("tensorboard",)), tmp_path, lines(1, 4))
    given(Mirroring(("tensorboard",)), tmp_path, lines(3, 5, loss=2.0), after=2)
    found, purged = scalars(tmp_path / "tensorboard")
    assert purged == [1, 3]
    for step, loss in zip(range(1, 6), (1.0, 1.0, 2.0, 2.0, 2.0), strict=True):
        assert found[step] == pytest.approx({"loss": loss / step, "gate_mean": 0.5}, rel=1e-6)  # event files hold float32


def test_mlflow_has_the_metrics_and_settings_of_one_run(tmp_path, monkeypatch):
    for module in trackers.MLflow.needs:
        pytest.importorskip(module)
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for part, after in ((lines(1, 3), 0), (lines(3, 4), 2)):
        given(Mirroring(("mlflow",), project="tests"), tmp_path, part, after)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mirrored", "FINISHED")
    assert run.data.params["train.log_every"] == "2"
    history = {(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert history == {(step, 1 / step) for step in (1, 2, 3, 4)}


def test_trackio_has_the_metrics_of_one_run(tmp_path):
    pytest.importorskip("trackio")
    # its folder is read from the environment when it is imported
    program = (
        "import sys, pathlib; from tests.test_mirrors import given, lines, Mirroring; folder = pathlib.Path(sys.argv[1]);"
        "given(Mirroring(('trackio',), project='tests'), folder, lines(1, 3));"
        "given(Mirroring(('trackio',), project='tests'), folder, lines(3, 4), after=2)"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=300, env=environment)
    with sqlite3.connect(tmp_path / "tests.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    name = json.loads((tmp_path / IDENTITY_FILE).read_text())["id"]
    assert [(row[0], row[1]) for row in rows] == [(name, step) for step in (1, 2, 3, 3, 4)]
    assert json.loads(rows[-1][2]) == {"loss": 0.25, "gate_mean": 0.5}


@pytest.mark.slow
def test_wandb_without_a_network_keeps_its_files(tmp_path):
    """The service is a closed port; wandb tries for as long as WANDB_INIT_TIMEOUT says."""
    pytest.importorskip("wandb")
    settings = {"API_KEY": "0" * 40, "BASE_URL": "http://localhost:9", "INIT_TIMEOUT": "5", "MODE": "online"}
    environment = {**os.environ, **{f"WANDB_{name}": value for name, value in settings.items()}}
    program = (  # in a process of its own, which keeps the login
        "import sys, pathlib; from infini_jax.training import mirrors; from tests.test_mirrors import given, lines, Mirroring;"
        "mirrors.CLOSE_SECONDS = 60.0;"
        "given(Mirroring(('wandb',), project='tests'), pathlib.Path(sys.argv[1]), lines(1, 3))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
    assert done.stderr.count("mirror wandb:") == 1
    assert "mirror wandb: the service cannot be reached, so the run is kept: wandb sync" in done.stderr
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1


def test_wandb_without_a_login_keeps_its_files_under_one_id(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for part, after in ((lines(1, 3), 0), (lines(3, 4), 2)):
        given(Mirroring(("wandb",), project="tests"), tmp_path, part, after)
        time.sleep(1.0)  # the folders of two starts in one second have one name
    (warning, again) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "no login was found, so the run is kept: wandb sync" in warning
    assert again == warning
    name = json.loads((tmp_path / IDENTITY_FILE).read_text())["id"]
    rows, resumes = [], []
    for file in sorted(tmp_path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")):
        # records behind 7 bytes of the file and 7 of their own (checksum, length, kind); 32 KiB would begin a block
        data, at = file.read_bytes(), 7
        assert len(data) < 32768
        while at < len(data):
            (size,) = struct.unpack_from("<H", data, at + 4)
            record = wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + size])
            at += 7 + size
            if record.WhichOneof("record_type") == "run":
                resumes.append(record.run.resume)
            if record.WhichOneof("record_type") == "history":
                rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
    assert resumes == [True, True]
    assert [(row["step"], row["loss"]) for row in rows] == [(step, 1 / step) for step in (1, 2, 3, 3, 4)]


def test_settings_are_named_by_their_path():
    named = dict(trackers.settings(RUN.to_dict()))
    assert named["model.memory.kind"] == "infini"
    assert named["budget.amount"] == 6
