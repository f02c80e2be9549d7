"""Execution of jobs without a transformer: the codes of one memory layer are trained and scored, or random codes are asked.

Each job leaves config.json, its figures and its row, and begins anew where it was stopped: it takes seconds.
"""

import dataclasses
import datetime
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infini_jax.analysis.half_points import dispersion_of, half_point, half_point_interval, labelled
from infini_jax.analysis.intervals import wilson
from infini_jax.analysis.theory import bits_per_scalar, rank_nmse
from infini_jax.codes import capacity, random_codes, retrieval, retrieving
from infini_jax.codes.capacity import CapacityRun
from infini_jax.codes.coded_layer import CodedLayer
from infini_jax.codes.learning import (
    ADAM,
    TEST,
    VALIDATION,
    Pairs,
    draw,
    draw_steps,
    empty_memory,
    init_layer,
    program_key,
    score,
    train,
    train_steps,
)
from infini_jax.codes.probe import read_out_error
from infini_jax.codes.random_codes import RandomCodesRun, age_bins
from infini_jax.codes.retrieval import RetrievalRun
from infini_jax.files import json_text
from infini_jax.memory.base import reported_gates
from infini_jax.model.cost import ProgramFlops, program_flops
from infini_jax.records.environment import environment
from infini_jax.records.folder import RunFolder
from infini_jax.records.measures import Measure, write_measures
from infini_jax.records.rows import Row, write_rows

SCALAR = 4  # bytes: memories are float32


Execute = Callable[[Any, Path, str], Row]


def alone_in_folder(execute: Execute) -> Execute:
    """The function, which then refuses a folder that another process writes into."""

    @functools.wraps(execute)
    def alone(run: Any, folder: Path, study: str) -> Row:
        with RunFolder(folder).only_writer():
            return execute(run, folder, study)

    return alone


@alone_in_folder
def execute_random_codes(run: RandomCodesRun, folder: Path, study: str) -> Row:
    """Asks random codes and returns the run's row, with the accuracy over the grid and no loss, as nothing is trained."""
    RunFolder(folder).write_config(run.to_dict())
    began = time.perf_counter()
    found = random_codes.measure(run)
    shares = [one.value for one in found if one.metric == "accuracy"]
    flops, asked = random_codes.planned_flops(run), run.questions * len(run.pairs)
    return leave(
        run,
        folder,
        study,
        found,
        parameters=0,
        learning_rate=None,
        flops_per_token=flops / asked,
        budget_unit="tokens",
        budget_amount=float(asked),
        flops_planned=flops,
        flops_actual=flops,
        flops_counted=flops,
        flops_executed=flops,
        steps=0,
        tokens=asked,
        seconds=time.perf_counter() - began,
        compile_seconds=0.0,
        train_loss=math.nan,
        loss=math.nan,
        accuracy=float(np.mean(shares)),
        test_loss=None,
        test_accuracy=None,
        gate_mean=None,
        gate_spread=None,
        corpus="random unit vectors",
    )


@alone_in_folder
def execute_capacity(run: CapacityRun, folder: Path, study: str) -> Row:
    """Trains the codes, scores them and returns the run's row.

    Pairs drawn for validation give the row's loss and accuracy, others the figures and the test columns. Raises `ConfigError`
    where the budget pays for no step, `TrainingDiverged` where the loss is not finite.
    """
    RunFolder(folder).write_config(run.to_dict())
    with RunFolder(folder).metrics.open("w", buffering=1) as log:
        trained = train(run, lambda line: print(json_text(line), file=log))
    scored = {split: [scored_at(run, trained.params, split, n) for n in grid(run)] for split in (VALIDATION, TEST)}
    loss, test_loss = (float(np.mean([one.lost.mean() for one in scored[split]])) for split in (VALIDATION, TEST))
    accuracy, test_accuracy = (float(np.mean([one.right.mean() for one in scored[split]])) for split in (VALIDATION, TEST))
    (written, asked), counted = capacity.forward_flops(run), counted_step_flops(run)
    tokens_per_row = run.segment * (run.segments + 1)
    gates = learned_gates(run, trained.params)
    return leave(
        run,
        folder,
        study,
        figures(run, trained.params, scored[TEST]),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
        learning_rate=run.learning_rate,
        flops_per_token=(run.segments * written + asked) / (run.segments + 1),
        budget_unit=run.budget.unit,
        budget_amount=float(run.budget.amount),
        flops_planned=capacity.planned_flops(run),
        flops_actual=trained.steps * capacity.step_flops(run),
        flops_counted=trained.steps * counted.work,
        flops_executed=trained.steps * counted.executed,
        steps=trained.steps,
        tokens=trained.steps * run.batch * tokens_per_row,
        seconds=trained.seconds,
        compile_seconds=trained.compile_seconds,
        train_loss=trained.loss,
        loss=loss,
        accuracy=accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        gate_mean=float(gates.mean()) if gates.size else None,
        gate_spread=float(gates.std()) if gates.size else None,
        corpus="random pairs",
        neighborhood_bytes=run.neighborhood_bytes,
        memory_bytes_bf16=run.memory_bytes_bf16,
    )


