"""A program is compiled once: evaluations of a run that come later compile nothing, nor do runs of the same shapes."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.examples import Example
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.devices.effort import OFTEN, ONCE, effort
from infini_jax.devices.sharding import ROWS_ALONE
from infini_jax.devices.side_by_side import OneModel
from infini_jax.evals.gates import gates
from infini_jax.evals.reading import ExampleReader
from infini_jax.layers.platforms import target
from infini_jax.memory.infini import InfiniConfig
from infini_jax.training.asking import Asks
from infini_jax.training.checkpoint import Checkpoints, Saving
from infini_jax.training.held_out import HeldOut
from infini_jax.training.loop import train
from infini_jax.training.scoring import score_batches
from tests.support.streams import initial
from tests.test_study import GOOD

MODEL = ModelConfig(memory=InfiniConfig(), vocab=256, layers=1, d_model=16, heads=2, segment=8)
RUN = RunConfig(
    name="often",
    model=MODEL,
    data=StdlibConfig(),
    train=TrainConfig(batch=2, sequence=16, log_every=1, evaluate_every=2),
    budget=Budget("steps", 6),
    evaluation=EvaluationConfig(documents=4, tokens=40, rows=4),
)
LOWERED, COMPILED = "/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def counted() -> Iterator[dict[str, list[str]]]:
    """The programs that JAX lowers and compiles inside, by name; what it finds in its cache on the disk counts as well."""
    found: dict[str, list[str]] = {LOWERED: [], COMPILED: []}

    def note(event: str, seconds: float, **details) -> None:
        if event in found:
            found[event].append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def copied(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return {event: list(names) for event, names in found.items()}


def test_the_second_and_third_evaluation_of_a_run_compile_nothing(tmp_path):
    """Nor do the training steps and the saves between them."""
    so_far = []
    with counted() as found, Checkpoints(RUN, tmp_path, Saving(every_steps=2)) as checkpoints:
        held_out = HeldOut(RUN, lambda line: None, ROWS_ALONE)

        def examine(step: int) -> Asks[None]:
            before = copied(found)
            yield from held_out.examine(step)
            so_far.append((step, before, copied(found)))

        train(RUN, lambda line: None, checkpoints, examine=examine)
    (step, before, first), *later = so_far
    assert step == 2
    assert all(len(first[event]) > len(before[event]) for event in found)  # the listener hears
    assert [step for step, *_ in later] == [4, 6]
    for _, *counts in later:
        assert counts == [first, first]


def test_both_splits_of_a_task_and_a_second_call_share_one_program():
    learned = OneModel(initial(GOOD.model))
    score_batches(GOOD, learned, "validation")
    with counted() as found:
        score_batches(GOOD, learned, "test")
        score_batches(GOOD, learned, "validation")
    assert found == {LOWERED: [], COMPILED: []}


@pytest.mark.parametrize("new", [0, 2])
def test_a_second_reader_of_examples_compiles_nothing(new):
    params, random = initial(MODEL), np.random.default_rng(0)
    tokens = random.integers(0, 256, (2, 20)).astype(np.int32)
    examples = [Example(row[:-1], row[1:], np.ones(19, np.float32), prompt=9) for row in tokens]

    def read() -> list[float]:
        return [float(one.nats_N.sum()) for one in ExampleReader(MODEL, 2).read(params, examples, new=lambda one: new)]

    first = read()
    with counted() as found:
        assert read() == first
    assert found == {LOWERED: [], COMPILED: []}


def test_gates_of_a_second_run_of_the_same_model_compile_nothing():
    one, other = (initial(MODEL, seed) for seed in (0, 1))
    jax.block_until_ready(gates(MODEL, one))
    with counted() as found:
        jax.block_until_ready(gates(dataclasses.replace(MODEL), other))
    assert found == {LOWERED: [], COMPILED: []}


def test_programs_that_run_once_are_compiled_with_less_effort_on_a_cpu_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    assert effort(ONCE) == {"xla_backend_optimization_level": 0}
    assert effort(OFTEN) == {"xla_backend_optimization_level": 1}
    with target("cuda"):
        assert effort(ONCE) is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    assert effort(ONCE) is None
