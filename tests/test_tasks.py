"""Tasks drawn as examples: a reader of the text is always right, a guesser as often as chance, lengths are exact."""

import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infini_jax.config import ModelConfig, RunConfig, TrainConfig
from infini_jax.data import SOURCES, facts
from infini_jax.data.batch import Rows
from infini_jax.data.examples import ExampleConfig
from infini_jax.data.haystack import ITEMS, HaystackConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.passkey import QUESTION, TASK, PasskeyConfig
from infini_jax.data.sorting import SortingConfig, ceiling_mean, ceiling_window
from infini_jax.data.text_task import FILLER
from infini_jax.data.tokenizers import Bytes, SentencePiece, train_sentencepiece
from infini_jax.data.words import MADE_UP, Words, made_up
from infini_jax.errors import ConfigError
from tests.support.readers import READERS, passkey
from tests.test_tokenizer import public_model

PASSKEYS = [
    PasskeyConfig(),
    PasskeyConfig(novelty=12),
    PasskeyConfig(format="landmark"),
    PasskeyConfig(format="landmark", novelty=12, depth=0.5),
]
HAYSTACKS = [HaystackConfig(task=kind) for kind in ITEMS] + [
    HaystackConfig(task="variable_tracking", items=3),
    HaystackConfig(task="rewrite", items=5),
]
TEXTS = PASSKEYS + HAYSTACKS
ALL: list[ExampleConfig] = [*TEXTS, MqarConfig(pairs=4, symbols=32, overwrites=2), SortingConfig(symbols=6)]
BOOK = (
    "Nora liked the garden. It rained in the market! Who knows? A candle burnt in the bakery. They slept well.\nThe end came."
)


def named(config: ExampleConfig) -> str:
    told = [getattr(config, name) for name in ("task", "format", "novelty", "items") if hasattr(config, name)]
    return "-".join(map(str, [next(name for name, kind in SOURCES.items() if kind is type(config)), *told]))


def with_bytes(config: ExampleConfig) -> ExampleConfig:
    return dataclasses.replace(config, tokenizer="bytes")


def least_of(config: ExampleConfig) -> int:
    """What the error of a length that is too short asks for."""
    with pytest.raises(ConfigError) as error:
        config.check(1)
    return int(re.search(r"give at least (\d+)", str(error.value)).group(1))


def answered(config: ExampleConfig, prompt: str) -> str:
    """What a reader of the prompt says."""
    if isinstance(config, HaystackConfig):
        return READERS[config.task](prompt)
    return passkey(prompt) + "." * (config.format == "landmark")


@pytest.fixture(scope="module")
def pieces() -> dict[str, SentencePiece]:
    texts = sorted({text for config in TEXTS for text in config.lexicon()})
    return {
        "ours": SentencePiece(train_sentencepiece(texts, 420)),
        "llama": SentencePiece(public_model(byte_fallback=True, vocab_size=300)),  # puts a space before every line
    }


@pytest.mark.parametrize("config", [*TEXTS, *map(with_bytes, TEXTS)], ids=lambda c: f"{named(c)}-{c.tokenizer}")
def test_a_reader_of_the_prompt_is_always_right(config):
    tokenizer, least = config.open_tokenizer(), least_of(config)
    prompts = set()
    for seed, tokens in enumerate((least, least + 1, 2 * least, 2 * least + 7)):
        example = config.example(np.random.default_rng(seed), tokens)
        assert len(example.tokens) == len(example.targets) == len(example.weights) == tokens
        assert max(example.tokens.max(), example.targets.max()) < config.vocab
        np.testing.assert_array_equal(example.tokens[1:], example.targets[:-1])
        np.testing.assert_array_equal(np.flatnonzero(example.weights), example.prompt - 1 + np.arange(len(example.answer)))
        answer = tokenizer.decode(example.answer).strip()
        assert answer == answered(config, tokenizer.decode(example.tokens[: example.prompt]))
        assert all(reference in answer for reference in example.references)
        assert dict(example.labels)["length"] == tokens
        prompts.add(tokens - example.prompt)
    assert len(prompts) == 1  # prompts of a length end together


@pytest.mark.parametrize("config", TEXTS, ids=named)
def test_the_least_length_named_is_the_least(config):
    for one in (config, with_bytes(config)):
        least = least_of(one)
        one.check(least)
        with pytest.raises(ConfigError, match=f"^length: {least - 1} tokens do not hold .+; give at least"):
            one.check(least - 1)


