"""The training loop: steps until the budget is spent, a log, checkpoints, pauses to examine what was learned.

The loop of a run, `training_steps`, does everything but the step itself: it is a generator that hands out the batches of
its next steps and gets what they measured, or asks for a reading of what was learned (`infini_jax.training.asking`). `Alone`
takes these steps, several in one call where they are short; `infini_jax.training.fleet` takes those of many runs at once.
"""

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.config import RunConfig
from infini_jax.data.batch import Batch
from infini_jax.devices.chosen_form import most_steps
from infini_jax.devices.effort import ONCE, effort
from infini_jax.devices.peaks import peak_flops
from infini_jax.devices.processes import Agreement
from infini_jax.devices.sharding import ROWS_ALONE, Sharding, layout_of
from infini_jax.devices.side_by_side import OneModel, read_alone
from infini_jax.errors import Stopped, TrainingDiverged, instance
from infini_jax.model.cost import check_fits, training_flops_per_step
from infini_jax.model.stream import Carry
from infini_jax.training.asking import Asked, Asks, Result
from infini_jax.training.checkpoint import Checkpoints, Progress
from infini_jax.training.clock import Clock
from infini_jax.training.origin import read_origin
from infini_jax.training.program import Training, TrainState, compiled_steps
from infini_jax.training.skips import Skips
from infini_jax.units import ratio

Measured = Mapping[str, Any]  # what a step measured: arrays of devices, or what becomes one of the host when it is asked for
# Of a run: batches of the host, of a step each -> what the last one measured; or a reading that is asked for -> what was read.
Steps = Generator[Sequence[Batch] | Asked, Any, Result]
Examine = Callable[[int], Asks[float | None]]
TIMED = 3  # steps that are timed at first
CALL = 0.2  # seconds that several steps in one call may take, as nothing interrupts it


