"""Checkpoints of a run: parameters, optimizer, carried memory and place in the data, saved while training goes on.

With `unread.py` the only file that imports orbax. A step's folder appears at once or not at all, so what is there is whole;
what a disk or a person damages later is refused in one line, and the one before it is offered. `batch(step)` is a pure
function, so the step is all that is needed of the data's position.
"""

import contextlib
import dataclasses
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import orbax.checkpoint as ocp

from infini_jax.config import RunConfig
from infini_jax.errors import CheckpointError, check_fields, disk_reason, missing_step, one_line, require, required
from infini_jax.files import json_text
from infini_jax.model.stream import parameter_shapes
from infini_jax.records.folder import RunFolder
from infini_jax.records.training_log import best_step
from infini_jax.training import notes
from infini_jax.training.digest import bit_sum, digests, named, typed
from infini_jax.training.notes import FORMAT, Progress

STATE, MEMORY, META = "state", "memory", "meta"
Which = int | Literal["best"] | None  # a checkpoint: by step, that of the lowest validation loss, or the newest

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax reports every step of every save; its errors reach us as such


def is_told_once(record: logging.LogRecord) -> bool:
    """A logging filter: False for asyncio's words about further writes of a save that failed.

    The first of these was raised, and is told by itself.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (error and "never retrieved" in record.getMessage() and disk_reason(error))


logging.getLogger("asyncio").addFilter(is_told_once)  # whenever they are collected, which may be at the end of the process
warnings.filterwarnings("ignore", r"coroutine 'async_serialize\S*' was never awaited", RuntimeWarning)  # not begun by then


@dataclasses.dataclass(frozen=True)
class Saving:
    """The times at which a run is saved besides its end, and which checkpoints are kept.

    Attributes:
      every_minutes: minutes between checkpoints; 0 disables saving by time.
      every_steps: steps between checkpoints; 0 disables saving by steps.
      keep: number of newest checkpoints to keep; at least 2, as a fallback if one is damaged.
      keep_every: keep checkpoints at multiples of this number of steps; 0 keeps none for good.
      keep_best: also save and keep the checkpoint with the lowest validation loss, among the evaluations of
        `train.evaluate_every`.
    """

    every_minutes: float = 10.0
    every_steps: int = 0
    keep: int = 2
    keep_every: int = 0
    keep_best: bool = False

    def __post_init__(self):
        check_fields("saving", self)
        for name in ("every_minutes", "every_steps", "keep_every"):
            value = getattr(self, name)
            require(value >= 0, f"saving.{name}", f"{value} is negative", "give 0 to switch it off")
        require(self.keep >= 2, "saving.keep", f"{self.keep} leaves none to fall back to", "give at least 2")


class Checkpoints:
    """The checkpoints of one run's folder; a context that finishes the save under way before it closes.

    Several may be open at a time, and close in any order.
    """

    _open: ClassVar[int] = 0  # number of those that are open
    _hook: ClassVar[Callable[[Any], Any]]  # what was `sys.unraisablehook` before the first of them

    def __init__(self, run: RunConfig, folder: Path, saving: Saving = Saving()):
        self.run, self.folder, self.saving = run, RunFolder(folder).checkpoints.absolute(), saving
        self._saved_at = time.monotonic()
        self._begin_at: int | None = None
        self.best: set[int] = set()  # steps that are kept because they were best
        self._manager: Any = None  # orbax's, while this is open

    def __enter__(self) -> "Checkpoints":
        policies = ocp.checkpoint_managers.preservation_policy
        kept: list[Any] = [policies.LatestN(self.saving.keep), Among(self.best)]
        if self.saving.keep_every:
            kept.append(policies.EveryNSteps(self.saving.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True, save_interval_steps=1
        )
        with self._failures("cannot be written"):
            self.folder.mkdir(parents=True, exist_ok=True)  # orbax would find out at the first save
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        if not Checkpoints._open:
            Checkpoints._hook, sys.unraisablehook = sys.unraisablehook, unless_closed(sys.unraisablehook)
        Checkpoints._open += 1
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._failures("could not be finished"):
                self._manager.close()
        finally:
            Checkpoints._open -= 1
            if not Checkpoints._open:
                sys.unraisablehook = Checkpoints._hook

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps(read=True))

    def go_back_to(self, step: int) -> None:
        """Makes the run go on from `step`; newer checkpoints are deleted once it is restored.

        Raises `ConfigError` where there is no checkpoint of this step.
        """
        steps = self.steps()
        require(step in steps, "resume", *missing_step(step, steps))
        self._begin_at = step

    def _newest(self) -> int | None:
        """The step to go on from: the one asked for, otherwise the newest; None without a checkpoint."""
        return self._begin_at if self._begin_at is not None else max(self.steps(), default=None)

    def keep_best(self, step: int) -> None:
        """Keeps the checkpoint of `step` as the best from now on, and no longer the one before; 0 is none."""
        self.best.clear()
        if self.saving.keep_best:
            self.best.add(step)

    def is_due(self, step: int) -> bool:
        """Whether the run should be saved after this step, by count."""
        return bool(self.saving.every_steps and step % self.saving.every_steps == 0)

    def is_overdue(self) -> bool:
        """Whether the run should be saved now, by the time since its last save on the clock of this process."""
        return bool(self.saving.every_minutes and time.monotonic() - self._saved_at >= 60 * self.saving.every_minutes)

    def save(self, progress: Progress, state: Any, carry: Any) -> None:
        """Begins a save; arrays are copied before this returns, so that they may be donated. Raises `CheckpointError`."""
        meta = notes.sealed(self.run, progress, digests(state, STATE) | digests(carry, MEMORY))
        items = {STATE: ocp.args.StandardSave(state), MEMORY: ocp.args.StandardSave(carry), META: ocp.args.JsonSave(meta)}
        self._saved_at = time.monotonic()
        with self._failures("could not be saved"):
            self._manager.save(progress.step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Waits until the save under way is on the disk. Raises `CheckpointError` where it failed."""
        with self._failures("could not be saved"):
            self._manager.wait_until_finished()

    def restore(self, state: Any, carry: Any, step: int | None = None) -> tuple[Progress, Any, Any] | None:
        """A checkpoint's (progress, state, carry), by default of the step to go on from; None where the run has none.

        `state` and `carry` are like what was saved, as `jax.ShapeDtypeStruct` with the shardings that the arrays shall get,
        which may be those of another number of devices.

        Raises:
          CheckpointError: the checkpoint is damaged, of another config, or of another format.
          ConfigError: the run has checkpoints, but none of `step`.
        """
        steps, step = self.steps(), self._newest() if step is None else step
        if step is None:
            return None
        require(step in steps, "checkpoint", *missing_step(step, steps))
        meta = self._meta(step)
        if meta["format"] == 2 and self.run.train.optimiser == "adafactor":
            raise CheckpointError(
                f"checkpoint: {self.folder / str(step)} has Adafactor's moments of all layers at once, as in format 2; "
                "go on with the version that wrote it, or give the run a new name; what it learned can be evaluated"
            )
        items = {STATE: ocp.args.StandardRestore(state), MEMORY: ocp.args.StandardRestore(carry)}
        with self._damage(step):
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
            check_arrays(found[STATE], found[MEMORY], meta)
        if step == self._begin_at:
            for newer in steps[steps.index(step) + 1 :]:
                self._manager.delete(newer)
        return notes.progress_in(meta), found[STATE], found[MEMORY]

    def progress(self) -> Progress:
        """The progress at the checkpoint to go on from, at step 0 without one.

        Raises `CheckpointError` where the checkpoint is damaged, of another config, or of another format.
        """
        step = self._newest()
        return Progress() if step is None else notes.progress_in(self._meta(step))

    def _meta(self, step: int) -> dict[str, Any]:
        """The notes beside a checkpoint's arrays.

        Raises `CheckpointError` where they are damaged, of another run or in another format.
        """
        with self._damage(step):
            meta = self._noted(step)
        where = f"{self.folder / str(step)}"
        if meta["format"] > FORMAT:
            older = self._older(step)
            raise CheckpointError(
                f"checkpoint: {where} has format {meta['format']}, newer than this version's {FORMAT}; update infini_jax"
                + (f", or resume from step {older} with --resume {older}" if older is not None else "")
            )
        if meta["format"] not in notes.READ:
            raise CheckpointError(
                f"checkpoint: {where} has format {meta['format']}, older than this version's {notes.READ[0]}; go on with the "
                "version that wrote it, or give the run a new name"
            )
        if meta["fingerprint"] != self.run.fingerprint():
            raise CheckpointError(
                f"checkpoint: {where} is of another config ({differences(meta['config'], self.run.to_dict())}); "
                "give the run a new name, or restore its settings"
            )
        return meta

    def _noted(self, step: int) -> dict[str, Any]:
        """The notes beside a checkpoint's arrays as they are on the disk. Damaged ones may raise any exception."""
        found = self._manager.restore(step, args=ocp.args.Composite(**{META: ocp.args.JsonRestore()}))
        return notes.checked_notes(found[META], step)

    def _older(self, step: int) -> int | None:
        """The newest step before `step` whose notes are readable and this run's, to offer in its place; None without one."""
        for older in sorted((one for one in self.steps() if one < step), reverse=True):
            with contextlib.suppress(Exception):
                meta = self._noted(older)
                if meta["format"] in notes.READ and meta["fingerprint"] == self.run.fingerprint():
                    return older
        return None

    @contextlib.contextmanager
    def _damage(self, step: int) -> Iterator[None]:
        """Turns any exception of a restore into `CheckpointError`, with the checkpoint to use instead."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many kinds for what is one thing to a user
            older = self._older(step)
            mend = self._instead(older) if older is not None else "delete it to start the run again"
            raise CheckpointError(f"checkpoint: {self.folder / str(step)} is damaged or incomplete; {mend}") from error

    def _instead(self, step: int) -> str:
        """The way to use an older checkpoint, in words."""
        return f"resume from step {step} with --resume {step}"

    @contextlib.contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        """Turns any exception of a write into `CheckpointError`, with its reason."""
        try:
            yield
        except Exception as error:
            why = disk_reason(error) or one_line(error)
            raise CheckpointError(
                f"checkpoint: {self.folder} {what} ({why}); make room or give another folder, then resume: "
                "the last finished one is kept"
            ) from error


@dataclasses.dataclass(frozen=True)
class Among:
    """The preservation policy of orbax that keeps what is among `steps` at the time of a save."""

    steps: set[int]

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Whether each checkpoint is kept."""
        return [one.step in self.steps for one in checkpoints]