@pytest.mark.parametrize("config", TEXTS, ids=named)
@settings(max_examples=6, deadline=None)
@given(extra=st.integers(0, 700), seed=st.integers(0, 99))
def test_lengths_are_exact_in_any_tokenizer(config, extra, seed, pieces):
    for tokenizer in (Bytes(), *pieces.values()):
        tokens = 3 * least_of(with_bytes(config)) + extra
        example = config.text_example(np.random.default_rng(seed), tokens, tokenizer.encode)
        again = config.text_example(np.random.default_rng(seed + 1), tokens, tokenizer.encode)
        assert len(example.tokens) == tokens
        assert example.prompt == again.prompt
        text = tokenizer.decode(example.tokens[: example.prompt])
        assert tokenizer.decode(example.answer).strip() == answered(config, text)
    own, tokenizer = config.example(np.random.default_rng(seed), least_of(config) + extra), config.open_tokenizer()
    assert len(own.tokens) == least_of(config) + extra
    assert tokenizer.decode(own.answer).strip() == answered(config, tokenizer.decode(own.tokens[: own.prompt]))


@pytest.mark.parametrize("config", ALL, ids=named)
def test_the_same_seed_is_the_same_example_whatever_the_batch(config):
    shape = Rows(batch=5, tokens=1200, seed=3)
    source, other = config.open(shape), config.open(dataclasses.replace(shape, seed=4))
    whole = source.batch(2)
    for ours, theirs, differs in zip(whole, config.open(shape).rows(2, 1, 3), other.batch(2), strict=True):
        np.testing.assert_array_equal(ours[1:4], theirs)
        assert ours.shape == differs.shape == (5, 1200)
    assert not np.array_equal(whole.tokens, other.batch(2).tokens)
    assert not np.array_equal(whole.tokens, source.batch(3).tokens)
    assert len({row.tobytes() for row in whole.tokens}) == 5
    one, two = (config.example(np.random.default_rng(8), 1200) for _ in range(2))
    np.testing.assert_array_equal(one.tokens, two.tokens)
    assert one.labels == two.labels


@pytest.mark.parametrize("kind", ["facts1", "facts2", "facts3", "associative", "rewrite"])
def test_a_guesser_scores_chance(kind):
    config, random, trials = HaystackConfig(task=kind, names=10), np.random.default_rng(0), 1500
    hits = 0
    for _ in range(trials):
        story = config.story(random)
        last = re.search(r"came to the (\w+)", story.question)
        places = [place for place in facts.PLACES if not last or place != last.group(1)]
        choices = places if kind.startswith("facts") else [made_up(number) for number in range(10)]
        hits += choices[random.integers(len(choices))] == story.references[0]
    chance = config.chance()["exact_match"]
    assert abs(hits / trials - chance) < 4 * (chance * (1 - chance) / trials) ** 0.5


def test_a_reader_of_the_older_value_is_never_right_on_rewrite():
    for seed in range(20):
        text = HaystackConfig(task="rewrite").story(np.random.default_rng(seed))
        key = re.search(r"What is the value of (\w+)", text.question).group(1)
        values = [needle.split()[-1][:-1] for needle in text.body.needles if f" {key} " in needle]
        assert len(values) == 2
        assert values[0] != values[1] == text.references[0]


def test_one_pair_stands_in_each_stretch_and_the_question_in_the_last():
    config, segment = HaystackConfig(task="associative", items=6), 32
    example = config.example(np.random.default_rng(0), 7 * segment)
    tokenizer = config.open_tokenizer()
    parts = [tokenizer.decode(part) for part in np.split(example.tokens, 7)]
    assert [len(re.findall(r"The value of \w+ is \w+\.", part)) for part in parts] == [1] * 6 + [0]
    assert "What is the value of" in parts[-1]