@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of training, without what was learned, which the run's seat has.

    Attributes:
      steps: number of steps that were done.
      seconds: seconds of training, without compiling and without examining.
      compile_seconds: seconds of compiling.
      last: last line of metrics.
      skipped: steps that changed nothing, because their gradient was not finite.
      stopped: the reason why it ended before its budget was spent, in words; None where it was spent.
    """

    steps: int
    seconds: float
    compile_seconds: float
    last: dict[str, float]
    skipped: int
    stopped: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedState(Finished):
    """The result of training a run alone, with what was learned.

    Attributes:
      state: the state after the last step.
      learned: the parameters to evaluate, whole on every device.
    """

    state: TrainState
    learned: dict


class Seat(abc.ABC):
    """The seat of a run in the program that takes its steps.

    Attributes:
      training: the run's training.
      clock: seconds of training, of all runs that share the program.
      members: number of runs that share the program; None where the run is alone.
      most: number of steps that are taken in one call, at most.
    """

    training: Training
    clock: Clock
    members: int | None = None
    most: int = 1

    @abc.abstractmethod
    def take(self, state: TrainState) -> float:
        """Begins at a state, which may be donated; returns the seconds of compiling."""

    @property
    @abc.abstractmethod
    def state(self) -> TrainState:
        """The state after the steps so far, which may be a copy."""


class Alone(Seat):
    """The seat of a run that has a program to itself, on a layout of devices. Raises `ConfigError` as `Training` does.

    Where steps are short, several are taken in one call: as many as take `CALL` seconds, by the first ones.
    """

    def __init__(self, run: RunConfig, sharding: Sharding = ROWS_ALONE):
        self.training = Training(run, layout_of(run, sharding))
        self.clock = Clock()

    def take(self, state: TrainState) -> float:
        began, self._most, self._timed = time.perf_counter(), most_steps(), list[float]()
        self._state, self._steps = state, compiled_steps(self.training.program, self._most)
        return time.perf_counter() - began

    @property
    def state(self) -> TrainState:
        return self._state

    @property
    def learned(self) -> dict:
        """The parameters to evaluate, whole on every device."""
        return self.training.gathered(self._state.learned)

    def drive(self, steps: Steps[Result]) -> Result:
        """Takes all steps of a run, and reads what it asks for; returns its result.

        What a step or a reading raises is raised inside of the run's own loop.
        """
        try:
            wanted = next(steps)
            while True:
                try:
                    found = self._answer(wanted)
                except BaseException as error:
                    wanted = steps.throw(error)
                else:
                    wanted = steps.send(found)
        except StopIteration as end:
            return end.value

    def _answer(self, wanted: Sequence[Batch] | Asked) -> Any:
        if isinstance(wanted, Asked):
            return read_alone(OneModel(self.learned), wanted.read)
        return self._advance(wanted)

    def _advance(self, batches: Sequence[Batch]) -> Measured:
        """Takes a step on each of the batches, and finds how many to take in one call."""
        began = time.perf_counter()
        self._state, measured = self._steps(self._state, batches)
        if self._most > 1 and len(self._timed) < TIMED:
            jax.block_until_ready(measured["loss"])
            self._timed.append(time.perf_counter() - began)
            if len(self._timed) == TIMED:
                self.most = min(self._most, max(1, int(CALL / min(self._timed))))
        return measured


def unexamined(step: int) -> Asks[float | None]:
    """The `Examine` of training whose parameters nobody examines: it asks for nothing."""
    yield from ()


def train(
    run: RunConfig,
    log: Callable[[dict[str, float]], None],
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = lambda: False,
    examine: Examine = unexamined,
    sharding: Sharding = ROWS_ALONE,
) -> FinishedState:
    """Trains a run alone, until its budget is spent; see `training_steps`. `sharding` is how the devices at hand share it."""
    seat = Alone(run, sharding)
    finished = seat.drive(training_steps(seat, log, checkpoints, stop, examine))
    return FinishedState(**vars(finished), state=seat.state, learned=seat.learned)


def training_steps(
    seat: Seat,
    log: Callable[[dict[str, float]], None],
    checkpoints: Checkpoints | None,
    stop: Callable[[], bool],
    examine: Examine,
) -> Steps[Finished]:
    """Trains until the budget is spent; `log` gets a metric line every `train.log_every` steps and at the last.

    Args:
      seat: where the steps are taken; results are the same but for the order of sums.
      log: gets the metric lines.
      checkpoints: checkpoints to which the run is saved, and from which it goes on if there are any; the end is always saved.
      stop: function that is asked after every call of the program; where it is true, the run is saved and `Stopped` is raised.
      examine: gets the step every `train.evaluate_every` steps and at the last, behind the checkpoint of the step, asks for
        readings of what was learned, and returns the validation loss where there is one. A run that goes on from such a step
        begins with it, because it may have been stopped before it was done.

    Raises:
      ConfigError: the budget pays for no step, or the state cannot fit.
      TrainingDiverged: the loss is no longer finite, or gradients are not, step after step; the last good checkpoint stays.
      CheckpointError: a checkpoint cannot be read or written.
      Stopped: `stop` was true.
    """
    training, clock = seat.training, seat.clock
    run, steps, layout = training.run, training.steps, training.layout
    check_fits(run)
    mesh = instance(layout and layout.mesh, jax.sharding.Mesh, "training is on devices that are here")
    state, behind = begin(training, checkpoints)
    compile_seconds = behind.compile_seconds + seat.take(state)
    batches, state = training.read(range(behind.step, steps)), None
    peak, agreed, skips = peak_flops(mesh.devices.flat), Agreement(mesh), Skips(behind.skipped, behind.skipped_in_row)
    began, standing, done = clock() - behind.seconds, behind.standing, behind.step

    def examined() -> Asks[None]:
        """Examines what was learned, and takes note of what was found."""
        nonlocal standing
        with clock.paused():
            standing = standing.after(done, (yield from examine(done)), run.train.improvement)
            if checkpoints is not None:
                checkpoints.keep_best(standing.best_step)

    if checkpoints is not None:
        checkpoints.keep_best(standing.best_step)
    if behind.step and is_examined(run, behind.step, steps):
        yield from examined()
    taken: list[Batch] = []
    for number, batch in enumerate(batches, start=behind.step + 1):
        if not taken and standing.why_stopped(run.train):
            break
        taken.append(batch)
        due = checkpoints is not None and checkpoints.is_due(number)
        if len(taken) < seat.most and not (due or is_examined(run, number, steps) or number % run.train.log_every == 0):
            continue
        measured = yield taken
        skips.add(measured["skipped"], len(taken))
        taken, done = [], number
        stopping, overdue = agreed(stop(), checkpoints is not None and checkpoints.is_overdue())
        examining = is_examined(run, number, steps)
        saving = checkpoints is not None and (
            stopping or overdue or number == steps or due or (examining and decides(run, checkpoints))
        )
        logging = number % run.train.log_every == 0 or number == steps or (examining and run.train.patience > 0)
        if saving or logging:
            state = seat.state if saving else None
            check_finite(run, number, measured, state)
            skips.count()
            if skips.are_all:
                raise diverged(run, number, "gradient")
            seconds = clock() - began  # read behind the check, which waits for the device
        if logging:
            line = metric_line(run, number, measured, speeds(run, number, seconds, behind, peak))
            line |= {"skipped_steps": skips.total} if skips.total else {}
            behind = Progress(number, seconds, compile_seconds, line, skips.total, skips.in_row)
            log(behind.last)
        if state is not None and checkpoints is not None:
            progress = Progress(number, seconds, compile_seconds, behind.last, skips.total, skips.in_row, standing)
            checkpoints.save(progress, dataclasses.replace(state, carry=None), state.carry)
            state = None
        if stopping and number < steps:
            if checkpoints is not None:
                checkpoints.wait()
            raise Stopped(f"stopped after step {number} of {steps}")
        if examining:
            jax.block_until_ready(measured["loss"])  # the clock pauses behind the training steps under way
            yield from examined()
    why = standing.why_stopped(run.train) if done < steps else None
    return Finished(done, behind.seconds, behind.compile_seconds, behind.last, behind.skipped, why)


def is_examined(run: RunConfig, number: int, steps: int) -> bool:
    """Whether the parameters learned by step `number` of `steps` are examined."""
    every = run.train.evaluate_every
    return number == steps or (every > 0 and number % every == 0)


def decides(run: RunConfig, checkpoints: Checkpoints) -> bool:
    """Whether a reading may make its step the run's last, or a checkpoint to keep: it is saved before it is read then."""
    return run.train.patience > 0 or checkpoints.saving.keep_best