class FinishedCheckpoints(Checkpoints):
    """The checkpoints of one run's folder, for reading only: nothing is made or cleaned up, so a run may be saving meanwhile.

    Opening it raises `ConfigError` where the folder has no checkpoints.

    Args:
      run: settings of the run.
      folder: folder of the run.
      asked_by: option by which the user names a checkpoint, for messages.
    """

    def __init__(self, run: RunConfig, folder: Path, asked_by: str = "--step"):
        super().__init__(run, folder)
        self.asked_by = asked_by

    def __enter__(self) -> "FinishedCheckpoints":
        require(
            self.folder.is_dir(), "run", f"{self.folder.parent} has no checkpoints", "train it first, or give another folder"
        )
        most = max(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(parameter_shapes(self.run.model)))
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        one_at_a_time = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=1 + most // 10**9)  # else all are there twice
        handlers.add(STATE, ocp.args.PyTreeRestore, one_at_a_time)
        options = ocp.CheckpointManagerOptions(read_only=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=handlers)
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def restore_part(self, part: str, shapes: Any, step: Which = None) -> tuple[int, Any]:
        """(step, part) of a checkpoint, by default the newest, without the rest of the state, in the types that were saved.

        Args:
          part: a name in `LEARNED`.
          shapes: the part as `jax.ShapeDtypeStruct`, with the shardings that its arrays shall get.
          step: step of the checkpoint, "best" for that of the lowest validation loss, None for the newest.

        Raises:
          CheckpointError: the checkpoint is damaged, of another config, or of another format.
          ConfigError: the run has checkpoints, but none of `step`.
        """
        step = self._chosen(step)
        meta = self._meta(step)
        said = {} if meta["format"] == 2 else notes.written_part(meta, f"{STATE}/{part}")
        item = {part: typed(shapes, said, f"{STATE}/{part}")}
        places = ocp.checkpoint_utils.construct_restore_args(item)
        with self._damage(step):
            wanted = ocp.args.PyTreeRestore(item=item, restore_args=places, partial_restore=True)
            found = self._manager.restore(step, args=ocp.args.Composite(**{STATE: wanted}))[STATE][part]
            check_part(found, part, meta)
        return step, found

    def written_part(self, part: str, step: Which = None) -> tuple[int, dict[str, Any]]:
        """(step, digests by name of the arrays of a part of the state), from the notes alone; as `restore_part` otherwise."""
        step = self._chosen(step)
        return step, notes.written_part(self._meta(step), f"{STATE}/{part}")

    def _chosen(self, step: Which) -> int:
        """The step itself, the best or the newest. Raises `ConfigError` where there is no such checkpoint."""
        steps, named = self.steps(), self.asked_by.removeprefix("--")
        require(bool(steps), "run", f"{self.folder.parent} has no finished checkpoint", "wait for the first, or train it")
        step = steps[-1] if step is None else step
        if step == "best":
            best = best_step(RunFolder(self.folder.parent).metrics)
            step = required(best, named, "the run's log has no reading of validation documents", "leave it out for the newest")
            problem = f"the lowest validation loss was at step {step}, of which there is no checkpoint"
            require(
                step in steps, named, problem, f"train with --saving.keep-best, or choose one of {', '.join(map(str, steps))}"
            )
        require(step in steps, named, *missing_step(step, steps))
        return step

    def _instead(self, step: int) -> str:
        return f"read step {step} with {self.asked_by} {step}"


