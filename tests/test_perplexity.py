"""Streaming perplexity: every token once, with exactly the memory that the condition names."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config.evaluation import CONDITIONS, EvaluationConfig
from infini_jax.data.documents import Documents
from infini_jax.data.prepared import Counts
from infini_jax.data.stdlib import counted_bytes
from infini_jax.errors import ConfigError
from infini_jax.evals.perplexity import Reader, chosen_documents
from infini_jax.memory import MECHANISMS
from infini_jax.model.stream import decode, forward_segments, init_carry, init_decoder, logits_of
from tests.support import streams
from tests.support.commands import on_devices

LENGTHS = (40, 1, 5, 17, 2, 33, 16, 55)  # ragged; one has nothing to score; 55 is four segments of 16, 33 two and the edge
COUNTS = Counts(len(LENGTHS), 0, sum(LENGTHS), 50, 300, max(LENGTHS), "", "")
ALL = EvaluationConfig(documents=0, tokens=0, rows=3)


def repr_of(model) -> str:
    return f"{model.mechanism}{'-straddled' * model.has_phase}"


def documents_of(vocab: int, lengths=LENGTHS) -> Documents:
    text = np.random.default_rng(3).integers(0, vocab, sum(lengths)).astype(np.uint16)
    return Documents(text, np.cumsum([0, *lengths], dtype=np.int64), "random")


def texts_of(documents: Documents) -> list[np.ndarray]:
    return [documents.text[a:b] for a, b in zip(documents.starts, documents.starts[1:], strict=False)]


@functools.cache
def programs(model):
    """Slow reading of one document: (token by token, one segment behind a carry)."""
    params = streams.parameters_of(model)
    zero = jnp.zeros(1, jnp.int32)
    token = jax.jit(lambda decoder, token: decode(model, params, decoder, token, zero))

    def segment(carry, tokens):
        carry, x, _ = forward_segments(model, params, carry, tokens, jnp.zeros_like(tokens))
        return carry, jax.nn.log_softmax(logits_of(model, params, x))

    return token, jax.jit(segment)


def carried_nats(model, text) -> np.ndarray:
    """Losses of the tokens behind the first one, read one by one."""
    token = programs(model)[0]
    decoder, nats = init_decoder(model, init_carry(model, 1)), []
    for this, following in itertools.pairwise(text):
        decoder, logits = token(decoder, jnp.array([this], jnp.int32))
        nats.append(-float(jax.nn.log_softmax(logits[0])[following]))
    return np.array(nats)


def behind_nats(model, text, carries) -> np.ndarray:
    """Losses of a document whose segment n is read behind `carries(n)`."""
    size, segment, nats = model.segment, programs(model)[1], []
    for n, begin in enumerate(range(0, len(text) - 1, size)):
        inputs, targets = text[begin : begin + size], text[begin + 1 : begin + size + 1]
        padded = jnp.asarray(np.resize(inputs, size)[None], jnp.int32)
        log_p = segment(carries(n), padded)[1][0]
        nats += [-float(log_p[place, target]) for place, target in enumerate(targets)]
    return np.array(nats)


def empty_carry(model, segments: int):
    """An empty memory; landmarks stand where they do in the document."""
    carry = init_carry(model, 1)
    if model.has_phase:
        carry = carry.replace(phase=jnp.full(1, segments * model.segment % model.memory.landmark_every, jnp.int32))
    return carry


def carry_behind(model, text, segments: int):
    """The carry that a document left after so many segments, begun again where it ends."""
    carry = init_carry(model, 1)
    for number in range(segments):
        places = (number * model.segment + np.arange(model.segment)) % len(text)
        carry = programs(model)[1](carry, jnp.asarray(text[places][None], jnp.int32))[0]
    return carry


def expected(model, documents, rows: int) -> dict[int, dict[str, np.ndarray]]:
    """Losses of each document's tokens under each condition, worked out alone; partners by the rule in the docstring."""
    texts = texts_of(documents)
    order = sorted((n for n in range(len(texts)) if len(texts[n]) > 1), key=lambda n: -len(texts[n]))
    groups = [order[first : first + rows] for first in range(0, len(order), rows)]
    groups[-1] = order[-rows:]
    found = {}
    for group in groups:
        for place, number in enumerate(group):
            if number in found:
                continue
            partner = texts[group[place - 1]]
            found[number] = {
                "carried": carried_nats(model, texts[number]),
                "reset": behind_nats(model, texts[number], functools.partial(empty_carry, model)),
                "another": behind_nats(model, texts[number], lambda n, other=partner: carry_behind(model, other, n)),
            }
    return found


STRADDLED = streams.tiny("landmark", layers=2, segment=12)  # segments that are no whole landmark blocks


QUICK = ("infini", "memorizing")
OF_EACH = {name: streams.tiny(name, layers=1, segment=16) for name in MECHANISMS}
WHOLE = [one if name in QUICK else pytest.param(one, marks=pytest.mark.slow) for name, one in OF_EACH.items()]


