"""Tasks of symbols (MAD's and Zoology's): a reader scores one, a guesser chance, lengths are exact, axes are asked."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data import SOURCES
from infini_jax.data.batch import Rows
from infini_jax.data.examples import ExampleConfig
from infini_jax.data.mad.compression import CompressionConfig
from infini_jax.data.mad.fuzzy_recall import FuzzyRecallConfig
from infini_jax.data.mad.in_context_recall import InContextRecallConfig
from infini_jax.data.mad.memorization import MemorizationConfig
from infini_jax.data.mad.noisy_recall import NoisyRecallConfig
from infini_jax.data.mad.selective_copying import SelectiveCopyingConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.symbols import SymbolTask
from infini_jax.data.zoology.compositional import CompositionalMqarConfig
from infini_jax.data.zoology.forgetting import ForgettingMqarConfig
from infini_jax.data.zoology.stacked import StackedMqarConfig
from infini_jax.errors import ConfigError
from infini_jax.evals.symbols import SymbolEvaluation

Asked = Sequence[int]  # places of a row


def recall(config: InContextRecallConfig, text: list[int], places: Asked) -> list[int]:
    told = {key: value for key, value in zip(text[::2], text[1::2], strict=False) if key < config.keys}
    return [told[text[place]] for place in places]


def fuzzy(config: FuzzyRecallConfig, text: list[int], places: Asked) -> list[int]:
    """Splits a row where values end and keys begin, and says of each key what stood behind it at first."""
    kind = ["key" if one < config.keys else "value" if one < config.symbols - 1 else "" for one in text]
    told: dict[tuple[int, ...], list[int]] = {}
    known: dict[int, int] = {}
    place = kind.index("key")
    while place < len(text):
        key = tuple(text[place : place + config.key_length])
        assert kind[place : place + len(key)] == ["key"] * len(key)
        end = begin = place + len(key)
        while end < len(text) and kind[end] == "value":
            end += 1
        known |= {begin - 1 + number: one for number, one in enumerate(told.get(key, []))}
        told.setdefault(key, text[begin:end])
        place = end
    return [known[place] for place in places]


def copied(config: SelectiveCopyingConfig, text: list[int], places: Asked) -> list[int]:
    return [one for one in text if one < config.symbols - 2]


def kept(config: CompressionConfig, text: list[int], places: Asked) -> list[int]:
    return [one for one in text if one < config.symbols - 1]


def memorized(config: MemorizationConfig, text: list[int], places: Asked) -> list[int]:
    """From another row, which has the same values."""
    rows = [config.example(np.random.default_rng(seed), 400) for seed in range(100, 140)]
    told = {int(key): int(value) for row in rows for key, value in zip(row.tokens[::2], row.targets[1::2], strict=True)}
    assert set(told) == set(range(config.keys))
    assert len(set(told.values())) == len(told)
    return [told[text[place - 1]] for place in places]


def composed(config: CompositionalMqarConfig, text: list[int], places: Asked) -> list[int]:
    triples = np.reshape(text[: 3 * config.pairs], (-1, 3))
    assert len({*triples[:, 0]}) == len({*triples[:, 1]}) == config.pairs**0.5  # no key tells a value alone
    told = {(first, second): value for first, second, value in triples.tolist()}
    assert len(set(told.values())) == config.pairs
    return [told[text[place - 1], text[place]] for place in places]


def stacked(config: StackedMqarConfig, text: list[int], places: Asked) -> list[int]:
    pairs = [divmod(one, config.keys) for one in text if one < config.keys**2]
    assert len(pairs) == config.pairs * config.passes
    told = dict(pairs)
    assert len({*told.values()}) == len(told) == config.pairs
    return [config.keys**2 + config.keys + told[text[place] - config.keys**2] for place in places]


def newest(config: MqarConfig, text: list[int], places: Asked) -> list[int]:
    behind = 2 * (config.pairs + config.overwrites)
    told = dict(zip(text[:behind:2], text[1:behind:2], strict=True))
    return [told[text[place]] for place in places]


READERS = {
    InContextRecallConfig(): recall,
    InContextRecallConfig(symbols=9): recall,
    NoisyRecallConfig(noise=0.6): recall,
    FuzzyRecallConfig(): fuzzy,
    FuzzyRecallConfig(symbols=8, key_length=1, value_length=2): fuzzy,
    SelectiveCopyingConfig(): copied,
    SelectiveCopyingConfig(copied=3): copied,
    CompressionConfig(): kept,
    MemorizationConfig(symbols=60): memorized,
    CompositionalMqarConfig(pairs=9, symbols=96): composed,
    StackedMqarConfig(): stacked,
    StackedMqarConfig(pairs=5, passes=3): stacked,
    ForgettingMqarConfig(symbols=64): newest,
}
TASKS = list(READERS)


def named(config: ExampleConfig) -> str:
    return f"{next(name for name, kind in SOURCES.items() if kind is type(config))}-{TASKS.index(config)}"


@pytest.mark.parametrize("config", TASKS, ids=named)
def test_a_reader_of_the_row_is_always_right(config):
    for seed, extra in enumerate((0, 1, 2, 57, 300)):
        tokens = config.least + extra
        example = config.example(np.random.default_rng(seed), tokens)
        places = np.flatnonzero(example.weights)
        assert len(example.tokens) == len(example.targets) == len(example.weights) == tokens
        assert len(places) >= 1
        assert max(example.tokens.max(), example.targets.max()) < config.vocab
        assert min(example.tokens.min(), example.targets.min()) >= 0
        assert list(READERS[config](config, example.tokens.tolist(), places.tolist())) == example.answer.tolist()
        assert len(places) <= config.most_scored(tokens)
        again = config.example(np.random.default_rng(seed), tokens)
        np.testing.assert_array_equal(example.tokens, again.tokens)


@pytest.mark.parametrize("config", TASKS, ids=named)
def test_a_guesser_scores_chance(config):
    """One who draws uniformly from all tokens that are ever an answer, as many as chance says there are."""
    random, answers = np.random.default_rng(0), []
    while len(answers) < 6000:
        answers += config.example(random, config.least + 120).answer.tolist()
    known, chance = np.unique(answers), config.chance()["accuracy"]
    assert len(known) in (round(1 / chance), getattr(config, "keys", 0))  # of more values than keys, memorization has as many
    guesses = random.integers(round(1 / chance), size=len(answers)) + known.min()
    assert np.mean(guesses == answers) == pytest.approx(chance, abs=4.5 * (chance / len(answers)) ** 0.5)


@pytest.mark.parametrize("config", TASKS, ids=named)
def test_a_row_that_is_too_short_is_told_the_least_length(config):
    config.check(config.least)
    with pytest.raises(ConfigError, match=rf"^train.sequence: .+; give at least {config.least}$"):
        config.check(config.least - 1)


@pytest.mark.parametrize("config", TASKS, ids=named)
def test_batches_are_those_of_the_step_whatever_part_is_asked(config):
    source = config.open(Rows(batch=4, tokens=config.least + 9, seed=3))
    whole = source.batch(2)
    for ours, theirs in zip(whole, config.open(source.shape).rows(2, 1, 2), strict=True):
        np.testing.assert_array_equal(ours[1:3], theirs)
    assert not np.array_equal(whole.tokens, source.batch(3).tokens)
    assert len({row.tobytes() for row in whole.tokens}) == 4


@pytest.mark.parametrize("config", [SelectiveCopyingConfig(), CompressionConfig(), StackedMqarConfig()], ids=named)
def test_answers_stand_as_far_back_as_declared(config):
    """The nearest of many, by the last place in front of each question at which its answer was told."""
    tokens, nearest = config.least + 11, []
    for seed in range(40):
        example = config.example(np.random.default_rng(seed), tokens)
        places = np.flatnonzero(example.weights)
        if isinstance(config, StackedMqarConfig):
            pair = np.flatnonzero(example.tokens < config.keys**2)
            assert pair.max() == config.pairs * config.passes - 1
            nearest.append(places.min() - pair.max())
            continue
        own = np.flatnonzero(example.tokens < config.symbols - (2 if isinstance(config, SelectiveCopyingConfig) else 1))
        nearest.append((places - own).min())
    assert min(nearest) == config.distance(tokens)


def test_noise_is_as_frequent_as_it_is_set_and_never_the_whole_row():
    config, random = NoisyRecallConfig(noise=0.5), np.random.default_rng(0)
    rows = np.stack([config.example(random, 200).tokens for _ in range(40)])
    assert (rows[:, ::2] >= 16).mean() == pytest.approx(0.5, abs=0.03)
    assert dataclasses.replace(config, noise=0.999).example(random, 40).answer.size == 1


def test_blanks_stand_among_the_symbols_that_are_copied():
    firsts = [np.flatnonzero(SelectiveCopyingConfig().example(np.random.default_rng(n), 256).tokens < 14) for n in range(30)]
    assert {len(places) for places in firsts} == {16}
    assert np.std([places[8] for places in firsts]) > 3
    assert all(places[-1] == 256 - 16 - 2 for places in firsts)  # in front of the mark


def test_forgetting_is_mqar_at_zoologys_settings():
    plain = MqarConfig(pairs=8, symbols=8192, overwrites=4, spread=0.01, noise=1.0)
    rows = [config.example(np.random.default_rng(5), 64).tokens for config in (ForgettingMqarConfig(), plain)]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (InContextRecallConfig(symbols=1), "data.symbols: 1 are too few; give at least 2"),
        (InContextRecallConfig(noise=0.5), "data.noise_symbols: noise needs symbols"),
        (InContextRecallConfig(noise_symbols=15), "data.noise_symbols: 15 of 16 leave no key and value"),
        (NoisyRecallConfig(noise=1.0), "data.noise: 1.0 is no share of pairs"),
        (FuzzyRecallConfig(key_length=8), "data.key_length: 8 of 7 different tokens; give 1 to 7"),
        (FuzzyRecallConfig(value_length=0), "data.value_length: 0 of 8"),
        (SelectiveCopyingConfig(copied=0), "data.copied"),
        (CompositionalMqarConfig(pairs=5), "data.pairs: 5 is no square"),
        (CompositionalMqarConfig(symbols=12, pairs=9), "data.symbols: 12 are too few; give at least 27"),
        (StackedMqarConfig(symbols=290), "data.symbols: 290 is no square"),
        (StackedMqarConfig(pairs=17), "data.pairs: 17 of 16 keys"),
        (MemorizationConfig(symbols=2), "data.symbols: 2 are too few"),
    ],
)
def test_settings_that_cannot_be_are_told_in_one_line(config, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        config.check(4096)


# ---- evaluation ----------------------------------------------------------------------------------------------------------

MODEL = ModelConfig(vocab=300, layers=1, d_model=16, heads=1, segment=16)


def run_on(data: ExampleConfig) -> RunConfig:
    return RunConfig(name="run", model=MODEL, data=data, train=TrainConfig(sequence=64), budget=Budget("steps", 3))


def test_an_axis_of_the_task_is_asked_beside_lengths():
    evaluation = SymbolEvaluation(lengths=(128, 64), axis="copied", values=(4, 8), examples=2)
    run = run_on(SelectiveCopyingConfig(copied=2))
    evaluation.check(run)
    cells = evaluation.cells(run)
    assert [(cell.tokens, cell.config.copied, cell.labels) for cell in cells] == [
        (length, copied, {"length": length, "copied": copied}) for length in (64, 128) for copied in (4, 8)
    ]
    for cell in cells:
        assert all(len(one.answer) == cell.config.copied for one in evaluation.draw(run, cell))
    (own,) = SymbolEvaluation().cells(run)
    assert own.config == run.data
    assert run.data.with_labels(own.labels) == run.data


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        (
            SelectiveCopyingConfig(copied=2),
            {"axis": "noise", "values": (1,)},
            "axis: selective_copying does not become harder",
        ),
        (
            CompressionConfig(),
            {"values": (1,)},
            "axis: compression does not become harder along ''; leave axis and values out",
        ),
        (SelectiveCopyingConfig(copied=2), {"axis": "copied"}, "values: none is given of copied"),
        (SelectiveCopyingConfig(copied=2), {"axis": "copied", "values": (1.5,)}, "values: 1.5 is no number of copied"),
        (
            MqarConfig(pairs=2, symbols=32),
            {},
            "task: symbols cannot ask a run on mqar; choose a run that was trained on symbols",
        ),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(data, settings, said):
    with pytest.raises(ConfigError) as error:
        SymbolEvaluation(**settings).check(run_on(data))
    assert said in str(error.value)


def test_a_task_of_symbols_is_trained_and_asked_by_the_command_line(tmp_path, capsys):
    tiny = "--model.layers 1 --model.d-model 16 --model.heads 1 --model.segment 16 --train.sequence 64 --train.batch 2"
    end = f"--train.evaluation-steps 1 --budget.amount 2 --model.vocab 32 --results {tmp_path}"
    main(f"train infini noisy_recall {tiny} {end}".split())
    main(f"evaluate {tmp_path / 'run'} --task symbols --lengths 64,96 --axis noise --values 0,0.5 --examples 2".split())
    assert "noise" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "evaluation-symbols.json").read_text())
    assert {(one["labels"]["length"], one["labels"]["noise"]) for one in record["measures"]} == {
        *((64, 0.0), (64, 0.5), (96, 0.0), (96, 0.5))
    }


def test_every_symbol_task_in_the_registry_is_tested_here():
    assert {kind for kind in SOURCES.values() if issubclass(kind, SymbolTask)} < {type(config) for config in TASKS}
