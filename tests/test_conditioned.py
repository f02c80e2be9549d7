"""Targets behind a context: metrics of text against the reference packages, and losses and answers against other paths."""

import collections
import functools
import itertools
import math
import string

import jax
import numpy as np
import pytest

from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import CARRIED, EvaluationConfig
from infini_jax.data.conditioned import target_text
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.documents import Documents
from infini_jax.data.examples import example_of
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.target_marks import Marks
from infini_jax.data.tokenizers import Bytes
from infini_jax.errors import ConfigError
from infini_jax.evals import text_metrics
from infini_jax.evals.base import Subject
from infini_jax.evals.conditioned import GIVEN, OTHER, WITHHELD, ConditionedEvaluation, targets_of
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.perplexity import Reader
from infini_jax.evals.reading import ExampleReader
from infini_jax.memory.gated_delta import GatedDeltaConfig
from infini_jax.model.cost import model_cost
from infini_jax.model.generate import Sampling, continuation, read_prompt
from infini_jax.model.stream import init_params
from tests.support.targets import prepared_dialogues

ASKED = ConditionedEvaluation(new_tokens=6, rows=2)
SYLLABLES = ("a", "the", "cat", "cats", "runs", "running", "ran", "dog", "Dog", ".", ",", "he's", "12", "—", "no-one")


def run_on(data) -> RunConfig:
    model = ModelConfig(vocab=256, layers=1, d_model=16, heads=1, mlp_dim=16, segment=16, memory=GatedDeltaConfig())
    return RunConfig(name="reader", data=data, model=model, train=TrainConfig(sequence=64))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditioned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINI_JAX_DATA", str(folder / "data"))
        yield prepared_dialogues(folder / "dog")


@functools.cache
def params(data) -> dict:
    return jax.jit(lambda: init_params(run_on(data).model, jax.random.key(0)))()


@pytest.fixture(scope="module")
def figures(data) -> dict[tuple, float]:
    measures = ASKED.measure(Subject(run_on(data), params(data)))
    return {(one.metric, *one.labels.values()): one for one in measures}


# ---- metrics of text -----------------------------------------------------------------------------------------------------


def pairs(count: int = 100):
    random = np.random.default_rng(0)
    for _ in range(count):
        yield tuple(" ".join(random.choice(SYLLABLES, random.integers(0, 12))) for _ in range(2))


def test_rouge_is_that_of_the_reference_package():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for said, reference in pairs():
        expected = {name: one.fmeasure for name, one in scorer.score(target=reference, prediction=said).items()}
        assert text_metrics.rouge(said, reference) == expected


def slow_f1(said: str, reference: str) -> float:
    """Precision and recall of words that are struck off one by one."""
    marks = set(string.punctuation)
    ours, theirs = (
        [word for word in "".join(c for c in text.lower() if c not in marks).split() if word not in ("a", "an", "the")]
        for text in (said, reference)
    )
    left, right = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            right += 1
    if not right:
        return 0.0
    precision, recall = right / len(ours), right / len(theirs)
    return 2 * precision * recall / (precision + recall)


def test_f1_is_that_of_words_struck_off_one_by_one():
    for said, reference in pairs():
        assert text_metrics.word_f1(said, reference) == pytest.approx(slow_f1(said, reference))
    assert text_metrics.word_f1("The cat, the Cat!", "a cat cat dog") == pytest.approx(2 * 1.0 * (2 / 3) / (1 + 2 / 3))


def test_meteor_matches_words_and_stems_and_punishes_order():
    pytest.importorskip("nltk")
    same = "one two three four"
    assert text_metrics.meteor(same, same) == pytest.approx(1 - 0.5 * (1 / 4) ** 3)  # one chunk of four matches
    assert text_metrics.meteor("four three two one", same) == pytest.approx(1 - 0.5)  # as many chunks as matches
    assert text_metrics.meteor("Running", "runs") == pytest.approx(1 - 0.5)  # the same stem
    assert text_metrics.meteor("big", "large") == 0.0  # synonyms are not known
    assert text_metrics.meteor("", same) == text_metrics.meteor(same, "") == 0.0


# ---- the evaluation ------------------------------------------------------------------------------------------------------


def test_the_loss_with_the_context_given_is_that_of_streaming_perplexity_on_targets(data, figures):
    """Another path: each document is read once, and its targets are scored in passing."""
    found = LanguageEvaluation(rows=2).measure(Subject(run_on(data), params(data)))
    (expected,) = [one for one in found if one.metric == "loss" and one.labels["condition"] == CARRIED]
    ours = figures["loss", GIVEN]
    assert (ours.value, ours.count) == (pytest.approx(expected.value, rel=1e-5), expected.count)
    assert figures["perplexity", GIVEN].value == pytest.approx(math.exp(ours.value))


