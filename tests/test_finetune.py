"""Fine-tuning: what is read, what is trained, when it ends, and what is written of it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.config import RunConfig, TrainConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.data.tokenizers import Bytes
from infini_jax.devices.sharding import Layout, data_mesh
from infini_jax.errors import ConfigError
from infini_jax.evals.base import Subject
from infini_jax.finetuning.classifier import HEAD, ClassifierHead, ClassifierProgram
from infini_jax.finetuning.evaluation import FineTuning
from infini_jax.finetuning.rows import (
    Encoded,
    batch_of,
    encoded_examples,
    reading_batches,
    row_length,
    shortened,
    training_batches,
)
from infini_jax.memory import MECHANISMS
from infini_jax.model.stream import forward_segments, init_carry
from infini_jax.records.measures import read_measures
from tests.support import commands, streams
from tests.test_blimp import LINES
from tests.test_classification import lines_of, write_jsonl

MODEL = streams.tiny("infini", layers=1, vocab=256)
RUN = RunConfig(data=StdlibConfig(), model=MODEL, train=TrainConfig(sequence=64))
OTHERS = [pytest.param(name, marks=() if name == "infini" else pytest.mark.slow) for name in MECHANISMS]


def program_of(run: RunConfig, rows: int, classes: int = 3, **changes) -> ClassifierProgram:
    settings = FineTuning(dropout=0.0, learning_rate=1e-2, **changes)
    return ClassifierProgram(settings.tuned_run(run, rows), classes, 8, settings.dropout)


def some_texts(lengths, vocab: int = 256) -> Encoded:
    random = np.random.default_rng(0)
    texts = [random.integers(0, vocab, length).astype(np.int32) for length in lengths]
    return Encoded(texts, np.arange(len(texts), dtype=np.int32) % 3)


@functools.cache
def alone(model):
    """Jitted: (carry, features) of one segment of one text."""
    return jax.jit(lambda params, carry, tokens: forward_segments(model, params, carry, tokens, jnp.zeros_like(tokens))[:2])


@pytest.mark.parametrize("mechanism", OTHERS)
def test_a_text_among_others_has_the_logits_that_it_has_alone(mechanism):
    """The head on its last token's features, read segment by segment; what fills rows up changes nothing. float32 sums."""
    model = streams.tiny(mechanism, layers=1, vocab=256)
    run, size = dataclasses.replace(RUN, model=model), model.segment
    run = dataclasses.replace(run, train=TrainConfig(sequence=4 * size))
    program, params = program_of(run, 4), streams.parameters_of(model)
    state, texts = program.begin(params), some_texts([3, size, size + 1, 3 * size - 2])
    found = program.answer(state, batch_of(texts, 4, size))
    for text, logits in zip(texts.texts, found, strict=True):
        carry, padded = init_carry(model, 1), np.zeros((1, -(-len(text) // size) * size), np.int32)
        padded[0, : len(text)] = text
        for begin in range(0, padded.shape[1], size):
            carry, x = alone(model)(params, carry, padded[:, begin : begin + size])
        last = x[:, (len(text) - 1) % size]
        expected = ClassifierHead(3).apply({"params": state.params[HEAD]}, last)[0]
        np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_the_loss_reaches_the_first_segment_through_the_memory_and_no_token_of_the_padding():
    """By the gradient of the embedding: of tokens that stand in the first segment alone, and in the padding alone."""
    program, size = program_of(RUN, 1), MODEL.segment
    state = program.begin(streams.parameters_of(MODEL))
    text = np.concatenate([np.full(size, 7), np.full(3, 9)]).astype(np.int32)
    batch = batch_of(Encoded([text], np.array([1], np.int32)), 1, size)
    tokens = np.where(batch.documents == 0, batch.tokens, 11)
    gradient, nats = jax.jit(program._gradient)(state, batch._replace(tokens=tokens))
    moved = np.abs(np.asarray(gradient["embedding"]["embedding"])).max(axis=1)
    assert moved[7] > 1e-8
    assert moved[9] > 1e-8
    assert moved[11] == 0.0
    assert np.isfinite(nats)


def test_a_step_trains_what_the_settings_say_and_lowers_the_loss():
    params, texts = streams.parameters_of(MODEL), some_texts([5, 9, 20, 31])
    batch = batch_of(texts, 4, MODEL.segment)
    program = program_of(RUN, 4, trains="lora", lora_rank=2)
    state = program.begin(params)
    before, trained = jax.device_get(state.frozen), jax.device_get(state.params)
    losses = []
    for _ in range(6):
        state, nats = program.step(state, batch)
        losses.append(float(nats))
    assert losses[0] == pytest.approx(np.log(3), abs=0.7)  # a head as it is drawn knows nothing
    assert losses[-1] < losses[0] - 0.2
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.frozen))
    assert "embedding" in before
    for new, old in zip(jax.tree.leaves(jax.device_get(state.params)), jax.tree.leaves(trained), strict=True):
        assert not np.array_equal(new, old)


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_step():
    program = program_of(RUN, 2)
    params = jax.tree.map(lambda leaf: leaf.at[..., 0].set(jnp.inf), streams.parameters_of(MODEL))
    state = program.begin(params)
    before = jax.device_get(state)
    after, _ = program.step(state, batch_of(some_texts([4, 4]), 2, MODEL.segment))
    assert int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, before.params, jax.device_get(after.params))