@pytest.mark.parametrize("model", [*WHOLE, pytest.param(STRADDLED, marks=pytest.mark.slow)], ids=repr_of)
def test_every_token_is_scored_once_with_the_memory_of_its_condition(model):
    """Against single documents read token by token; float32 sums in another order move a loss by about 1e-5."""
    documents = documents_of(model.vocab)
    reader = Reader(model, documents, COUNTS, ALL)
    found = reader.read(streams.parameters_of(model))
    slow = expected(model, documents, ALL.rows)
    assert sorted(found.documents) == sorted(slow) == [n for n, length in enumerate(LENGTHS) if length > 1]
    assert found.tokens == reader.tokens == sum(length - 1 for length in LENGTHS)
    for row in found.by_document():
        alone = slow[row["document"]]
        assert row["tokens"] == LENGTHS[row["document"]] - 1
        for condition in CONDITIONS:
            assert row[condition] == pytest.approx(alone[condition].mean(), abs=5e-5), (condition, row)
    for place in found.by_position():
        here = slice(place["from"] - 1, 2 * place["from"] - 1)
        assert place["tokens"] == sum(len(alone["carried"][here]) for alone in slow.values())
        for condition in CONDITIONS:
            nats = np.concatenate([alone[condition][here] for alone in slow.values()])
            assert place[condition] == pytest.approx(nats.mean(), abs=5e-5), (condition, place)
    assert sum(place["tokens"] for place in found.by_position()) == found.tokens


def test_the_conditions_differ_as_soon_as_there_is_a_memory():
    """The first segment of 16 has nothing to remember; all later places have three different losses."""
    model = streams.tiny("full", layers=1)
    documents = documents_of(model.vocab, (64, 64, 64))
    found = Reader(model, documents, COUNTS, ALL).read(streams.parameters_of(model))
    first, later = found.by_position()[:4], found.by_position()[5:]  # places to 15; from 32 on
    assert all(place["carried"] == place["reset"] == place["another"] for place in first)
    assert all(len({place["carried"], place["reset"], place["another"]}) == 3 for place in later)


def test_one_document_has_no_other_and_a_row_too_many_is_not_made():
    model = streams.tiny("local", layers=1)
    found = Reader(model, documents_of(model.vocab, (20,)), COUNTS, EvaluationConfig()).read(streams.parameters_of(model))
    assert found.conditions == ("carried", "reset")
    assert found.tokens == 19
    assert all(np.isfinite(value) for value in found.metrics().values())


def test_limits_take_documents_from_all_over_the_split_and_their_beginnings():
    lengths = np.array([5, 1, 9, 4, 7, 3, 8])
    np.testing.assert_array_equal(chosen_documents(lengths, 0), [0, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(chosen_documents(lengths, 3), [0, 3, 5])
    np.testing.assert_array_equal(chosen_documents(lengths, 99), chosen_documents(lengths, 0))
    with pytest.raises(
        ConfigError, match=r"^data: no document of 'tiny' \(test split\) has two tokens, .*; prepare longer .* --test"
    ):
        chosen_documents(np.array([1, 1]), 0, "'tiny' (test split)")
    model = streams.tiny("local", layers=1)
    reader = Reader(model, documents_of(model.vocab, tuple(lengths)), COUNTS, EvaluationConfig(documents=0, tokens=5))
    assert sorted(reader.lengths_D) == [3, 4, 5, 5, 5, 5]
    assert reader.cut == 3
    assert reader.read(streams.parameters_of(model)).tokens == reader.tokens == 21


def test_figures_are_those_of_the_definitions():
    """exp(nats x tokens / words) and nats x tokens / (bytes ln 2), as the split counts them."""
    model = streams.tiny("local", layers=1)
    found = Reader(model, documents_of(model.vocab), COUNTS, ALL).read(streams.parameters_of(model))
    loss = found.nats_CxD[0].sum() / (sum(LENGTHS) - (len(LENGTHS)))
    figures = found.figures("carried")
    assert figures["loss"] == pytest.approx(loss, rel=1e-12)
    assert figures["word_perplexity"] == pytest.approx(np.exp(loss * sum(LENGTHS) / 50), rel=1e-12)
    assert figures["bits_per_byte"] == pytest.approx(loss * sum(LENGTHS) / 300 / np.log(2), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"documents": -1}, "evaluation.documents"),
        ({"tokens": 1}, "evaluation.tokens"),
        ({"rows": 0}, "evaluation.rows"),
        ({"rows": 1}, "evaluation.rows"),
        ({"conditions": ("reset",)}, "evaluation.conditions"),
        ({"conditions": ("carried", "none")}, "evaluation.conditions"),
    ],
)
def test_impossible_settings_are_refused(settings, field):
    with pytest.raises(ConfigError) as error:
        EvaluationConfig(**settings)
    assert error.value.field == field


def test_words_of_the_standard_library_are_counted_in_its_bytes():
    documents = Documents.join([b"two words", b"and three more\n"])
    counts = counted_bytes(documents)
    assert (counts.documents, counts.tokens, counts.words, counts.bytes, counts.longest) == (2, 24, 5, 24, 15)


def summary(rows: int) -> list[list[float]]:
    model = streams.tiny("infini", layers=1)
    lengths = (40, 20, 33, 70, 17, 18, 50, 60, 24)
    found = Reader(model, documents_of(model.vocab, lengths), COUNTS, EvaluationConfig(0, 0, rows))
    return found.read(streams.parameters_of(model)).nats_CxD.tolist()


def on_all_devices() -> list:
    """[devices, `summary` of eight rows, of three]."""
    return [jax.device_count(), summary(8), summary(3)]


@pytest.mark.slow
def test_several_devices_give_the_numbers_of_one():
    """Eight share eight rows; three rows are on all of them. Float32 sums in another order move a document's by 1e-4."""
    devices, *found = on_devices(8, "test_perplexity", "on_all_devices()")
    assert devices == 8
    for rows, of_rows in zip((8, 3), found, strict=True):
        np.testing.assert_allclose(of_rows, summary(rows), atol=1e-3, err_msg=f"{rows} rows")
