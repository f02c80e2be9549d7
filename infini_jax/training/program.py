"""A run's training as one program: all that follows from its settings and devices, each derived once.

A step takes `train.sequence` tokens of every row through the segments; the memory goes on into the next step without
gradient, so a document that is longer than the sequence is still read with its past.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.data.base import opened
from infini_jax.data.batch import Batch, Rows, Source, Split
from infini_jax.data.serve import batches
from infini_jax.devices.effort import OFTEN, ONCE, effort
from infini_jax.devices.processes import batch_shapes, own_rows, placed
from infini_jax.devices.sharding import Layout, batch_sharding, carry_sharding, replicated, sharding_like
from infini_jax.errors import present
from infini_jax.layers.dropout import dropout_of_step
from infini_jax.model.cost import ProgramFlops, budget_steps, jaxpr_flops
from infini_jax.model.inheritance import inherited
from infini_jax.model.parts import Parts, parts_of
from infini_jax.model.stream import Carry, init_carry, init_params, parameter_shapes
from infini_jax.training.checkpoint import like
from infini_jax.training.clipping import global_norm, unless_infinite
from infini_jax.training.gradient import gradient_function
from infini_jax.training.optimiser import averaged, make_optimiser


@struct.dataclass
class TrainState:
    """The state of training, on the devices.

    Attributes:
      step: number of steps that were done, int32.
      params: parameters that are trained.
      optimiser: state of the optimizer.
      average: moving average of the parameters, or None.
      carry: state that the rows' streams carry into the next step.
      frozen: parameters of the model that are not trained, see `infini_jax.model.parts`; none where all are.
    """

    step: jax.Array
    params: dict
    optimiser: Any
    average: dict | None
    carry: Carry
    frozen: dict = struct.field(default_factory=dict)

    @property
    def learned(self) -> dict:
        """What was trained of the parameters, to evaluate and to keep."""
        return self.params if self.average is None else self.average

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint has beside the carried memory: what a step changes."""
        names = ("step", "params", "optimiser", "average")
        return {**{name: getattr(self, name) for name in names}, "carry": None}


def rows_of(run: RunConfig, split: Split) -> Rows:
    """The rows that a run reads of a split; held-out rows do not depend on the seed, so that runs compare."""
    return Rows(run.train.batch, run.train.sequence, run.seed if split == "train" else 0, split)


@dataclasses.dataclass(frozen=True)
class Program:
    """The identity of a compiled step: equal for trials, seeds without dropout, and tasks with equal shapes and scored places.

    Attributes:
      model: settings of the model.
      train: settings of training, without those that are no constants of the program.
      steps: steps of the run, which the schedule knows.
      seed: seed of the masks of dropout, a constant of the program; None without dropout.
      batch: shapes of a batch.
      most_scored: scored places of a row, at most.
      layout: how the devices share the work.
      parts: the parameters that are trained, and those that are not.
      training: one of the trainings that have this program; not compared.
    """

    model: ModelConfig
    train: TrainConfig
    steps: int
    seed: int | None
    batch: Batch
    most_scored: int
    layout: Layout | None
    parts: Parts
    training: "Training" = dataclasses.field(compare=False)


