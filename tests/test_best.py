"""The best checkpoint is kept, and a run whose validation loss no longer falls ends early, with and without a restart."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.devices import chosen_form
from infini_jax.devices.sharding import ROWS_ALONE
from infini_jax.errors import ConfigError, Stopped
from infini_jax.memory.local import LocalConfig
from infini_jax.records.folder import METRICS_FILE
from infini_jax.records.rows import read_rows
from infini_jax.report.sections import notes
from infini_jax.study.scores import score_of
from infini_jax.training.checkpoint import Checkpoints, Progress, Saving
from infini_jax.training.execute import execute, finished_row
from infini_jax.training.held_out import HeldOut, HeldOutScores
from infini_jax.training.loop import Finished, train
from infini_jax.training.notes import checked_notes, hash_of, progress_in, sealed
from infini_jax.training.standing import Standing
from infini_jax.training.trained import Trained
from tests.support.asking import noted_by
from tests.support.made_results import made_rows
from tests.support.saved import saved_run

MODEL = ModelConfig(memory=LocalConfig(window=8), vocab=48, layers=1, d_model=16, segment=8)
TRAIN = TrainConfig(batch=2, sequence=16, log_every=3, evaluation_steps=1, evaluate_every=2, patience=2)
RUN = RunConfig(model=MODEL, data=MqarConfig(pairs=4, symbols=32, repeats=2), train=TRAIN, budget=Budget("steps", 14))
LOSSES = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1, 10: 1.0}  # the patience of two readings is at an end at step 8
KEEPING = Saving(keep_best=True)


def after(losses, improvement=0.0):
    standing = Standing()
    for step, loss in enumerate(losses, start=1):
        standing = standing.after(step, loss, improvement)
    return standing


def test_the_standing_is_that_of_all_losses():
    """Against the definition, over the whole list at once."""
    random = np.random.default_rng(0)
    for _ in range(50):
        losses = random.integers(0, 9, 12).astype(float).tolist()
        found, lowest = after(losses), min(losses)
        assert (found.best_step, found.best_loss) == (losses.index(lowest) + 1, lowest)
        assert found.waited == len(losses) - found.best_step


@pytest.mark.parametrize(
    ("losses", "improvement", "waited", "best"),
    [
        ([3.0, 2.9, 2.8], 0.15, 0, 3),  # 2.8 is far enough below 3.0
        ([3.0, 2.9, 2.88], 0.15, 2, 3),
        ([3.0, None, 2.0, None], 0.0, 0, 3),
        ([3.0, math.nan, 4.0], 0.0, 2, 1),
    ],
)
def test_small_falls_and_failed_readings_do_not_count(losses, improvement, waited, best):
    found = after(losses, improvement)
    assert (found.waited, found.best_step) == (waited, best)


def test_patience_and_a_best_checkpoint_without_readings_are_refused():
    with pytest.raises(ConfigError, match=r"^train.evaluate_every: a patience of 2 readings, and none before the end; give"):
        TrainConfig(patience=2)
    with pytest.raises(ConfigError, match=r"^train.improvement: 0.1 decides nothing without a patience; give train.patience"):
        TrainConfig(improvement=0.1)
    with pytest.raises(ConfigError, match=r"^train.patience: mqar has no documents that are read while it is trained; give 0"):
        HeldOut(RUN, lambda line: None, ROWS_ALONE)
    plain = dataclasses.replace(RUN, train=dataclasses.replace(TRAIN, patience=0))
    with pytest.raises(ConfigError, match=r"^saving.keep_best: mqar has no documents that are read while it is trained"):
        HeldOut(plain, lambda line: None, ROWS_ALONE, keep_best=True)


def test_what_ends_a_run_is_in_its_fingerprint_and_nothing_else_is():
    plain = dataclasses.replace(RUN, train=dataclasses.replace(TRAIN, patience=0))
    often = dataclasses.replace(plain, train=dataclasses.replace(plain.train, evaluate_every=4))
    assert plain.fingerprint() == often.fingerprint() != RUN.fingerprint()
    assert RUN.fingerprint() != dataclasses.replace(RUN, train=dataclasses.replace(TRAIN, evaluate_every=4)).fingerprint()
    assert RUN.program(9) == plain.program(9)


def test_the_best_checkpoint_outlives_newer_ones(tmp_path):
    carry = {"memory": jnp.zeros(3)}
    with Checkpoints(RUN, tmp_path, KEEPING) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(Progress(step), {"step": jnp.int32(step)}, carry)
            checkpoints.keep_best(min(step, 2))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        checkpoints.keep_best(6)
        checkpoints.save(Progress(7), {"step": jnp.int32(7)}, carry)
        checkpoints.wait()
        assert checkpoints.steps() == [6, 7]


def test_notes_from_before_there_were_readings_are_read():
    new = sealed(RUN, Progress(4, 1.0, 1.0, {"loss": 2.0}), {})
    assert progress_in(checked_notes(new, 4)) == Progress(4, 1.0, 1.0, {"loss": 2.0})
    old = {name: value for name, value in new.items() if name not in ("standing", "hash")} | {"format": 3}
    old |= {"hash": hash_of(old)}
    assert progress_in(checked_notes(old, 4)) == Progress(4, 1.0, 1.0, {"loss": 2.0})
    with pytest.raises(ValueError, match="not the names of format 3"):
        checked_notes({**old, "standing": {}}, 4)


def test_the_best_checkpoint_is_read_by_name(tmp_path, capsys):
    folder = saved_run(RUN, tmp_path / "run", (2, 4))
    with pytest.raises(ConfigError, match=r"^step: the run's log has no reading of validation documents; leave it out"):
        Trained.open(folder, "best")
    lines = [{"step": 2, "loss": 0.5}, *({"step": step, "validation_loss": loss} for step, loss in ((2, 1.5), (4, None)))]
    (folder / METRICS_FILE).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert Trained.open(folder, "best").step == 2
    assert Trained.open(folder).step == 4
    (folder / METRICS_FILE).write_text('{"step": 3, "validation_loss": 1.5}\n')
    with pytest.raises(SystemExit):
        main(["generate", str(folder), "--prompt", "a", "--step", "worst"])
    capsys.readouterr()
    said = r"^step: the lowest validation loss was at step 3, of which there is no checkpoint; train with --saving.keep-best"
    with pytest.raises(ConfigError, match=said):
        Trained.open(folder, "best")


def trained(folder, stop_at=None):
    """(what training returns, steps that were examined, steps that were logged, checkpoints); stopped behind a step."""
    examined, logged = [], []

    def loss_of(step):
        examined.append(step)
        return LOSSES.get(step, 9.0)

    with Checkpoints(RUN, folder, KEEPING) as checkpoints:
        try:
            counted = iter(range(1, 99))
            stop = (lambda: next(counted) == stop_at) if stop_at else (lambda: False)
            found = train(RUN, logged.append, checkpoints, stop, noted_by(loss_of))
        except Stopped:
            found = None
        checkpoints.wait()
        return found, examined, [line["step"] for line in logged], checkpoints.steps()


@pytest.mark.slow
def test_a_run_ends_early_and_keeps_its_best_checkpoint_with_and_without_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr(chosen_form, "MOST_STEPS", 1)  # it is asked behind every step whether to stop
    whole, examined, logged, kept = trained(tmp_path / "whole")
    assert (whole.steps, examined, kept) == (8, [2, 4, 6, 8], [4, 6, 8])
    assert logged == [2, 3, 4, 6, 8]  # every third, and where the run may end
    assert whole.stopped == "validation loss did not fall in 2 readings; lowest 2 at step 4"
    for stop_at in (4, 7):  # behind the best reading's step, and between readings
        parts = tmp_path / str(stop_at)
        assert trained(parts, stop_at)[0] is None
        found, *_, kept = trained(parts)
        assert (found.steps, found.stopped, kept[-1]) == (8, whole.stopped, 8)
        assert 4 in kept
        jax.tree.map(np.testing.assert_array_equal, found.learned, whole.learned)
    again, examined, logged, _ = trained(tmp_path / "whole")
    assert (again.steps, again.stopped, examined, logged) == (8, whole.stopped, [8], [])
    jax.tree.map(np.testing.assert_array_equal, again.learned, whole.learned)


def test_the_row_counts_the_steps_that_were_done():
    planned = dataclasses.replace(
        made_rows()[0], steps=12, tokens=1200, flops_actual=6e6, flops_executed=9e6, flops_counted=3e6
    )
    finished = Finished(8, 1.0, 1.0, {"loss": 2.0}, 0, "validation loss did not fall")
    row = finished_row(planned, finished, HeldOutScores(1.0, 0.5, None, None))
    assert (row.steps, row.tokens, row.flops_actual, row.flops_executed, row.flops_counted) == (8, 800, 4e6, 6e6, 2e6)
    assert row.flops_planned == planned.flops_planned
    assert "1 of 1 runs ended early, by their validation loss, after 8 steps." in notes([row], score_of(row.task))


@pytest.mark.slow
def test_execute_leaves_a_row_that_says_why_it_ended(tmp_path):
    model, evaluation = dataclasses.replace(MODEL, vocab=256), EvaluationConfig(1, 64, 1, ("carried",))
    train = dataclasses.replace(TRAIN, patience=1, improvement=5.0)
    run = dataclasses.replace(RUN, model=model, data=StdlibConfig(), train=train, evaluation=evaluation)
    row = execute(run, tmp_path, study="", saving=KEEPING)
    assert read_rows(tmp_path / "row.parquet") == [row]
    assert row.steps == 4
    assert row.stopped_early.startswith("validation loss did not fall by more than 5 in 1 readings; lowest ")
    read = [line for line in map(json.loads, (tmp_path / METRICS_FILE).open()) if "validation_loss" in line]
    assert [line["step"] for line in read] == [2, 4]
    assert Trained.open(tmp_path, "best").step == min(read, key=lambda line: line["validation_loss"])["step"]