@alone_in_folder
def execute_retrieval(run: RetrievalRun, folder: Path, study: str) -> Row:
    """Trains a memory to retrieve and returns the run's row.

    The best examination gives loss and accuracy, which is how the authors report theirs; other sequences, asked of the same
    parameters and averaged over all questions alike, the test columns. Raises `TrainingDiverged` where a loss is not finite.
    """
    RunFolder(folder).write_config(run.to_dict())
    with RunFolder(folder).metrics.open("w", buffering=1) as log:
        trained = retrieving.train(run, lambda line: print(json_text(line), file=log))
    asked = retrieving.draw_examination(run, np.random.default_rng([run.seed, retrieving.TEST]))
    _, test_loss, test_accuracy = map(float, retrieving.examine(retrieving.program_key(run), trained.params, asked))
    counted = retrieving.counted_step_flops(run)
    return leave(
        run,
        folder,
        study,
        retrieval_figures(run, trained, test_loss),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
        learning_rate=run.learning_rate,
        flops_per_token=retrieval.forward_flops(run) / (run.batch * run.pairs),
        budget_unit=run.budget.unit,
        budget_amount=float(run.budget.amount),
        flops_planned=retrieval.planned_flops(run),
        flops_actual=trained.steps * retrieval.step_flops(run),
        flops_counted=trained.steps * counted.work,
        flops_executed=trained.steps * counted.executed,
        steps=trained.steps,
        tokens=trained.steps * run.batch * run.pairs,
        seconds=trained.seconds,
        compile_seconds=trained.compile_seconds,
        train_loss=trained.train_loss,
        loss=trained.loss,
        accuracy=trained.accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        gate_mean=None,
        gate_spread=None,
        corpus="random pairs",
        stopped_early=trained.ended,
    )


def retrieval_figures(run: RetrievalRun, trained: retrieving.Retrieved, test_loss: float) -> list[Measure]:
    """The figures of the task `retrieval`: the lowest loss, beside the published one where there is one, and the rank law."""
    labels: dict[str, Any] = {"pairs": run.pairs, "features": run.features, "step": trained.best_step}
    asked = run.sequences * run.pairs
    found = {"loss": trained.loss, "test_loss": test_loss, "rank_law": 0.5 * float(rank_nmse(run.features, run.pairs))}
    if run.published is not None:
        found |= {"published": run.published, "difference": trained.loss - run.published}
    return [Measure(retrieval.NAME, name, value, asked, labels=labels) for name, value in found.items()]


def leave(run: Any, folder: Path, study: str, found: list[Measure], **columns: Any) -> Row:
    """Writes the figures of a job, then its row, and returns the row."""
    write_measures(run.name, found, RunFolder(folder).own_measures)
    columns = {**columns, **environment()}
    row = Row(
        run=run.name,
        version=run.version,
        fingerprint=run.fingerprint(),
        seed=run.seed,
        study=study,
        task=run.task,
        mechanism=run.mechanism,
        variant=run.variant,
        memory_bytes=run.memory_bytes,
        gives="steps",
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **columns,
    )
    write_rows([row], RunFolder(folder).row)
    return row


def learned_gates(run: CapacityRun, params: dict) -> np.ndarray:
    """The gates that the layer learned, empty where it has none."""
    return np.asarray(asked_gates(program_key(run), params))


@functools.partial(jax.jit, static_argnums=0)
def asked_gates(run: CapacityRun, params: dict) -> jax.Array:
    """The gates of a layer. They depend on no text: one question tells."""
    question = jnp.zeros((1, run.segment), jnp.int32)
    found: Any = CodedLayer(run).apply({"params": params}, empty_memory(run, 1), question, method="ask")
    gates = reported_gates(found[1])
    return jnp.zeros(0, jnp.float32) if gates is None else gates


