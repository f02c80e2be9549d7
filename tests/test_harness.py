"""A run in lm-evaluation-harness: the harness's own tasks and metrics on our model give what our own evaluations give."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.devices.side_by_side import OneModel
from infini_jax.errors import ConfigError
from infini_jax.evals.blimp import log_probabilities
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.evals.reading import score_segments, speak
from infini_jax.harness.__main__ import main
from infini_jax.model.stream import decode, init_carry, init_decoder
from tests.support import streams
from tests.support.saved import saved_run

SEGMENT = 16
ITEMS = [
    {"question": "", "choices": ["A text alone.", "another"], "answer": 1},
    {"question": "Two", "choices": [" and two", " and a continuation of more than a segment of sixteen"], "answer": 0},
    {"question": f"{'A context of many segments, ' * 9}and its end", "choices": [".", " is here.", " é"], "answer": 2},
]
PROMPTS = ["Say", "A prompt of one segment and more:", "x" * SEGMENT, "y" * (2 * SEGMENT), "a line\n", f"{'long, ' * 30}end"]
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "whole": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "answers": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: ""
generation_kwargs: {until: ["e", "qq"], max_gen_toks: 20}
metric_list: [{metric: exact_match}]
""",
}
DOCUMENTS = {
    "choices": ITEMS,
    "whole": [{"text": prompt} for prompt in PROMPTS],
    "answers": [{"text": one} for one in PROMPTS],
}


@pytest.fixture(scope="module")
def lm_eval():
    return pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'infini_jax[harness]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on bytes with random parameters, as training leaves it."""
    model = streams.tiny("infini", layers=2, vocab=256, segment=SEGMENT)
    run = RunConfig(data=StdlibConfig(), model=model, train=TrainConfig(batch=1, sequence=64), budget=Budget("steps", 1))
    return saved_run(run, tmp_path_factory.mktemp("runs") / "run", (1,))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with tasks of the harness, each a YAML with its documents beside it."""
    place = tmp_path_factory.mktemp("tasks")
    for name, said in TASKS.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in DOCUMENTS[name]))
        data = {"data_files": {"test": str(place / f"{name}.jsonl")}, "cache_dir": str(place / "cache")}
        fields = {"task": f"ours_{name}", "dataset_path": "json", "test_split": "test", "dataset_kwargs": data}
        (place / f"{name}.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()) + said)
    return place


@pytest.fixture(scope="module")
def opened(lm_eval, folder):
    from infini_jax.harness.model import HarnessModel

    return HarnessModel(str(folder), batch_size=4)


@pytest.fixture(scope="module")
def found(lm_eval, opened, tasks):
    """The harness's results of all tasks, with what it asked and got."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks))
    names = [f"ours_{name}" for name in TASKS]
    return lm_eval.simple_evaluate(opened, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0)


def samples(found, name: str) -> list[dict]:
    return sorted(found["samples"][f"ours_{name}"], key=lambda sample: sample["doc_id"])


def log_p(opened, texts: list[str]) -> np.ndarray:
    """ln p of texts behind a line end, as the evaluation of BLiMP packs and scores them."""
    encoded = [np.array([10, *text.encode()], np.int32) for text in texts]
    return log_probabilities(opened.trained.run.model, OneModel(opened.trained.params), encoded)[0]


@pytest.mark.slow
def test_choices_have_the_log_probabilities_of_our_own_evaluation(found, opened):
    """Float32 sums of a hundred tokens in another order: 1e-4 of a nat."""
    right = []
    for item, sample in zip(ITEMS, samples(found, "choices"), strict=True):
        told = [float(response[0][0]) for response in sample["resps"]]
        own = behind(opened, item["question"], item["choices"]) if item["question"] else log_p(opened, item["choices"])
        np.testing.assert_allclose(told, own, atol=1e-4)
        right.append(int(np.argmax(own)) == item["answer"])
    assert found["results"]["ours_choices"]["acc,none"] == pytest.approx(np.mean(right))


@functools.cache
def reading(model):
    """Jitted: one token of one text behind a decoder."""
    return jax.jit(lambda params, decoder, token: decode(model, params, decoder, token[None], jnp.zeros(1, jnp.int32)))


def each_logits(opened, tokens: Iterable[int]) -> Iterator[np.ndarray]:
    """Logits behind each token of a text that is read alone, token by token; float64."""
    model, params = opened.trained.run.model, opened.trained.params
    decoder = init_decoder(model, init_carry(model, 1))
    for token in tokens:
        decoder, logits = reading(model)(params, decoder, np.int32(token))
        yield np.asarray(logits[0], np.float64)


def behind(opened, context: str, choices: list[str]) -> list[float]:
    """ln p of each continuation of a context."""
    sums = []
    for choice in choices:
        first, tokens = len(context.encode()), (context + choice).encode()
        rows = list(each_logits(opened, tokens[:-1]))[first - 1 :]
        sums.append(sum(row[token] - np.logaddexp.reduce(row) for row, token in zip(rows, tokens[first:], strict=True)))
    return sums