@pytest.mark.parametrize("depth", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("paper", ["infini", "landmark"])
def test_the_needle_stands_at_the_depth_asked_for(paper, depth):
    config = PasskeyConfig(tokenizer="bytes", format=paper, depth=depth)
    example = config.example(np.random.default_rng(0), 5000)
    text = Bytes().decode(example.tokens[: example.prompt])
    needle = re.search(r"The pass key is \d+\. Remember it\. \d+ is the pass key\.", text)
    begin = len(TASK) + 1
    filler = len(text) - begin - len(QUESTION) - len(needle.group()) - 3
    assert abs((needle.start() - 1 - begin) / filler - depth) < 0.015  # half a paragraph of filler, 90 bytes, is 0.01
    assert dict(example.labels)["depth"] == depth
    assert ("\n" + needle.group() + "\n" in text) == (paper == "landmark")
    behind = text[needle.end() + 1 :]
    assert behind.startswith("The grass is green." if depth < 1 else ("What", "\nWhat"))


def test_landmark_numbers_and_places_are_uniform():
    config = PasskeyConfig(format="landmark")
    stories = [config.story(np.random.default_rng(seed)) for seed in range(400)]
    numbers = np.array([int(story.references[0]) for story in stories])
    assert 1 <= numbers.min() < 1000 < 49000 < numbers.max() <= 50000
    for drawn in (numbers / 50000, np.array([story.body.places[0] for story in stories])):
        assert np.abs(np.sort(drawn) - np.linspace(0, 1, 400)).max() < 0.1  # Kolmogorov-Smirnov, p < 0.001


@pytest.mark.parametrize("paper", ["infini", "landmark"])
@pytest.mark.parametrize("novelty", [1, 7, 190])
def test_the_filler_has_as_many_different_words_as_the_novelty_says(paper, novelty):
    config = PasskeyConfig(format=paper, novelty=novelty)
    words = {made_up(number) for number in range(config.filler_words)}
    for tokens in (least_of(config), 700):
        example = config.example(np.random.default_rng(1), tokens)
        text = config.open_tokenizer().decode(example.tokens[: example.prompt])
        counts = Counter(word for word in text.split() if word in words)
        assert len(counts) == novelty
        assert max(counts.values()) - min(counts.values()) <= 1
        assert "grass" not in text
    with pytest.raises(ConfigError, match=r"^data.novelty: a book's words"):
        config.text_example(np.random.default_rng(0), 900, Bytes().encode, text=BOOK)


@pytest.mark.parametrize("config", [HaystackConfig(task="facts2"), HaystackConfig(), PasskeyConfig()], ids=named)
def test_sentences_of_a_book_hide_the_needles_and_do_not_tell_the_answer(config, pieces):
    for tokenizer in (Bytes(), pieces["ours"]):
        example = config.text_example(np.random.default_rng(2), 1600, tokenizer.encode, text=BOOK)
        text = tokenizer.decode(example.tokens[: example.prompt])
        assert tokenizer.decode(example.answer).strip() == answered(config, text)
        assert len(example.tokens) == 1600
        assert "They slept well. The end came." in text
        assert ("Nora liked the garden." in text) == (getattr(config, "task", "") != "facts2")
        assert FILLER[0] not in text
    with pytest.raises(ConfigError, match=r"^text: no sentence is free"):
        HaystackConfig(task="facts1").text_example(
            np.random.default_rng(0), 900, Bytes().encode, text="Nora slept. Ivan, too."
        )


@pytest.mark.parametrize(("tokens", "common", "rare"), [(400, 16, 2), (1200, 30, 3), (10_000, 202, 21)])
def test_common_words_stand_ten_times_as_often_as_rare_ones(tokens, common, rare):
    """RULER's thirty and three where the list allows it, fewer in a short list, more where the words run out."""
    config = HaystackConfig(task="common_words", names=400)
    example = config.example(np.random.default_rng(0), tokens)
    listed = config.open_tokenizer().decode(example.tokens[: example.prompt]).split("appear most often.")[1]
    counts = Counter(re.findall(r"\b[a-z]{4}\b", listed.split(" Question:")[0]))
    times = [count for _, count in counts.most_common()]
    assert times[:10] == [common] * 10
    assert times[10] == rare
    assert times[-2] >= rare - 1  # all but one, which takes what is left over
    assert set(example.references) == {word for word, _ in counts.most_common(10)}


def test_frequent_words_fall_with_the_square_of_their_rank():
    config = HaystackConfig(task="frequent_words")
    example = config.example(np.random.default_rng(0), 20_000)
    counts = Counter(config.open_tokenizer().decode(example.tokens[: example.prompt]).split())
    first, second, third = (counts[word] for word in example.references)
    assert counts["..."] / first == pytest.approx(4, rel=0.01)
    assert first / second == pytest.approx(9 / 4, rel=0.01)
    assert second / third == pytest.approx(16 / 9, rel=0.01)


def test_words_come_back_and_unknown_ones_are_refused():
    texts = ["There, VAR x = 12345. Is it?\nIt is: 7, 8 ... ... end."]
    words = Words(texts)
    tokens = words.encode(texts[0])
    assert words.decode(tokens) == texts[0]
    assert "".join(words.decode_each(tokens[3:], begins_line=False)) == words.decode(tokens)[len(words.decode(tokens[:3])) :]
    assert sorted(set(tokens)) == list(range(words.vocab))
    assert words.name != Words(["other"]).name
    with pytest.raises(ConfigError, match=r"^data.tokenizer: 'unseen' is not a word of this task"):
        words.encode("It is unseen")


def test_made_up_words_are_all_different_and_none_is_a_word_of_a_task():
    words = {made_up(number) for number in range(MADE_UP)}
    assert len(words) == MADE_UP
    spoken = {piece for config in (HaystackConfig(names=0), PasskeyConfig(filler_words=0)) for piece in config.lexicon()}
    assert not words & set(re.findall(r"\w+", " ".join(spoken)))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (PasskeyConfig(novelty=200), r"^data.novelty: 200 different words cannot be drawn from 192"),
        (PasskeyConfig(depth=1.5), r"^data.depth: 1.5"),
        (PasskeyConfig(digits=0), r"^data.digits: 0"),
        (HaystackConfig(task="single", items=2), r"^data.items: single cannot have 2"),
        (HaystackConfig(task="rewrite", items=1), r"^data.items: rewrite cannot have 1"),
        (HaystackConfig(task="facts1", items=7), r"^data.items: facts1 cannot have 7; give 1 to 6"),
        (HaystackConfig(task="common_words", names=100), r"^data.names: common_words needs 110"),
        (SortingConfig(symbols=1), r"^data.symbols: 1"),
        (MqarConfig(pairs=4, overwrites=5), r"^data.overwrites: 5 of 4 pairs"),
    ],
)
def test_settings_that_no_length_would_do_for_are_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        config.check(100_000)


