"""Recall in rows of several lengths, with questions spread by a power law and fillers at random, as Zoology has it."""

import dataclasses

import numpy as np
import pytest

from infini_jax.data.batch import Rows
from infini_jax.data.mqar import FILLER, MixedMqarConfig, MqarConfig
from infini_jax.errors import ConfigError

SPREAD = MqarConfig(pairs=4, symbols=64, spread=0.01)
MIXED = MixedMqarConfig(pairs=4, symbols=64, mixture=((16, 2, 3), (32, 4, 1)))


def test_every_key_is_asked_once_behind_the_pairs_and_wants_its_value():
    tokens, targets, weights = SPREAD.draw(np.random.default_rng(0), 200, 64)
    for row in range(200):
        pairs = dict(zip(tokens[row, 0:8:2], tokens[row, 1:8:2], strict=True))
        asked = np.flatnonzero(weights[row])
        assert len(asked) == 4
        assert asked.min() >= 8
        assert set(asked % 2) == {0}
        assert sorted(tokens[row, asked]) == sorted(pairs)
        assert all(targets[row, at] == pairs[tokens[row, at]] for at in asked)
        assert (tokens[row, 8:][~np.isin(np.arange(8, 64), asked)] == FILLER).all()


def test_places_follow_the_power_law():
    """The first question of one pair: its place g has the chance g^(a - 1), normalized; a uniform law where a is 1."""
    for a in (0.01, 1.0):
        one = dataclasses.replace(SPREAD, pairs=1, spread=a)
        _, _, weights = one.draw(np.random.default_rng(1), 20_000, 22)
        place = (weights.argmax(axis=1) - 2) // 2  # ten places
        expected = np.arange(1, 11) ** (a - 1.0)
        expected /= expected.sum()
        deviation = np.sqrt(expected * (1 - expected) / 20_000)
        assert (np.abs(np.bincount(place, minlength=10) / 20_000 - expected) < 5 * deviation).all()


def test_noise_replaces_its_share_of_the_filler_alone():
    half = dataclasses.replace(SPREAD, noise=0.5)
    tokens, _, weights = half.draw(np.random.default_rng(2), 500, 64)
    filler = tokens[:, 8:][weights[:, 8:] == 0]
    share = np.mean(filler != FILLER)
    assert share == pytest.approx(0.5 * 63 / 64, abs=5 * 0.5 / len(filler) ** 0.5)  # five standard deviations
    assert filler.max() == 63


def test_settings_without_spread_or_noise_draw_what_they_drew_before():
    tokens, targets, weights = MqarConfig(pairs=2, symbols=16).draw(np.random.default_rng(0), 1, 8)
    assert tokens[0, 4:6].tolist() == [FILLER, FILLER]
    assert weights[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    pairs = dict(zip(tokens[0, 0:4:2], tokens[0, 1:4:2], strict=True))
    assert [pairs[key] for key in tokens[0, 6:]] == targets[0, 6:].tolist()


def test_a_row_is_packed_with_whole_examples_of_one_kind_each_a_document_of_its_own():
    source = MIXED.open(Rows(64, 32, seed=0))
    batch = source.batch(3)
    kinds = []
    for row in range(64):
        documents = np.unique(batch.documents[row])
        kinds.append(len(documents))
        for document in documents:
            inside = batch.documents[row] == document
            pairs = 2 if len(documents) == 2 else 4
            assert inside.sum() == 32 // len(documents)
            assert batch.weights[row, inside].sum() == pairs
    assert set(kinds) == {1, 2}
    assert len(np.unique(batch.documents)) == sum(kinds)
    assert not np.intersect1d(batch.documents, source.batch(4).documents).size
    part = source.rows(3, 10, 4)
    np.testing.assert_array_equal(part.tokens, batch.tokens[10:14])


def test_no_row_scores_more_places_than_the_task_says_and_some_as_many():
    counts = [np.count_nonzero(MIXED.open(Rows(8, 32, seed=0)).batch(step).weights, axis=1).max() for step in range(6)]
    assert max(counts) == MIXED.most_scored(32) == 4


def test_kinds_come_in_the_shares_of_their_examples():
    source = MIXED.open(Rows(4000, 32, seed=1))
    whole = np.mean(source.batch(0).documents[:, 0] == source.batch(0).documents[:, -1])
    assert whole == pytest.approx(32 * 1 / (16 * 3 + 32 * 1), abs=5 * 0.5 / 4000**0.5)  # rows, as two short ones share one


def test_an_evaluation_asks_one_kind_at_its_own_length():
    asked = MIXED.with_labels({"pairs": 2, "length": 16})
    assert asked == MqarConfig(pairs=2, symbols=64, spread=0.01, noise=1.0)
    assert MIXED.covers(asked)
    assert not MIXED.covers(dataclasses.replace(asked, pairs=3))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mixture": ()}, "it is empty"),
        ({"mixture": ((12, 2, 1),), "pairs": 2}, "give lengths that divide"),
        ({"mixture": ((16, 2, 0),), "pairs": 2}, "weight"),
        ({"pairs": 3}, "give 4"),
        ({"mixture": ((16, 5, 1),), "pairs": 5}, "do not hold"),
        ({"spread": -1.0}, "give 0, or an exponent"),
        ({"noise": 2.0}, "give 0 to 1"),
        ({"repeats": 2}, "cannot be spread"),
    ],
)
def test_mixtures_that_cannot_be_made_are_refused_in_a_line(wrong, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(MIXED, **wrong).check(32)