@pytest.mark.slow
def test_a_whole_text_has_the_bits_that_our_evaluation_of_documents_finds(found, opened, tmp_path):
    """The documents begin with the line end that stands in front of each text in the harness, and is not scored."""
    for number, prompt in enumerate(PROMPTS):
        (tmp_path / f"{number}.txt").write_text(f"\n{prompt}")
    run, params = opened.trained.run, opened.trained.params
    evaluation = LanguageEvaluation(data=str(tmp_path), conditions=("carried",))
    (perplexity,) = evaluation.read(run, OneModel(params))
    told = [sample["filtered_resps"][0] for sample in samples(found, "whole")]
    np.testing.assert_allclose(np.sort(-np.array(told, float)), np.sort(perplexity.nats_CxD[0]), atol=1e-4)
    np.testing.assert_allclose(told, log_p(opened, PROMPTS), atol=1e-4)
    size = sum(len(prompt.encode()) for prompt in PROMPTS)
    bits = found["results"]["ours_whole"]["bits_per_byte,none"]
    assert bits == pytest.approx(perplexity.nats_CxD[0].sum() / size / np.log(2), abs=1e-5)


def greedy(opened, prompt: str, count: int) -> bytes:
    """The likeliest bytes behind a prompt that is read alone, token by token."""
    tokens = [*prompt.encode()]
    for place, row in enumerate(each_logits(opened, iter(tokens)), 1):  # grows while it is read
        if place == len(tokens):
            tokens.append(int(row.argmax()))
        if len(tokens) == len(prompt.encode()) + count:
            break
    return bytes(tokens[-count:])


@pytest.mark.slow
def test_answers_are_those_of_each_prompt_alone_up_to_the_first_stop(found, opened):
    for prompt, sample in zip(PROMPTS, samples(found, "answers"), strict=True):
        whole = greedy(opened, prompt, 20).decode(errors="replace")
        ends = [whole.find(stop) for stop in ("e", "qq") if stop in whole]
        assert sample["resps"][0][0] == whole[: min(ends, default=len(whole))]


@pytest.mark.slow
def test_texts_of_any_length_are_read_by_the_same_programs(opened):
    from lm_eval.api.instance import Instance

    def asked(kind, *arguments):
        return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]

    opened.loglikelihood_rolling(asked("loglikelihood_rolling", ("a" * 300,)), disable_tqdm=True)
    programs = score_segments.alone._cache_size()
    for length in (1, 15, 17, 9000):
        (nats,) = opened.loglikelihood_rolling(asked("loglikelihood_rolling", ("a" * length,)), disable_tqdm=True)
        assert nats < 0
    opened.loglikelihood(asked("loglikelihood", ("b" * 77, "c"), ("d", "e" * 99)), disable_tqdm=True)
    assert score_segments.alone._cache_size() == programs
    speak.alone.clear_cache()
    for length in range(SEGMENT, 3 * SEGMENT):  # every remainder behind one whole segment and behind two
        opened.generate_until(asked("generate_until", ("a" * length, {"max_gen_toks": 5})), disable_tqdm=True)
    programs = speak.alone._cache_size()
    for length in (40 * SEGMENT + 3, 60 * SEGMENT + 9):
        opened.generate_until(asked("generate_until", ("a" * length, {"max_gen_toks": 5})), disable_tqdm=True)
    assert speak.alone._cache_size() == programs <= 3


@pytest.mark.slow
def test_answers_may_be_drawn_and_are_the_same_again(opened):
    from lm_eval.api.instance import Instance

    settings = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 12, "until": []}
    requests = [Instance("generate_until", {}, ("Say", settings), number) for number in range(2)]
    first, second = opened.generate_until(requests, disable_tqdm=True)
    assert first != second
    assert opened.generate_until(requests, disable_tqdm=True) == [first, second]
    requests[0].arguments = ("Say", settings | {"top_k": 3})
    with pytest.raises(ConfigError, match=r"generation_kwargs.top_k: 3 is not supported"):
        opened.generate_until(requests, disable_tqdm=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"batch_size": 0}, "batch_size: '0' is no number of texts"),
        ({"memory.slot": 4}, "model_args: 'memory.slot' is not known; did you mean 'memory.slots'"),
        ({"memory.slots": 4}, "memory.slots: infini has no such option"),
        ({"run": "nowhere"}, "run: nowhere is not a folder"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(lm_eval, folder, arguments, told):
    from infini_jax.harness.model import HarnessModel

    with pytest.raises(ConfigError, match=told) as error:
        HarnessModel(**{"run": str(folder)} | arguments)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_harness_s_own_command_line_knows_the_model_and_other_settings_of_its_memory(lm_eval, tasks, tmp_path):
    model = streams.tiny("full", layers=1, vocab=256, segment=SEGMENT)
    run = RunConfig(data=StdlibConfig(), model=model, train=TrainConfig(batch=1, sequence=64), budget=Budget("steps", 1))
    place = saved_run(run, tmp_path / "full", (1,))
    asked = ["--model", "infini_jax", "--model_args", f"run={place},memory.slots=32", "--batch_size", "auto"]
    asked += ["--tasks", "ours_choices,ours_whole", "--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    command = [sys.executable, "-m", "infini_jax.harness", "run", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert "memory: trained with slots 8" in done.stderr
    assert "ours_choices" in done.stdout
    (file,) = (tmp_path / "out").rglob("results_*.json")
    kept = json.loads(file.read_text())
    assert kept["results"]["ours_whole"]["bits_per_byte,none"] > 0
    assert kept["config"]["model_sha"] != run.fingerprint()  # another memory is another run
    gone = subprocess.run([*command[:6], "--model_args", "run=nowhere", *command[8:]], capture_output=True, text=True)
    assert gone.returncode == 2
    assert gone.stderr.splitlines()[-1].startswith("infini-jax: run: nowhere is not a folder")


def test_a_missing_package_is_told_with_what_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit, match="2"):
        main()
    told = "infini-jax: installation: the package lm_eval is not installed; pip install 'infini_jax[harness]'\n"
    assert capsys.readouterr().err == told
