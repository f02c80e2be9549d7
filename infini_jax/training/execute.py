"""One run from its config to its row in the table: train, score, count, write."""

import contextlib
import dataclasses
import datetime
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from infini_jax.config import Origin, RunConfig
from infini_jax.devices.chosen_form import form_of_run
from infini_jax.devices.processes import is_first
from infini_jax.devices.sharding import ROWS_ALONE, Sharding
from infini_jax.errors import ConfigError, EvaluationFailed, Stopped, TrainingDiverged, named_line, present
from infini_jax.files import json_text, write_at_once, write_json
from infini_jax.model.cost import parameter_count, planned_flops, run_cost, training_flops_per_step
from infini_jax.records.environment import environment
from infini_jax.records.folder import EarlyEnd, RunFolder
from infini_jax.records.rows import Row, write_rows
from infini_jax.records.training_log import log_text, metrics_in, whole_lines
from infini_jax.training.asking import Asks
from infini_jax.training.checkpoint import Checkpoints, Saving
from infini_jax.training.held_out import HeldOut, HeldOutScores
from infini_jax.training.interrupts import terminated
from infini_jax.training.loop import Alone, Finished, Seat, Steps, training_steps
from infini_jax.training.mirrors import Mirroring, Mirrors
from infini_jax.training.program import Training, counted_flops, rows_of
from infini_jax.training.timed_budget import with_steps

OFTEN_ENOUGH, NOWHERE = Saving(), Mirroring()
LEARNED = "loss"  # only in lines about training
logger = logging.getLogger(__name__)


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
      EvaluationFailed: the run is trained and its row written, without the figures of an evaluation that failed.
      Stopped: a signal that announces the end came, or nobody reads the output any more; the run is saved.
      Interrupted: Ctrl-C was pressed; the run is saved.
      ConfigError: the settings, the data or the trackers are not usable here, or another process is at the run.
      TrainingDiverged: the loss is no longer finite.
      CheckpointError: a checkpoint cannot be read or written.
    """
    is_alone = is_first() and not study  # the workers of a study note failures themselves
    with begun(run, folder, mirroring) as mirrors, end_noted(RunFolder(folder)) if is_alone else contextlib.nullcontext():
        run = with_steps(run, folder, sharding)
        seat = Alone(run, sharding)
        with terminated() as stop:
            trained = seat.drive(trained_steps(seat, folder, study, stop, watch, saving, resume, mirrors, sharding))
        return seat.drive(scored(trained, folder))


@contextlib.contextmanager
def begun(run: RunConfig, folder: Path, mirroring: Mirroring = NOWHERE) -> Iterator[Mirrors]:
    """A context in which nobody else writes into a run's folder; its value are the run's trackers.

    Raises `ConfigError` where another process does, a tracker is not installed, or the budget is one that no run has.
    """
    planned_flops(run)  # a budget that no run has is told before anything is written
    mirrors = Mirrors(mirroring if is_first() else NOWHERE)  # one that is missing is told of before anything else
    with RunFolder(folder).only_writer() if is_first() else contextlib.nullcontext():
        yield mirrors


@contextlib.contextmanager
def end_noted(place: RunFolder) -> Iterator[None]:
    """A context that notes in a run's folder how the run ended, if it ended early: `infini-jax watch` reads it."""
    place.error.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            write_json({"end": end_of(error), "error": named_line(error)}, place.error)
        raise


def end_of(error: BaseException) -> EarlyEnd:
    """The word for the end of a run by an error."""
    kinds: dict[EarlyEnd, Any] = {
        "stopped": (Stopped, KeyboardInterrupt),
        "diverged": TrainingDiverged,
        "refused": ConfigError,
        "failed": EvaluationFailed,
    }
    found: list[EarlyEnd] = [end for end, kind in kinds.items() if isinstance(error, kind)]
    return found[0] if found else "crashed"


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run that is trained and not scored yet.

    Attributes:
      planned: its row, with all that was known before it was trained.
      finished: the result of training.
      held_out: the scoring on held-out data.
    """

    planned: Row
    finished: Finished
    held_out: HeldOut


def trained_steps(
    seat: Seat,
    folder: Path,
    study: str,
    stop: Callable[[], bool],
    watch: Callable[[dict[str, float]], None] = lambda line: None,
    saving: Saving = OFTEN_ENOUGH,
    resume: int | None = None,
    mirrors: Mirrors | None = None,
    sharding: Sharding = ROWS_ALONE,
) -> Steps[TrainedRun]:
    """The steps of a run in a folder in which nobody else writes, with its log and checkpoints; see `execute`."""
    run, place, unwatched = seat.training.run, RunFolder(folder), threading.Event()
    mirrors = mirrors or Mirrors(NOWHERE)
    with mirrors, Checkpoints(run, folder, saving) as checkpoints:
        if resume is not None:
            checkpoints.go_back_to(resume)
        reached = checkpoints.progress()
        if is_first():
            place.write_config(run.to_dict())
        mirrors.begin(run, folder, reached.step)
        with metrics_after(place.metrics, reached.step) if is_first() else nowhere() as file:

            def log(line: dict[str, float]) -> None:
                file.write(json_text(line) + "\n")
                mirrors.log(line)
                if LEARNED in line and not unwatched.is_set():
                    try:
                        watch(line)
                    except OSError:  # of a terminal or a pipe that is gone, as after a connection: its end was announced
                        unwatched.set()

            def stopping() -> bool:
                return stop() or unwatched.is_set()

            held_out = HeldOut(run, log, sharding, saving.keep_best)
            planned = planned_row(seat, study)
            finished = yield from training_steps(seat, log, checkpoints, stopping, held_out.examine)
    return TrainedRun(planned, finished, held_out)


def scored(trained: TrainedRun, folder: Path) -> Asks[Row]:
    """Scores a trained run, whose seat answers, and writes its row. Raises `EvaluationFailed` where the row lacks figures."""
    held_out, place = trained.held_out, RunFolder(folder)
    row = finished_row(trained.planned, trained.finished, (yield from held_out.scores()))
    if is_first():
        leave_row(row, place, held_out.failed)
    if held_out.failed:
        failed = "; ".join(f"evaluation {split}: {named_line(error)}" for split, error in held_out.failed.items())
        first = next(iter(held_out.failed.values()))
        raise EvaluationFailed(
            f"{failed}; {place.row} is written without it; repeat the command to evaluate it again"
        ) from first
    return row


def leave_row(row: Row, place: RunFolder, failed: Mapping[Any, Exception]) -> None:
    """Writes a run's row, and beside it what it lacks because an evaluation failed; a row that lacks nothing stands alone."""
    if failed:
        write_json({split: named_line(error) for split, error in failed.items()}, place.unscored, indent=None)
    write_rows([row], place.row)
    if not failed:
        place.unscored.unlink(missing_ok=True)