def longest_first(first, second, most):
    """The longer text loses its last token, the second of two that are as long, until both fit."""
    first, second = list(first), list(second)
    while len(first) + len(second) > most:
        (first if len(first) > len(second) else second).pop()
    return first, second


def test_of_a_pair_that_is_too_long_the_longer_one_is_cut_first():
    for one in range(9):
        for other in range(9):
            for most in range(1, 12):
                first, second = shortened(np.arange(one), np.arange(other), most)
                expected = longest_first(range(one), range(other), most)
                assert (first.tolist(), second.tolist()) == expected, (one, other, most)


def test_a_text_and_its_pair_stand_behind_the_token_of_context_with_a_line_end_between():
    found = encoded_examples(Bytes(), [(("ab", "cd"), 1), (("abc", ""), 0), (("abcdef", "xyz"), 1)], 8)
    assert [bytes(text.astype(np.uint8)) for text in found.texts] == [b"\nab\ncd", b"\nabc", b"\nabc\nxyz"]
    assert found.classes.tolist() == [1, 0, 1]
    whole = encoded_examples(Bytes(), [(("abcdef" * 99, "xyz"), 1)], 0)
    assert len(whole.texts[0]) == 1 + 6 * 99 + 1 + 3


def test_every_example_is_trained_on_once_an_epoch_and_answered_once():
    texts = some_texts([3, 30, 7, 50, 16, 17, 2])
    seen = [row for batch in training_batches(texts, 2, 16, 0, 1) for row in np.asarray(batch.tokens)]
    whole = {tuple(row[row != 0]) for row in seen}
    assert len(seen) == len(whole) == 6
    assert whole < {tuple(text[text != 0]) for text in texts.texts}
    assert not all(
        np.array_equal(a.tokens, b.tokens)
        for a, b in zip(training_batches(texts, 2, 16, 0, 1), training_batches(texts, 2, 16, 0, 2), strict=True)
        if a.tokens.shape == b.tokens.shape
    )
    read = list(reading_batches(texts, 3, 16))
    assert sorted(np.concatenate([numbers for _, numbers in read])) == list(range(7))
    for batch, numbers in read:
        assert batch.weights.sum() == len(numbers)
        ends = [int(np.flatnonzero(row)[0]) + 1 for row in batch.weights[: len(numbers)]]
        assert ends == [len(texts.texts[number]) for number in numbers]
        assert (batch.documents[len(numbers) :] == 1).all()
    assert [row_length(16, longest) for longest in (1, 16, 17, 33, 64, 65)] == [16, 16, 32, 64, 64, 128]


def trained_on_all_devices() -> list[float]:
    """Losses of two steps of four rows, and the logits behind them."""
    program = dataclasses.replace(program_of(RUN, 4), dropout=0.2, layout=Layout(data_mesh(4)))
    state, batch = program.begin(streams.parameters_of(MODEL)), batch_of(some_texts([5, 9, 20, 31]), 4, MODEL.segment)
    losses = []
    for _ in range(2):
        state, nats = program.step(state, batch)
        losses.append(float(nats))
    return [*losses, *np.asarray(program.answer(state, batch)).ravel().tolist()]


