"""Evaluations of several models side by side have the figures of each model alone, in as many calls as one model takes."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.config.evaluation import EvaluationConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.devices.side_by_side import Learned, MemberPlaces, OneModel, SideBySide, read_each
from infini_jax.evals.base import Evaluation, Subject, Subjects
from infini_jax.evals.blimp import Blimp, BlimpSupplement
from infini_jax.evals.gates import GateEvaluation
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.evals.perplexity import Reader
from infini_jax.evals.reading import ExampleReader
from infini_jax.evals.registry import EVALUATIONS
from infini_jax.evals.symbols import SymbolEvaluation
from infini_jax.memory import MECHANISMS
from infini_jax.memory.local import LocalConfig
from infini_jax.model.stream import init_params
from infini_jax.records.measures import Measure
from infini_jax.training.scoring import score_batches
from tests import test_conditioned, test_echo_evaluation, test_gains, test_reading, test_symbols
from tests import test_evaluations as tasks
from tests.support.calls import calls_from_now
from tests.support.commands import on_devices
from tests.support.marks import slow_but
from tests.support.streams import tiny
from tests.support.targets import prepared_dialogues
from tests.test_blimp import LINES, jsonl
from tests.test_perplexity import COUNTS, documents_of

# float32: sums of a mapped product may have another order. Relative.
CLOSE = 1e-6
# Gains are differences of sums of some ten losses of about 6 nats, whose last digit is 5e-7 each.
CLOSE_GAINS = 2e-5


SUITES = ("ruler", "babilong", "slots")  # no answer of an untrained model is right; what models say is compared below
NAMES = [name for name in EVALUATIONS if name not in SUITES]


@pytest.fixture(autouse=True)
def own_corpora(tmp_path, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))


@functools.cache
def parameters(model, count: int = 3) -> list[dict]:
    """Parameters of models that were drawn with different seeds, on the host."""

    def drawn(seed: int) -> dict:
        """Gates begin at zero whatever the seed is, and are moved apart."""
        return jax.tree.map(lambda leaf: leaf + 0.01 * seed, init_params(model, jax.random.key(seed)))

    draw = jax.jit(drawn)
    return [jax.device_get(draw(seed)) for seed in range(count)]


def runs_like(run: RunConfig, count: int = 3) -> tuple[RunConfig, ...]:
    return tuple(dataclasses.replace(run, name=f"run-{seed}", seed=seed) for seed in range(count))


def case(name: str, folder) -> tuple[RunConfig, Evaluation]:
    """A run and a small evaluation of it, of each row of the registry."""
    if name in tasks.CASES:
        return tasks.run_on(name), dataclasses.replace(tasks.CASES[name], rows=4)
    if name in ("blimp", "blimp_supplement"):
        for paradigm, lines in LINES.items():
            (folder / f"{paradigm}.jsonl").write_text(jsonl(lines))
    if name == "conditioned":
        return test_conditioned.run_on(prepared_dialogues(folder / "dog")), test_conditioned.ASKED
    if name == "echo":
        return test_echo_evaluation.run_with(LocalConfig(window=8)), test_echo_evaluation.ASKED
    if name == "symbols":
        run = test_symbols.run_on(test_symbols.NoisyRecallConfig())
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab=32))  # so that some answers are right
        return run, SymbolEvaluation(examples=3, rows=2)
    found = {
        "perplexity": LanguageEvaluation(documents=3, tokens=100, rows=2),
        "gains": test_gains.SETTINGS,
        "blimp": Blimp(str(folder)),
        "blimp_supplement": BlimpSupplement(str(folder)),
        "gates": GateEvaluation(),
    }
    return tasks.run_on("python_stdlib") if name == "perplexity" else test_gains.RUN, found[name]


def assert_same(found: Sequence[Measure] | Exception, expected: Sequence[Measure]) -> None:
    assert not isinstance(found, Exception), found
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.eval, ours.metric, ours.count, ours.labels) == (theirs.eval, theirs.metric, theirs.count, theirs.labels)
        figures = [(one.value, one.low, one.high) for one in (ours, theirs)]
        assert figures[0] == pytest.approx(
            figures[1], rel=CLOSE, abs=CLOSE_GAINS if ours.eval in ("gains", "echo") else CLOSE, nan_ok=True
        ), ours


@pytest.mark.parametrize("name", NAMES)
def test_every_evaluation_has_the_figures_of_each_run_alone(name, tmp_path):
    run, evaluation = case(name, tmp_path)
    evaluation.check(run)
    runs, params = runs_like(run), parameters(run.model)
    found = evaluation.measure_each(Subjects(runs, SideBySide.of(params)))
    alone = [evaluation.measure(Subject(one, own)) for one, own in zip(runs, params, strict=True)]
    for ours, theirs in zip(found, alone, strict=True):
        assert_same(ours, theirs)
    assert len({repr(one) for one in alone}) > 1, "the models do not differ, so that this shows nothing"


@pytest.mark.parametrize("mechanism", slow_but(("local", "infini"), MECHANISMS))
def test_documents_are_read_with_every_mechanism_as_alone(mechanism):
    """Under all conditions of the memory, over several segments and groups of documents."""
    model = tiny(mechanism, layers=1)
    reader = Reader(model, documents_of(model.vocab), COUNTS, EvaluationConfig(0, 0, 3))
    params = parameters(model)
    for found, own in zip(reader.read_each(SideBySide.of(params)), params, strict=True):
        expected = reader.read(own)
        for name in ("nats_CxD", "nats_CxN"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=CLOSE)
        for name in ("hits_D", "tokens_D", "tokens_N", "documents"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


STRADDLED = tiny("landmark", layers=2, segment=12)  # the carry has a phase, on which branches of decoding depend


@pytest.mark.parametrize(
    "model", [tiny("infini"), *(pytest.param(one, marks=pytest.mark.slow) for one in (tiny("landmark"), STRADDLED))]
)
def test_models_score_examples_and_say_words_as_alone(model):
    examples, params, reader = test_reading.asked(model), parameters(model), ExampleReader(model, rows=2)

    def new(example) -> int:
        return test_reading.NEW

    found = list(reader.read_each(SideBySide.of(params), examples, new))
    for place, own in enumerate(params):
        for ours, theirs in zip((one[place] for one in found), reader.read(own, examples, new), strict=True):
            np.testing.assert_allclose(ours.nats_N, theirs.nats_N, rtol=CLOSE)
            np.testing.assert_array_equal(ours.hits_N, theirs.hits_N)
            np.testing.assert_array_equal(ours.said_M, theirs.said_M)


BATCHES = RunConfig(
    model=tiny("infini"),
    data=MqarConfig(pairs=2, symbols=32),
    train=TrainConfig(batch=2, sequence=32, evaluation_steps=3),
    budget=Budget("steps", 2),
)


def test_held_out_batches_are_scored_as_alone():
    params = parameters(BATCHES.model)
    for split in ("validation", "test"):
        found = score_batches(BATCHES, SideBySide.of(params), split)
        expected = [score_batches(BATCHES, OneModel(own), split)[0] for own in params]
        assert found == [pytest.approx(one, rel=CLOSE) for one in expected]
        assert len(set(expected)) == 3


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    return calls_from_now(monkeypatch)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gates"])
def test_four_runs_are_read_in_the_calls_of_one(name, tmp_path, calls):
    run, evaluation = case(name, tmp_path)
    evaluation.measure(Subject(run, parameters(run.model)[0]))
    alone = calls.copy()
    calls.clear()
    evaluation.measure_each(Subjects(runs_like(run, 4), SideBySide.of(parameters(run.model, 4))))
    assert len(alone) >= 1
    assert calls == [one.replace(" alone", " members") for one in alone]


def test_a_second_reading_of_as_many_members_compiles_nothing():
    from tests.test_compiled_once import COMPILED, LOWERED, counted

    run, evaluation = case("mqar", None)
    for expected in (None, {LOWERED: [], COMPILED: []}):
        learned = SideBySide.of(parameters(run.model))
        with counted() as found:
            evaluation.measure_each(Subjects(runs_like(run), learned))
        assert expected is None or found == expected


MQAR = dataclasses.replace(tasks.CASES["mqar"], rows=4)


def measured(learned: SideBySide, runs: Sequence[RunConfig]) -> list:
    return MQAR.measure_each(Subjects(tuple(runs), learned))


def test_a_model_that_is_not_finite_changes_nothing_in_others():
    run = tasks.run_on("mqar")
    params = parameters(run.model)
    broken = [params[0], jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params[1]), params[2]]
    found, expected = (measured(SideBySide.of(one), runs_like(run)) for one in (broken, params))
    assert (found[0], found[2]) == (expected[0], expected[2])  # to the bit: it is the same program
    assert {one.value for one in found[1] if one.metric == "accuracy"} == {0.0}  # the likeliest token is the first, no value


def test_figures_that_fail_are_those_of_their_run_alone(monkeypatch):
    run, figures = tasks.run_on("mqar"), MqarEvaluation.figures

    def some_fail(self, run, cell, readings):
        if run.name == "run-1":
            raise ValueError("no figure")
        return figures(self, run, cell, readings)

    expected = measured(SideBySide.of(parameters(run.model)), runs_like(run))
    monkeypatch.setattr(MqarEvaluation, "figures", some_fail)
    first, error, last = measured(SideBySide.of(parameters(run.model)), runs_like(run))
    assert (first, last) == (expected[0], expected[2])
    assert str(error) == "no figure"


def test_what_cannot_be_read_side_by_side_is_read_one_after_the_other(monkeypatch, calls, caplog):
    def too_large(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    run = tasks.run_on("mqar")
    params = parameters(run.model)
    monkeypatch.setattr(MemberPlaces, "call", too_large)
    found = measured(SideBySide.of(params), runs_like(run))
    assert found == [MQAR.measure(Subject(run, own)) for own in params]
    assert "side by side: RuntimeError: RESOURCE_EXHAUSTED: out of memory; members are read one after the other" in caplog.text


def test_an_error_of_one_member_read_alone_is_its_own():
    params = parameters(tiny("local", layers=1))
    learned, asked = SideBySide.of(params), []

    def read(models: Learned) -> list[float]:
        asked.append(models.asked)
        if not isinstance(models, OneModel) or len(asked) == 3:
            raise ValueError("not this one")
        return [float(jax.tree.leaves(models.params)[0].ravel()[0])]

    first, error, last = read_each(learned, read)
    assert str(error) == "not this one"
    assert (first, last) == tuple(float(jax.tree.leaves(params[place])[0].ravel()[0]) for place in (0, 2))
    assert asked == [3, 1, 1, 1]


def test_few_members_of_many_are_read_alone(calls):
    """All places of a mapped program are computed, whoever is asked for."""
    run = tasks.run_on("mqar")
    params, runs = parameters(run.model, 4), runs_like(run, 4)
    learned = SideBySide.of(params)
    expected = measured(learned, runs)
    assert {one.split()[1] for one in calls} == {"members"}
    calls.clear()
    found = measured(learned.only([1, 3]), [runs[1], runs[3]])
    assert {one.split()[1] for one in calls} == {"alone"}
    calls.clear()
    more = measured(learned.only([3, 0, 1]), [runs[3], runs[0], runs[1]])
    assert {one.split()[1] for one in calls} == {"members"}
    for ours, place in zip([*found, *more], (1, 3, 3, 0, 1), strict=True):
        assert_same(ours, expected[place])


def on_two() -> list[list[list[float]]]:
    """The figures of three runs on two devices, so that one of four places is empty."""
    assert len(jax.devices()) == 2
    found = []
    for name in ("mqar", "perplexity"):
        run, evaluation = case(name, None)
        measures = evaluation.measure_each(Subjects(runs_like(run), SideBySide.of(parameters(run.model))))
        found.append([[one.value for one in of_run] for of_run in measures if not isinstance(of_run, Exception)])
    learned = SideBySide.of(parameters(BATCHES.model))
    return [*found, [list(one) for one in score_batches(BATCHES, learned, "validation")], [[float(learned.count)]]]


@pytest.mark.slow
def test_members_are_laid_over_devices():
    found = on_devices(2, "test_side_by_side", "on_two()")
    expected = []
    for name in ("mqar", "perplexity"):
        run, evaluation = case(name, None)
        subjects = [Subject(*one) for one in zip(runs_like(run), parameters(run.model), strict=True)]
        expected.append([[one.value for one in evaluation.measure(subject)] for subject in subjects])
    expected.append([list(score_batches(BATCHES, OneModel(own), "validation")[0]) for own in parameters(BATCHES.model)])
    for ours, theirs in zip(found, [*expected, [[4.0]]], strict=True):
        assert ours == [pytest.approx(one, rel=CLOSE) for one in theirs]