@contextlib.contextmanager
def metrics_after(file: Path, step: int) -> Iterator[TextIO]:
    """A context with the metrics log, opened behind its last line of at most `step`: later lines are written again.

    The scores of held-out data at `step` are written again too, because they come after its checkpoint. A damaged line is left
    out with a warning.
    """

    def is_kept(number: int, line: bytes) -> bool:
        try:
            found = metrics_in(line)
        except ValueError:
            logger.warning("metrics: line %d of %s is damaged and left out", number, file)
            return False
        return found["step"] < step or (found["step"] == step and LEARNED in found)

    kept = [line.decode() for number, line in enumerate(whole_lines(log_text(file)), start=1) if is_kept(number, line)]
    write_at_once("".join(f"{line}\n" for line in kept), file)
    with file.open("a", buffering=1) as opened:
        yield opened


@contextlib.contextmanager
def nowhere() -> Iterator[TextIO]:
    """A context with an open file that keeps nothing, for the metrics of all processes but the first."""
    with open(os.devnull, "w") as opened:
        yield opened


def planned_row(seat: Seat, study: str) -> Row:
    """The row of a run with all that is known before it is trained; counting it cannot fail any more once it is.

    A row is only left of a run that is finished: it did all of its steps, or was stopped early.
    """
    run, layout = seat.training.run, seat.training.layout
    columns: dict[str, Any] = origin_columns(run.origin) | environment()
    steps, step_flops = seat.training.steps, training_flops_per_step(run)
    counted = counted_flops((seat.training if layout and layout.token_parts == 1 else Training(run)).program)
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
        memory_bytes_bf16=run.model.memory_bytes_bf16,
        neighborhood_bytes=run.model.neighborhood_bytes,
        parameters=parameter_count(run.model),
        learning_rate=run.train.learning_rate,
        flops_per_token=run_cost(run).flops,
        budget_unit=run.budget.unit,
        budget_amount=float(run.budget.amount),
        gives=run.budget.gives,
        flops_planned=steps * step_flops,
        flops_actual=steps * step_flops,
        flops_counted=steps * counted.work,
        flops_executed=steps * counted.executed,
        steps=steps,
        tokens=steps * run.tokens_per_step,
        seconds=math.nan,
        compile_seconds=math.nan,
        train_loss=math.nan,
        loss=math.nan,
        accuracy=math.nan,
        test_loss=None,
        test_accuracy=None,
        gate_mean=None,
        gate_spread=None,
        corpus=run.data.open(rows_of(run, "train")).corpus,
        finished="",
        skipped_steps=0,
        form=str(form_of_run(run, layout)),
        fleet=seat.members,
        trained_parameters=None if run.train.trains == "all" else seat.training.parts.counts[0],
        **columns,
    )


def origin_columns(origin: Origin | None) -> dict[str, Any]:
    """The columns of a row that say where the run began; none where its parameters were fresh."""
    if origin is None:
        return {}
    return {
        "origin": origin.name,
        "origin_fingerprint": origin.fingerprint,
        "origin_step": origin.step,
        "origin_digest": origin.digest,
    }


def finished_row(planned: Row, finished: Finished, scores: HeldOutScores) -> Row:
    """The row of a finished run, with all that was measured; of its planned steps only those that were done."""
    share = finished.steps / planned.steps
    return dataclasses.replace(
        planned,
        steps=finished.steps,
        tokens=planned.tokens // planned.steps * finished.steps,
        flops_actual=planned.flops_actual * share,
        flops_counted=present(planned.flops_counted, "it is counted for every run") * share,
        flops_executed=planned.flops_executed * share,
        stopped_early=finished.stopped,
        seconds=finished.seconds,
        compile_seconds=finished.compile_seconds,
        train_loss=finished.last["loss"],
        gate_mean=finished.last.get("gate_mean"),
        gate_spread=finished.last.get("gate_spread"),
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        skipped_steps=finished.skipped,
        **dataclasses.asdict(scores),
    )
