"""One run from its config to its row in the table: train, score, count, write."""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import flax
import jax

from infini_jax import __version__
from infini_jax.checkpoint import Checkpoints, Saving
from infini_jax.config import CONFIG_FILE, RunConfig
from infini_jax.cost import budget_steps, model_cost, parameter_count, program_flops, training_flops_per_step
from infini_jax.errors import Interrupted, Stopped
from infini_jax.evals.perplexity import Reader, has_something
from infini_jax.evals.settings import CARRIED
from infini_jax.files import write_at_once
from infini_jax.metrics import METRICS_FILE
from infini_jax.mirrors import Mirroring, Mirrors
from infini_jax.optimiser import make_optimiser
from infini_jax.pace import with_steps
from infini_jax.processes import is_first
from infini_jax.rows import ROW_FILE, Row, write_rows
from infini_jax.sharding import ROWS_ALONE, Sharding
from infini_jax.train import Finished, Program, init_state, make_evaluate, make_step, rows_of, train

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
    """Trains and scores a run, or goes on with one that was stopped or killed; `watch` gets metric lines.

    `resume` is the step to go on from where the newest checkpoint should not be used; newer ones are deleted then.
    `mirroring` says which trackers get the metric lines too, `sharding` how the devices share the work. Leaves config.json,
    metrics.jsonl, checkpoints/ and row.parquet in `folder`. SIGTERM saves and raises `Stopped`, Ctrl-C `Interrupted`. Where
    the budget is seconds, config.json keeps the steps that they buy.
    """
    run = with_steps(run, folder, sharding)
    mirrors = Mirrors(mirroring if is_first() else NOWHERE)  # one that is missing is told of before anything else
    folder.mkdir(parents=True, exist_ok=True)
    with mirrors, Checkpoints(run, folder, saving) as checkpoints, terminated() as stop:
        if resume is not None:
            checkpoints.go_back_to(resume)
        reached = checkpoints.progress()
        if is_first():
            write_at_once(json.dumps(run.to_dict(), indent=2) + "\n", folder / CONFIG_FILE)
        mirrors.begin(run, folder, reached.step)
        with metrics_after(folder / METRICS_FILE, reached.step) if is_first() else nowhere() as file:

            def log(line: dict[str, float]) -> None:
                file.write(json.dumps(line) + "\n")
                mirrors.log(line)
                if LEARNED in line:
                    watch(line)

            held_out = HeldOut(run, log, sharding)
            finished = train(run, log, checkpoints, stop, held_out.examine, sharding)
    row = make_row(run, study, finished, held_out.scores(finished.learned))
    if is_first():
        write_rows([row], folder / ROW_FILE)
    return row


@dataclasses.dataclass(frozen=True)
class HeldOutScores:
    """Of held-out data. Attributes: as in `Row`."""

    loss: float
    accuracy: float
    test_loss: float | None
    test_accuracy: float | None


class HeldOut:
    """Scores what is learned on held-out data: whole documents while it is trained, or batches at the end without them.

    The test split is read once, at the end, if it has something to score, and only the row hears of it. Raises `ConfigError`
    when it is made, not at the end of training, where there is no data to validate on.
    """

    def __init__(self, run: RunConfig, log: Callable[[dict[str, float]], None], sharding: Sharding):
        documents = run.data.whole("validation")
        self.run, self.log, self.sharding, self.newest = run, log, sharding, None
        self.reader = documents and Reader(run.model, *documents, run.evaluation)
        carried = dataclasses.replace(run.evaluation, conditions=(CARRIED,))
        tested = run.data.whole("test") if run.data.has("test") else None
        self.test_reader = Reader(run.model, *tested, carried) if tested and has_something(tested[0].lengths) else None

    def examine(self, step: int, params: dict) -> None:
        """Reads the held-out documents and logs the figures, if there are any."""
        if self.reader:
            self.newest = self.reader.read(params)
            self.log({"step": step, "tokens": step * self.run.tokens_per_step, **self.newest.metrics()})

    def scores(self, params: dict) -> HeldOutScores:
        """At the end of training."""
        if not self.newest:
            evaluate = make_evaluate(self.run.program(budget_steps(self.run)), self.sharding)
            return HeldOutScores(*evaluate(params, "validation"), *evaluate(params, "test"))
        tested = self.test_reader and self.test_reader.read(params)
        found = (tested.loss(), tested.accuracy) if tested else (None, None)
        return HeldOutScores(self.newest.loss(), self.newest.accuracy, *found)


@contextlib.contextmanager
def metrics_after(file: Path, step: int) -> Iterator[TextIO]:
    """The metrics log, opened behind its last line of at most `step`: lines after the checkpoint are written again.

    So is what was measured on held-out data at `step`, which comes after the checkpoint.
    """

    def is_kept(line: dict[str, float]) -> bool:
        return line["step"] < step or (line["step"] == step and LEARNED in line)

    lines = file.read_text().splitlines() if file.exists() else []
    kept = [line for line in lines if line.endswith("}") and is_kept(json.loads(line))]
    partial = file.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in kept))
    partial.replace(file)
    with file.open("a", buffering=1) as opened:
        yield opened


@contextlib.contextmanager
def nowhere() -> Iterator[TextIO]:
    """Where the metrics of all processes but the first go."""
    with open(os.devnull, "w") as opened:
        yield opened


@contextlib.contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C has come, instead of dying of it; of a second Ctrl-C the process dies at once.

    A scheduler sends SIGTERM some time before it takes the machine away. What a run raises after Ctrl-C is `Interrupted`.
    """
    came, pressed = threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set  # handlers can only be set in the main thread
        return

    def press(*_) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        print("stopping behind the step under way; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        pressed.set()
        came.set()

    handlers = {signal.SIGTERM: lambda *_: came.set()}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # workers of a study leave it to their parent
        handlers[signal.SIGINT] = press
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield came.is_set
    except Stopped as stopped:
        if pressed.is_set():
            raise Interrupted(f"{stopped} and saved") from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_row(run: RunConfig, study: str, finished: Finished, scores: HeldOutScores) -> Row:
    """The row of a finished run, with everything that was counted."""
    step_flops = training_flops_per_step(run)
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
        flops_executed=finished.steps * executed_flops_per_step(run),
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


def executed_flops_per_step(run: RunConfig) -> float:
    """FLOPs of the program of one training step, recomputation included."""
    batch = run.data.open(rows_of(run, "train")).batch(0)
    return _executed_flops(Program.of(run, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)))


@functools.lru_cache(maxsize=1)
def _executed_flops(program: Program) -> float:
    optimiser = make_optimiser(program.run.train, program.steps, program.model)
    state = jax.eval_shape(lambda: init_state(program.run, optimiser))
    return program_flops(make_step(program.run, optimiser), state, program.batch)


def environment() -> dict[str, str]:
    """Versions and device of this process."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "package": __version__,
        "device": processor() if device.platform == "cpu" else device.device_kind,
    }


def processor() -> str:
    """The processor's own name where the system tells it, and how many of its cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} core{'s' if cores != 1 else ''}"
