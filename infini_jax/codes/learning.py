"""Training the codes of a capacity run, and scoring them: pairs drawn on the host, one compiled scan over steps.

The programs depend on a run's sizes only: what is drawn, the learning rates and n are arguments, so that all trials of a
point compile once.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from infini_jax.codes.capacity import CapacityRun, capacity_steps
from infini_jax.codes.coded_layer import OPEN, OTHER, CodedLayer
from infini_jax.config import TrainConfig
from infini_jax.errors import TrainingDiverged
from infini_jax.layers.segment import NO_DOCUMENT
from infini_jax.memory import memory_of
from infini_jax.memory.base import AUXILIARY
from infini_jax.training.optimiser import schedule

TRAINING, VALIDATION, TEST = 0, 1, 2  # what the draws of a seed are for
CALLS = 20  # of the compiled scan in a training, as often as it can be watched


@struct.dataclass
class Pairs:
    """Rows of W x S pairs, the newest last, and questions about them.

    Attributes:
      keys: BxWS, symbols of the keys.
      values: BxWS, symbols of the values.
      documents: BxWS, `OPEN` for the last n pairs.
      ages: BxQ, number of pairs written after the one that is asked for.
      asked: BxQ, symbol of the key that is asked.
      wanted: BxQ, symbol of that key's newest value.
    """

    keys: np.ndarray
    values: np.ndarray
    documents: np.ndarray
    ages: np.ndarray
    asked: np.ndarray
    wanted: np.ndarray


def draw(run: CapacityRun, random: np.random.Generator, questions: int, n_B: np.ndarray, distinct_B: np.ndarray) -> Pairs:
    """One row of n pairs for each n in `n_B`.

    Rows are drawn on the host: a sort per row is what XLA takes longest to compile.

    Args:
      run: sizes of the memory and of the codes.
      random: source of keys, values and questions.
      questions: Q, number of questions per row.
      n_B: number of pairs of each row.
      distinct_B: number of different keys of each row, which come again in the same order where n is more.
    """
    rows, tokens = len(n_B), run.segments * run.segment
    age_T = np.arange(tokens)[::-1]
    order_BxC = random.permuted(np.broadcast_to(np.arange(run.symbols, dtype=np.int32), (rows, run.symbols)), axis=1)
    keys_BxT = np.take_along_axis(order_BxC, age_T % distinct_B[:, None], axis=1)
    values_BxT = random.integers(0, run.symbols, (rows, tokens), np.int32)
    ages_BxQ = (random.random((rows, questions)) * distinct_B[:, None]).astype(np.int32)
    place_BxQ = tokens - 1 - ages_BxQ
    return Pairs(
        keys_BxT,
        values_BxT,
        np.where(age_T < n_B[:, None], OPEN, OTHER).astype(np.int32),
        ages_BxQ,
        np.take_along_axis(keys_BxT, place_BxQ, axis=1),
        np.take_along_axis(values_BxT, place_BxQ, axis=1),
    )


def draw_steps(run: CapacityRun, random: np.random.Generator, steps: int) -> Pairs:
    """The batches of `steps` training steps, stacked in front; n is log-uniform in the run's range."""
    low, high = run.pairs
    n = np.exp(random.uniform(math.log(low), math.log(high + 1), steps * run.batch)).astype(np.int32)
    n = np.minimum(n, high)  # where the exponential rounds up
    pairs = draw(run, random, run.segment, n, n)
    return jax.tree.map(lambda x: x.reshape(steps, run.batch, -1), pairs)


def answers(run: CapacityRun, params: dict, pairs: Pairs) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(answers BxQxD, mean of each metric) after all pairs are written. Each segment of questions meets the same memory."""
    layer, rows = CodedLayer(run), pairs.keys.shape[0]

    def in_segments(x_BxTx: Any) -> jax.Array:
        return x_BxTx.reshape(rows, -1, run.segment, *x_BxTx.shape[2:]).swapaxes(0, 1)

    def write(carry: tuple, segment: tuple) -> tuple[tuple, None]:
        (memory, opened_B), (tokens, documents_BxS) = carry, segment
        memory = layer.apply({"params": params}, memory, tokens, documents_BxS, opened_B, method="write")
        return (memory, documents_BxS[:, -1]), None

    def ask(_: None, asked_BxS: jax.Array) -> tuple[None, tuple]:
        return None, layer.apply({"params": params}, memory, asked_BxS, method="ask")

    empty = (empty_memory(run, rows), jnp.full(rows, NO_DOCUMENT, jnp.int32))
    tokens = layer.apply({"params": params}, pairs.keys, pairs.values, method="pairs")
    segments = jax.tree.map(in_segments, (tokens, pairs.documents))
    (memory, _), _ = jax.lax.scan(write, empty, segments)
    _, (y_WxBxSxD, metrics) = jax.lax.scan(ask, None, in_segments(pairs.asked))
    y_BxQxD = y_WxBxSxD.swapaxes(0, 1).reshape(rows, pairs.asked.shape[1], -1)
    return y_BxQxD, jax.tree.map(lambda leaf: leaf.mean(axis=0), metrics)


def empty_memory(run: CapacityRun, rows: int) -> Any:
    """The memory of `rows` rows in which nothing is written."""
    return memory_of(run.memory, run.dims).init_memory(rows)


@functools.partial(jax.jit, static_argnums=0)
def init_layer(run: CapacityRun, random: jax.Array) -> dict:
    """The parameters of the layer before training."""
    symbols = jnp.zeros((1, run.segment), jnp.int32)
    variables: Any = CodedLayer(run).init(random, symbols, empty_memory(run, 1))
    return variables["params"]


def nats(
    run: CapacityRun, params: dict, y_BxQxD: jax.Array, wanted_BxQ: jax.Array | np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the answers, BxQ, and whether the value with the highest score is the one wanted, BxQ."""
    logits_BxQxV: Any = CodedLayer(run).apply({"params": params}, y_BxQxD, method="score")
    lost_BxQ = optax.softmax_cross_entropy_with_integer_labels(logits_BxQxV, wanted_BxQ)
    return lost_BxQ, logits_BxQxV.argmax(axis=-1) == wanted_BxQ