class Training:
    """The training of a run on a layout of devices: data, state, step and shardings, each made when it is asked for.

    Args:
      run: settings of the run; its budget must have a number of steps, see `infini_jax.training.timed_budget` for seconds.
      layout: how the devices share the work; without one, the step is a plain program of one device.

    Raises:
      ConfigError: the budget pays for no step, or the data is not there.
    """

    def __init__(self, run: RunConfig, layout: Layout | None = None):
        self.run, self.layout = run, layout
        self.steps, self.parts = budget_steps(run), parts_of(run)

    @functools.cached_property
    def source(self) -> Source:
        """The source of the batches that are trained on."""
        return opened(self.run.data, rows_of(self.run, "train"))

    @functools.cached_property
    def optimiser(self) -> optax.GradientTransformation:
        """The optimizer of the run."""
        return make_optimiser(self.run.train, self.steps, self.run.model)

    @functools.cached_property
    def shapes(self) -> TrainState:
        """The state as `jax.ShapeDtypeStruct`s; with a layout they have the shardings of `places`."""
        return self._unplaced if self.layout is None else like(self._unplaced, self.places)

    @functools.cached_property
    def places(self) -> TrainState:
        """The sharding of each array of the state: by the rules, and for the optimizer's arrays as for the parameters."""
        model, layout = self.run.model, self._laid
        state: Any = sharding_like(dataclasses.replace(self._unplaced, carry=None), model, layout)
        return dataclasses.replace(state, carry=carry_sharding(model, layout.mesh, layout.rules))

    @functools.cached_property
    def batch(self) -> Batch:
        """A batch as `jax.ShapeDtypeStruct`s; with a layout they have its shardings."""
        if self.layout is None:
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.source.batch(0))
        return batch_shapes(self.source, self._rows, self.run.train.batch)

    def fresh(self) -> TrainState:
        """The state before the first step, on the devices."""
        return self._once(self._init)()

    def inherited(self, other: ModelConfig, learned: dict) -> TrainState:
        """The state before the first step, at the parameters that another model has `learned` as far as it has them."""
        return self._once(functools.partial(self._init, other))(learned)

    def _once(self, begin: Callable[..., TrainState]) -> Callable[..., TrainState]:
        places = None if self.layout is None else self.places
        return jax.jit(begin, out_shardings=places, compiler_options=effort(ONCE))

    @functools.cached_property
    def step(self) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
        """The jitted step: (state, batch) -> (state, metrics). The state is donated, and lies as `places` says."""

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            return self.advance(state, batch, self.run.seed)

        if self.layout is None:
            return jax.jit(step, donate_argnums=0)
        everywhere = replicated(self.layout.mesh)  # every process must be able to read what was measured
        return jax.jit(step, donate_argnums=0, out_shardings=(self.places, everywhere))

    def several(self, most: int) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
        """The jitted steps on the first `count` of `most` batches: (state, batches, count) -> (state, metrics).

        Batches are stacked in front. Metrics are the last step's, but `skipped` has an entry for each of `most`. On a CPU the
        numbers do not depend on how many steps a call has, to the bit; those of `step` are the same to rounding.
        """

        def steps(state: TrainState, batches: Batch, count: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            def step(number: jax.Array, before: tuple) -> tuple:
                state, _, skipped = before
                batch = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), batches)
                state, measured = self.step(state, batch)
                return state, measured, skipped.at[number].set(measured["skipped"])

            nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(self.step, state, jax.tree.map(lambda x: x[0], batches))[1])
            begun = (state, nothing, jnp.zeros(most, bool))
            state, measured, skipped = jax.lax.fori_loop(0, count, step, begun)
            return state, measured | {"skipped": skipped}

        everywhere = replicated(self._laid.mesh)
        return jax.jit(steps, donate_argnums=0, out_shardings=(self.places, everywhere))

    @functools.cached_property
    def advance(self) -> Callable[[TrainState, Batch, int | jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
        """The step as a function to be traced: (state, batch, seed of the masks of dropout) -> (state, metrics).

        A gradient that is not finite changes nothing that is learned; the step counts, and the memory goes on.
        """
        run, optimiser = self.run, self.optimiser
        gradient_of, decay = gradient_function(run, self.layout), run.train.average
        segments = run.train.sequence // run.model.segment

        def advance(state: TrainState, batch: Batch, seed: int | jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            dropout = dropout_of_step(run.train.dropout, seed, state.step, run.train.batch, segments)
            gradient, carry, (scores, gates) = gradient_of(state.params, state.carry, batch, dropout, state.frozen)
            updates, new = optimiser.update(gradient, state.optimiser, state.params)
            params: Any = optax.apply_updates(state.params, updates)
            average: Any = state.average
            if average is not None:
                average = averaged(average, params, state.step + 1, decay)
            before = (state.params, state.optimiser, state.average)
            (params, new, average), is_finite = unless_infinite(gradient, (params, new, average), before)
            loss, accuracy = scores.means()
            measured = {"loss": loss, "accuracy": accuracy, "gradient_norm": global_norm(gradient), "gates": gates}
            if scores.squares is not None:
                measured["z_loss"] = run.train.z_loss * scores.squares / jnp.maximum(scores.tokens, 1.0)
            state = TrainState(state.step + 1, params, new, average, carry, state.frozen)
            return state, measured | {"skipped": ~is_finite}

        return advance

    @property
    def program(self) -> Program:
        """The identity of the compiled step, equal for runs that can share it."""
        train, seed = self.run.program(self.steps).train, self.run.seed if self.run.train.dropout else None
        return Program(
            self.run.model, train, self.steps, seed, self.batch, self.run.most_scored, self.layout, self.parts, self
        )

    def batches(self, steps: range) -> Iterator[Batch]:
        """The batches of `steps` on the devices; each process reads only its own rows."""
        return map(self.placed, self.read(steps))

    def read(self, steps: range) -> Iterator[Batch]:
        """The batches of `steps` on the host: this process's rows of them."""
        return batches(self.source, steps, *own_rows(self._rows.tokens, self.run.train.batch))

    def placed(self, batch: Batch) -> Batch:
        """A batch on the devices, from this process's rows of it."""
        return placed(batch, self._rows, self.run.train.batch)

    def stacked(self, batches: Sequence[Batch], most: int) -> Batch:
        """Batches of the host, `most` at most, on the devices in one array each, what is missing filled with anything."""

        def stack(where: NamedSharding, *leaves: np.ndarray) -> jax.Array:
            held = np.empty((most, *leaves[0].shape), leaves[0].dtype)
            np.stack(leaves, out=held[: len(leaves)])
            held[len(leaves) :] = leaves[0]
            return jax.device_put(held, behind_one_axis(where))

        return Batch(*(stack(where, *leaves) for where, *leaves in zip(self._rows, *batches, strict=True)))

    @functools.cached_property
    def gathered(self) -> Callable[[dict, dict], dict]:
        """The function (trained, frozen) -> parameters as those of a plain model, whole on every device."""
        return jax.jit(self.parts.merged, out_shardings=replicated(self._laid.mesh))

    @functools.cached_property
    def _unplaced(self) -> TrainState:
        return jax.eval_shape(self._state, parameter_shapes(self.run.model))

    @property
    def _laid(self) -> Layout:
        return present(self.layout, "only a training that has a layout lies on devices")

    @property
    def _rows(self) -> Batch:
        return batch_sharding(self._laid.mesh, self._laid.rules)

    def _init(self, other: ModelConfig | None = None, learned: dict | None = None) -> TrainState:
        params = init_params(self.run.model, jax.random.key(self.run.seed))
        if other and learned:
            params = inherited(other, learned, self.run.model, params)
        return self._state(params)

    def _state(self, params: dict) -> TrainState:
        run = self.run
        trained, frozen = self.parts.split(params, jax.random.key(run.seed))
        average = jax.tree.map(jnp.copy, trained) if run.train.average else None  # copied: the state is donated
        carry = init_carry(run.model, run.train.batch)
        return TrainState(jnp.int32(0), trained, self.optimiser.init(trained), average, carry, frozen)


@functools.lru_cache(maxsize=1)
def _traced_step(program: Program) -> Any:
    """The step's `jax.stages.Traced`, to be counted and compiled: a small model is traced as long as compiled."""
    training = program.training
    return training.step.trace(training.shapes, program.batch)


def behind_one_axis(where: NamedSharding) -> NamedSharding:
    """The sharding of arrays that are stacked in front."""
    return NamedSharding(where.mesh, PartitionSpec(None, *where.spec))


@functools.lru_cache(maxsize=1)
def compiled_steps(program: Program, most: int) -> Callable[[TrainState, Sequence[Batch]], tuple[TrainState, dict]]:
    """The compiled steps of a program, cached for the next run with an equal one: (state, batches) -> (state, metrics).

    They take up to `most` batches of the host in one call; more than one only where a single process has all devices. Metrics
    are the last step's, `skipped` those of all steps.
    """
    training = program.training
    if most == 1:
        step = _traced_step(program).lower().compile(effort(OFTEN))
        return lambda state, batches: step(state, training.placed(batches[0]))
    several = jax.tree.map(
        lambda one: jax.ShapeDtypeStruct((most, *one.shape), one.dtype, sharding=behind_one_axis(one.sharding)), program.batch
    )
    lowered = training.several(most).lower(training.shapes, several, jax.ShapeDtypeStruct((), jnp.int32))
    steps = lowered.compile(effort(OFTEN))
    return lambda state, batches: steps(state, training.stacked(batches, most), np.int32(len(batches)))


@functools.lru_cache(maxsize=1)
def counted_flops(program: Program) -> ProgramFlops:
    """The FLOPs of the program of one training step, of all devices where their layout does not split the tokens."""
    return jaxpr_flops(_traced_step(program).jaxpr.jaxpr)