def begin(training: Training, checkpoints: Checkpoints | None) -> tuple[TrainState, Progress]:
    """(state to go on from, progress so far), from the newest checkpoint or a start.

    A start at another run's parameters is saved at once: nothing is asked of the other run any more.
    """
    shapes = training.shapes
    found = checkpoints and checkpoints.restore(dataclasses.replace(shapes, carry=None), shapes.carry)
    if found:
        progress, state, carry = found
        return dataclasses.replace(state, carry=carry), progress
    origin = training.run.origin
    if origin is None:
        return training.fresh(), Progress()
    other, learned = read_origin(training.run, origin, training.layout)
    state = training.inherited(other.model, learned)
    if checkpoints:
        checkpoints.save(Progress(), dataclasses.replace(state, carry=None), state.carry)
    return state, Progress()


def check_finite(run: RunConfig, number: int, measured: Measured, state: TrainState | None = None) -> None:
    """Checks that a step's loss and the state to be saved are finite. Raises `TrainingDiverged` where they are not.

    The loss is that of the parameters before the step, so that a good loss does not make a good state. A lower learning rate
    needs a new run: a run that changed it halfway would not be the one that its config describes.
    """
    wrong = None if np.isfinite(measured["loss"]) else "loss"
    if wrong is None and state is not None and not is_sound(state.learned, state.params, state.carry):
        wrong = "parameters or memory"
    if wrong:
        raise diverged(run, number, wrong)


def diverged(run: RunConfig, number: int, wrong: str) -> TrainingDiverged:
    """The error for what was not finite at step `number`."""
    return TrainingDiverged(
        f"{wrong}: not finite at step {number}; lower train.learning_rate, now {run.train.learning_rate:g}, "
        "under another name: the run begins anew, and the checkpoints of this one are kept"
    )


def is_sound(learned: dict, params: dict, carry: Carry) -> bool:
    """Whether all parameters are finite and nothing carried is NaN (memories may mark empty places by infinity)."""
    different = {id(leaf): leaf for leaf in jax.tree.leaves((learned, params))}  # without an average they are the same
    return bool(soundness()(list(different.values()), carry))


@functools.cache
def soundness() -> Callable[[list[jax.Array], Carry], jax.Array]:
    """The compiled check of `is_sound`; it runs as seldom as a run is saved, so that compiling it is most of its cost."""
    return jax.jit(all_sound, compiler_options=effort(ONCE))


def all_sound(params: list[jax.Array], carry: Carry) -> jax.Array:
    """`is_sound` as a function to be traced."""
    finite = [jnp.isfinite(leaf).all() for leaf in params]
    floating = [leaf for leaf in jax.tree.leaves(carry) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([*finite, *(~jnp.isnan(leaf).any() for leaf in floating)]).all()


def speeds(run: RunConfig, number: int, seconds: float, behind: Progress, peak: float | None) -> dict[str, float]:
    """Speed of the run after step `number` and `seconds` of training, over all restarts, as entries of a metric line.

    tokens_per_second is of the whole run; recent_tokens_per_second and mfu are of the steps since `behind`, the last line or
    the restart. mfu is there where the devices' `peak` is known, in FLOPs per second: the model's own FLOPs, without
    recomputation (Chowdhery et al. 2022, appendix B).
    """
    rate = ratio(number - behind.step, seconds - behind.seconds)  # a coarse clock may have stood still
    line = {
        "seconds": seconds,
        "tokens_per_second": ratio(number * run.tokens_per_step, seconds),
        "recent_tokens_per_second": rate * run.tokens_per_step,
    }
    return line if peak is None else {**line, "mfu": rate * training_flops_per_step(run) / peak}


def metric_line(run: RunConfig, number: int, measured: Measured, speeds: dict[str, float]) -> dict[str, float]:
    """One line of the metrics log, from what step `number` measured; waits for the device."""
    values = jax.device_get(dict(measured))
    line = {"step": number, "tokens": number * run.tokens_per_step, **speeds}
    line |= {name: float(values[name]) for name in ("loss", "accuracy", "gradient_norm", "z_loss") if name in values}
    if values["gates"].size:
        line |= {"gate_mean": float(values["gates"].mean()), "gate_spread": float(np.ptp(values["gates"]))}
    return line
