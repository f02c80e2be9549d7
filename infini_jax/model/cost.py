"""Counted FLOPs and bytes: an analytic cost for each model, a walker over programs to check it, budgets to steps.

A FLOP is one multiplication or addition of a matrix product or convolution; element-wise work is not counted, by the analytic
costs and the walker alike. XLA's own count takes a scan body once whatever its length, so it is never used.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.extend import core

from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.errors import LARGEST, ConfigError, require
from infini_jax.layers.blockwise import MADE_AGAIN
from infini_jax.memory import memory_of
from infini_jax.memory.costs import BACKWARD, Cost
from infini_jax.model.parts import Parts, parts_of
from infini_jax.model.scored import few_places
from infini_jax.model.stream import init_carry, parameter_shapes
from infini_jax.model.transformer import layer_groups
from infini_jax.units import human_bytes

RECOMPUTED = ("rematted_computation", MADE_AGAIN)  # scopes, JAX's own and ours, of recomputation, which is no work done


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """Forward FLOPs per raw token.

    Attributes:
      projections: FLOPs of queries, keys, values, output and MLP, all layers.
      attention: cost of all layers' attention and memory.
      head: FLOPs of the logits, where a task scores few places those of these, per raw token of all.
      saved: FLOPs by which the backward pass of projections and head falls short of twice the forward pass.
    """

    projections: float
    attention: Cost
    head: float
    saved: float = 0.0

    @property
    def flops(self) -> float:
        """Forward FLOPs per raw token, all parts together."""
        return self.projections + self.attention.flops + self.head

    @property
    def training_flops(self) -> float:
        """Forward and backward FLOPs per raw token in a batch of one row."""
        return (1.0 + BACKWARD) * (self.projections + self.head) + self.attention.training_flops - self.saved

    def of_rows(self, batch: int) -> float:
        """Forward and backward FLOPs per raw token in a batch of so many rows."""
        return self.training_flops - self.attention.shared * (1 - 1 / batch)


@functools.lru_cache(maxsize=1024)
def model_cost(model: ModelConfig, head_share: float = 1.0, segments: int = 1, parts: Parts | None = None) -> ModelCost:
    """The cost of a model's forward pass per raw token, with logits of a share of the tokens, see `head_share`.

    Every layer takes so many `segments` at once. Inserted landmarks and memory tokens run through every layer and are paid for
    by the raw tokens. Where only some `parts` are trained, the backward pass ends at the lowest layer that has some and makes
    no gradient of a frozen matrix, and low-rank factors are paid for. A mechanism's own parameters count as trained.
    """
    d, inserted, parts = model.dims, model.dims.segment / model.segment, parts or Parts(model)
    mlp_dim = model.mlp_dim or 4 * d.d_model
    weights = d.d_model * ((d.heads + d.kv_heads) * (d.key_dim + d.value_dim) + model.block.mlp_products * mlp_dim)
    carried = [model.layer_memory(layer) for layer in range(model.layers)]
    layers = [memory_of(memory, model.dims_of(memory)).cost_at_once(d.segment, segments) for memory in carried]
    for layer, writes in enumerate(parts.layers_below(segments)):
        layers[layer] = forward_alone(layers[layer], writes)
    fields, head = [field.name for field in dataclasses.fields(Cost)], 2.0 * d.d_model * model.vocab * head_share
    above, below = parts.frozen_weights(segments)
    head_saved = BACKWARD if parts.first_group(segments) == len(layer_groups(model)) else float(not parts.trains_head)
    return ModelCost(
        projections=inserted * model.layers * 2.0 * weights + inserted * 2.0 * parts.factor_weights,
        attention=Cost(*(inserted * sum(getattr(cost, name) for cost in layers) for name in fields)),
        head=head,
        saved=inserted * 2.0 * (above + BACKWARD * below) + head_saved * head,
    )


def forward_alone(cost: Cost, writes: bool) -> Cost:
    """The cost of a layer without a backward pass but that of what it `writes`; it is half of what rows share."""
    saved = BACKWARD * (cost.local + cost.read)
    write_saved = cost.write_saved if writes else BACKWARD * cost.write
    return dataclasses.replace(cost, read_saved=saved, write_saved=write_saved, shared=cost.shared / 2)


def head_share(run: RunConfig) -> float:
    """Share of a run's tokens whose logits its training computes: those of scored places, where a row has few of them."""
    few = few_places(run.most_scored, run.train.sequence)
    return 1.0 if few is None else few / run.train.sequence