@pytest.mark.slow
def test_devices_that_share_the_rows_learn_what_one_learns():
    """The order of float32 sums differs, and Adam's first steps divide by small second moments."""
    np.testing.assert_allclose(
        commands.on_devices(2, "test_finetune", "trained_on_all_devices()"), trained_on_all_devices(), rtol=2e-3, atol=2e-4
    )


SETTINGS = FineTuning(task="own", batch=4, epochs=3, learning_rate=1e-3)


@pytest.fixture
def own(tmp_path):
    """A task of one's own: eight examples to train on and six to validate on, a text each."""
    for split, count in (("train", 8), ("valid", 6)):
        write_jsonl(tmp_path / f"own.{split}.jsonl", [{"text": f"{n} of {count}", "label": n % 2} for n in range(count)])
    return dataclasses.replace(SETTINGS, path=str(tmp_path))


def test_the_best_epoch_is_scored_and_training_ends_where_none_is_better_for_long(own):
    """A rate of almost zero: no epoch is better than the first."""
    settings, params, seen = dataclasses.replace(own, learning_rate=1e-12, patience=1), streams.parameters_of(MODEL), []
    found = settings.tuned(Subject(RUN, params), settings.examples(RUN), lambda *at: seen.append(at))
    assert ([one.number for one in found.epochs], found.best) == ([1, 2], 1)
    score, *others = found.measures
    assert (score.eval, score.metric, score.count) == ("finetune", "accuracy", 6)
    assert score.labels == {"task": "own", "split": "validation", "seed": 42.0}
    assert [one.metric for one in others] == ["f1", "matthews"]
    right = [number % 2 for number in range(6)]
    assert score.value == pytest.approx(np.mean(np.array(found.answers["validation"]) == right)) == found.epochs[0].score
    assert score.low < score.value < score.high
    assert seen[-1] == (6, 6)
    again = settings.tuned(Subject(RUN, params), settings.examples(RUN))
    assert (again.epochs, again.answers) == (found.epochs, found.answers)


