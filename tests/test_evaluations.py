"""Evaluations of tiny runs on every task, against the definitions of their scores; the command line end to end."""

import dataclasses
import functools
import inspect
import json
import math

import jax
import numpy as np
import pytest
from scipy import stats

from infini_jax.cli.evaluation_options import Options, chosen_evaluation
from infini_jax.cli.main import main
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.haystack import HaystackConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.passkey import PasskeyConfig
from infini_jax.data.sorting import SortingConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.errors import ConfigError
from infini_jax.evals.base import Subject
from infini_jax.evals.haystack import HaystackEvaluation, found_in
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.mqar import MqarEvaluation
from infini_jax.evals.passkey import PasskeyEvaluation
from infini_jax.evals.reading import Reading, score_segments
from infini_jax.evals.registry import EVALUATIONS, evaluation_from_plain, evaluation_to_plain
from infini_jax.evals.sorting import SortingEvaluation, order_agreement
from infini_jax.model.cost import model_cost
from infini_jax.model.stream import init_params
from infini_jax.records.measures import read_measures
from tests.support.commands import told

VOCAB = 300  # of all tasks here, so that one program reads them all
MODEL = ModelConfig(vocab=VOCAB, layers=1, d_model=16, heads=1, segment=16)
TASKS = {
    "mqar": MqarConfig(pairs=3, symbols=32),
    "passkey": PasskeyConfig(filler_words=24, format="landmark"),
    "haystack": HaystackConfig(),
    "sorting": SortingConfig(symbols=5),
    "python_stdlib": StdlibConfig(),
}


def run_on(task: str) -> RunConfig:
    return RunConfig(name=task, model=MODEL, data=TASKS[task], train=TrainConfig(sequence=256), budget=Budget("steps", 3))


@functools.cache
def params() -> dict:
    return jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()


def readings_of(run: RunConfig, evaluation, cell, right: bool) -> list[Reading]:
    """What a model that always answers, or never does, makes of a cell's examples."""
    found = []
    for one in evaluation.draw(run, cell):
        hits, new = np.full(len(one.answer), right), evaluation.new_tokens(one)
        said = np.resize(one.answer if right else (one.answer + 1) % 5, new) if new else None
        found.append(Reading(one.labels, one.answer, np.zeros(len(hits)), hits, said, one.references))
    return found


CASES = {
    "mqar": MqarEvaluation(lengths=(64, 40), pairs=(2, 4), overwrites=(0, 1), examples=3, rows=4),
    "passkey": PasskeyEvaluation(
        lengths=(120,), depths=(0.0, 1.0), novelty=(0, 8), formats=("infini", "landmark"), examples=3
    ),
    "haystack": HaystackEvaluation(lengths=(150,), kinds=("single", "rewrite", "facts1"), examples=3),
    "sorting": SortingEvaluation(lengths=(40, 70), windows=(8, 16, 999), examples=3),
}


@pytest.mark.parametrize("task", CASES)
def test_an_evaluation_of_a_run_on_its_task_gives_every_figure_of_the_grid(task):
    run, evaluation = run_on(task), dataclasses.replace(CASES[task], rows=4)
    evaluation.check(run)
    seen = []
    measures = evaluation.measure(Subject(run, params()), lambda *progress: seen.append(progress))
    assert seen[-1][0] == seen[-1][1] == evaluation.examples * sum(cell.tokens for cell in evaluation.cells(run))
    assert repr(measures) == repr(evaluation.measure(Subject(run, params())))  # where there is no interval it is NaN
    assert all(one.eval == task and math.isfinite(one.value) for one in measures)
    keys = [(one.metric, tuple(sorted(one.labels.items()))) for one in measures]
    assert len(set(keys)) == len(keys)
    expected = {
        "mqar": {"accuracy": 8},
        "passkey": {"token_accuracy": 8, "exact_match": 4},
        "haystack": {"hit": 3, "exact_match": 3, "token_accuracy": 3},
        "sorting": {
            **dict.fromkeys(("teacher_forced", "free_running", "kendall_tau", "ceiling_mean", "chance"), 2),
            "ceiling_window": 4,
        },
    }[task]
    metrics = [one.metric for one in measures]
    assert {name: metrics.count(name) for name in metrics} == expected


def test_one_program_reads_all_tasks_and_lengths():
    programs = set()
    for task, evaluation in CASES.items():
        dataclasses.replace(evaluation, rows=4, examples=1).measure(Subject(run_on(task), params()))
        programs.add(score_segments.alone._cache_size())
    assert len(programs) == 1, programs


@pytest.mark.parametrize("task", CASES)
@pytest.mark.parametrize("right", [True, False])
def test_the_right_answers_score_one_and_wrong_ones_nothing(task, right):
    run, evaluation = run_on(task), CASES[task]
    for cell in evaluation.cells(run):
        for one in evaluation.figures(run, cell, readings_of(run, evaluation, cell, right)):
            if one.metric in ("accuracy", "token_accuracy", "exact_match", "hit", "teacher_forced", "free_running"):
                assert one.value == right, one
                assert one.low < one.high
            if one.metric == "kendall_tau" and right:
                assert one.value == pytest.approx(1.0)


