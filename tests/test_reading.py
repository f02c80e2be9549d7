"""Examples read side by side: every scored place, and what a model says by itself, as one row read alone gives them."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.data.examples import Example, example_of
from infini_jax.errors import ConfigError
from infini_jax.evals.reading import SEGMENTS_A_CALL, ExampleReader
from infini_jax.memory import MECHANISMS
from infini_jax.model.stream import init_carry
from tests.support import streams
from tests.support.commands import with_devices

NEW = 3
STRADDLED = streams.tiny("landmark", layers=1, segment=12)  # segments that are no whole landmark blocks
OTHERS = [streams.tiny(name, layers=1, segment=16) for name in MECHANISMS if name not in ("infini", "landmark")]
INFINI = streams.tiny("infini", layers=1, segment=16)
ALL = [INFINI, *(pytest.param(model, marks=pytest.mark.slow) for model in (STRADDLED, *OTHERS))]
LONG = SEGMENTS_A_CALL + 1  # segments of the longest example: two calls


def name_of(model) -> str:
    return f"{model.mechanism}{'-straddled' * model.has_phase}"


def asked(model) -> list[Example]:
    """Prompts that end in the middle of a segment, at its edge, before it, after many; answers of several lengths."""
    random, size = np.random.default_rng(5), model.segment
    shapes = ((2 * size + 5, 4), (size, 2), (size + 1, 2), (1, 3), (LONG * size - 4, 2))
    return [example_of(*(random.integers(0, model.vocab, length) for length in shape)) for shape in shapes]


def scattered(model) -> Example:
    """Targets that are not the next tokens, scored where no prompt ends."""
    random, length = np.random.default_rng(6), 3 * model.segment - 3
    tokens, targets = random.integers(0, model.vocab, (2, length)).astype(np.int32)
    return Example(tokens, targets, np.isin(np.arange(length), (0, 7, length - 1)).astype(np.float32))


@functools.cache
def alone(model):
    """(text) -> log p TxV behind each token of one row, by `scan_segments` over a stream that is long enough for all."""
    run, params = streams.scorer(model), streams.parameters_of(model)

    def log_p(text) -> np.ndarray:
        tokens = np.zeros((1, (LONG + 1) * model.segment), np.int32)
        tokens[0, : len(text)] = text
        logits = run(params, init_carry(model, 1), jnp.asarray(tokens), jnp.zeros_like(tokens))[1]
        return np.asarray(jax.nn.log_softmax(logits[0, : len(text)]))

    return log_p


@pytest.mark.parametrize("model", ALL, ids=name_of)
def test_scored_places_are_those_of_a_row_read_alone(model):
    """Float32 sums in another order move a loss by about 1e-5; groups of two, so the last has a row that nobody scores."""
    examples = [*asked(model), scattered(model), *asked(model)[:1]]
    reader, done = ExampleReader(model, rows=2), []
    readings = list(reader.read(streams.parameters_of(model), examples, watch=done.append))
    assert sum(done) == sum(len(example.tokens) for example in examples)
    assert len(readings) == len(examples) == 7
    for example, reading in zip(examples, readings, strict=True):
        places = np.flatnonzero(example.weights)
        log_p = alone(model)(example.tokens)[places]
        np.testing.assert_array_equal(reading.answer_N, example.targets[places])
        np.testing.assert_allclose(reading.nats_N, -log_p[np.arange(len(places)), reading.answer_N], atol=5e-5)
        np.testing.assert_array_equal(reading.hits_N, log_p.argmax(axis=1) == reading.answer_N)
        assert reading.said_M is None


@pytest.mark.parametrize("model", ALL, ids=name_of)
def test_a_model_says_what_is_likeliest_behind_its_prompt_and_its_own_words(model):
    """Against reading prompt and words again for every word; the scores beside it stay those of the text itself."""
    examples, params = asked(model), streams.parameters_of(model)
    reader = ExampleReader(model, rows=2)
    spoken = list(reader.read(params, examples, new=lambda example: NEW))
    for example, reading in zip(examples, spoken, strict=True):
        text = list(example.tokens[: example.prompt])
        for _ in range(NEW):
            text.append(int(alone(model)(text)[-1].argmax()))
        assert list(reading.said_M) == text[-NEW:]
    for with_words, without in zip(spoken, reader.read(params, examples), strict=True):
        np.testing.assert_allclose(with_words.nats_N, without.nats_N, atol=1e-6)
        np.testing.assert_array_equal(with_words.hits_N, without.hits_N)


def test_words_agree_with_the_scored_places_as_long_as_they_are_the_answer():
    """The answer is what the model says: every place scores, each word with the ones before it read."""
    model = INFINI
    params, reader = streams.parameters_of(model), ExampleReader(model, rows=2)
    prompts = [example.tokens[: example.prompt] for example in asked(model)[:2]]
    said = [
        reading.said_M
        for reading in reader.read(params, [example_of(prompt, prompt[:1]) for prompt in prompts], new=lambda example: NEW)
    ]
    own = [example_of(prompt, words) for prompt, words in zip(prompts, said, strict=True)]
    for reading, words in zip(reader.read(params, own, new=lambda example: NEW), said, strict=True):
        assert reading.hits_N.tolist() == [True] * NEW
        np.testing.assert_array_equal(reading.said_M, words)


def test_tokens_that_the_tokenizer_lacks_are_never_said():
    model = INFINI
    params, (example, *_) = streams.parameters_of(model), asked(model)
    (reading,) = ExampleReader(model, rows=2, vocab=4).read(params, [example], new=lambda example: 1)
    log_p = alone(model)(example.tokens[: example.prompt])[-1]
    assert log_p.argmax() >= 4  # else this shows nothing
    assert reading.said_M.tolist() == [log_p[:4].argmax()]


def test_a_row_without_a_prompt_cannot_be_answered():
    model = INFINI
    with pytest.raises(ConfigError, match="no prompt to answer"):
        list(ExampleReader(model, rows=2).read(streams.parameters_of(model), [scattered(model)], new=lambda example: 1))


def summary() -> list[list[list[float]]]:
    """Losses and words of eight examples."""
    reader = ExampleReader(INFINI, rows=8)
    readings = reader.read(streams.parameters_of(INFINI), (asked(INFINI) * 2)[:8], new=lambda example: NEW)
    return [[one.nats_N.tolist(), one.said_M.tolist()] for one in readings]


@pytest.mark.slow
def test_eight_devices_read_and_say_what_one_does():
    """Float32 sums in another order move a loss by about 1e-5."""
    command = [sys.executable, "-m", "tests.test_reading"]
    done = subprocess.run(command, env=with_devices(8), capture_output=True, text=True, check=True)
    devices, found = json.loads(done.stdout)
    assert devices == 8
    for (nats, words), (expected_nats, expected_words) in zip(found, summary(), strict=True):
        np.testing.assert_allclose(nats, expected_nats, atol=5e-5)
        assert words == expected_words


if __name__ == "__main__":
    print(json.dumps([jax.device_count(), summary()]))
