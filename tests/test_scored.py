"""Logits at scored places alone give the loss, gradient and memory of logits at all places, and tasks keep their word."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data import SOURCES
from infini_jax.data.base import opened
from infini_jax.data.batch import Batch, Rows
from infini_jax.data.mad.compression import CompressionConfig
from infini_jax.data.mad.selective_copying import SelectiveCopyingConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.data.zoology.compositional import CompositionalMqarConfig
from infini_jax.data.zoology.forgetting import ForgettingMqarConfig
from infini_jax.data.zoology.stacked import StackedMqarConfig
from infini_jax.devices.sharding import Sharding, layout_of
from infini_jax.devices.side_by_side import OneModel
from infini_jax.errors import ConfigError
from infini_jax.layers.dropout import dropout_of_step
from infini_jax.memory import MECHANISMS
from infini_jax.memory.infini import InfiniConfig
from infini_jax.model.cost import head_share, model_cost, program_flops, run_cost, training_flops_per_step
from infini_jax.model.scored import few_places, gathered, in_parts
from infini_jax.training.gradient import gradient_function
from infini_jax.training.program import Training
from infini_jax.training.scoring import score_batches
from tests.support.commands import on_devices
from tests.support.marks import slow_but
from tests.support.streams import losses_of, parameters, tiny
from tests.test_tasks import ALL, least_of, named, with_bytes


@dataclass(frozen=True)
class Everywhere(MqarConfig):
    """The same task, whose logits are computed at all places: the reference."""

    def most_scored(self, tokens):
        return tokens


PAIRS, REPEATS, SEGMENTS = 5, 4, 5
FEW, ALL_PLACES = (kind(pairs=PAIRS, symbols=32, repeats=REPEATS) for kind in (MqarConfig, Everywhere))


def run_of(name: str, data: MqarConfig = FEW, **train) -> RunConfig:
    """Twenty scored places of 80, more than a segment has."""
    model = tiny(name)
    train = TrainConfig(**{"batch": 2, "sequence": SEGMENTS * model.segment, "evaluation_steps": 2, **train})
    return RunConfig(model=model, data=data, train=train, budget=Budget("steps", 3))


def gradient_of(run: RunConfig) -> tuple:
    """(gradient, carry, (scores, gates)) of the third batch."""
    training = Training(run)
    batch, segments = training.source.batch(2), run.train.sequence // run.model.segment
    dropout = dropout_of_step(run.train.dropout, 0, jnp.int32(2), run.train.batch, segments)
    carry = training.fresh().carry
    return jax.jit(gradient_function(run))(parameters(run.mechanism), carry, batch, dropout)


def assert_same(found, expected) -> None:
    """Equal but for the order of float32 sums, which is felt at the scale of an array's largest entry."""
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        largest = np.abs(np.where(np.isfinite(other), other, 0)).max(initial=0)
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * largest, err_msg=jax.tree_util.keystr(path))


# ---- the same numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but({"infini"}, MECHANISMS))
def test_every_mechanism_has_the_loss_gradient_and_memory_of_all_places(name):
    assert few_places(run_of(name).most_scored, run_of(name).train.sequence) == PAIRS * REPEATS
    assert_same(gradient_of(run_of(name)), gradient_of(run_of(name, ALL_PLACES)))


SETTINGS = {
    "a segment again, places in parts": {"rematerialise": "segment"},
    "several segments at once, layers again": {"segments_per_step": SEGMENTS, "rematerialise": "layer"},
    "gradients cut": {"bptt": 1},
    "rows in turns": {"batch": 4, "accumulate": 2},
    "dropout and log(Z)^2": {"dropout": 0.3, "z_loss": 0.1},
}


@pytest.mark.parametrize("settings", slow_but({"a segment again, places in parts"}, SETTINGS))
def test_in_every_form_of_the_step(settings):
    changes = SETTINGS[settings]
    assert_same(gradient_of(run_of("infini", **changes)), gradient_of(run_of("infini", ALL_PLACES, **changes)))


def test_held_out_batches_have_the_scores_of_all_places():
    learned = OneModel(parameters("local"))
    found, expected = (score_batches(run_of("local", data), learned, "validation") for data in (FEW, ALL_PLACES))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # sums in another order


def losses(rules: str, per_row: int) -> dict[str, list[float]]:
    """Losses of three steps: at all places on one device, at scored places on all."""
    every = {"segments_per_step": 4} if rules == "fsdp+sequence" else {}
    run = run_of("infini", batch=4, sequence=4 * tiny("infini").segment, **every)
    layout = layout_of(run, Sharding(rules, per_row))
    return {"one": losses_of(dataclasses.replace(run, data=ALL_PLACES)), "several": losses_of(run, layout)}


def all_losses() -> dict[str, dict[str, list[float]]]:
    """By rules."""
    return {rules: losses(rules, per_row) for rules, per_row in (("data", 1), ("fsdp+tensor", 2), ("fsdp+sequence", 2))}


@pytest.mark.slow
def test_four_devices_have_the_losses_of_all_places_on_one():
    for rules, found in on_devices(4, "test_scored", "all_losses()").items():
        np.testing.assert_allclose(found["several"], found["one"], rtol=2e-5, err_msg=rules)  # sums in another order


# ---- the places ----------------------------------------------------------------------------------------------------------


def batch_of(weights_BxT: np.ndarray) -> Batch:
    places_BxT = np.arange(weights_BxT.size, dtype=np.int32).reshape(weights_BxT.shape)
    return Batch(places_BxT, places_BxT + 1000, weights_BxT.astype(np.float32), places_BxT)


