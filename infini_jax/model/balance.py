"""Equal FLOPs per token by size: the width of the model or its local window gives way, and the FLOPs are counted.

A mechanism that costs more per token gets fewer steps from a budget of FLOPs. Where all shall see the same tokens, its model
gives way instead, until its cost per token is that of the others; the rest that it falls short by is `gap`.
"""

import contextlib
import dataclasses
from collections.abc import Callable

from infini_jax.config import Gives, ModelConfig, RunConfig
from infini_jax.errors import ConfigError, require
from infini_jax.memory.local import LocalConfig
from infini_jax.model.cost import run_cost, training_cost

LARGEST = 2**20  # width or window that is tried


def fit_to_flops(run: RunConfig, flops_per_token: float, gives: Gives, memory_bytes: int = 0) -> RunConfig:
    """The run with the largest size whose training costs at most `flops_per_token`, counted.

    Args:
      run: settings whose model is resized.
      flops_per_token: forward and backward FLOPs per raw token, `training_flops` of `infini_jax.model.cost.run_cost`.
      gives: the size that gives way. `width` is d_model, in multiples that keep the heads even, and the MLP in proportion;
        then the MLP takes up the rest. Sizes of heads that are given stay. `window` is the window of a sliding window,
        otherwise the segment, of lengths that divide the sequence into whole steps. `steps` changes nothing.
      memory_bytes: bytes per sequence of the memory at every size that is tried, as by `ModelConfig.at_bytes`; 0 leaves its
        settings as they are. A sliding window that gives way is its own memory and takes none.

    Raises `ConfigError` where even the smallest size costs more.
    """

    def at_bytes(model: ModelConfig) -> ModelConfig:
        return model.at_bytes(memory_bytes) if memory_bytes else model

    if gives == "width":
        model = _fitting_width(run, flops_per_token, at_bytes)
    elif gives == "window" and isinstance(run.model.memory, LocalConfig):
        require(not memory_bytes, "memory_bytes", "a sliding window that gives way is its own memory", "leave it out")
        window = run.model.memory.window
        model = _largest(run, lambda size: _windowed(run.model, size), flops_per_token, "memory.window", window)
    elif gives == "window":
        model = _fitting_segment(run, flops_per_token, at_bytes)
    else:
        model = at_bytes(run.model)
    return dataclasses.replace(run, model=model, budget=dataclasses.replace(run.budget, gives=gives))


def gap(run: RunConfig, flops_per_token: float) -> float:
    """Share of `flops_per_token` by which the run costs less per token; below zero where it costs more."""
    return 1.0 - run_cost(run).training_flops / flops_per_token


def affordable(run: RunConfig, steps: int) -> float:
    """Training FLOPs per token that the run's budget of FLOPs pays for in `steps` optimizer steps.

    Raises `ConfigError` for a budget in another unit.
    """
    require(run.budget.unit == "flops", "budget.unit", f"{run.budget.unit} are not FLOPs", "give the budget in flops")
    require(steps >= 1, "steps", f"{steps} steps train nothing", "give at least 1")
    return run.budget.amount / (steps * run.tokens_per_step)


Sizing = Callable[[ModelConfig], ModelConfig]


def _fitting_width(run: RunConfig, flops: float, at_bytes: Sizing) -> ModelConfig:
    """The model with the largest width, then the largest MLP that is at least in proportion to it."""
    model = run.model
    unit = model.heads if model.key_dim and model.value_dim else 2 * model.heads  # rotary turns pairs

    def of_width(units: int) -> ModelConfig:
        width = units * unit
        mlp = max(1, round(model.mlp_dim * width / model.d_model)) if model.mlp_dim else 4 * width
        return at_bytes(dataclasses.replace(model, d_model=width, mlp_dim=mlp))

    def with_more(mlp: int) -> ModelConfig:
        return dataclasses.replace(widest, mlp_dim=widest.mlp_dim + mlp)

    widest = _largest(run, of_width, flops, "model.d_model", max(1, model.d_model // unit))
    return _largest(run, with_more, flops, "model.mlp_dim", start=0, smallest=0)


def _windowed(model: ModelConfig, size: int) -> ModelConfig:
    return dataclasses.replace(model, memory=dataclasses.replace(model.memory, window=size))


def _fitting_segment(run: RunConfig, flops: float, at_bytes: Sizing) -> ModelConfig:
    """The model with the longest segment.

    Short ones may cost more, as they read the whole memory for fewer tokens: each is counted.
    """
    steps, costs = run.train.sequence // max(run.train.segments_per_step, 1), {}
    for size in (size for size in range(steps, 0, -1) if steps % size == 0):
        with contextlib.suppress(ConfigError):  # some mechanisms do not take every length
            model = at_bytes(dataclasses.replace(run.model, segment=size))
            costs[size] = _resized_cost(run, model)
            if costs[size] <= flops:
                return model
    require(bool(costs), "model.segment", "no divisor of the sequence works", "give another train.sequence")
    raise _too_few("model.segment", flops, min(costs.values()))


def _resized_cost(run: RunConfig, model: ModelConfig) -> float:
    """Training FLOPs per token of the run with another model."""
    return training_cost(dataclasses.replace(run, model=model)).training_flops


def _largest(
    run: RunConfig, sized: Callable[[int], ModelConfig], flops: float, field: str, start: int, smallest: int = 1
) -> ModelConfig:
    """The model of the largest size that costs at most `flops` per token, found by bisection around `start`.

    Very small sizes may cost more again, where a memory of given bytes gets more slots in a narrow model.
    """
    costs: dict[int, float] = {}

    def fits(size: int) -> bool:
        costs[size] = _resized_cost(run, sized(size))
        return costs[size] <= flops

    low = high = start
    while not fits(low):
        if low == smallest:
            raise _too_few(field, flops, min(costs.values()))
        low, high = max(low // 2, smallest), low
    while high == low or fits(high):
        low, high = high, max(2 * high, high + 1)
        require(high < LARGEST, field, f"{flops:.4g} FLOPs per token pay for more than {low}", "ask for fewer")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return sized(low)


def _too_few(field: str, flops: float, least: float) -> ConfigError:
    return ConfigError(field, f"{flops:.4g} FLOPs per token pay for no size", f"give at least {least:.4g}")
