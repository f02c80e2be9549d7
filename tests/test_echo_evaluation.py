"""The evaluation of text that quotes itself, against sums over the whole text, and its experiment."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from experiments import echo
from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import CARRIED, CONDITIONS
from infini_jax.data.documents import Documents
from infini_jax.data.echo import FIRST_TIME, EchoConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import ConfigError
from infini_jax.evals.base import Subject
from infini_jax.evals.echo import EchoEvaluation
from infini_jax.evals.perplexity import Reader
from infini_jax.memory.base import MemoryConfig
from infini_jax.memory.infini import InfiniConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.model.cost import model_cost
from infini_jax.model.stream import init_params

DATA = EchoConfig(distances=(32, 96), span=16, lead=4)
ASKED = EchoEvaluation(documents=3, tokens=400, rows=2)


def run_with(memory: MemoryConfig, data=DATA) -> RunConfig:
    model = ModelConfig(vocab=256, layers=1, d_model=16, heads=1, mlp_dim=16, segment=16, memory=memory)
    return RunConfig(data=data, model=model, train=TrainConfig(sequence=32))


@functools.cache
def measured(memory: MemoryConfig) -> list:
    run = run_with(memory)
    params = init_params(run.model, jax.random.key(0))
    return ASKED.measure(Subject(run, params))


def slow_sums(memory: MemoryConfig) -> dict[int, list[tuple[int, int, np.ndarray]]]:
    """Distance -> (document, tokens, nats C), from the text as one array and from quotations one by one."""
    run = run_with(memory)
    documents, counts = DATA.whole("validation")
    whole = Documents(documents.text[:], documents.starts, "whole")
    found: dict[int, list] = {FIRST_TIME: [], **{distance: [] for distance in DATA.distances}}
    for number, nats_CxT in Reader(run.model, whole, counts, ASKED.reading).token_nats(
        init_params(run.model, jax.random.key(0))
    ):
        kinds = [FIRST_TIME] * int(documents.lengths[number])
        planted = documents.text.quotations(number)
        for begin, distance in zip(planted.begins[1:].tolist(), planted.distances[1:].tolist(), strict=True):
            told = len(DATA.cue) + DATA.lead
            kinds[begin : begin + len(DATA.cue) + DATA.span] = [None] * told + [distance] * (DATA.span - DATA.lead)
        for kind, of in found.items():
            places = [place for place in range(1, nats_CxT.shape[1] + 1) if kinds[place] == kind]
            if places:
                of.append((number, len(places), nats_CxT[:, np.array(places) - 1].sum(axis=1, dtype=float)))
    return {kind: sorted(of, key=lambda one: one[0]) for kind, of in found.items()}


def test_losses_and_gains_are_those_of_sums_over_the_whole_text():
    figures = {(one.metric, *one.labels.values()): one for one in measured(InfiniConfig())}
    assert len(figures) == len(measured(InfiniConfig()))
    for distance, of in slow_sums(InfiniConfig()).items():
        tokens_D, nats_DxC = np.array([tokens for _, tokens, _ in of]), np.array([nats for _, _, nats in of])
        for condition, nats_D in zip(CONDITIONS, nats_DxC.T, strict=True):
            loss = figures["loss", condition, distance]
            assert loss.value == pytest.approx(nats_D.sum() / tokens_D.sum(), rel=1e-6)
            assert loss.count == tokens_D.sum()
        for column, control in enumerate(CONDITIONS[1:], 1):
            gain = figures["gain", control, distance]
            gained_D = nats_DxC[:, column] - nats_DxC[:, 0]
            assert gain.value == pytest.approx(gained_D.sum() / tokens_D.sum(), rel=1e-5, abs=1e-7)
            strays = gained_D - gain.value * tokens_D  # a ratio estimate: how documents stray from the mean gain
            error = math.sqrt(len(of) / (len(of) - 1) * (strays**2).sum()) / tokens_D.sum()
            half = stats.t.ppf(0.975, len(of) - 1) * error
            assert (gain.low, gain.high) == pytest.approx((gain.value - half, gain.value + half), rel=1e-4, abs=1e-7)
            for number, tokens, nats in of:
                one = figures["gain_by_document", control, distance, number]
                assert one.count == tokens
                assert one.value == pytest.approx((nats[column] - nats[0]) / tokens, rel=1e-4, abs=1e-6)


def test_a_model_without_memory_gains_nothing_anywhere():
    """A window of one token carries nothing: the three conditions read the same."""
    gains = [one for one in measured(LocalConfig(window=1)) if one.metric.startswith("gain")]
    assert {one.labels["distance"] for one in gains} == {FIRST_TIME, *DATA.distances}
    assert {one.value for one in gains} == {0.0}


def test_it_asks_runs_on_echo_only_and_counts_what_it_reads():
    run = run_with(InfiniConfig())
    assert ASKED.applies(run)
    assert not ASKED.applies(run_with(InfiniConfig(), StdlibConfig()))
    with pytest.raises(ConfigError, match=r"^task: echo cannot ask a run on python_stdlib; choose a run"):
        ASKED.check(run_with(InfiniConfig(), StdlibConfig()))
    with pytest.raises(ConfigError, match=r"^echo.tokens: documents of 32 tokens quote nothing from 32 tokens back"):
        dataclasses.replace(ASKED, tokens=32).check(run)
    ASKED.check(run)
    assert ASKED.cost(run) == model_cost(run.model).flops * 4 * 400 * 3  # three documents, two by two, 399 as 25 segments


@pytest.mark.parametrize("scale", echo.SCALES)
def test_the_floor_reaches_no_quotation_and_the_ceiling_all(scale):
    study = echo.study(scale)
    by_mechanism = {run.mechanism: run for run in study.runs}
    data = by_mechanism["full"].data
    frame = round((data.span + len(data.cue)) / data.share)
    floor, ceiling = by_mechanism["local"].model, by_mechanism["full"].model
    assert floor.layers * (floor.memory.window - 1) < data.distances[0]
    assert ceiling.memory.slots >= data.distances[-1] + frame
    assert {run.budget.unit for run in (by_mechanism["local"], by_mechanism["full"])} == {"steps"}
    assert by_mechanism["local"].budget == by_mechanism["full"].budget
    assert floor.memory.positions == ceiling.memory.positions == "t5"
    asked = next(one for one in study.evaluations if isinstance(one, EchoEvaluation))
    assert asked.tokens > data.distances[-1] + frame
    assert CARRIED in asked.reading.conditions