def test_what_is_gathered_is_every_scored_place_once():
    """Rows that score all, some, or none of the places that may be; weights need not be 1."""
    weights_BxT = np.zeros((3, 12), np.float32)
    weights_BxT[0, [1, 4, 5, 11]], weights_BxT[1, [0, 11]] = [0.5, -1.0, 2.0, 1.0], 1.0
    features_BxTxD = np.random.default_rng(0).normal(size=(3, 12, 2)).astype(np.float32)
    features_NxBxSxD = features_BxTxD.reshape(3, 3, 4, 2).swapaxes(0, 1)
    x_BxQxD, part = gathered(jnp.asarray(features_NxBxSxD), batch_of(weights_BxT), 4)
    for row in range(3):
        scored = np.flatnonzero(weights_BxT[row])
        places = np.asarray(part.tokens[row]) - 12 * row
        assert len(set(places.tolist())) == 4
        assert set(places.tolist()) >= set(scored.tolist())
        np.testing.assert_array_equal(x_BxQxD[row], features_BxTxD[row, places])
        np.testing.assert_array_equal(part.weights[row], weights_BxT[row, places])
        np.testing.assert_array_equal(part.targets[row], part.tokens[row] + 1000)


@pytest.mark.parametrize("most", [1, 3, 4, 6, 7, 9])
def test_parts_of_any_size_score_each_place_once(most):
    x_BxQxD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 3)), jnp.float32)
    found = in_parts(lambda x, part: (x.sum(axis=2) * part.weights).sum(), x_BxQxD, batch_of(np.ones((2, 7))), most)
    assert found.shape == (-(-7 // most),)
    np.testing.assert_allclose(found.sum(), x_BxQxD.sum(), rtol=1e-5)  # sums in another order


def test_half_of_the_places_are_no_few():
    assert [few_places(most, 10) for most in (0, 1, 4, 5, 10, 11)] == [1, 1, 4, None, None, None]


# ---- what is paid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [FEW, ALL_PLACES], ids=["few", "all"])
@pytest.mark.parametrize("rematerialise", ["none", "segment"])
def test_a_budget_pays_for_the_logits_of_scored_places_and_for_no_others(data, rematerialise):
    """With a vocabulary on which logits of all places spend most: plan and program within 2 %."""
    model = ModelConfig(memory=InfiniConfig(), vocab=8192, layers=1, d_model=32, heads=2, segment=16)
    run = RunConfig(
        model=model,
        data=data,
        train=TrainConfig(batch=2, sequence=80, rematerialise=rematerialise),
        budget=Budget("steps", 1),
    )
    share = 20 / 80 if data is FEW else 1.0
    assert head_share(run) == share
    assert run_cost(run).head == share * model_cost(model).head > run_cost(run).projections
    training = Training(run)
    counted = program_flops(gradient_function(run), training.shapes.params, training.shapes.carry, training.batch)
    assert counted.work == pytest.approx(training_flops_per_step(run), rel=0.02)


def test_programs_of_tasks_that_score_more_places_are_others_and_fingerprints_are_not():
    few, more = (Training(run_of("local", data)).program for data in (FEW, ALL_PLACES))
    assert few != more
    assert dataclasses.replace(few, most_scored=more.most_scored) == more
    # pinned: what a task declares is no setting, so that a run's results keep their name
    assert RunConfig().fingerprint() == "6b6f6a7365f3"


# ---- what tasks say ------------------------------------------------------------------------------------------------------

FIXED = (
    ForgettingMqarConfig(symbols=64),
    CompositionalMqarConfig(),
    StackedMqarConfig(),
    SelectiveCopyingConfig(),
    CompressionConfig(),
)
DECLARED = [
    *ALL,
    *FIXED,
    *(with_bytes(config) for config in ALL if hasattr(config, "tokenizer")),
    MqarConfig(4, 32, repeats=3),
]


@pytest.mark.parametrize("config", DECLARED, ids=lambda config: f"{named(config)}-{getattr(config, 'tokenizer', '')}")
def test_no_row_of_a_task_scores_more_places_than_it_says_and_some_row_as_many(config):
    tokens = least_of(config) + 7
    rows = [config.open(Rows(4, tokens, seed, split)) for seed in (0, 1) for split in ("train", "validation")]
    counts = [np.count_nonzero(source.batch(step).weights, axis=1) for source in rows for step in range(6)]
    assert np.max(counts) == config.most_scored(tokens)


def test_every_registered_task_says_how_many_places_it_scores():
    tested = {type(config) for config in DECLARED}
    all_places = {"in_context_recall", "noisy_recall", "fuzzy_recall", "memorization"}
    untested = {name for name, kind in SOURCES.items() if kind not in tested}
    assert untested == {"python_stdlib", "corpus", "conditioned", "echo", "mqar_mixed", *all_places}
    assert all(SOURCES[name]().most_scored(96) == 96 for name in all_places)
    assert StdlibConfig().most_scored(96) == 96  # of text every place


@dataclass(frozen=True)
class Liar(MqarConfig):
    def most_scored(self, tokens):
        return 3


def test_a_task_that_scores_more_than_it_says_is_refused_before_a_place_is_lost():
    said = r"^data: a row of step 5 scores 20 places, and Liar.most_scored says at most 3; let most_scored return as many"
    source = opened(Liar(pairs=PAIRS, symbols=32, repeats=REPEATS), Rows(2, 80, 0))
    with pytest.raises(ConfigError, match=said):
        source.batch(5)
    with pytest.raises(ConfigError, match=said):
        source.rows(5, 1, 1)
    honest = opened(FEW, Rows(2, 80, 0))
    np.testing.assert_array_equal(honest.batch(0).tokens, FEW.open(Rows(2, 80, 0)).batch(0).tokens)
    assert honest.corpus == FEW.open(Rows(2, 80, 0)).corpus