def test_a_run_on_a_corpus_is_asked_in_its_own_tokens():
    """Bytes: the prompt of an example is the text itself, facts stand among the corpus's own sentences."""
    run = run_on("python_stdlib")
    passkey = PasskeyEvaluation(lengths=(600,), depths=(0.5,), examples=2)
    assert [dict(cell.labels)["format"] for cell in passkey.cells(run)] == ["infini", "landmark"]
    for cell in passkey.cells(run):
        (first, *_) = passkey.draw(run, cell)
        text = run.data.open_tokenizer().decode(first.tokens[: first.prompt])
        assert text.endswith("The pass key is")
        assert f"The pass key is {first.references[0]}." in text
        assert len(first.tokens) == 600
    haystack = HaystackEvaluation(lengths=(4000,), kinds=("single", "facts1"), examples=1)
    single, told = (run.data.open_tokenizer().decode(next(haystack.draw(run, cell)).tokens) for cell in haystack.cells(run))
    assert "The grass is green." in single
    assert "The grass is green." not in told
    measures = PasskeyEvaluation(lengths=(600,), depths=(0.5,), examples=2, rows=4).measure(Subject(run, params()))
    assert [one.metric for one in measures] == ["token_accuracy", "token_accuracy", "exact_match"]


def test_examples_do_not_depend_on_the_grid_they_are_part_of():
    run = run_on("passkey")
    alone = PasskeyEvaluation(lengths=(120,), depths=(1.0,), examples=2)
    grid = PasskeyEvaluation(lengths=(100, 120), depths=(0.0, 1.0), examples=4)
    cell = next(cell for cell in grid.cells(run) if cell.labels == alone.cells(run)[0].labels)
    for one, other in zip(alone.draw(run, alone.cells(run)[0]), grid.draw(run, cell), strict=False):
        np.testing.assert_array_equal(one.tokens, other.tokens)
    other_seed = dataclasses.replace(alone, seed=1)
    assert not np.array_equal(next(other_seed.draw(run, cell)).tokens, next(alone.draw(run, cell)).tokens)


def test_cost_counts_tokens_read_and_said():
    """MQAR is read once; sorting once, and from the segment in which the prompt ends again with 5 - 1 symbols more."""
    flops = model_cost(MODEL).flops
    assert MqarEvaluation(lengths=(64, 40), examples=3).cost(run_on("mqar")) == flops * 3 * 104
    prompt = 70 - 5 + 1
    again = prompt - prompt // 16 * 16 + 5 - 1
    assert SortingEvaluation(lengths=(70,), examples=3).cost(run_on("sorting")) == flops * 3 * (70 + again)
    language, run = LanguageEvaluation(documents=2, tokens=50, conditions=("carried", "reset")), run_on("python_stdlib")
    assert language.cost(run) == flops * 2 * 49 * 2


def test_order_agreement_is_kendalls_tau_of_ranks():
    answer = np.array([3, 1, 4, 0, 2])
    assert order_agreement(answer, answer) == pytest.approx(1)
    assert order_agreement(answer[::-1], answer) == pytest.approx(-1)
    assert order_agreement(np.array([1, 3, 4, 0, 2]), answer) == pytest.approx(0.8)  # one of ten pairs the other way
    assert order_agreement(np.full(5, 9), answer) == 0.0
    said_twice = order_agreement(np.array([3, 3, 1, 1, 4]), answer)
    assert said_twice == pytest.approx(stats.kendalltau([0, 1, 2, 3, 4], [0, 2, 4, 5, 5]).statistic)