def test_examples_are_drawn_by_the_seed_and_held_out_of_those_that_are_trained_on(own):
    settings = dataclasses.replace(own, train_examples=6, validation_examples=2, held_out=0.5)
    found = settings.examples(RUN)
    assert (len(found.train), len(found.choosing), len(found.scored["validation"])) == (3, 3, 2)
    texts = {bytes(text.astype(np.uint8)) for part in (found.train, found.choosing) for text in part.texts}
    assert len(texts) == 6
    assert found.digest() == settings.examples(RUN).digest() != dataclasses.replace(settings, seed=1).examples(RUN).digest()
    whole = own.examples(RUN)
    assert whole.choosing is whole.scored["validation"]
    with pytest.raises(ConfigError, match="1 training and 6 validation examples are too few"):
        dataclasses.replace(own, train_examples=1, held_out=0.9).examples(RUN)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": "a/b"}, r"^finetune.task: .* not a file name"),
        ({"held_out": 1.0}, r"^finetune.held_out"),
        ({"tokens": 1}, r"^finetune.tokens"),
        ({"lora_rank": 4}, r"^train.lora_rank"),
        ({"epochs": -1}, r"^finetune.epochs"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        FineTuning(**changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny run on text."""
    results = tmp_path_factory.mktemp("results")
    main(["train", "infini", "python_stdlib", *commands.TINY, "--evaluation.documents", "1", "--evaluation.tokens", "16",
          "--results", str(results), "--name", "tiny"])  # fmt: skip
    return results / "tiny"


FEW = ["--epochs", "1", "--batch", "2", "--tokens", "16", "--train-examples", "4", "--validation-examples", "3"]


def test_babylms_evaluation_is_one_table_and_nothing_is_done_twice(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "nothing"))
    folder = tmp_path / "evaluation_data" / "full_eval"
    for paradigm, lines in LINES.items():
        write_jsonl(folder / "blimp_filtered" / f"{paradigm}.jsonl", lines)
    for name in ("hypernym", "turn_taking"):
        lines = [{"row": n, "sentence_good": f"{name} has {n}.", "sentence_bad": f"{n} {name} has."} for n in range(3)]
        write_jsonl(folder / "supplement_filtered" / f"{name}.jsonl", lines)
    for task in ("rte", "mrpc"):
        write_jsonl(folder / "glue_filtered" / f"{task}.train.jsonl", lines_of(task, [1, 0] * 3))
        write_jsonl(folder / "glue_filtered" / f"{task}.valid.jsonl", lines_of(task, [0, 1] * 2))
    asked = ["babylm", str(trained), "--path", str(folder.parent), "--pairs", "2", "--task", "rte,mrpc,wsc", *FEW]
    main(asked)
    said = capsys.readouterr().out
    for part in (
        "BLiMP ",
        "BLiMP supplement",
        "(Super)GLUE",
        "rte, accuracy",
        "mrpc, f1",
        "mean of the parts",
        "not here: wsc",
    ):
        assert part in said
    files = [*trained.glob("evaluation-*.json"), *(trained / "measures").iterdir()]
    names = ["babylm", "blimp", "blimp_supplement", "finetune-macro", "finetune-mrpc", "finetune-rte"]
    assert sorted(file.stem for file in (trained / "measures").iterdir()) == names
    figures = {file.stem: [one for _, one in read_measures([file])] for file in (trained / "measures").iterdir()}
    *parts, whole = figures["babylm"]
    scores = {part.labels["part"]: part.value for part in parts}
    paradigms = [one.value for one in figures["blimp"] if "paradigm" in one.labels]
    assert scores["blimp"] == pytest.approx(np.mean(paradigms))
    assert scores["finetune"] == pytest.approx((figures["finetune-rte"][0].value + figures["finetune-mrpc"][0].value) / 2)
    assert (whole.metric, whole.value, whole.count) == ("macro", pytest.approx(np.mean(list(scores.values()))), 3)
    kept = {file: file.stat().st_mtime_ns for file in files if "babylm" not in file.name and "macro" not in file.name}
    assert len(kept) == 8
    main([*asked, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["missing"] == ["wsc"]
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    main(["finetune", str(trained), "--task", "glue/rte", "--path", str(folder), *FEW, "--seed", "1"])
    assert kept[trained / "evaluation-finetune-rte.json"] != (trained / "evaluation-finetune-rte.json").stat().st_mtime_ns
    assert "seed 1" in capsys.readouterr().out


def test_what_is_not_here_is_said_with_the_mend(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    said = commands.told(capsys, ["finetune", str(trained), "--task", "rte"], 2)
    assert said.startswith("finetune.path: rte is not here; put BabyLM's evaluation_data")
    assert commands.told(capsys, ["babylm", str(trained)], 2).startswith("path: nothing of BabyLM's evaluation is here; put")
    assert "names one twice" in commands.told(capsys, ["finetune", str(trained), "--task", "rte,glue/rte"], 2)


def same_or_not(count: int, seed: int) -> list[dict]:
    """Pairs that say the same color, or two, with text between them that has nothing to do with it."""
    random, colors, others = np.random.default_rng(seed), ("red", "blue", "green"), ("cat", "dog", "bird", "sun", "moon")
    found = []
    for number in range(count):
        first = random.choice(colors)
        second = first if number % 2 else random.choice([color for color in colors if color != first])
        filler = " ".join(random.choice(others, 2))
        found.append({"text": f"{first} {filler}", "text_pair": str(second), "label": number % 2})
    return found


@pytest.mark.slow
def test_a_small_model_learns_a_task_of_pairs_and_nothing_of_shuffled_labels(tmp_path):
    """A few hundred thousand parameters; most pairs are two segments, so that the first color is read from the memory."""
    model = streams.tiny("infini", layers=2, vocab=256, d_model=128, heads=4, segment=16)
    run, params = dataclasses.replace(RUN, model=model), streams.parameters_of(model)
    settings = FineTuning(task="same", path=str(tmp_path), learning_rate=1e-3, epochs=12, patience=0)
    write_jsonl(tmp_path / "same.valid.jsonl", same_or_not(200, 1))
    write_jsonl(tmp_path / "same.train.jsonl", same_or_not(640, 0))
    assert settings.measure(Subject(run, params))[0].value == 1.0
    lines = same_or_not(640, 0)
    labels = np.random.default_rng(2).permutation([line["label"] for line in lines])
    write_jsonl(
        tmp_path / "same.train.jsonl", [{**line, "label": int(label)} for line, label in zip(lines, labels, strict=True)]
    )
    shuffled = dataclasses.replace(settings, epochs=3, held_out=0.1)  # chosen on others, the score is that of one guesser
    low, high = (lambda one: (one.low, one.high))(shuffled.measure(Subject(run, params))[0])
    assert low < 0.5 < high