def most_at_once(train: TrainConfig, model: ModelConfig) -> int:
    """The most segments that every layer can take at once: all that a gradient flows through, or 1."""
    return 1 if model.takes_in_turn else math.gcd(train.bptt, train.sequence // model.segment)


def training_cost(run: RunConfig) -> ModelCost:
    """The cost of a run's training per raw token in the form of fewest FLOPs: segments in turn, or as many at once as can be.

    That is what a budget pays for, whatever form a run has on the platform at hand, so that it buys the same steps everywhere.
    """
    forms = [run_cost(run, segments) for segments in (1, most_at_once(run.train, run.model))]
    return min(forms, key=lambda cost: cost.of_rows(run.train.batch))


def run_cost(run: RunConfig, segments: int | None = None) -> ModelCost:
    """The cost of a run's training per raw token: that of what it trains of its model, with logits at scored places.

    Every layer takes so many `segments` at once; None is the form of fewest FLOPs, see `training_cost`.
    """
    return training_cost(run) if segments is None else model_cost(run.model, head_share(run), segments, parts_of(run))


def training_flops_per_step(run: RunConfig, segments: int | None = None) -> float:
    """Forward and backward FLOPs of one optimizer step, recomputation left out; `segments` as in `run_cost`."""
    return run.tokens_per_step * run_cost(run, segments).of_rows(run.train.batch)


def budget_steps(run: RunConfig) -> int:
    """Number of whole optimizer steps that the budget pays for.

    Raises `ConfigError` where it pays for none, or a budget in seconds was not timed yet.
    """
    if run.budget.unit == "seconds":
        require(
            run.budget.steps > 0,
            "budget.steps",
            "nobody measured what the seconds buy",
            "time it with infini_jax.training.timed_budget",
        )
        return run.budget.steps
    price = {"flops": training_flops_per_step(run), "tokens": run.tokens_per_step, "steps": 1}[run.budget.unit]
    steps = int(run.budget.amount // price)
    problem = f"{run.budget.amount:g} {run.budget.unit} are {steps:.3g} steps"
    require(steps <= LARGEST, "budget.amount", problem, f"give at most {LARGEST * price:.3g}")
    require(
        steps >= 1,
        "budget.amount",
        f"{run.budget.amount:g} {run.budget.unit} do not pay for one step of {price:g}",
        "raise it, or lower train.batch or train.sequence",
    )
    return steps


def planned_flops(run: RunConfig) -> float | None:
    """Training FLOPs of all steps that the budget pays for; None for seconds that were not measured yet."""
    if run.budget.unit == "seconds" and not run.budget.steps:
        return None
    return budget_steps(run) * training_flops_per_step(run)


@functools.lru_cache(maxsize=64)
def parameter_count(model: ModelConfig) -> int:
    """Number of scalars in the parameters, measured on shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(model)))


def state_bytes(run: RunConfig) -> int:
    """A lower bound on the bytes of training.

    Parameters, gradient and two moments of those that are trained, and every row's carried memory.
    """
    carry = jax.eval_shape(lambda: init_carry(run.model, run.train.batch))
    carried = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))
    trained, frozen = parts_of(run).counts
    return run.model.dims.policy.parameters.itemsize * (4 * trained + frozen) + carried


def available_bytes() -> int:
    """Bytes of memory of the device at hand; of a CPU, those of the machine."""
    device = jax.local_devices()[0]
    return (device.memory_stats() or {}).get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(run: RunConfig) -> None:
    """Checks a run against this machine: raises `ConfigError` where its state alone is larger than the device's memory."""
    available, needed = available_bytes(), state_bytes(run)
    learned = run.model.dims.policy.parameters.itemsize * parameter_count(run.model)
    is_memory = run.train.batch * run.model.memory_bytes > learned
    require(
        needed <= available,
        "memory" if is_memory else "model",
        f"training needs at least {human_bytes(needed)}, and the device has {human_bytes(available)}",
        "give a smaller --memory-bytes or train.batch" if is_memory else "give a smaller model.d_model, or fewer model.layers",
    )


@dataclasses.dataclass(frozen=True)
class ProgramFlops:
    """FLOPs of the matrix products and convolutions of a program.

    Attributes:
      work: those that are no recomputation.
      executed: all that the program runs.
    """

    work: float = 0.0
    executed: float = 0.0

    def __add__(self, other: "ProgramFlops") -> "ProgramFlops":
        return ProgramFlops(self.work + other.work, self.executed + other.executed)

    def __mul__(self, times: float) -> "ProgramFlops":
        return ProgramFlops(self.work * times, self.executed * times)


def program_flops(function: Callable, *args: Any) -> ProgramFlops:
    """The FLOPs that `function(*args)` runs; scan bodies times their length, the dearest branch of a choice.

    A Pallas kernel's body counts for every cell of its grid, whatever it skips there. `args` may be shapes
    (`jax.ShapeDtypeStruct`). Raises `ConfigError` for a loop whose length the program does not tell.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def jaxpr_flops(jaxpr: core.Jaxpr) -> ProgramFlops:
    """The FLOPs of a traced program, as `program_flops` counts them."""
    return sum((_equation_flops(equation) for equation in jaxpr.eqns), start=ProgramFlops())


def _equation_flops(equation: Any) -> ProgramFlops:
    inner = _inner_flops(equation)
    scope = str(equation.source_info.name_stack)
    return ProgramFlops(0.0, inner.executed) if any(name in scope for name in RECOMPUTED) else inner


def _inner_flops(equation: Any) -> ProgramFlops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return _product(2.0 * math.prod(equation.outvars[0].aval.shape) * summed)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs_axis = params["dimension_numbers"].rhs_spec[0]
        taps = math.prod(size for axis, size in enumerate(kernel) if axis != outputs_axis)
        return _product(2.0 * math.prod(equation.outvars[0].aval.shape) * taps / params["batch_group_count"])
    if name == "cond":
        return max((jaxpr_flops(branch.jaxpr) for branch in params["branches"]), key=lambda branch: branch.executed)
    if name == "pallas_call":  # the body is what one cell of the grid computes
        return jaxpr_flops(params["jaxpr"]) * math.prod(params["grid_mapping"].static_grid)
    inner = sum((jaxpr_flops(jaxpr) for jaxpr in _jaxprs_in(params.values())), start=ProgramFlops())
    if name == "while" and inner.executed:
        raise ConfigError("program", "a while loop with matrix products has no countable length", "use lax.scan")
    return inner * params["length"] if name == "scan" else inner


def _product(flops: float) -> ProgramFlops:
    return ProgramFlops(flops, flops)


def _jaxprs_in(values: Iterable[Any]) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs_in(value)