@pytest.mark.parametrize("config", ALL, ids=named)
def test_settings_come_back_from_a_saved_run(config):
    run = RunConfig(model=ModelConfig(segment=100), data=config, train=TrainConfig(sequence=1200))
    assert RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_lengths_that_hold_no_row_are_refused():
    with pytest.raises(ConfigError, match=r"^train.sequence: 39 tokens leave .+; give at least 40"):
        SortingConfig().example(np.random.default_rng(0), 39)
    with pytest.raises(ConfigError, match=r"^train.sequence: 15 tokens .+; give at least 16"):
        MqarConfig(pairs=4, overwrites=2).example(np.random.default_rng(0), 15)


def test_overwritten_pairs_are_answered_by_their_newest_value():
    config = MqarConfig(pairs=6, symbols=32, repeats=2, overwrites=4)
    batch = config.open(Rows(batch=40, tokens=40, seed=1)).batch(0)
    again = Counter()
    for tokens, targets, weights in zip(batch.tokens, batch.targets, batch.weights, strict=True):
        pairs = list(zip(tokens[0:20:2], tokens[1:20:2], strict=True))
        first, newest = dict(pairs[:6]), dict(pairs)
        rewritten = [key for key, _ in pairs[6:]]
        assert len(first) == 6
        assert len(set(rewritten)) == 4
        assert all(first[key] != newest[key] for key in rewritten)
        assert [newest[key] for key in tokens[weights == 1]] == list(targets[weights == 1])
        again.update(list(first).index(key) for key in rewritten)
    assert set(again) == set(range(6))  # any pair may be written again
    example = config.example(np.random.default_rng(0), 40)
    assert dict(example.labels) == {"pairs": 6, "length": 40, "overwrites": 4}
    assert example.prompt == 0
    assert len(example.answer) == 12


@settings(max_examples=20, deadline=None)
@given(symbols=st.integers(2, 20), extra=st.integers(0, 300), seed=st.integers(0, 99))
def test_sorting_is_by_decreasing_count_with_the_earlier_first(symbols, extra, seed):
    example = SortingConfig(symbols=symbols).example(np.random.default_rng(seed), 2 * symbols + extra)
    *read, separator = example.tokens[: example.prompt]
    order = [symbol for symbol, _ in Counter(read).most_common()]  # equal counts in the order of their first
    assert list(example.answer) == order + [symbol for symbol in range(symbols) if symbol not in order]
    assert separator == symbols
    assert len(example.tokens) == 2 * symbols + extra


def test_the_mixture_drifts_from_one_distribution_to_the_other():
    config = SortingConfig(symbols=4)
    read, mean = config.draw(np.random.default_rng(0), 40_000)
    assert np.abs(np.bincount(read) / 40_000 - mean).max() < 0.01  # four standard errors
    begin, end = (np.bincount(part) / 10_000 for part in (read[:10_000], read[-10_000:]))
    assert np.abs(begin - end).max() > 0.05


# 400 sequences gave these; 80 of ours have a standard error of 0.014 (0.12 a sequence), so 0.05 is more than three of both.
@pytest.mark.parametrize(
    ("length", "windows", "mean"),
    [(4000, (0.34, 0.38, 0.46), 0.41), (8000, (0.32, 0.34, 0.38), 0.49), (16000, (0.32, 0.34, 0.35), 0.58)],
)
def test_sorting_ceilings_are_the_measured_ones(length, windows, mean):
    config, random = SortingConfig(), np.random.default_rng(1)
    found = [ceiling_window(config, random, length, window, 80) for window in (512, 1024, 2048)]
    np.testing.assert_allclose(found, windows, atol=0.05)
    assert ceiling_mean(config, random, length, 80) == pytest.approx(mean, abs=0.05)


