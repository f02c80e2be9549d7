"""Training: state, loss, one jitted donated step, the loop.

A step takes `train.sequence` tokens of every row through the segments; the memory goes on into the next step without
gradient, so a document that is longer than the sequence is still read with its past.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from infini_jax.checkpoint import Checkpoints, Progress, like
from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.cost import budget_steps, check_fits, training_flops_per_step
from infini_jax.data.base import Batch, Rows, Split
from infini_jax.errors import Stopped, TrainingDiverged
from infini_jax.memory.base import AUXILIARY, reported_gates
from infini_jax.optimiser import make_optimiser
from infini_jax.peaks import peak_flops
from infini_jax.processes import Agreement, batch_shapes, placed_batches
from infini_jax.sharding import (
    ROWS_ALONE,
    Layout,
    Sharding,
    batch_sharding,
    carry_sharding,
    gradient_over_rows,
    layout_of,
    parameter_sharding,
    replicated,
    segments_at_once,
    sharding_like,
    summed_over_rows,
)
from infini_jax.stream import Carry, init_carry, init_params, scan_segments


@struct.dataclass
class TrainState:
    """Attributes: step int32; params; optimiser state; average of the params or None; carry of the rows' streams."""

    step: jax.Array
    params: dict
    optimiser: Any
    average: dict | None
    carry: Carry

    @property
    def learned(self) -> dict:
        """The parameters to evaluate and to keep."""
        return self.params if self.average is None else self.average


@struct.dataclass
class Scores:
    """Sums over scored tokens. Attributes: loss in nats, correct top-1 predictions, tokens (weights)."""

    loss: jax.Array
    correct: jax.Array
    tokens: jax.Array

    def means(self) -> tuple[jax.Array, jax.Array]:
        """(nats a token, share correct)."""
        tokens = jnp.maximum(self.tokens, 1.0)
        return self.loss / tokens, self.correct / tokens


def score_tokens(logits_BxSxV: jax.Array, part: Batch) -> Scores:
    """Cross-entropy and top-1 hits of the scored tokens."""
    nats_BxS = optax.softmax_cross_entropy_with_integer_labels(logits_BxSxV, part.targets)
    hit_BxS = logits_BxSxV.argmax(axis=-1) == part.targets
    return Scores(loss=(nats_BxS * part.weights).sum(), correct=(hit_BxS * part.weights).sum(), tokens=part.weights.sum())


def auxiliary_loss(metrics: tuple) -> jax.Array:
    """Sum over layers and mean over segments of what mechanisms add to the loss."""
    added = [value.mean(axis=0).sum() for group in metrics for name, value in group.items() if name.startswith(AUXILIARY)]
    return sum(added, start=jnp.float32(0.0))


def gates_of(metrics: tuple) -> jax.Array:
    """Gates of all layers and heads as one vector (empty where the mechanism has none); the same in every segment."""
    gates = [found[0].ravel() for group in metrics if (found := reported_gates(group)) is not None]
    return jnp.concatenate(gates) if gates else jnp.zeros(0)


def split_rows(batch: Batch, parts: int) -> Batch:
    """The batch as `parts` batches of consecutive rows, stacked in front."""
    return jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), batch)


def split_carry(carry: Carry, parts: int) -> Carry:
    """The same of a carry, whose memories have the layers in front of the rows."""

    def split(leaf: jax.Array) -> jax.Array:
        return jnp.moveaxis(leaf.reshape(leaf.shape[0], parts, -1, *leaf.shape[2:]), 1, 0)

    rows = (carry.open_document, carry.phase)
    return Carry(jax.tree.map(split, carry.memory), *jax.tree.map(lambda leaf: leaf.reshape(parts, -1), rows))


def joined_carry(carry: Carry) -> Carry:
    """The inverse of `split_carry`."""

    def join(leaf: jax.Array) -> jax.Array:
        leaf = jnp.moveaxis(leaf, 0, 1)
        return leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:])

    rows = (carry.open_document, carry.phase)
    return Carry(jax.tree.map(join, carry.memory), *jax.tree.map(lambda leaf: leaf.reshape(-1), rows))


