"""Training: state, loss, one jitted donated step, the loop.

A step takes `train.sequence` tokens of every row through the segments; the memory goes on into the next step without
gradient, so a document that is longer than the sequence is still read with its past.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from infini_jax.config import RunConfig
from infini_jax.cost import budget_steps, check_fits
from infini_jax.data.base import Batch, Rows, Split
from infini_jax.data.serve import batches
from infini_jax.errors import TrainingDiverged
from infini_jax.memory.base import AUXILIARY
from infini_jax.sharding import DATA_PARALLEL, ShardingRules, batch_sharding, carry_sharding, data_mesh, replicated
from infini_jax.stream import Carry, init_carry, init_params, scan_segments


@struct.dataclass
class TrainState:
    """Attributes: step int32; params; optimiser state; carry of the rows' streams."""

    step: jax.Array
    params: dict
    optimiser: Any
    carry: Carry


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


def is_gate(path: tuple) -> bool:
    """Memory gates train with their own rate and without weight decay: with the common rate they never leave 0.5."""
    return path[-1].key == "gate"


def make_optimiser(run: RunConfig, steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm; gates apart; embedding, vectors and scalars are not decayed."""

    def schedule(peak: float) -> optax.Schedule:
        warm = max(1, round(run.train.warmup * steps))
        return optax.warmup_cosine_decay_schedule(0.0, peak, warm, max(steps, warm + 1), peak / 10)

    def labels(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(lambda path, _: "gates" if is_gate(path) else "weights", params)

    def matrices(params: dict) -> dict:
        return jax.tree.map(lambda leaf: leaf.ndim > 2, params)  # layers are stacked in front: a vector has two axes

    groups = {
        "weights": optax.adamw(schedule(run.train.learning_rate), b2=0.95, weight_decay=run.train.weight_decay, mask=matrices),
        "gates": optax.adam(schedule(run.train.gate_learning_rate)),
    }
    return optax.chain(optax.clip_by_global_norm(run.train.clip), optax.multi_transform(groups, labels))


def auxiliary_loss(metrics: tuple) -> jax.Array:
    """Sum over layers and mean over segments of what mechanisms add to the loss."""
    added = [value.mean(axis=0).sum() for group in metrics for name, value in group.items() if name.startswith(AUXILIARY)]
    return sum(added, start=jnp.float32(0.0))


def gates_of(metrics: tuple) -> jax.Array:
    """Gates of all layers and heads as one vector (empty where the mechanism has none); the same in every segment."""
    gates = [group["gate"][0].ravel() for group in metrics if "gate" in group]
    return jnp.concatenate(gates) if gates else jnp.zeros(0)


def make_step(
    run: RunConfig, optimiser: optax.GradientTransformation, places: TrainState | None = None
) -> Callable[[TrainState, Batch], tuple]:
    """The jitted step: (state, batch) -> (state, metrics). The state is donated; `places` is its sharding."""

    def loss_of(params: dict, carry: Carry, batch: Batch) -> tuple[jax.Array, tuple]:
        carry, scores, metrics = scan_segments(
            run.model, params, carry, batch, score_tokens, run.train.bptt, run.train.segments_per_step
        )
        loss, accuracy = jax.tree.map(jnp.sum, scores).means()
        return loss + auxiliary_loss(metrics), (carry, loss, accuracy, gates_of(metrics))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        gradient, (carry, loss, accuracy, gates) = jax.grad(loss_of, has_aux=True)(state.params, state.carry, batch)
        updates, new = optimiser.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        measured = {"loss": loss, "accuracy": accuracy, "gradient_norm": optax.tree.norm(gradient), "gates": gates}
        return TrainState(state.step + 1, params, new, carry), measured

    return jax.jit(step, donate_argnums=0, out_shardings=None if places is None else (places, None))


def init_state(run: RunConfig, optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = init_params(run.model, jax.random.key(run.seed))
    return TrainState(jnp.int32(0), params, optimiser.init(params), init_carry(run.model, run.train.batch))


def state_sharding(run: RunConfig, optimiser: optax.GradientTransformation, mesh: Mesh, rules: ShardingRules) -> TrainState:
    """Like a `TrainState`, with the sharding of each array: parameters and optimiser everywhere, the carry by the rules."""
    shapes = jax.eval_shape(lambda: init_state(run, optimiser))
    everywhere = jax.tree.map(lambda _: replicated(mesh), shapes)
    return everywhere.replace(carry=carry_sharding(run.model, mesh, rules))


def rows_of(run: RunConfig, split: Split) -> Rows:
    """The batches a run reads; held-out batches are the same whatever the seed, so that runs compare."""
    return Rows(run.train.batch, run.train.sequence, run.seed if split == "train" else 0, split)


def evaluate(run: RunConfig, params: dict, split: Split = "validation") -> tuple[float, float]:
    """Held-out (nats a scored token, accuracy), streamed over `train.evaluation_steps` batches with the memory carried."""
    source = run.data.open(rows_of(run, split))

    @jax.jit
    def score(params: dict, carry: Carry, batch: Batch) -> tuple[Carry, Scores]:
        together = run.train.segments_per_step
        carry, scores, _ = scan_segments(run.model, params, carry, batch, score_tokens, segments_per_step=together)
        return carry, jax.tree.map(jnp.sum, scores)

    mesh = data_mesh(run.train.batch)
    rows, total = batch_sharding(mesh), Scores(0.0, 0.0, 0.0)
    carry = jax.device_put(init_carry(run.model, run.train.batch), carry_sharding(run.model, mesh))
    for number in range(run.train.evaluation_steps):
        carry, scores = score(params, carry, jax.device_put(source.batch(number), rows))
        total = jax.tree.map(lambda a, b: a + b, total, scores)
    loss, accuracy = total.means()
    return float(loss), float(accuracy)


@dataclasses.dataclass(frozen=True)
class Finished:
    """What training leaves. Attributes: state; steps done; seconds without compiling; compile_seconds; last metric line."""

    state: TrainState
    steps: int
    seconds: float
    compile_seconds: float
    last: dict[str, float]


def train(run: RunConfig, log: Callable[[dict[str, float]], None]) -> Finished:
    """Trains until the budget is spent; `log` gets a metric line every `train.log_every` steps and at the last.

    Raises:
      ConfigError: the budget pays for no step, or the state cannot fit.
      TrainingDiverged: the loss is no longer finite.
    """
    steps = budget_steps(run)
    check_fits(run)
    mesh, source = data_mesh(run.train.batch), run.data.open(rows_of(run, "train"))
    optimiser = make_optimiser(run, steps)
    places, rows = state_sharding(run, optimiser, mesh, DATA_PARALLEL), batch_sharding(mesh)
    state = jax.jit(lambda: init_state(run, optimiser), out_shardings=places)()
    began = time.perf_counter()
    step = make_step(run, optimiser, places).lower(state, jax.device_put(source.batch(0), rows)).compile()
    compile_seconds = time.perf_counter() - began
    began, line = time.perf_counter(), {}
    for number, batch in enumerate(batches(source, range(steps)), start=1):
        state, measured = step(state, jax.device_put(batch, rows))
        if number % run.train.log_every == 0 or number == steps:
            line = metric_line(run, number, measured, time.perf_counter() - began)
            log(line)
            if not np.isfinite(line["loss"]):
                raise TrainingDiverged(
                    f"loss: not finite at step {number}; lower train.learning_rate, now {run.train.learning_rate:g}"
                )
    return Finished(state, steps, time.perf_counter() - began, compile_seconds, line)


def metric_line(run: RunConfig, number: int, measured: dict[str, jax.Array], seconds: float) -> dict[str, float]:
    """One line of the metrics log; waits for the device."""
    values = jax.device_get(measured)
    tokens = number * run.tokens_per_step
    line = {"step": number, "tokens": tokens, "tokens_per_second": tokens / seconds}
    line |= {name: float(values[name]) for name in ("loss", "accuracy", "gradient_norm")}
    if values["gates"].size:
        line |= {"gate_mean": float(values["gates"].mean()), "gate_spread": float(np.ptp(values["gates"]))}
    return line
