"""One run from its config to its row in the table: train, score, count, write."""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from infini_jax.config import RunConfig
from infini_jax.devices.processes import is_first
from infini_jax.devices.sharding import ROWS_ALONE, Sharding
from infini_jax.files import write_at_once
from infini_jax.model.cost import budget_steps, model_cost, parameter_count, training_flops_per_step
from infini_jax.records.environment import environment
from infini_jax.records.folder import RunFolder
from infini_jax.records.rows import Row, write_rows
from infini_jax.training.checkpoint import Checkpoints, Saving
from infini_jax.training.held_out import HeldOut, HeldOutScores
from infini_jax.training.interrupts import terminated
from infini_jax.training.loop import Finished, train
from infini_jax.training.mirrors import Mirroring, Mirrors
from infini_jax.training.program import Training, counted_flops, rows_of
from infini_jax.training.timed_budget import with_steps

OFTEN_ENOUGH, NOWHERE = Saving(), Mirroring()
LEARNED = "loss"  # only in lines about training


def execute(
    run: RunConfig,
    folder: Path,
    study: str,
    watch: Callable[[dict[str, float]], None] = lambda line: None,
    saving: Saving = OFTEN_ENOUGH,
    resume: int | None = None,
    mirroring: Mirroring = NOWHERE,
    sharding: Sharding = ROWS_ALONE,
) -> Row:
    """Trains and scores a run, or goes on with one that was stopped or killed, and returns its row.

    Leaves config.json, metrics.jsonl, checkpoints/ and row.parquet in `folder`. Where the budget is seconds, config.json keeps
    the steps that they buy.

    Args:
      run: settings of the run.
      folder: the run's own folder.
      study: name for the row's column.
      watch: gets the metric lines of training.
      saving: when the run is saved.
      resume: step to go on from in place of the newest checkpoint; newer checkpoints are deleted then.
      mirroring: trackers that get the metric lines, too.
      sharding: how the devices share the work.

    Raises:
      Stopped: SIGTERM came; the run is saved.
      Interrupted: Ctrl-C was pressed; the run is saved.
      ConfigError: the settings, the data or the trackers are not usable here.
      TrainingDiverged: the loss is no longer finite.
      CheckpointError: a checkpoint cannot be read or written.
    """
    run, place = with_steps(run, folder, sharding), RunFolder(folder)
    mirrors = Mirrors(mirroring if is_first() else NOWHERE)  # one that is missing is told of before anything else
    folder.mkdir(parents=True, exist_ok=True)
    with mirrors, Checkpoints(run, folder, saving) as checkpoints, terminated() as stop:
        if resume is not None:
            checkpoints.go_back_to(resume)
        reached = checkpoints.progress()
        if is_first():
            place.write_config(run.to_dict())
        mirrors.begin(run, folder, reached.step)
        with metrics_after(place.metrics, reached.step) if is_first() else nowhere() as file:

            def log(line: dict[str, float]) -> None:
                file.write(json.dumps(line) + "\n")
                mirrors.log(line)
                if LEARNED in line:
                    watch(line)

            held_out = HeldOut(run, log, sharding)
            finished = train(run, log, checkpoints, stop, held_out.examine, sharding)
    row = make_row(run, study, finished, held_out.scores(finished.learned))
    if is_first():
        write_rows([row], place.row)
    return row


@contextlib.contextmanager
def metrics_after(file: Path, step: int) -> Iterator[TextIO]:
    """The metrics log, opened to write behind its last line of at most `step`: later lines are written again.

    So are the scores of held-out data at `step`, which come after its checkpoint.
    """

    def is_kept(line: dict[str, float]) -> bool:
        return line["step"] < step or (line["step"] == step and LEARNED in line)

    lines = file.read_text().splitlines() if file.exists() else []
    kept = [line for line in lines if line.endswith("}") and is_kept(json.loads(line))]
    write_at_once("".join(f"{line}\n" for line in kept), file)
    with file.open("a", buffering=1) as opened:
        yield opened


@contextlib.contextmanager
def nowhere() -> Iterator[TextIO]:
    """An open file that keeps nothing, for the metrics of all processes but the first."""
    with open(os.devnull, "w") as opened:
        yield opened


def make_row(run: RunConfig, study: str, finished: Finished, scores: HeldOutScores) -> Row:
    """The row of a finished run, with all that was counted and measured."""
    step_flops, counted = training_flops_per_step(run), counted_flops(Training(run).program)
    return Row(
        run=run.name,
        version=run.version,
        fingerprint=run.fingerprint(),
        seed=run.seed,
        study=study,
        task=run.task,
        mechanism=run.model.mechanism,
        variant=run.variant,
        memory_bytes=run.model.memory_bytes,
        parameters=parameter_count(run.model),
        learning_rate=run.train.learning_rate,
        flops_per_token=model_cost(run.model).flops,
        budget_unit=run.budget.unit,
        budget_amount=float(run.budget.amount),
        gives=run.budget.gives,
        flops_planned=budget_steps(run) * step_flops,
        flops_actual=finished.steps * step_flops,
        flops_counted=finished.steps * counted.work,
        flops_executed=finished.steps * counted.executed,
        steps=finished.steps,
        tokens=finished.steps * run.tokens_per_step,
        seconds=finished.seconds,
        compile_seconds=finished.compile_seconds,
        train_loss=finished.last["loss"],
        loss=scores.loss,
        accuracy=scores.accuracy,
        test_loss=scores.test_loss,
        test_accuracy=scores.test_accuracy,
        gate_mean=finished.last.get("gate_mean"),
        gate_spread=finished.last.get("gate_spread"),
        corpus=run.data.open(rows_of(run, "train")).corpus,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **environment(),
    )
