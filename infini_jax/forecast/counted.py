"""Bytes, FLOPs and seconds of a run on devices that are not here: counted, and compiled where a compiler is installed."""

import dataclasses
import math
from typing import Any

import jax
from rich.table import Table

from infini_jax.config import RunConfig
from infini_jax.devices.sharding import Sharding, check_shares
from infini_jax.errors import ConfigError
from infini_jax.forecast.compiled import Compiled, DoesNotFit, compile_step
from infini_jax.forecast.topology import Topology
from infini_jax.model.cost import budget_steps, parameter_count, run_cost, training_flops_per_step
from infini_jax.training.program import Training
from infini_jax.units import human_bytes, human_count

UTILISATION = 0.4  # of the peak, at which the seconds of a step are given


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The size and cost of a run, counted from its settings alone.

    Attributes:
      run: name of the run.
      devices: number of devices.
      parameters: number of parameters.
      parameter_bytes: bytes of all parameters.
      optimiser_bytes: bytes of the optimizer's state.
      memory_bytes: bytes of memory of all rows.
      device_bytes: bytes of these three on one device, between two steps.
      flops_per_token: forward FLOPs per token.
      flops_per_step: forward and backward FLOPs per step.
      steps: number of steps that the budget pays for.
      tokens: number of tokens that the budget pays for.
      intensity: forward FLOPs per byte of parameters and memory, all of which a device reads once per segment.
      step_seconds: seconds per step at 40 % of the devices' peak; None where no topology is named.
    """

    run: str
    devices: int
    parameters: int
    parameter_bytes: int
    optimiser_bytes: int
    memory_bytes: int
    device_bytes: int
    flops_per_token: float
    flops_per_step: float
    steps: int
    tokens: int
    intensity: float
    step_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of compiling a run for a topology.

    Attributes:
      compiled: the compiler's figures, or None.
      said: the reason why there are none.
      fits: whether the step fits into memory, None where it is not known.
    """

    compiled: Compiled | None
    said: str
    fits: bool | None


def forecast(run: RunConfig, sharding: Sharding, topology: Topology | None) -> Forecast:
    """Counts what a run holds and spends on the devices of a topology, or on those at hand without one.

    Raises `ConfigError` where the devices cannot share the run, or its budget pays for no step.
    """
    check_shares(run, sharding)
    devices = topology.devices if topology else len(jax.devices())
    layout = sharding.counted_layout(run.train.batch // run.train.accumulate, devices)
    state = Training(run, layout).shapes
    held = ((state.params, state.frozen), state.optimiser, state.carry)
    parameters, optimiser, memory = map(bytes_of, held)
    on_device = sum(bytes_of(part, one_device=True) for part in held)
    cost, rows = run_cost(run), run.train.batch // layout.row_parts
    moved = cost.attention.bytes_moved + parameters / (rows * run.model.segment)
    flops = training_flops_per_step(run)
    return Forecast(
        run=run.name,
        devices=devices,
        parameters=parameter_count(run.model),
        parameter_bytes=parameters,
        optimiser_bytes=optimiser,
        memory_bytes=memory,
        device_bytes=on_device,
        flops_per_token=cost.flops,
        flops_per_step=flops,
        steps=budget_steps(run),
        tokens=budget_steps(run) * run.tokens_per_step,
        intensity=cost.flops / moved,
        step_seconds=flops / (UTILISATION * topology.peak_flops) if topology else None,
    )


def bytes_of(tree: Any, one_device: bool = False) -> int:
    """Bytes of all arrays of a tree, or of the part that lies on one device."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape) if one_device else leaf.shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def compiled(run: RunConfig, sharding: Sharding, topology: Topology) -> Outcome:
    """Compiles the step where that is possible here; where it is not, the outcome says why."""
    try:
        found = compile_step(run, topology, sharding)
    except DoesNotFit as error:
        return Outcome(None, error.said, fits=False)
    except ConfigError as error:
        return Outcome(None, str(error), fits=None)
    return Outcome(found, "", fits=found.bytes <= topology.chip.memory)


def advice(run: RunConfig, sharding: Sharding) -> list[str]:
    """Options of the command line that make a run smaller on a device, each with its effect, without those already set."""
    found = []
    if sharding.rules == "data":
        found.append("--sharding.rules fsdp: parameters and optimizer in parts")
    if sharding.rules != "fsdp+tensor":
        found.append("--sharding.rules fsdp+tensor --sharding.per-row 4: heads, MLP and vocabulary split, too")
    if run.train.segments_per_step != 1 and sharding.rules != "fsdp+sequence":
        found.append("--train.segments-per-step 1: one segment's activations at a time")
    if run.train.rematerialise != "layer":
        found.append("--train.rematerialise layer: one layer's activations at a time, for another forward pass")
    if run.train.batch > run.train.accumulate:
        found.append(f"--train.accumulate {2 * run.train.accumulate}: half the rows at once, the same step")
    if run.model.compute != "bfloat16":
        found.append("--model.compute bfloat16: activations of half the bytes")
    if run.train.bptt == 0 or run.train.bptt * run.model.segment == run.train.sequence:
        found.append(f"--train.sequence {run.train.sequence // 2}: gradients through half the segments")
    return found


def forecast_table(found: Forecast, topology: Topology | None) -> Table:
    """The forecast as a table for the terminal, one number per line."""
    table = Table(title=f"{found.run} on {topology.name if topology else 'the devices at hand'}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    lines = {
        "devices": f"{found.devices}",
        "parameters": human_count(found.parameters),
        "bytes: parameters": human_bytes(found.parameter_bytes),
        "bytes: optimizer": human_bytes(found.optimiser_bytes),
        "bytes: memory of all rows": human_bytes(found.memory_bytes),
        "bytes: these on one device": human_bytes(found.device_bytes),
        "FLOPs per token, forward": human_count(found.flops_per_token),
        "FLOPs per step": human_count(found.flops_per_step),
        "steps in the budget": f"{found.steps:,}",
        "tokens in the budget": human_count(found.tokens),
        "FLOPs per byte of parameters and memory": f"{found.intensity:.3g}",
    }
    if found.step_seconds is not None:
        hours = found.steps * found.step_seconds / 3600
        lines |= {"seconds per step at 40 % of the peak": f"{found.step_seconds:.3g}", "hours for the budget": f"{hours:.3g}"}
    for name, value in lines.items():
        table.add_row(name, value)
    return table


def compiled_table(found: Compiled, topology: Topology) -> Table:
    """The compiler's figures as a table: bytes on a device, kernels, the largest buffers, what devices exchange."""
    table = Table(title=f"compiled for {topology.name} in {found.seconds:.0f} s", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_row("form", found.form)
    table.add_row("a device holds between steps", human_bytes(found.state_bytes))
    table.add_row("a step needs besides", human_bytes(found.temporary_bytes))
    table.add_row("together", f"{human_bytes(found.bytes)} of {human_bytes(topology.chip.memory)}")
    table.add_row("kernels a step launches", "not known" if found.kernels is None else f"{found.kernels:,}")
    for one in found.buffers:
        table.add_row(f"  {one.type} {one.made_by}", human_bytes(one.bytes))
    for one in found.collectives:
        table.add_row(f"{one.kind} at {one.sites} sites, a run of each", human_bytes(one.bytes))
    return table