def test_a_hit_is_any_part_in_either_case():
    assert found_in("The Kitchen.", ("kitchen", "garden", "KIT")).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("task", "evaluation", "said"),
    [
        (
            "mqar",
            PasskeyEvaluation(),
            "task: passkey cannot ask a run on mqar; choose a run that was trained on passkey or on a",
        ),
        ("python_stdlib", MqarEvaluation(), "task: mqar cannot ask a run on python_stdlib; choose a run that was trained on"),
        ("passkey", LanguageEvaluation(), "run: its task passkey has no documents"),
        ("mqar", MqarEvaluation(examples=0), "mqar.examples"),
        ("mqar", MqarEvaluation(rows=0), "mqar.rows"),
        ("mqar", MqarEvaluation(seed=-1), "mqar.seed"),
        ("mqar", MqarEvaluation(lengths=(0,)), "lengths"),
        ("mqar", MqarEvaluation(pairs=(99,)), "pairs"),
        ("passkey", PasskeyEvaluation(lengths=(9,)), "9 tokens do not hold"),
        ("python_stdlib", PasskeyEvaluation(lengths=(9,)), "9 tokens do not hold"),
        ("passkey", PasskeyEvaluation(depths=(2.0,)), "depth"),
        ("sorting", SortingEvaluation(windows=(0,)), "sorting.windows"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(task, evaluation, said):
    with pytest.raises(ConfigError) as error:
        evaluation.check(run_on(task))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_evaluations_apply_to_runs_on_their_task_and_those_of_text_to_a_corpus():
    applying = {
        task: {name for name, kind in EVALUATIONS.items() if name in (*CASES, "perplexity") and kind().applies(run_on(task))}
        for task in TASKS
    }
    assert applying == {
        **{task: {task} for task in CASES},
        "python_stdlib": {"passkey", "haystack", "perplexity"},
    }
    assert all(EVALUATIONS[name]().applies(run_on("python_stdlib")) for name in ("ruler", "babilong", "slots"))
    assert not any(EVALUATIONS[name]().applies(run_on("haystack")) for name in ("ruler", "babilong", "slots"))


@pytest.mark.parametrize("name", EVALUATIONS)
def test_settings_come_back_from_json(name):
    evaluation = CASES.get(name, EVALUATIONS[name]())
    plain = json.loads(json.dumps(evaluation_to_plain(evaluation)))
    assert evaluation_from_plain(plain) == evaluation
    with pytest.raises(ConfigError, match="there is no such setting"):
        evaluation_from_plain({**plain, "lenths": [4]})
    with pytest.raises(ConfigError, match="is not known"):
        evaluation_from_plain({**plain, "kind": name[:-1]})


def test_options_are_converted_to_the_types_of_the_task():
    options = Options(lengths=("4k,64k", "1m"), depths=("0,0.5",), examples="7", formats=("landmark",), novelty=("0", "16"))
    expected = PasskeyEvaluation((4096, 65536, 1048576), (0.0, 0.5), (0, 16), ("landmark",), examples=7)
    assert chosen_evaluation("passkey", options) == expected
    assert chosen_evaluation("perplexity", Options(conditions=("carried",), split="test")).split == "test"
    assert chosen_evaluation("mqar", Options()) == MqarEvaluation()


def test_every_option_has_the_words_of_its_setting():
    told = str(inspect.get_annotations(Options))
    assert "shares of the filler before the number. (passkey)" in told
    assert (
        "numbers of tokens per example; none is the length that the run was trained at. "
        "(mqar, passkey, haystack, sorting, symbols" in told
    )


TINY = ["--model.vocab", "64", "--model.layers", "1", "--model.d-model", "16", "--model.segment", "8"]
TINY += ["--train.sequence", "32", "--train.batch", "2", "--train.evaluation-steps", "1", "--budget.amount", "3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    results = tmp_path_factory.mktemp("runs")
    main(["train", "infini", "sorting", "--data.symbols", "5", *TINY, "--results", str(results)])
    return results / "run"


def test_the_command_shows_and_writes_what_it_measured(trained, capsys):
    capsys.readouterr()
    main(["evaluate", str(trained), "--task", "sorting", "--lengths", "32,40", "--windows", "8", "16", "--examples", "4"])
    said = capsys.readouterr().out
    assert all(words in said for words in ("free running", "kendall tau", "ceiling window", "run, step 3, sorting", "FLOPs"))
    assert max(map(len, said.splitlines()[:-1])) <= 80
    record = json.loads((trained / "evaluation-sorting.json").read_text())
    found = read_measures([trained / "measures" / "sorting.parquet"])
    assert (record["step"], record["task"], record["settings"]["lengths"]) == (3, "sorting", [32, 40])
    assert [(one.metric, one.value, one.labels) for _, one in found] == [
        (one["metric"], one["value"], one["labels"]) for one in record["measures"]
    ]
    assert {run for run, _ in found} == {"run"}
    assert {one.labels["length"] for _, one in found} == {32, 40}


def test_output_takes_both_files_elsewhere(trained, capsys, tmp_path):
    file = tmp_path / "some.json"
    before = {inside: inside.stat().st_mtime_ns for inside in trained.rglob("*")}
    main(["evaluate", str(trained), "--task", "sorting", "--lengths", "32", "--examples", "1", "--output", str(file)])
    assert json.loads(file.read_text())["settings"]["examples"] == 1
    assert {one.count for _, one in read_measures([file.with_suffix(".parquet")]) if one.metric == "free_running"} == {5}
    assert {inside: inside.stat().st_mtime_ns for inside in trained.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "pass"], "task: 'pass' is not known; did you mean 'passkey'?"),
        (["--task", "sorting", "--depths", "0,1"], "depths: sorting has no such option; leave it out: sorting has lengths"),
        (
            ["--task", "sorting", "--lengths", "4k,long"],
            "lengths: 'long' is not a number; give digits, such as 4096, 4k or 1m",
        ),
        (["--task", "passkey", "--depths", "half"], "depths: 'half' is not a number; give a number, such as 0.5"),
        (["--task", "passkey", "--formats", "other"], "formats: 'other' is not known; choose infini or landmark"),
        (["--task", "sorting", "--output", "x.parquet"], "output: x.parquet is to be JSON; give a name that ends in .json"),
        (["--lengths", "4k"], "lengths: perplexity has no such option"),
        (["--task", "mqar"], "task: mqar cannot ask a run on sorting"),
        (["--task", "sorting", "--lengths", "3"], "3 tokens leave fewer symbols"),
    ],
)
def test_options_that_do_not_fit_get_one_line(trained, capsys, arguments, said):
    assert said in told(capsys, ["evaluate", str(trained), *arguments], 2)
