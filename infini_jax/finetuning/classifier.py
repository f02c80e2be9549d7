"""A model with a head that classifies, its training step and its answers.

The head sees the features of a text's last token, behind the model's last norm. Parameters are those that the settings train,
with the head's under `HEAD` beside them. Letters: R rows, T tokens of a row, D model, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from infini_jax.config import RunConfig
from infini_jax.data.batch import Batch
from infini_jax.devices.chosen_form import form_of_run
from infini_jax.devices.sharding import Layout, gradient_over_rows, on_own_rows
from infini_jax.layers.dropout import Dropout, dropout_of_step, dropped
from infini_jax.layers.precision import PARAMETERS
from infini_jax.model.parts import Parts, parts_of
from infini_jax.model.stream import Carry, features_themselves, init_carry, scan_segments
from infini_jax.training.clipping import unless_infinite
from infini_jax.training.gradient import auxiliary_loss
from infini_jax.training.optimiser import make_optimiser

HEAD = "classifier"  # beside the names of a model's parameters, none of which it is


class ClassifierHead(nn.Module):
    """Logits RxC of features RxD: norm, dense, GELU, norm, dropout, dense, as in BabyLM's evaluation of 2025, float32.

    Norms have no parameters. DEVIATION: kernels begin as Flax draws them (LeCun normal), biases at zero.

    Attributes:
      classes: C.
    """

    classes: int

    @nn.compact
    def __call__(self, x_RxD: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        def normed(x_RxD: jax.Array) -> jax.Array:
            return nn.LayerNorm(epsilon=1e-5, use_bias=False, use_scale=False, use_fast_variance=False)(x_RxD)

        hidden_RxD = nn.Dense(x_RxD.shape[-1], name="hidden")(normed(x_RxD.astype(jnp.float32)))
        hidden_RxD = normed(nn.gelu(hidden_RxD, approximate=False))
        return nn.Dense(self.classes, name="out")(dropped(hidden_RxD[:, None], dropout, 0)[:, 0])


@struct.dataclass
class TunedState:
    """The state of fine-tuning. Attributes: step; params that are trained, the head's among them; the optimizer's; frozen."""

    step: jax.Array
    params: dict
    optimiser: Any
    frozen: dict


@dataclasses.dataclass(frozen=True)
class ClassifierProgram:
    """The programs of a classifier, each compiled once for every length of rows.

    Attributes:
      run: settings of the model and of this training, whose batch is R.
      classes: C.
      steps: steps of the whole training.
      dropout: rate of the head's dropout.
      layout: how devices share the rows; None for one device.
    """

    run: RunConfig
    classes: int
    steps: int
    dropout: float
    layout: Layout | None = None

    @functools.cached_property
    def parts(self) -> Parts:
        """Which parameters of the model are trained."""
        return parts_of(self.run)

    @functools.cached_property
    def optimiser(self) -> optax.GradientTransformation:
        """The optimizer of runs, for the model and the head, whose kernels are not decayed, as a run's own head is not."""
        return make_optimiser(self.run.train, self.steps, self.run.model)

    def begin(self, learned: dict) -> TunedState:
        """The state before the first step, at what a run has learned; the head is drawn by the seed."""

        def state(learned: dict) -> TunedState:
            head, factors = jax.random.split(jax.random.key(self.run.seed))
            copied = jax.tree.map(jnp.copy, learned)  # the state is donated
            params, frozen = self.parts.split(copied, factors)
            drawn: Any = ClassifierHead(self.classes).init(head, jnp.zeros((1, self.run.model.d_model), PARAMETERS))
            params = {**params, HEAD: drawn["params"]}
            return TunedState(jnp.int32(0), params, self.optimiser.init(params), frozen)

        return jax.jit(state)(learned)

    def logits(
        self, params: dict, frozen: dict, carry: Carry, batch: Batch, dropout: Dropout | None, of_head: Dropout | None
    ) -> tuple[jax.Array, Carry, tuple]:
        """(logits RxC of each row, carry behind it, metrics of the mechanisms); the text ends where its row has a weight."""
        sequence = batch.tokens.shape[1]
        form = form_of_run(at_length(self.run, sequence), self.layout)
        model = {name: part for name, part in params.items() if name != HEAD}
        carry, found_WxRxD, metrics = scan_segments(
            self.run.model,
            self.parts.joined(model, frozen),
            carry,
            batch,
            last_features,
            form=form,
            dropout=dropout,
            first_trained=self.parts.first_group(form.segments),
            head=features_themselves,
        )
        logits_RxC: Any = ClassifierHead(self.classes).apply({"params": params[HEAD]}, found_WxRxD.sum(axis=0), of_head)
        return logits_RxC, carry, metrics

    @functools.cached_property
    def step(self) -> Callable[[TunedState, Batch], tuple[TunedState, jax.Array]]:
        """The jitted step: (state, batch) -> (state, nats per example). The state is donated.

        The loss is the mean cross-entropy of the rows, and the mechanisms' own terms. A gradient that is not finite changes
        nothing but the step.
        """

        def step(state: TunedState, batch: Batch) -> tuple[TunedState, jax.Array]:
            gradient, nats = self._gradient(state, batch)
            updates, optimiser = self.optimiser.update(gradient, state.optimiser, state.params)
            after = (optax.apply_updates(state.params, updates), optimiser)
            (params, optimiser), _ = unless_infinite(gradient, after, (state.params, state.optimiser))
            return TunedState(state.step + 1, params, optimiser, state.frozen), nats / self.run.train.batch

        return jax.jit(step, donate_argnums=0)

    def _gradient(self, state: TunedState, batch: Batch) -> tuple[dict, jax.Array]:
        """(gradient, sum of the rows' nats) of a step."""
        run, rows, segments = self.run, self.run.train.batch, batch.tokens.shape[1] // self.run.model.segment
        devices = 1 if self.layout is None else self.layout.token_parts

        def loss_of(params: dict, frozen: dict, carry: Carry, part: tuple) -> tuple[jax.Array, tuple]:
            logits_RxC, carry, metrics = self.logits(params, frozen, carry, *part)
            nats_R = optax.softmax_cross_entropy_with_integer_labels(logits_RxC, classes_of(part[0]))
            return nats_R.sum() / rows + auxiliary_loss(metrics) / devices, (carry, nats_R.sum())

        def of_rows(carry: Carry, part: tuple, params: dict, frozen: dict) -> tuple[tuple, Carry]:
            gradient, (carry, nats) = jax.grad(loss_of, has_aux=True)(params, frozen, carry, part)
            return (gradient, nats), carry

        dropout = dropout_of_step(run.train.dropout, run.seed, state.step, rows, segments)
        of_head = dropout_of_step(self.dropout, run.seed + 1, state.step, rows, 1)
        of_head = of_head and dataclasses.replace(of_head, keys=of_head.keys[:, 0])
        shapes: Any = jax.eval_shape(lambda: (state.params, state.frozen))
        of_all = gradient_over_rows(of_rows, run.model, self.layout, shapes)
        (gradient, nats), _ = of_all(init_carry(run.model, rows), (batch, dropout, of_head), state.params, state.frozen)
        return gradient, nats

    @functools.cached_property
    def answer(self) -> Callable[[TunedState, Batch], jax.Array]:
        """The jitted function (state, batch) -> logits RxC, without dropout."""

        def read(carry: Carry, batch: Batch, params: dict, frozen: dict) -> tuple[jax.Array, Carry]:
            logits_RxC, carry, _ = self.logits(params, frozen, carry, batch, None, None)
            return logits_RxC, carry

        def answer(state: TunedState, batch: Batch) -> jax.Array:
            carry = init_carry(self.run.model, batch.tokens.shape[0])
            return on_own_rows(read, self.run.model, self.layout)(carry, batch, state.params, state.frozen)[0]

        return jax.jit(answer)


def at_length(run: RunConfig, tokens: int) -> RunConfig:
    """The run with rows of so many tokens."""
    return dataclasses.replace(run, train=dataclasses.replace(run.train, sequence=tokens))


def last_features(x_RxSxD: jax.Array, part: Batch) -> jax.Array:
    """RxD, the features at the places that have a weight; zeros where a row has none here."""
    return jnp.einsum("rsd,rs->rd", x_RxSxD.astype(jnp.float32), part.weights)


def classes_of(batch: Batch) -> jax.Array:
    """R, the class of each row."""
    return (batch.targets * (batch.weights > 0)).sum(axis=1)


def said_of(logits_RxC: jax.Array) -> np.ndarray:
    """R, the class that each row is taken for."""
    return np.asarray(logits_RxC).argmax(axis=1)