def gradient_function(run: RunConfig, layout: Layout | None = None) -> Callable[[dict, Carry, Batch], tuple]:
    """(params, carry, batch) -> (gradient of the mean loss a scored token, carry, (Scores, gates)).

    The rows are split over the devices of `layout`, and those of a device over `train.accumulate` turns.
    """
    turns, devices = run.train.accumulate, 1 if layout is None else layout.token_parts
    settings = (run.train.bptt, segments_at_once(run, layout), run.train.rematerialise)

    def loss_of(params: dict, carry: Carry, batch: Batch, tokens: jax.Array) -> tuple[jax.Array, tuple]:
        """Of a part of the batch, as its share in the mean over all `tokens` that are scored."""
        carry, scores, metrics = scan_segments(run.model, params, carry, batch, score_tokens, *settings)
        scores = jax.tree.map(jnp.sum, scores)
        loss = scores.loss / tokens + auxiliary_loss(metrics) / (turns * devices)
        return loss, (carry, scores, gates_of(metrics) / devices)

    def of_rows(carry: Carry, batch: Batch, params: dict, tokens: jax.Array) -> tuple[tuple, Carry]:
        def turn(total: dict, rows: tuple[Carry, Batch]) -> tuple[dict, tuple]:
            gradient, measured = jax.grad(loss_of, has_aux=True)(params, *rows, tokens)
            return jax.tree.map(jnp.add, total, gradient), measured

        nothing = jax.tree.map(jnp.zeros_like, params)
        if turns == 1:
            gradient, (carry, scores, gates) = jax.grad(loss_of, has_aux=True)(params, carry, batch, tokens)
            return (gradient, scores, gates), carry
        gradient, (carry, scores, gates) = jax.lax.scan(turn, nothing, (split_carry(carry, turns), split_rows(batch, turns)))
        return (gradient, jax.tree.map(jnp.sum, scores), gates[-1]), joined_carry(carry)

    of_all_rows = gradient_over_rows(of_rows, run.model, layout)

    def gradient_of(params: dict, carry: Carry, batch: Batch) -> tuple[dict, Carry, tuple]:
        (gradient, *measured), carry = of_all_rows(carry, batch, params, jnp.maximum(batch.weights.sum(), 1.0))
        return gradient, carry, tuple(measured)

    return gradient_of


