"""Text that quotes itself: what is planted is found by brute force, and only a memory that reaches it can predict it."""

import collections
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.data.batch import Rows
from infini_jax.data.documents import DocumentRows, Documents
from infini_jax.data.echo import FIRST_TIME, UNSCORED, EchoConfig, EchoText, Layout, joined_starts
from infini_jax.data.stdlib import stdlib_documents
from infini_jax.errors import ConfigError
from tests.support.corpora import write_stories

CUE = (7, 8, 9)
LAYOUT = Layout(CUE, span=24, lead=8, share=0.25, distances=(60, 300, 900))
CONTEXT = 8  # tokens that are looked for: of random text none stand twice
CONFIG = EchoConfig(distances=(256, 1024))
ROWS = Rows(batch=3, tokens=700, seed=1)


def random_documents(*lengths: int) -> Documents:
    text = np.random.default_rng(5).integers(10, 256, sum(lengths)).astype(np.uint8)
    return Documents(text, np.cumsum([0, *lengths], dtype=np.int64), "random")


def echo_of(*lengths: int, layout: Layout = LAYOUT) -> tuple[EchoText, np.ndarray]:
    """(the text, its source) of random documents."""
    documents = random_documents(*lengths)
    return EchoText(documents, layout, (0, 0)), documents.text


def newest_copies(text: np.ndarray) -> dict[int, int]:
    """Place -> tokens back to the newest earlier place where the same `CONTEXT` tokens end."""
    seen, found = {}, {}
    for place in range(CONTEXT - 1, len(text)):
        gram = tuple(text[place - CONTEXT + 1 : place + 1])
        if gram in seen:
            found[place] = place - seen[gram]
        seen[gram] = place
    return found


def test_brute_force_finds_what_is_planted_at_the_stated_distances_and_nothing_else():
    text, _ = echo_of(6000)
    planted = text.quotations(0)
    expected, told = {}, text.places(0, 6000)
    for begin, back, distance in zip(planted.begins[1:], planted.back[1:], planted.distances[1:], strict=True):
        first = begin + len(CUE)
        expected |= dict.fromkeys(range(first + CONTEXT - 1, first + LAYOUT.span), back)
        assert distance <= back < distance + LAYOUT.frame
        assert text[begin:first].tolist() == list(CUE)
        assert told[begin : first + LAYOUT.lead].tolist() == [UNSCORED] * (len(CUE) + LAYOUT.lead)
        assert told[first + LAYOUT.lead : first + LAYOUT.span].tolist() == [distance] * (LAYOUT.span - LAYOUT.lead)
    assert newest_copies(text[:]) == expected
    counts = [int((planted.distances == distance).sum()) for distance in LAYOUT.distances]
    assert min(counts) >= 8  # of 55 frames


def test_what_is_quoted_stands_for_the_first_time_and_is_quoted_once():
    text, source = echo_of(20_000)
    planted, told = text.quotations(0), text.places(0, 20_000)
    stretches = [
        range(begin + len(CUE) - back, begin + len(CUE) - back + LAYOUT.span)
        for begin, back in zip(planted.begins[1:], planted.back[1:], strict=True)
    ]
    quoted = [place for stretch in stretches for place in stretch]
    assert len(set(quoted)) == len(quoted)
    assert set(told[quoted]) == {FIRST_TIME}
    assert all(stretch.stop <= begin for stretch, begin in zip(stretches, planted.begins[1:], strict=True))
    np.testing.assert_array_equal(text[:][told == FIRST_TIME], source[told == FIRST_TIME])
    behind = told[LAYOUT.distances[-1] + 2 * LAYOUT.frame :] != FIRST_TIME
    assert behind.mean() == pytest.approx(LAYOUT.share * (LAYOUT.span + len(CUE)) / LAYOUT.block, abs=0.03)


def test_a_quotation_never_leaves_its_document_and_one_too_short_has_none():
    text, source = echo_of(1800, 2500, 1900)  # each at least twice the longest distance, so that none are joined
    assert text.starts.tolist() == [0, 1800, 4300, 6200]
    for document in range(3):
        planted = text.quotations(document)
        assert (planted.back[1:] <= planted.begins[1:] + len(CUE)).all()
    lone, source = echo_of(LAYOUT.distances[0])
    np.testing.assert_array_equal(lone[:], source)
    assert set(lone.places(0, len(lone))) == {FIRST_TIME}


