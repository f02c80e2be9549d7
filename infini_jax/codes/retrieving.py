"""Training and scoring of the retrieval task: `infini_jax.codes.retrieval` says what it is.

Letters: B sequences, S pairs (and keys, and values), Q questions, K entries of a key, E entries of an embedding, N steps.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from infini_jax.codes.retrieval import EVERY, RetrievalRun
from infini_jax.errors import TrainingDiverged
from infini_jax.layers.precision import PARAMETERS
from infini_jax.memory.infini import InfiniConfig, InfiniMemory, retrieve, update
from infini_jax.model.cost import ProgramFlops, program_flops

TRAINING, EXAMINATION, TEST = 0, 1, 2  # what the draws of a seed are for
ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


@struct.dataclass
class Sequences:
    """Sequences of S pairs and questions about them.

    Attributes:
      keys: BxS, all S keys in some order.
      values: BxS, all S values in some order.
      asked: BxQ, places of the pairs whose keys are asked.
    """

    keys: np.ndarray
    values: np.ndarray
    asked: np.ndarray


def draw(run: RetrievalRun, random: np.random.Generator, sequences: int) -> Sequences:
    """Sequences of which one pair each is asked: arrays of `sequences` rows."""
    symbols_BxS = np.broadcast_to(np.arange(run.pairs, dtype=np.int32), (sequences, run.pairs))
    asked_Bx1 = random.integers(0, run.pairs, (sequences, 1), np.int32)
    return Sequences(random.permuted(symbols_BxS, axis=1), random.permuted(symbols_BxS, axis=1), asked_Bx1)


def draw_steps(run: RetrievalRun, random: np.random.Generator) -> Sequences:
    """The sequences of the steps between two examinations, steps in front."""
    return jax.tree.map(lambda x: x.reshape(EVERY, run.batch, -1), draw(run, random, EVERY * run.batch))


def draw_examination(run: RetrievalRun, random: np.random.Generator) -> Sequences:
    """The sequences of an examination, all of whose pairs are asked."""
    drawn = draw(run, random, run.sequences)
    return dataclasses.replace(drawn, asked=np.broadcast_to(np.arange(run.pairs, dtype=np.int32), drawn.keys.shape))


class RetrievalLayer(nn.Module):
    """Embeddings and projections around the memory, initialized as the authors' are.

    A key is W_k [one-hot value; embedding] + b_k, a query W_q embedding + b_q. The one-hot part of W_k is a table of its rows.
    """

    run: RetrievalRun

    def setup(self):
        """Makes the table of embeddings and the two projections."""
        run = self.run
        E, K, S = run.embedding, run.key_dim, run.pairs

        def spread(bound: float) -> Callable:
            return lambda key, shape: jax.random.uniform(key, shape, PARAMETERS, -bound, bound)

        weight, of_keys, of_queries = spread(K**-0.5), spread((E + S) ** -0.5), spread(E**-0.5)
        self.embeddings = self.param("embeddings", nn.initializers.normal(1.0), (S, E), PARAMETERS)
        self.key_of_embedding = self.param("key_of_embedding", weight, (E, K))
        self.key_of_value = self.param("key_of_value", weight, (S, K))
        self.key_bias = self.param("key_bias", of_keys, (K,))
        self.query_of_embedding = self.param("query_of_embedding", weight, (E, K))
        self.query_bias = self.param("query_bias", of_queries, (K,))

    def __call__(self, sequences: Sequences) -> jax.Array:
        """The answers to all questions, BxQxS, against one-hot values.

        Keys are written at once: S_n = sum phi(k) v^T (the paper's eq. 16 without its prefix), read by eq. 17.
        """
        run = self.run
        keys_SxK = self.embeddings @ self.key_of_embedding + self.key_bias
        keys_BxSxK = keys_SxK[sequences.keys] + self.key_of_value[sequences.values]
        asked_BxQ = jnp.take_along_axis(sequences.keys, sequences.asked, axis=1)
        queries_BxQxK = self._queries(asked_BxQ)
        rows, config = len(asked_BxQ), cast(InfiniConfig, run.memory)
        phi = config.features
        shape = (rows, 1, run.features)
        empty = InfiniMemory(jnp.zeros((*shape, run.pairs), PARAMETERS), jnp.zeros(shape, PARAMETERS))
        values_BxSxS = jax.nn.one_hot(sequences.values, run.pairs, dtype=PARAMETERS)
        memory = update(empty, phi(keys_BxSxK)[:, :, None], values_BxSxS[:, :, None], "linear")
        return retrieve(memory, phi(queries_BxQxK)[:, :, None])[:, :, 0]

    def _queries(self, asked_BxQ: jax.Array) -> jax.Array:
        """Queries of the asked keys, BxQxK: of all keys first, where more are asked than there are."""
        if asked_BxQ.size > self.run.pairs:
            return (self.embeddings @ self.query_of_embedding + self.query_bias)[asked_BxQ]
        return self.embeddings[asked_BxQ] @ self.query_of_embedding + self.query_bias


def errors(run: RetrievalRun, params: dict, sequences: Sequences) -> tuple[jax.Array, jax.Array]:
    """(half of the squared error of each answer, whether its largest entry is the right value), BxQ."""
    answers_BxQxS: Any = RetrievalLayer(run).apply({"params": params}, sequences)
    wanted_BxQ = jnp.take_along_axis(sequences.values, sequences.asked, axis=1)
    missed_BxQxS = answers_BxQxS - jax.nn.one_hot(wanted_BxQ, run.pairs, dtype=answers_BxQxS.dtype)
    return 0.5 * jnp.sum(missed_BxQxS**2, axis=-1), answers_BxQxS.argmax(axis=-1) == wanted_BxQ


@functools.partial(jax.jit, static_argnums=0)
def examine(run: RetrievalRun, params: dict, sequences: Sequences) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(loss as the authors average it, mean loss, share of right answers) of an examination, one sequence after the other."""
    weights_Q = authors_weights(run)

    def of_one(sequence: Sequences) -> tuple[jax.Array, jax.Array, jax.Array]:
        lost_1xQ, right_1xQ = errors(run, params, jax.tree.map(lambda x: x[None], sequence))
        return lost_1xQ[0] @ weights_Q, lost_1xQ.mean(), right_1xQ.mean()

    of_each = jax.lax.map(of_one, sequences)
    return of_each[0].mean(), of_each[1].mean(), of_each[2].mean()


def authors_weights(run: RetrievalRun) -> np.ndarray:
    """The weight of each of a sequence's S questions in the authors' loss, S float32.

    They ask in batches of `run.batch` and average the batches' means. The last batch holds what is left, S = 100 in three
    batches of 32 and one of 4, so that each of its questions counts eight times one of the others. Where a memory has lost
    some keys and kept the others, this is noise, of which the lowest of many examinations takes the best.
    """
    starts = range(0, run.pairs, run.batch)
    sizes = [min(run.batch, run.pairs - start) for start in starts]
    return np.concatenate([np.full(size, 1.0 / (size * len(sizes)), np.float32) for size in sizes])


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_steps(run: RetrievalRun, state: tuple, sequences: Sequences, rate: jax.Array) -> tuple:
    """Trains on the sequences, steps in front: (state, losses N)."""

    def loss(params: dict, of_step: Sequences) -> jax.Array:
        return errors(run, params, of_step)[0].mean()

    def step(state: tuple, of_step: Sequences) -> tuple[tuple, jax.Array]:
        params, adam = state
        lost, gradient = jax.value_and_grad(loss)(params, of_step)
        updates, adam = ADAM.update(gradient, adam)
        return (jax.tree.map(lambda p, u: p - rate * u, params, updates), adam), lost

    return jax.lax.scan(step, state, sequences)


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """The result of training.

    Attributes:
      params: parameters at the best examination.
      loss: its loss, the lowest of all examinations, as the authors average it.
      accuracy: its share of right answers.
      train_loss: mean loss of the last steps.
      steps: number of steps that were done.
      best_step: step of the best examination.
      ended: why training ended before its budget was spent, None where it was.
      seconds: seconds of training and examining, without compiling.
      compile_seconds: seconds of compiling.
    """

    params: dict
    loss: float
    accuracy: float
    train_loss: float
    steps: int
    best_step: int
    ended: str | None
    seconds: float
    compile_seconds: float


def program_key(run: RetrievalRun) -> RetrievalRun:
    """The run with a fixed value for all that its programs do not depend on, so that seeds and rates share them."""
    plain = RetrievalRun(memory=run.memory, key_dim=run.key_dim, pairs=run.pairs, batch=run.batch)
    return dataclasses.replace(plain, sequences=run.sequences)


def begun(run: RetrievalRun) -> tuple[dict, Any]:
    """The parameters before training, and Adam's state."""
    drawn = draw(run, np.random.default_rng(0), 1)
    variables: Any = RetrievalLayer(program_key(run)).init(jax.random.key(run.seed), drawn)
    return variables["params"], ADAM.init(variables["params"])


def train(run: RetrievalRun, watch: Callable[[dict[str, float]], None]) -> Retrieved:
    """Trains until the loss is low enough, has not fallen for a while, or the budget is spent.

    `watch` gets a line of metrics per examination. Raises `TrainingDiverged` where a loss is not finite.
    """
    sizes, state, rate = program_key(run), begun(run), jnp.float32(run.learning_rate)
    began = time.perf_counter()
    first = draw_steps(run, np.random.default_rng(0)), draw_examination(run, np.random.default_rng(0))
    step_on = train_steps.lower(sizes, state, first[0], rate).compile()
    examined = examine.lower(sizes, state[0], first[1]).compile()
    compile_seconds, began = time.perf_counter() - began, time.perf_counter()
    best, without = (math.inf, 0.0, 0, state[0]), 0
    for done in range(EVERY, run.steps + 1, EVERY):
        state, losses_N = step_on(state, draw_steps(run, np.random.default_rng([run.seed, TRAINING, done])), rate)
        drawn = draw_examination(run, np.random.default_rng([run.seed, EXAMINATION, done]))
        loss, mean, accuracy = map(float, examined(state[0], drawn))
        if not math.isfinite(loss):
            raise TrainingDiverged(f"step {done}: the loss is not finite; lower the learning rate")
        watch({"step": done, "share": done / run.steps, "loss": loss, "mean_loss": mean, "accuracy": accuracy})
        without = 0 if loss < best[0] else without + 1
        if without == 0:
            best = (loss, accuracy, done, jax.tree.map(np.array, state[0]))  # copies: the state is donated
        if loss <= run.enough or without > run.patience:
            break
    seconds = time.perf_counter() - began
    reason = f"no lower loss in {without} examinations" if without > run.patience else None
    ended = f"a loss of {run.enough:g} or less" if loss <= run.enough else reason
    loss, accuracy, at, params = best
    train_loss = float(np.asarray(losses_N).mean())
    return Retrieved(params, loss, accuracy, train_loss, done, at, ended, seconds, compile_seconds)


def counted_step_flops(run: RetrievalRun) -> ProgramFlops:
    """The FLOPs of the program of one training step."""
    sizes, state = program_key(run), jax.eval_shape(functools.partial(begun, run))
    sequences = jax.tree.map(lambda x: x[:1], draw_steps(run, np.random.default_rng(0)))
    return program_flops(functools.partial(train_steps, sizes), state, sequences, jnp.float32(run.learning_rate))