def unless_closed(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """The `unraisablehook` `hook`, silenced about writes of a failed save for which orbax no longer waits."""
    return lambda unraised: None if "Event loop is closed" in str(unraised.exc_value) else hook(unraised)


def check_arrays(state: Any, carry: Any, meta: dict[str, Any]) -> None:
    """Checks what was read against the notes beside it. Raises `ValueError` where it is not what was saved."""
    step = int(named(state)["step"])
    if step != meta["step"]:
        raise ValueError(f"a state of step {step}, notes of step {meta['step']}")
    if meta["format"] == 2:
        is_same = int(bit_sum((state, carry))) == meta["checksum"]
    else:
        is_same = digests(state, STATE) | digests(carry, MEMORY) == meta["arrays"]
    if not is_same:
        raise ValueError("other numbers than were saved")


def check_part(found: Any, part: str, meta: dict[str, Any]) -> None:
    """Checks a part of the state against the notes beside it. Raises `ValueError` where it is not what was saved."""
    place = f"{STATE}/{part}"
    saved = notes.written_part(meta, place)
    is_same = {place: int(bit_sum(found))} == saved if meta["format"] == 2 else digests(found, place) == saved
    if not is_same:
        raise ValueError("other numbers than were saved")


def differences(old: Any, new: Any, path: str = "") -> str:
    """The settings that differ between two configs as plain values, in words: at most three."""

    def walk(old: Any, new: Any, path: str) -> Iterator[str]:
        if isinstance(old, dict) and isinstance(new, dict):
            for name in sorted({*old, *new}):
                yield from walk(old.get(name), new.get(name), f"{path}.{name}" if path else name)
        elif old != new:
            yield f"{path} was {json_text(old)}, is {json_text(new)}"

    found = list(walk(old, new, path))
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def like(tree: Any, places: Any) -> Any:
    """A tree of `jax.ShapeDtypeStruct`s like a tree of arrays or shapes, with the shardings in `places`."""
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, places)
