"""Speed of a whole training step on the device, in the chosen form and in the one before, taken in turn; and its profile.

Command:  python -m benchmarks.accelerator.speed --size study --mechanism infini
"""

import dataclasses
import functools
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.presets import SIZES as PRESETS
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.devices.chosen_form import form_of_run, with_form
from infini_jax.devices.peaks import peak_flops
from infini_jax.devices.sharding import Layout, layout_of
from infini_jax.errors import instance, lookup
from infini_jax.files import json_text
from infini_jax.forecast.compiled import kernels_of
from infini_jax.forecast.program_text import ProgramText
from infini_jax.memory import MECHANISMS
from infini_jax.model.cost import most_at_once, parameter_count, training_flops_per_step
from infini_jax.model.form import Form, Rematerialise
from infini_jax.records.environment import environment
from infini_jax.training.program import Training

BEFORE = "all segments at once, made again, layers scanned"
TOP = 12  # kinds of operations of a profile that are named
HOLD_OTHERS = ("while", "conditional", "call")  # whose time is that of what they run


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a model and of its steps.

    Attributes:
      model: settings without a memory.
      batch: rows of a step.
      sequence: tokens per row.
      says: what it is.
      before: what the form before makes again.
    """

    model: ModelConfig
    batch: int
    sequence: int
    says: str
    before: Rematerialise = "segment"


def bfloat16(**settings: Any) -> ModelConfig:
    """Settings of a model that computes in bfloat16."""
    return ModelConfig(compute="bfloat16", **settings)


SIZES = {
    "study": Size(
        bfloat16(vocab=256, layers=4, d_model=256, heads=8, segment=256), 16, 2048, "the studies' model, 4 layers of 256"
    ),
    "17m": Size(bfloat16(vocab=16_384, layers=6, d_model=384, heads=6, segment=512), 32, 2048, "17 million parameters"),
    "135m": Size(
        bfloat16(vocab=49_152, layers=30, d_model=576, heads=9, kv_heads=3, mlp_dim=2304, segment=1024),
        16,
        4096,
        "135 million parameters",
        "layer",
    ),
    "1b": Size(PRESETS["1b"], 4, 16_384, "a billion parameters", "layer"),
    "tiny": Size(bfloat16(vocab=256, layers=2, d_model=32, heads=2, segment=16), 2, 64, "a tiny model"),
}
"""Sizes by name. 135m has the heads and width of SmolLM-135M, whose gated MLP of 1536 has the parameters of ours of 2304."""


def run_of(size: Size, mechanism: str) -> RunConfig:
    """A run of the size, on the standard library's source."""
    kind = MECHANISMS[mechanism]
    model = dataclasses.replace(size.model, memory=kind.Config(layers=kind.usual_layers(size.model.layers)))
    train = TrainConfig(batch=size.batch, sequence=size.sequence)
    return RunConfig(name="speed", model=model, data=StdlibConfig(), train=train, budget=Budget("steps", 1000))


@dataclasses.dataclass
class Stepper:
    """A compiled step with its state.

    Attributes:
      call: takes one step.
      compile_seconds: seconds of compiling.
      kernels: number of kernels of a step, None where the program does not tell.
      temporary_bytes: bytes that a step needs besides its state.
    """

    call: Callable[[], jax.Array]
    compile_seconds: float
    kernels: int | None
    temporary_bytes: int

    @staticmethod
    def of(run: RunConfig, form: Form, layout: Layout) -> "Stepper":
        """The step of a run in a form."""
        training = Training(with_form(run, form, layout), layout)
        places = jax.tree.map(lambda shape: shape.sharding, training.batch)
        state, batch = training.fresh(), jax.device_put(training.source.batch(0), places)
        began = time.perf_counter()
        compiled = training.step.lower(training.shapes, training.batch).compile()
        seconds = time.perf_counter() - began

        def call() -> jax.Array:
            nonlocal state
            state, measured = compiled(state, batch)
            return measured["loss"]

        text, memory = ProgramText.parse(compiled.as_text()), compiled.memory_analysis()
        return Stepper(call, seconds, kernels_of(text), memory.temp_size_in_bytes)

    def seconds(self, steps: int) -> float:
        """Seconds per step of so many."""
        began = time.perf_counter()
        for _ in range(steps):
            loss = self.call()
        jax.block_until_ready(loss)
        return (time.perf_counter() - began) / steps


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def profile_of(stepper: Stepper) -> dict[str, Any]:
    """Where the time of one step goes: seconds that each kind of operation takes, and the share of the step that any does.

    Operations are those that the profiler ties to the compiled program, each under XLA's name without its number.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(stepper.call())
        (file,) = Path(folder).rglob("*.trace.json.gz")
        with gzip.open(file) as text:
            events = json.load(text)["traceEvents"]
    spent, begins, ends = dict[str, list[float]](), [], []
    for event in events:
        kind = event.get("args", {}).get("hlo_op", "").split(".")[0]
        if kind and kind not in HOLD_OTHERS and event.get("ph") == "X":
            spent.setdefault(kind, []).append(event["dur"] / 1e6)
            begins.append(event["ts"])
            ends.append(event["ts"] + event["dur"])
    span = (max(ends) - min(begins)) / 1e6 if begins else 0.0
    most = sorted(spent.items(), key=lambda item: -sum(item[1]))[:TOP]
    return {
        "operations": sum(map(len, spent.values())),
        "seconds": span,
        "busy": sum(map(sum, spent.values())) / span if span else None,
        "most": [[kind, sum(times), len(times)] for kind, times in most],
    }


def main(size: str, mechanism: str, rounds: int = 5, steps: int = 10) -> None:
    """Prints the figures of a size's step with a mechanism."""
    of_size = lookup("size", size, SIZES)
    lookup("mechanism", mechanism, MECHANISMS)
    run = run_of(of_size, mechanism)
    layout = layout_of(run)
    forms = {"before": Form(most_at_once(run.train, run.model), of_size.before, "scan"), "chosen": form_of_run(run, layout)}
    steppers = {name: Stepper.of(run, form, layout) for name, form in forms.items()}
    for stepper in steppers.values():
        stepper.seconds(2)  # the first steps find buffers and choose kernels
    times = {name: [] for name in forms}
    for _ in range(rounds):
        for name, stepper in steppers.items():
            times[name].append(stepper.seconds(steps))
    peak = peak_flops(instance(layout.mesh, jax.sharding.Mesh, "these devices are here").devices.flat)
    flops = training_flops_per_step(run)
    rates = functools.partial(map, lambda seconds: flops / seconds / peak) if peak else None
    found = {
        "size": size,
        "mechanism": mechanism,
        "parameters": parameter_count(run.model),
        "tokens": run.tokens_per_step,
        "flops": flops,
        "faster": quartiles([a / b for a, b in zip(times["before"], times["chosen"], strict=True)]),
        "profile": profile_of(steppers["chosen"]),
    }
    for name, stepper in steppers.items():
        found[name] = {
            "form": str(forms[name]),
            "seconds": quartiles(times[name]),
            "mfu": statistics.median(rates(times[name])) if rates else None,
            "kernels": stepper.kernels,
            "temporary_bytes": stepper.temporary_bytes,
            "compile_seconds": stepper.compile_seconds,
        }
    print(json_text(found | environment()))


if __name__ == "__main__":
    tyro.cli(main)