@pytest.mark.parametrize("least", [1, 5, 12, 100])
def test_short_texts_are_joined_in_order_until_they_are_long_enough(least):
    lengths = [3, 4, 1, 12, 2, 2, 9, 1, 1]
    starts, kept, size = np.cumsum([0, *lengths]), [0], 0
    for length in lengths:
        size += length
        if size >= least:
            kept.append(kept[-1] + size)
            size = 0
    if size:  # what is left joins the last one
        kept[-1 if len(kept) > 1 else len(kept) :] = [int(starts[-1])]
    assert joined_starts(starts, least).tolist() == kept


def test_tokens_made_where_they_are_read_are_those_of_the_whole_text():
    text, _ = echo_of(2000, 2600)
    whole, random = text[:], np.random.default_rng(0)
    places = random.integers(0, len(text), 500)
    np.testing.assert_array_equal(text[places], whole[places])
    np.testing.assert_array_equal(text[1990:2010], whole[1990:2010])
    assert text[:].dtype == whole.dtype == np.uint8
    shape = Rows(2, 300, 3)
    made, kept = (DocumentRows(Documents(of, text.starts, "random"), shape) for of in (text, whole))
    for step in (0, 5, 40):  # several epochs
        for ours, theirs in zip(made.batch(step), kept.batch(step), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_batches_depend_on_the_step_alone_and_streams_go_on():
    source, again = CONFIG.open(ROWS), CONFIG.open(ROWS)
    again.batch(0)
    for ours, theirs, part in zip(source.batch(3), again.batch(3), again.rows(3, 1, 2), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(ours[1:], part)
    long = CONFIG.open(dataclasses.replace(ROWS, tokens=1400)).batch(1)
    np.testing.assert_array_equal(np.concatenate([source.batch(2).tokens, source.batch(3).tokens], axis=1), long.tokens)
    assert not np.array_equal(source.batch(3).tokens, CONFIG.open(dataclasses.replace(ROWS, seed=2)).batch(3).tokens)


def test_the_seed_of_the_settings_draws_other_quotations_and_that_of_a_run_only_another_order():
    first, again, other = (dataclasses.replace(CONFIG, seed=seed).whole("validation")[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.text[:20_000], again.text[:20_000])
    assert not np.array_equal(first.text[:20_000], other.text[:20_000])
    np.testing.assert_array_equal(first.starts, other.starts)


def test_splits_share_no_text():
    """The splits of the source share none, and a document is text of its own split, quoted from itself."""
    for split in ("validation", "test"):
        documents, counts = CONFIG.whole(split)
        source = stdlib_documents(split)
        assert set(documents.starts.tolist()) <= set(source.starts.tolist())
        assert counts.tokens == len(documents.text) == len(source.text)
        assert counts.documents == len(documents.lengths)
        assert documents.lengths.min() >= min(2 * CONFIG.distances[-1], len(source.text))
        for number in range(3):
            start, length = int(documents.starts[number]), int(documents.lengths[number])
            is_own = documents.text.places(number, length) == FIRST_TIME
            own = source.text[start : start + length]
            np.testing.assert_array_equal(documents.text[start : start + length][is_own], own[is_own])


def test_a_prepared_corpus_is_quoted_in_its_own_tokens_and_a_saved_run_names_it(monkeypatch, tmp_path):
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "data"))
    words = [f"word{number} " for number in np.random.default_rng(0).integers(0, 500, 3000)]
    texts = {f"{split}/{split}.txt": "".join(words) for split in ("train", "validation", "test")}
    folder = str(write_stories(tmp_path / "texts", texts))
    made = ["corpus", "prepare", "text_folder", "--path", folder, "--name", "words", "--jobs", "1"]
    main([*made, "--tokenizer", "sentencepiece", "--vocab", "300"])
    config = EchoConfig(name="words", distances=(64, 256), span=32, lead=8)
    assert (config.tokenizer[:13], config.symbols, config.vocab) == ("sentencepiece", 300, 300)
    documents, _ = config.whole("train")
    begin = documents.text.quotations(0).begins[1]
    said = config.open_tokenizer().decode(documents.text[begin : begin + documents.text.layout.block])
    assert said.startswith(config.cue)
    run = RunConfig(data=config, model=ModelConfig(vocab=300), train=TrainConfig(sequence=64))
    saved = run.to_dict()
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path / "elsewhere"))
    assert RunConfig.from_dict(saved) == run
    with pytest.raises(ConfigError, match=r"^data.name: no prepared corpus 'words'"):
        run.data.whole("train")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"distances": ()}, "data.distances: there is none"),
        ({"distances": (4096, 1024)}, r"data.distances: \(4096, 1024\) do not ascend"),
        ({"distances": (66, 1024)}, "data.distances: 66 tokens back lies the quotation itself; give at least 67"),
        ({"span": 16}, "data.lead: 16 tokens leave none of a quotation of 16"),
        ({"share": 0.6}, "data.share: 0.6 is not a share that can be quoted"),
        ({"share": 0.0}, "data.share: 0.0 is not a share"),
        ({"cue": "\ud800"}, "data.cue: it is not UTF-8"),
        ({"symbols": 256}, "data.name: it is empty, and a prepared corpus is described"),
        ({"seed": -1}, "data.seed: -1 is negative"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(settings, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        EchoConfig(**settings)


# ---- who can predict a quotation -------------------------------------------------------------------------------------------


def spelling(text: np.ndarray, weight: float = 2.0) -> Callable[[bytes, int], float]:
    """The chance of a byte behind three others, from counts of other text: what a reader without any memory knows."""
    whole = text.tobytes()
    counts = [collections.Counter(whole[at : at + n + 1] for at in range(len(whole) - n)) for n in range(4)]
    totals = [collections.Counter(gram[:-1] for gram in counts[n].elements()) for n in range(4)]

    def chance(last: bytes, token: int) -> float:
        found = 1 / 256
        for n in range(4):  # each length leans on the shorter one where it was seen seldom
            context = last[len(last) - n :]
            seen, total = counts[n][context + bytes([token])], totals[n][context]
            found = (seen + weight * found) / (total + weight)
        return found

    return chance


def copier_nats(text: np.ndarray, reach: int, spelt: Callable[[bytes, int], float], context: int = 20) -> np.ndarray:
    """Losses of a reader that knows spelling and copies what followed the last `context` bytes, at most `reach` back."""
    newest: dict[bytes, int] = {}
    nats, whole, sure = np.zeros(len(text)), text.tobytes(), 0.98
    for place in range(len(text)):
        chance = spelt(whole[max(0, place - 3) : place], whole[place])
        gram = whole[max(0, place - context) : place]
        source = newest.get(gram, -1)
        if 0 <= place - source <= reach and source >= 0:
            chance = sure * (whole[source] == whole[place]) + (1 - sure) * chance
        newest[gram] = place
        nats[place] = -math.log(chance)
    return nats


def test_a_copier_loses_next_to_nothing_where_it_reaches_the_first_use_and_as_much_as_on_any_text_where_not():
    """A lead of 20 tokens, so that a quotation is told by what the copier compares."""
    config = EchoConfig(distances=(256, 1024), span=64, lead=20)
    documents, _ = config.whole("validation")
    number, length = int(documents.lengths.argmax()), 30_000
    start = int(documents.starts[number])
    text, places = documents.text[start : start + length], documents.text.places(number, length)
    spelt = spelling(stdlib_documents("train").text[:300_000])
    nats = {reach: copier_nats(text, reach, spelt) for reach in (length, 1000, 255)}
    loss = {
        (reach, place): float(of[places == place].mean()) for reach, of in nats.items() for place in (FIRST_TIME, 256, 1024)
    }
    assert min((places == distance).sum() for distance in config.distances) > 1000
    for reach, distance in ((length, 256), (length, 1024), (1000, 256)):
        assert loss[reach, distance] < 0.1 * loss[reach, FIRST_TIME]
    for reach, distance in ((255, 256), (255, 1024), (1000, 1024)):
        assert loss[reach, distance] > 0.8 * loss[reach, FIRST_TIME]
    leads = [float(of[places == UNSCORED].mean()) for of in nats.values()]
    assert max(leads) < 1.2 * min(leads)  # they tell what is quoted, so that no memory helps