@pytest.mark.parametrize("context", [WITHHELD, OTHER])
def test_a_control_is_the_loss_of_documents_that_are_written_so(context, data, figures):
    documents, _ = data.whole("validation")
    texts = [bytes(documents.text[a:b]) for a, b in itertools.pairwise(documents.starts)]
    assert len(texts) == 2
    cut = [min(text.index(mark) for mark in (b"\x05", b"\x02") if mark in text) for text in texts]
    heads = [b"", b""] if context == WITHHELD else [texts[1][: cut[1]], texts[0][: cut[0]]]
    written = Documents.join([head + text[end:] for head, text, end in zip(heads, texts, cut, strict=True)], "written")
    run, nats, count = run_on(data), 0.0, 0
    reader = ExampleReader(run.model, 1)
    for begin, end in Marks.of(Bytes()).targets(written):
        start = written.starts[np.searchsorted(written.starts, begin, side="right") - 1]
        example = example_of(written.text[start:begin], written.text[begin:end])
        (reading,) = reader.read(params(data), [example])
        nats, count = nats + reading.nats_N.sum(), count + len(reading.nats_N)
    assert figures["loss", context].value == pytest.approx(nats / count, rel=1e-5)
    gain = figures["gain", context].value
    assert gain == pytest.approx(figures["loss", context].value - figures["loss", GIVEN].value, rel=1e-4, abs=1e-6)


def test_what_is_said_is_the_greedy_continuation_of_the_prompt(data, figures):
    pytest.importorskip("rouge_score")
    documents, _ = data.whole("validation")
    run, scores = run_on(data), collections.defaultdict(list)
    for begin, end in documents.targets:
        start = documents.starts[np.searchsorted(documents.starts, begin, side="right") - 1]
        decoder, logits = read_prompt(run.model, params(data), [documents.text[start:begin]])
        said = continuation(run.model, params(data), decoder, logits, Sampling(0.0))
        text = Bytes().decode(list(itertools.takewhile(lambda token: token != 3, itertools.islice(said, ASKED.new_tokens))))
        for metric, value in text_metrics.scores(text.strip(), target_text(Bytes(), documents.text[begin:end])).items():
            scores[metric].append(value)
    for metric, values in scores.items():
        assert figures[metric, GIVEN].value == pytest.approx(np.mean(values), abs=1e-9), metric
    assert figures["rouge_overall", GIVEN].value == pytest.approx(
        np.prod([np.mean(scores[f"rouge{n}"]) for n in "12L"]) ** (1 / 3)
    )


def test_progress_ends_where_all_is_read_and_flops_grow_with_contexts(data):
    run, seen = run_on(data), []
    few = ConditionedEvaluation(contexts=(GIVEN,), new_tokens=0, documents=1)
    few.measure(Subject(run, params(data)), lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    documents, _ = data.whole("validation")
    assert few.cost(run) == model_cost(run.model).flops * seen[-1][1]
    assert ConditionedEvaluation(new_tokens=0, documents=1, contexts=(GIVEN, WITHHELD)).cost(run) > few.cost(run)
    assert targets_of(data, "validation", (0, 1)).others == {0: 1, 1: 0}
    assert len(documents.lengths) == 2


def test_runs_without_targets_are_refused():
    for evaluation in (ConditionedEvaluation(), ConditionedEvaluation(data="nothing")):
        with pytest.raises(ConfigError, match=r"^task: conditioned cannot ask a run on mqar; choose a run on the task"):
            evaluation.check(RunConfig(data=MqarConfig()))


def test_contexts_and_other_corpora_are_checked(data):
    with pytest.raises(ConfigError, match=r"^conditioned.contexts: given is missing"):
        ConditionedEvaluation(contexts=(WITHHELD,))
    with pytest.raises(ConfigError, match="no prepared corpus 'nothing'"):
        ConditionedEvaluation(data="nothing").check(run_on(data))
    with pytest.raises(ConfigError, match="all documents have the same context"):
        ConditionedEvaluation(documents=1).check(run_on(data))
    as_text = run_on(CorpusConfig(data.name))
    assert not ConditionedEvaluation().applies(as_text)
    asked = ConditionedEvaluation(contexts=(GIVEN,), new_tokens=0, data=data.name)
    ours, own = (asked.measure(Subject(run, params(data))) for run in (as_text, run_on(data)))
    assert [one.value for one in ours] == [one.value for one in own]
    assert ours[0].labels == {"context": GIVEN, "data": data.name}


def test_missing_packages_are_told_with_the_extra(monkeypatch, data):
    monkeypatch.setattr(text_metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"rouge_score is not installed.*pip install 'infini_jax\[summaries\]'"):
        ASKED.check(run_on(data))
    ConditionedEvaluation(new_tokens=0).check(run_on(data))


def test_runs_are_examined_on_targets_alone_and_told_where_none_is_reached(data):
    documents, counts = data.whole("validation")
    with pytest.raises(
        ConfigError, match=r"^evaluation.tokens: no target of .* begins in the first 16 tokens .*; give more, or 0"
    ):
        Reader(run_on(data).model, documents, counts, EvaluationConfig(tokens=16, rows=2))