def test_guesses_at_sorting_score_chance():
    config, random = SortingConfig(), np.random.default_rng(0)
    free, forced = [], []
    for _ in range(300):
        answer = config.example(random, 60).answer
        free.append(np.mean(random.permutation(20) == answer))
        left, right = list(range(20)), 0
        for symbol in answer:
            right += left[random.integers(len(left))] == symbol
            left.remove(symbol)
        forced.append(right / 20)
    assert np.mean(free) == pytest.approx(
        config.chance()["free_running"], abs=0.012
    )  # four standard errors of 0.05 / sqrt(300)
    assert np.mean(forced) == pytest.approx(config.chance()["teacher_forced"], abs=0.02)  # of 0.08 / sqrt(300)


def test_chances_of_numbers_are_those_of_drawing_one():
    assert PasskeyConfig(digits=2).chance()["exact_match"] == pytest.approx(1 / 90)
    random = np.random.default_rng(0)
    drawn = random.integers(10, 100, (2, 4000))
    right = np.mean([drawn[0] // 10 == drawn[1] // 10, drawn[0] % 10 == drawn[1] % 10])
    assert right == pytest.approx(PasskeyConfig(digits=2).chance()["token_accuracy"], abs=0.015)
    assert PasskeyConfig(format="landmark").chance() == {"exact_match": 1 / 50000}
    assert MqarConfig(symbols=32).chance() == {"accuracy": 1 / 16}
    assert HaystackConfig(task="common_words").chance() == {}


@pytest.mark.parametrize(
    "config",
    [
        PasskeyConfig(digits=2),
        PasskeyConfig(digits=2, tokenizer="bytes"),
        HaystackConfig(),
        HaystackConfig(tokenizer="bytes"),
        HaystackConfig(task="facts1"),
    ],
    ids=repr,
)
def test_a_guesser_of_tokens_scores_chance(config):
    """Answers to other examples are as good as any guess."""
    random = np.random.default_rng(0)
    answers = [config.example(random, 800).answer for _ in range(400)]
    right = np.mean([one == other for n, one in enumerate(answers) for other in answers[:n]])
    # 79800 pairs, dependent through 400 answers: a standard error of at most 0.5 / sqrt(400 / 4) a token; digits are far below
    assert right == pytest.approx(config.chance()["token_accuracy"], abs=0.02)


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (MqarConfig(pairs=4, symbols=64), 40),
        (MqarConfig(pairs=4, symbols=64, overwrites=2, repeats=2), 40),
        (PasskeyConfig(digits=7, depth=0.25), 112),
        (PasskeyConfig(digits=7, depth=0.0, format="landmark"), 448),
        (PasskeyConfig(digits=7), 112),
        (HaystackConfig(task="associative"), 448),
    ],
    ids=repr,
)
def test_no_answer_lies_nearer_than_the_distance(config, tokens):
    random, found = np.random.default_rng(0), []
    for _ in range(50):
        example = config.example(random, tokens)
        asked = np.flatnonzero(example.weights)
        read = example.tokens[: asked[0] + 1]
        if example.prompt:  # the answer as a whole; its last digit is the nearest
            answer = example.answer[: len(example.references[0])] if example.references[0].isdigit() else example.answer
            windows = np.lib.stride_tricks.sliding_window_view(read, len(answer))
            found.append(asked[0] - (np.flatnonzero((windows == answer).all(axis=1))[-1] + len(answer) - 1))
        else:
            found += [place - np.flatnonzero(read == example.targets[place])[-1] for place in asked]
    assert min(found) >= config.distance(tokens)
    if isinstance(config, MqarConfig):
        assert min(found) == config.distance(tokens) > 0


def test_labels_of_figures_name_settings_but_for_the_length():
    assert MqarConfig().with_labels({"pairs": 4, "length": 64, "age": 3}) == MqarConfig(pairs=4)
    few = HaystackConfig(task="multi_key", items=2)
    assert few.with_labels({"kind": "multi_key"}) == few
    assert few.with_labels({"kind": "facts1"}) == HaystackConfig(task="facts1")
    assert PasskeyConfig(novelty=8).covers(PasskeyConfig(novelty=8, depth=0.5, format="landmark"))
    assert not PasskeyConfig(novelty=8).covers(PasskeyConfig(novelty=16))
