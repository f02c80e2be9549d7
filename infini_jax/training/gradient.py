"""The loss of a training step and its gradient: tokens stream through the segments, rows lie in parts on the devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from infini_jax.config import RunConfig
from infini_jax.data.batch import Batch
from infini_jax.devices.chosen_form import form_of_run
from infini_jax.devices.sharding import Layout, gradient_over_rows
from infini_jax.layers.dropout import Dropout
from infini_jax.memory.base import AUXILIARY, reported_gates
from infini_jax.model.parts import parts_of
from infini_jax.model.stream import Carry, scan_segments

Part = tuple[Batch, Dropout | None]  # of some rows


@struct.dataclass
class Scores:
    """Sums over scored tokens.

    Attributes:
      loss: sum of weighted nats.
      correct: weighted number of right top-1 predictions.
      tokens: number of scored tokens, the sum of their weights.
      squares: sum of weighted log(Z)^2, Z the sum of a token's softmax; None where there is no such loss.
    """

    loss: jax.Array
    correct: jax.Array
    tokens: jax.Array
    squares: jax.Array | None = None

    def means(self) -> tuple[jax.Array, jax.Array]:
        """The means over scored tokens: (nats per token, share correct)."""
        tokens = jnp.maximum(self.tokens, 1.0)
        return self.loss / tokens, self.correct / tokens


def score_tokens(logits_BxSxV: jax.Array, part: Batch, with_squares: bool = False) -> Scores:
    """The sums of cross-entropy, in nats, and of top-1 hits over the scored tokens; `with_squares` those of log(Z)^2, too."""
    nats_BxS = optax.softmax_cross_entropy_with_integer_labels(logits_BxSxV, part.targets)
    hit_BxS = logits_BxSxV.argmax(axis=-1) == part.targets
    squares = None
    if with_squares:
        squares = (jax.nn.logsumexp(logits_BxSxV, axis=-1) ** 2 * part.weights).sum()
    loss, correct = (nats_BxS * part.weights).sum(), (hit_BxS * part.weights).sum()
    return Scores(loss, correct, part.weights.sum(), squares)


def auxiliary_loss(metrics: tuple) -> jax.Array:
    """The mechanisms' own terms of the loss: summed over layers, averaged over segments."""
    added = [value.mean(axis=0).sum() for group in metrics for name, value in group.items() if name.startswith(AUXILIARY)]
    return sum(added, start=jnp.float32(0.0))


def gates_of(metrics: tuple) -> jax.Array:
    """Gates of all layers and heads as one vector (empty where the mechanism has none); the same in every segment."""
    gates = [found[0].ravel() for group in metrics if (found := reported_gates(group)) is not None]
    return jnp.concatenate(gates) if gates else jnp.zeros(0, jnp.float32)


def split_rows(rows: Any, parts: int) -> Any:
    """Arrays with rows in front as `parts` of consecutive rows, stacked in front."""
    return jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), rows)


def split_carry(carry: Carry, parts: int) -> Carry:
    """The carry as `parts` carries of consecutive rows, stacked in front; in its memories, layers stand before the rows."""

    def split(leaf: jax.Array) -> jax.Array:
        return jnp.moveaxis(leaf.reshape(leaf.shape[0], parts, -1, *leaf.shape[2:]), 1, 0)

    rows = (carry.open_document, carry.phase, carry.before)
    return Carry(jax.tree.map(split, carry.memory), *jax.tree.map(lambda leaf: leaf.reshape(parts, -1), rows))


def joined_carry(carry: Carry) -> Carry:
    """The inverse of `split_carry`: one carry of all rows."""

    def join(leaf: jax.Array) -> jax.Array:
        leaf = jnp.moveaxis(leaf, 0, 1)
        return leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:])

    rows = (carry.open_document, carry.phase, carry.before)
    return Carry(jax.tree.map(join, carry.memory), *jax.tree.map(lambda leaf: leaf.reshape(-1), rows))


def gradient_function(run: RunConfig, layout: Layout | None = None) -> Callable[..., tuple]:
    """The function (params, carry, batch, dropout, frozen) -> (gradient, carry, (Scores, gates)).

    The gradient is that of the mean loss per scored token for `params`, those that the run trains; `frozen` are the others,
    left out where all are trained.

    The loss has the terms of mechanisms and `train.z_loss` besides; the scores have not. Both have the step's `dropout`, which
    `infini_jax.layers.dropout.dropout_of_step` makes; None, or left out, is none.

    The rows are split over the devices of `layout`, and those of each device over `train.accumulate` turns.
    """
    turns, devices = run.train.accumulate, 1 if layout is None else layout.token_parts
    score = functools.partial(score_tokens, with_squares=run.train.z_loss > 0)
    form, parts = form_of_run(run, layout), parts_of(run)

    def loss_of(params: dict, frozen: dict, carry: Carry, rows: Part, tokens: jax.Array) -> tuple[jax.Array, tuple]:
        """The loss of a part of the batch, as its share in the mean over all `tokens` that are scored."""
        batch, dropout = rows
        settings = (run.train.bptt, form, dropout, run.most_scored, parts.first_group(form.segments))
        carry, scores, metrics = scan_segments(run.model, parts.joined(params, frozen), carry, batch, score, *settings)
        scores = jax.tree.map(jnp.sum, scores)
        loss = scores.loss / tokens + auxiliary_loss(metrics) / (turns * devices)
        if scores.squares is not None:
            loss += run.train.z_loss * scores.squares / tokens
        return loss, (carry, scores, gates_of(metrics) / devices)

    def of_rows(carry: Carry, rows: Part, params: dict, frozen: dict, tokens: jax.Array) -> tuple[tuple, Carry]:
        def turn(total: dict, part: tuple[Carry, Part]) -> tuple[dict, tuple]:
            gradient, measured = jax.grad(loss_of, has_aux=True)(params, frozen, *part, tokens)
            return jax.tree.map(jnp.add, total, gradient), measured

        nothing = jax.tree.map(jnp.zeros_like, params)
        if turns == 1:
            gradient, (carry, scores, gates) = jax.grad(loss_of, has_aux=True)(params, frozen, carry, rows, tokens)
            return (gradient, scores, gates), carry
        gradient, (carry, scores, gates) = jax.lax.scan(turn, nothing, (split_carry(carry, turns), split_rows(rows, turns)))
        return (gradient, jax.tree.map(jnp.sum, scores), gates[-1]), joined_carry(carry)

    of_all_rows = gradient_over_rows(of_rows, run.model, layout, parts.shapes)

    def gradient_of(
        params: dict, carry: Carry, batch: Batch, dropout: Dropout | None = None, frozen: dict | None = None
    ) -> tuple[dict, Carry, tuple]:
        tokens = jnp.maximum(batch.weights.sum(), 1.0)
        (gradient, *measured), carry = of_all_rows(carry, (batch, dropout), params, frozen or {}, tokens)
        return gradient, carry, tuple(measured)

    return gradient_of