def make_step(
    run: RunConfig, optimiser: optax.GradientTransformation, layout: Layout | None = None
) -> Callable[[TrainState, Batch], tuple]:
    """The jitted step: (state, batch) -> (state, metrics). The state is donated, and lies as `state_sharding` says."""
    gradient_of = gradient_function(run, layout)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        gradient, carry, (scores, gates) = gradient_of(state.params, state.carry, batch)
        updates, new = optimiser.update(gradient, state.optimiser, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        average: Any = state.average
        if average is not None:
            average = optax.incremental_update(params, average, 1 - run.train.average)
        loss, accuracy = scores.means()
        measured = {"loss": loss, "accuracy": accuracy, "gradient_norm": optax.tree.norm(gradient), "gates": gates}
        return TrainState(state.step + 1, params, new, average, carry), measured

    everywhere = layout and replicated(layout.mesh)  # every process must be able to read what was measured
    return jax.jit(step, donate_argnums=0, out_shardings=layout and (state_sharding(run, optimiser, layout), everywhere))


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's step by what its program depends on: trials and seeds are equal, and tasks that have the same shapes.

    Attributes: model; train, without what is no constant of the program; steps, which the schedule knows; batch, its shapes;
    layout; run, one of those that have it.
    """

    model: ModelConfig
    train: TrainConfig
    steps: int
    batch: Batch
    layout: Layout | None
    run: RunConfig = dataclasses.field(compare=False)

    @classmethod
    def of(cls, run: RunConfig, batch: Batch, layout: Layout | None = None) -> "Program":
        """`batch` has shapes, with shardings where there is a layout."""
        steps = budget_steps(run)
        return cls(run.model, run.program(steps).train, steps, batch, layout, run)


@functools.lru_cache(maxsize=1)
def compiled_step(program: Program) -> Callable[[TrainState, Batch], tuple]:
    """The compiled step, kept for the next run, which mostly has the same."""
    run, layout = program.run, program.layout
    assert layout is not None, "a program to be run has devices"
    optimiser = make_optimiser(run.train, program.steps, run.model)
    state = like(jax.eval_shape(lambda: init_state(run, optimiser)), state_sharding(run, optimiser, layout))
    return make_step(run, optimiser, layout).lower(state, program.batch).compile()


def init_state(run: RunConfig, optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = init_params(run.model, jax.random.key(run.seed))
    average = jax.tree.map(jnp.copy, params) if run.train.average else None  # copied: the state is donated
    return TrainState(jnp.int32(0), params, optimiser.init(params), average, init_carry(run.model, run.train.batch))


def state_sharding(run: RunConfig, optimiser: optax.GradientTransformation, layout: Layout) -> TrainState:
    """Like a `TrainState`, with the sharding of each array: all of it by the rules, the optimiser as the parameters."""
    shapes, places = jax.eval_shape(lambda: init_state(run, optimiser)), parameter_sharding(run.model, layout)
    state: Any = sharding_like(dataclasses.replace(shapes, carry=None), shapes.params, places)
    return dataclasses.replace(state, carry=carry_sharding(run.model, layout.mesh, layout.rules))


def rows_of(run: RunConfig, split: Split) -> Rows:
    """The batches a run reads; held-out batches are the same whatever the seed, so that runs compare."""
    return Rows(run.train.batch, run.train.sequence, run.seed if split == "train" else 0, split)


@functools.lru_cache(maxsize=1)
def make_evaluate(run: RunConfig, sharding: Sharding = ROWS_ALONE) -> Callable[[dict, Split], tuple[float, float]]:
    """(params, split) -> (nats a scored token, accuracy) of `train.evaluation_steps` batches, with the memory carried.

    The devices share the work as in training. One program for both held-out splits.
    """
    layout = layout_of(run, sharding)
    together = segments_at_once(run, layout)

    def score(carry: Carry, batch: Batch, params: dict) -> tuple[Scores, Carry]:
        carry, scores, _ = scan_segments(run.model, params, carry, batch, score_tokens, segments_per_step=together)
        return jax.tree.map(jnp.sum, scores), carry

    score = jax.jit(summed_over_rows(score, run.model, layout))
    places = carry_sharding(run.model, layout.mesh, layout.rules)
    rows = batch_sharding(layout.mesh, layout.rules)
    begin = jax.jit(lambda: init_carry(run.model, run.train.batch), out_shardings=places)

    def evaluate(params: dict, split: Split) -> tuple[float, float]:
        source, carry, total = run.data.open(rows_of(run, split)), begin(), Scores(*jnp.zeros(3))
        for batch in placed_batches(source, rows, run.train.batch, range(run.train.evaluation_steps)):
            scores, carry = score(carry, batch, params)
            total = jax.tree.map(lambda a, b: a + b, total, scores)
        loss, accuracy = total.means()
        return float(loss), float(accuracy)

    return evaluate


@dataclasses.dataclass(frozen=True)
class Finished:
    """What training leaves.

    Attributes: state; learned, its parameters to evaluate, whole on every device; steps done; seconds without compiling and
    examining; compile_seconds; last metric line.
    """

    state: TrainState
    learned: dict
    steps: int
    seconds: float
    compile_seconds: float
    last: dict[str, float]


def train(
    run: RunConfig,
    log: Callable[[dict[str, float]], None],
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = lambda: False,
    examine: Callable[[int, dict], None] = lambda step, params: None,
    sharding: Sharding = ROWS_ALONE,
) -> Finished:
    """Trains until the budget is spent; `log` gets a metric line every `train.log_every` steps and at the last.

    Args:
      checkpoints: where the run is saved, and where it goes on from if there is something; the end is always saved.
      stop: asked after every step; the run is saved and `Stopped` raised where it says so.
      examine: gets the step and what was learned every `train.evaluate_every` steps and at the last, behind the checkpoint of
        the step. A run that goes on from such a step begins with it, because it may have been stopped before it was done.
      sharding: how the devices at hand share the work; results are the same but for the order of sums.

    Raises:
      ConfigError: the budget pays for no step, or the state cannot fit.
      TrainingDiverged: the loss is no longer finite; the last good checkpoint stays.
      CheckpointError: one cannot be read or written.
      Stopped: `stop` said so.
    """
    steps = budget_steps(run)
    check_fits(run)
    layout, source = layout_of(run, sharding), run.data.open(rows_of(run, "train"))
    optimiser = make_optimiser(run.train, steps, run.model)
    places, rows = state_sharding(run, optimiser, layout), batch_sharding(layout.mesh, layout.rules)
    gathered = jax.jit(lambda learned: learned, out_shardings=replicated(layout.mesh))
    state, behind = begin(run, optimiser, places, checkpoints)
    began = time.perf_counter()
    batches = placed_batches(source, rows, run.train.batch, range(behind.step, steps))
    step = compiled_step(Program.of(run, batch_shapes(source, rows, run.train.batch), layout))
    compile_seconds = behind.compile_seconds + time.perf_counter() - began
    assert isinstance(layout.mesh, jax.sharding.Mesh), "of devices that are here"
    peak = peak_flops(layout.mesh.devices.flat)
    agreed = Agreement(layout.mesh)
    began = time.perf_counter() - behind.seconds

    def examined() -> float:
        """Seconds that it took."""
        number = int(state.step)  # waits for the training steps under way
        paused = time.perf_counter()
        examine(number, gathered(state.learned))
        return time.perf_counter() - paused

    if behind.step and is_examined(run, behind.step, steps):
        began += examined()
    for number, batch in enumerate(batches, start=behind.step + 1):
        state, measured = step(state, batch)
        stopping, overdue = agreed(stop(), checkpoints is not None and checkpoints.is_overdue())
        saving = checkpoints is not None and (stopping or overdue or number == steps or checkpoints.is_due(number))
        logging = number % run.train.log_every == 0 or number == steps
        if saving or logging:
            check_finite(run, number, measured, state if saving else None)
            seconds = time.perf_counter() - began  # read behind the check, which waits for the device
        if logging:
            line = metric_line(run, number, measured, speeds(run, number, seconds, behind, peak))
            behind = Progress(number, seconds, compile_seconds, line)
            log(behind.last)
        if saving and checkpoints is not None:
            progress = dataclasses.replace(behind, step=number, seconds=seconds, compile_seconds=compile_seconds)
            checkpoints.save(progress, state.replace(carry=None), state.carry)
        if stopping and number < steps:
            if checkpoints is not None:
                checkpoints.wait()
            raise Stopped(f"stopped after step {number} of {steps}")
        if is_examined(run, number, steps):
            began += examined()
    return Finished(state, gathered(state.learned), steps, behind.seconds, behind.compile_seconds, behind.last)


def is_examined(run: RunConfig, number: int, steps: int) -> bool:
    """Whether what was learned by step `number` is examined."""
    every = run.train.evaluate_every
    return number == steps or (every > 0 and number % every == 0)


def begin(
    run: RunConfig, optimiser: optax.GradientTransformation, places: TrainState, checkpoints: Checkpoints | None
) -> tuple[TrainState, Progress]:
    """The state to go on from and what is behind it: the newest checkpoint, or a fresh start."""
    shapes = jax.eval_shape(lambda: init_state(run, optimiser))
    placed = like(shapes, places)
    found = checkpoints and checkpoints.restore(placed.replace(carry=None), placed.carry)
    if found:
        progress, state, carry = found
        return state.replace(carry=carry), progress
    return jax.jit(lambda: init_state(run, optimiser), out_shardings=places)(), Progress()


def check_finite(run: RunConfig, number: int, measured: dict[str, jax.Array], state: TrainState | None = None) -> None:
    """Raises `TrainingDiverged` where a step's loss, or the state that is to be saved, is not a number.

    The loss is that of the parameters before the step, so that a good loss does not make a good state. A lower rate is
    another run: one that changed it on the way would be none that its config describes.
    """
    wrong = None if np.isfinite(measured["loss"]) else "loss"
    if wrong is None and state is not None and not is_sound(state.learned, state.params, state.carry):
        wrong = "parameters or memory"
    if wrong:
        raise TrainingDiverged(
            f"{wrong}: not finite at step {number}; lower train.learning_rate, now {run.train.learning_rate:g}, "
            "under another name: the run begins anew, and the checkpoints of this one are kept"
        )


@jax.jit
def is_sound(learned: dict, params: dict, carry: Carry) -> jax.Array:
    """Whether all parameters are finite and nothing carried is NaN (memories may mark empty places by infinity)."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((learned, params))]
    floating = [leaf for leaf in jax.tree.leaves(carry) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([*finite, *(~jnp.isnan(leaf).any() for leaf in floating)]).all()


def speeds(run: RunConfig, number: int, seconds: float, behind: Progress, peak: float | None) -> dict[str, float]:
    """How fast the run is after step `number` and `seconds` of training, over all restarts.

    tokens_per_second is of the whole run; recent_tokens_per_second and mfu are of the steps since `behind`, the last line or
    the restart. mfu is there where the devices' `peak` is known, in FLOPs a second: the model's own FLOPs, without
    recomputation (Chowdhery et al. 2022, appendix B).
    """
    rate = (number - behind.step) / (seconds - behind.seconds)
    line = {
        "seconds": seconds,
        "tokens_per_second": number * run.tokens_per_step / seconds,
        "recent_tokens_per_second": rate * run.tokens_per_step,
    }
    return line if peak is None else {**line, "mfu": rate * training_flops_per_step(run) / peak}


def metric_line(run: RunConfig, number: int, measured: dict[str, jax.Array], speeds: dict[str, float]) -> dict[str, float]:
    """One line of the metrics log; waits for the device."""
    values = jax.device_get(measured)
    line = {"step": number, "tokens": number * run.tokens_per_step, **speeds}
    line |= {name: float(values[name]) for name in ("loss", "accuracy", "gradient_norm")}
    if values["gates"].size:
        line |= {"gate_mean": float(values["gates"].mean()), "gate_spread": float(np.ptp(values["gates"]))}
    return line