def counted_step_flops(run: CapacityRun) -> ProgramFlops:
    """The FLOPs of the program of one training step."""
    params = jax.eval_shape(lambda: init_layer(run, jax.random.key(0)))
    state = (params, jax.eval_shape(ADAM.init, params))
    batch = draw_steps(run, np.random.default_rng(0), 1)
    return program_flops(functools.partial(train_steps, run), state, batch, jnp.zeros(1, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Answered:
    """The scores of all questions at one n.

    Attributes:
      pairs: n, number of pairs.
      lost: BxQ, cross-entropy in nats.
      right: BxQ, whether the answer is right.
      ages: BxQ, number of pairs written after the one that is asked for.
      wanted: BxQ, symbol of the right value.
      answers: BxQxD, outputs of the layer.
    """

    pairs: int
    lost: np.ndarray
    right: np.ndarray
    ages: np.ndarray
    wanted: np.ndarray
    answers: np.ndarray


def grid(run: CapacityRun) -> list[int]:
    """The numbers of pairs that are scored, evenly spread in the logarithm."""
    return sorted({round(n) for n in np.geomspace(*run.pairs, run.grid)})


def scored_at(run: CapacityRun, params: dict, split: int, pairs: int, writes: int = 1) -> Answered:
    """The scores of `pairs` different keys, each written `writes` times and asked for its newest value."""
    n_B, distinct_B = np.full(run.rows, pairs * writes), np.full(run.rows, pairs)
    random = np.random.default_rng([run.seed, split, pairs, writes])
    drawn: Pairs = draw(run, random, run.questions * run.segment, n_B, distinct_B)
    lost, right, answers = map(np.asarray, score(program_key(run), params, drawn))
    return Answered(pairs, lost, right, drawn.ages, drawn.wanted, answers)


def figures(run: CapacityRun, params: dict, scored: list[Answered]) -> list[Measure]:
    """All figures of the task `capacity`: accuracy, by age and by writes too, nmse, n50, bits per scalar, overwriting."""
    figure = functools.partial(Measure, capacity.NAME)
    found, codes_VxD = [], np.asarray(params["value_inputs"])
    for one in scored:
        found.append(share_of("accuracy", one.right, pairs=one.pairs))
        answers, codes = one.answers.reshape(one.right.size, -1), codes_VxD[one.wanted.reshape(-1)]
        found.append(figure("nmse", read_out_error(answers, codes), one.right.size, labels={"pairs": one.pairs}))
        found += by_age(run, one)
    counts_RxN = np.stack([one.right.sum(axis=1) for one in scored], axis=1)
    asked_RxN = np.full_like(counts_RxN, scored[0].right.shape[1])
    ns = [one.pairs for one in scored]
    fitted = half_point(ns, counts_RxN.sum(axis=0), asked_RxN.sum(axis=0), dispersion_of(counts_RxN, asked_RxN))
    interval = half_point_interval(ns, counts_RxN, asked_RxN) or (math.nan, math.nan)
    scalars = run.memory_bytes / SCALAR
    for name, scale in (
        ("n50", 1.0),
        ("bits_per_scalar", bits_per_scalar(1.0, scalars, run.symbols)),
    ):
        low, high = (scale * bound for bound in interval)
        found.append(figure(name, scale * fitted.n50, int(asked_RxN.sum()), low, high, dict(labelled(fitted))))
    return found + [
        share_of("overwritten", scored_at(run, params, TEST, n, run.overwrites + 1).right, pairs=n, overwrites=run.overwrites)
        for n in ns
        if run.overwrites and n * (run.overwrites + 1) <= run.segments * run.segment
    ]


def by_age(run: CapacityRun, one: Answered) -> Iterator[Measure]:
    """Accuracy by pairs written since, in bins named by their mean age, and by segments written since."""
    for low, high in age_bins(one.pairs):
        inside = (one.ages >= low) & (one.ages < high)
        if inside.any():
            yield share_of("accuracy_by_age", one.right[inside], pairs=one.pairs, age=float(one.ages[inside].mean()))
    writes = one.ages // run.segment  # the newest pair ends its segment
    for since in np.unique(writes):
        yield share_of("accuracy_by_writes", one.right[writes == since], pairs=one.pairs, writes=int(since))


def share_of(metric: str, right: np.ndarray, **labels: float) -> Measure:
    """A share of right answers with its Wilson interval."""
    low, high = wilson(right.sum(), right.size) or (math.nan, math.nan)
    return Measure(capacity.NAME, metric, float(right.mean()), right.size, low, high, dict(labels))