def loss(run: CapacityRun, params: dict, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """The loss of one batch, auxiliary losses included, and its share of right answers: (scalar, scalar)."""
    y_BxQxD, metrics = answers(run, params, pairs)
    lost_BxQ, right_BxQ = nats(run, params, y_BxQxD, pairs.wanted)
    auxiliary = sum(jnp.mean(value) for name, value in metrics.items() if name.startswith(AUXILIARY))
    return lost_BxQ.mean() + auxiliary, right_BxQ.mean()


def rates(run: CapacityRun, steps: int) -> np.ndarray:
    """The learning rate of every step: up for a twentieth of them, then down to a tenth by a cosine."""
    shape = schedule(TrainConfig(warmup=(steps // 20) / steps), steps)
    return run.learning_rate * np.asarray(shape(np.arange(steps)), np.float32)


# Not the optimizer of a run, whose steps own their rates: here they are an argument, so that all trials share one program.
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.95))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_steps(run: CapacityRun, state: tuple, batches: Pairs, rates: jax.Array) -> tuple:
    """Trains for as many steps as there are rates: (state, losses, shares of right answers)."""

    def step(state: tuple, item: tuple) -> tuple[tuple, tuple]:
        (params, adam), (pairs, rate) = state, item
        measured, gradient = jax.value_and_grad(functools.partial(loss, run), has_aux=True)(params, pairs)
        updates, adam = ADAM.update(gradient, adam)
        return (jax.tree.map(lambda p, u: p - rate * u, params, updates), adam), measured

    state, measured = jax.lax.scan(step, state, (batches, rates))
    return state, *measured


@dataclasses.dataclass(frozen=True)
class LearnedCodes:
    """The result of training codes.

    Attributes:
      params: parameters of the layer.
      loss: nats per question, mean over the last call's steps.
      accuracy: share of right answers over the last call's steps.
      steps: number of steps that were done.
      seconds: seconds of training, without compiling.
      compile_seconds: seconds of compiling.
    """

    params: dict
    loss: float
    accuracy: float
    steps: int
    seconds: float
    compile_seconds: float


def program_key(run: CapacityRun) -> CapacityRun:
    """The run with a fixed value for all that its programs do not depend on, so that trials share them."""
    plain = CapacityRun()
    return dataclasses.replace(
        run, name=plain.name, variant="", seed=0, version=1, learning_rate=plain.learning_rate, budget=plain.budget
    )


def train(run: CapacityRun, watch: Callable[[dict[str, float]], None]) -> LearnedCodes:
    """Trains the codes; `watch` gets a line of metrics at most `CALLS` times.

    Raises `TrainingDiverged` where the loss is not finite.
    """
    steps, sizes = capacity_steps(run), program_key(run)
    length = -(-steps // CALLS)
    params = init_layer(sizes, jax.random.key(run.seed))
    state = (params, ADAM.init(params))
    # the last call is as long as the others, its surplus steps at rate zero: one program
    rate_N = np.zeros(-(-steps // length) * length, np.float32)
    rate_N[:steps] = rates(run, steps)
    compiled, compile_seconds = None, 0.0
    began = time.perf_counter()
    for start in range(0, steps, length):
        batches = draw_steps(run, np.random.default_rng([run.seed, TRAINING, start]), length)
        rate = jnp.asarray(rate_N[start : start + length])
        if compiled is None:
            compiling = time.perf_counter()
            compiled = train_steps.lower(sizes, state, batches, rate).compile()
            compile_seconds = time.perf_counter() - compiling
        state, losses, right = compiled(state, batches, rate)
        done = min(start + length, steps)
        lost, accuracy = (float(np.asarray(x)[: done - start].mean()) for x in (losses, right))
        if not math.isfinite(lost):
            raise TrainingDiverged(f"step {done}: the loss is not finite; lower the learning rate")
        watch({"step": done, "share": done / steps, "loss": lost, "accuracy": accuracy})
    return LearnedCodes(state[0], lost, accuracy, steps, time.perf_counter() - began - compile_seconds, compile_seconds)


@functools.partial(jax.jit, static_argnums=0)
def score(run: CapacityRun, params: dict, pairs: Pairs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores of the answers to all questions: (nats BxQ, right BxQ, answers BxQxD)."""
    y_BxQxD, _ = answers(run, params, pairs)
    return *nats(run, params, y_BxQxD, pairs.wanted), y_BxQxD
